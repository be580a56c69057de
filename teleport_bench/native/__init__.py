"""The round in C++: gradients and scores of many rows, and the replay of recorded rounds.

Compiled by the machine's own compiler the first time, in a few seconds, and kept in the user's
cache (`teleport_kernels.compiler`); nothing here depends on a model or a shape, so nothing is ever
compiled again. On the CPU this is an order of magnitude faster than the same in torch, whose calls
cost more than the arithmetic of a small network.
"""

from teleport_bench.native.calls import Call, Rows, Table, checked, dense
from teleport_bench.native.combine import combine
from teleport_bench.native.library import available, compiled, cores, identity, pool_alone, prepare
from teleport_bench.native.network import NativeNetwork
from teleport_bench.native.quadratic import NativeQuadratic
from teleport_bench.native.tape import Buffers, Recorded, Tape, Watch, remembered

__all__ = [
    "Buffers",
    "Call",
    "NativeNetwork",
    "NativeQuadratic",
    "Recorded",
    "Rows",
    "Table",
    "Tape",
    "Watch",
    "available",
    "checked",
    "combine",
    "compiled",
    "cores",
    "dense",
    "identity",
    "pool_alone",
    "prepare",
    "remembered",
]
