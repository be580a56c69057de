"""Mixing kernels for decentralized learning: gossip averaging and teleport on flat node tensors.

Every simulated node (or token) is a row of an `(n, n_params)` tensor; a sparse `Mixing` matrix says
which rows a row receives from. The library stands alone and knows nothing of learning.

The names below load on first use, so that `compiler` can be used before torch is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teleport_kernels.backends import backend
    from teleport_kernels.mixing import Mixing, block_diag
    from teleport_kernels.ops import consensus, gossip_mix, sgd_mix, teleport_mix

_HOME = {
    "Mixing": "mixing",
    "backend": "backends",
    "block_diag": "mixing",
    "consensus": "ops",
    "gossip_mix": "ops",
    "sgd_mix": "ops",
    "teleport_mix": "ops",
}

__all__ = ["Mixing", "backend", "block_diag", "consensus", "gossip_mix", "sgd_mix", "teleport_mix"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'teleport_kernels' has no attribute '{name}'")
    return getattr(importlib.import_module(f"teleport_kernels.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
