"""What bounds a mix: the bytes that it must move.

Every op adds and multiplies a few numbers for each that it reads, so memory is the bound: the time
cannot be below `bytes_moved(..)` over the bandwidth of a plain copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def bytes_moved(
    op: str, rows: int, n_params: int, itemsize: int, *, momentum: bool = False, groups: int = 1
) -> int:
    """Bytes that must be read and written at least, whatever the graph.

    gossip_mix, teleport_mix: x and out, 2 a value. sgd_mix: x, grad and out, 3 a value, and 5 with
    momentum, which is read and written. consensus: x, and a mean a group. The matrix and the
    indices are left out: they are small. rows: that take part; itemsize: bytes of a value.
    """
    passes = {"gossip_mix": 2, "teleport_mix": 2, "sgd_mix": 5 if momentum else 3}
    if op == "consensus":
        return n_params * (rows * itemsize + groups * max(4, itemsize))
    if op not in passes:
        raise ValueError(f'unknown op "{op}", expected one of {", ".join(passes)}, consensus')
    return passes[op] * rows * n_params * itemsize


def seconds(call: Callable[[], object], device: torch.device, repeat: int = 1) -> float:
    """Mean wall time of `repeat` calls, the device's work included."""
    began = time.perf_counter()
    for _ in range(repeat):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / repeat
