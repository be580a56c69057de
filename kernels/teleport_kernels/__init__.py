"""Mixing kernels for decentralized learning: gossip averaging and teleport on flat node tensors.

Every simulated node (or token) is a row of an `(n, n_params)` tensor; a sparse `Mixing` matrix says
which rows a row receives from. The library stands alone and knows nothing of learning.
"""

from teleport_kernels.backends import backend
from teleport_kernels.mixing import Mixing, block_diag
from teleport_kernels.ops import consensus, gossip_mix, sgd_mix, teleport_mix

__all__ = ["Mixing", "backend", "block_diag", "consensus", "gossip_mix", "sgd_mix", "teleport_mix"]
