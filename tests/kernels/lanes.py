"""The lane that a process tests, told by its environment: the ops as `tk`, on its device.

TELEPORT_KERNELS_BACKEND chooses the backend, as for users; TRITON_INTERPRET=1 runs Triton's kernels
on CPU tensors; TEST_DEVICE=cuda moves every argument there and every result back.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

import teleport_kernels
from teleport_kernels import Mixing

DEVICE = os.environ.get("TEST_DEVICE", "cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
if INTERPRETED:  # which cuts bfloat16 off where devices round: see test_triton.py
    DTYPES.remove(torch.bfloat16)


def _here(op: Callable[..., Any]) -> Callable[..., Any]:
    if DEVICE == "cpu":
        return op

    @functools.wraps(op)
    def call(*args: Any, **kwargs: Any) -> Any:
        moved = {name: _move(value) for name, value in kwargs.items()}
        result = op(*map(_move, args), **moved)
        for name in ("out", "momentum"):
            if kwargs.get(name) is not None:
                kwargs[name].copy_(moved[name])
        if isinstance(result, tuple):
            return tuple(part.cpu() for part in result)
        return kwargs["out"] if kwargs.get("out") is not None else result.cpu()

    return call


def _move(value: Any) -> Any:
    return value.to(DEVICE) if isinstance(value, torch.Tensor | Mixing) else value


OPS = ("gossip_mix", "teleport_mix", "sgd_mix", "consensus")
tk = SimpleNamespace(**{name: _here(getattr(teleport_kernels, name)) for name in OPS})
tk.block_diag = teleport_kernels.block_diag
