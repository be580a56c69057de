"""Which backend serves a call, and the call.

"triton": the fused kernels, on CUDA (and on the CPU in Triton's interpreter, for tests).
"cpu": the compiled pass over column tiles, or its equal in torch where there is no compiler.
"reference": the definition, on any device.

The argument `backend` decides, else the context `backend(..)`, else the environment variable
TELEPORT_KERNELS_BACKEND, else the device: "triton" on CUDA, "cpu" on the CPU.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from teleport_kernels import checks, cpu, reference
from teleport_kernels.mixing import Mixing

NAMES = ("triton", "cpu", "reference")
VARIABLE = "TELEPORT_KERNELS_BACKEND"

_context: ContextVar[str | None] = ContextVar("teleport_kernels.backend", default=None)


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Calls inside use this backend: "triton", "cpu" or "reference"."""
    token = _context.set(known(name, "the context"))
    try:
        yield
    finally:
        _context.reset(token)


def choose(device: torch.device, argument: str | None = None) -> str:
    """The backend for tensors on a device. Raises ValueError where the one asked for cannot run."""
    if argument:
        name = known(argument, "the argument")
    elif (context := _context.get()) is not None:
        name = context
    elif variable := os.environ.get(VARIABLE):
        name = known(variable, VARIABLE)
    else:
        return _default(device.type)
    if name == "cpu" and device.type != "cpu":
        raise ValueError(f'backend "cpu" is for CPU tensors, got tensors on {device}')
    if name == "triton":
        if not _has_triton():
            raise ValueError('backend "triton" needs the package triton: pip install triton')
        if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                'backend "triton" on CPU tensors runs in Triton\'s interpreter alone: move them to '
                "CUDA, or start the process with TRITON_INTERPRET=1"
            )
    return name


class Step(NamedTuple):
    """The local step of `ops.sgd_mix`; lr: (rows,) in the accumulation dtype."""

    grad: Tensor | None = None
    lr: Tensor | None = None
    momentum: Tensor | None = None
    beta: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0


def mix(
    x: Tensor,
    mixing: Mixing,
    out: Tensor | None,
    source: Tensor | None,
    target: Tensor | None,
    *,
    validate: bool,
    backend: str | None,
    step: Step | None = None,
) -> Tensor:
    """`ops.sgd_mix`, or `ops.teleport_mix` without step, on arguments whose shapes fit."""
    module = _module(choose(x.device, backend))
    step = step or Step()
    checks.check_memories(
        x=x,
        out=out,
        source=source,
        target=target,
        grad=step.grad,
        lr=step.lr,
        momentum=step.momentum,
    )
    source, target = (i if i is None else i.contiguous() for i in (source, target))
    if validate and not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        if source is not None:
            checks.check_source(source, x)
        if target is not None and out is not None:
            checks.check_target(target, out)
    read = {"x": x, "grad": step.grad, "lr": step.lr, "source": source, "target": target}
    written = [tensor for tensor in (out, step.momentum) if tensor is not None]
    if out is not None:
        checks.check_apart("out", out, **read, momentum=step.momentum)
    if step.momentum is not None:
        checks.check_apart("momentum", step.momentum, **read)
    mixed = x.new_empty(mixing.n_rows, x.shape[1]) if out is None else out
    module.mix(x, mixing, mixed, source=source, target=target, **step._asdict())
    if written:  # through their addresses, which a derivative that keeps them has to know
        torch.autograd.graph.increment_version(written)
    return mixed


def consensus(x: Tensor, starts: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
    """`reference.consensus` by the chosen backend."""
    checks.check_memories(x=x)
    result: tuple[Tensor, Tensor] = _module(choose(x.device, backend)).consensus(x, starts)
    return result


def _module(name: str) -> ModuleType:
    if name == "triton":
        from teleport_kernels import triton_mix  # Triton is imported where it is used

        return triton_mix
    return cpu if name == "cpu" else reference


def known(name: str, where: str) -> str:
    if not isinstance(name, str) or name not in NAMES:
        raise ValueError(f'unknown backend "{name}" in {where}, expected one of {", ".join(NAMES)}')
    return name


@functools.cache
def _default(device_type: str) -> str:
    if device_type == "cpu":
        return "cpu"
    if device_type == "cuda":  # AMD's devices have this name too
        if _has_triton():
            return "triton"
        warnings.warn(
            "teleport_kernels: the package triton is missing; mixing on CUDA uses plain torch, "
            "several times slower, with the same results. pip install triton changes that.",
            RuntimeWarning,
            stacklevel=2,
        )
    return "reference"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None
