"""Registration with torch.library: the ops under torch.compile, torch.func and autograd.

Eager calls on plain tensors go past it, since dispatch costs more than a small mix takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from teleport_kernels import backends
from teleport_kernels.backends import Step
from teleport_kernels.mixing import Mixing
from teleport_kernels.reference import accumulation_dtype

PLAIN = (Tensor, torch.nn.Parameter)


def needed(*tensors: Tensor | None) -> bool:
    """Whether a call must be seen by torch: traced, transformed, or to be differentiated."""
    return torch.compiler.is_compiling() or any(
        type(t) not in PLAIN
        or is_functorch_wrapped_tensor(t)
        or (t.requires_grad and torch.is_grad_enabled())
        for t in tensors
        if t is not None
    )


@torch.library.custom_op("teleport_kernels::teleport_mix", mutates_args=())
def teleport_mix(
    x: Tensor,
    mixing: Sequence[Tensor],
    source: Tensor | None,
    validate: bool,
    backend: str | None,
) -> Tensor:
    """`ops.teleport_mix` into a new tensor; mixing: `Mixing.tensors()`."""
    W = Mixing.from_tensors(mixing)
    x = x if x.stride(1) == 1 else x.contiguous()  # derivatives may come expanded
    return backends.mix(x, W, None, source, None, validate=validate, backend=backend)


@teleport_mix.register_fake
def _(x: Tensor, mixing: Sequence[Tensor], *_: object) -> Tensor:
    return x.new_empty(mixing[0].shape[0] - 1, x.shape[1])


class Linear(torch.autograd.Function):
    """`teleport_mix` with its derivative, also under the transforms of torch.func (which refuse
    the derivatives that are registered with an op)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, source: Tensor | None, validate: bool, backend: str | None, *mixing: Tensor
    ) -> Tensor:
        mixed: Tensor = teleport_mix(x, mixing, source, validate, backend)
        return mixed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        x, source, _, ctx.backend, *mixing = inputs
        ctx.n_rows = x.shape[0]
        ctx.save_for_backward(source, *mixing)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """x receives W^T times the gradient of the result, added up where source repeats a row."""
        source, *mixing = ctx.saved_tensors
        transposed = Mixing.from_tensors(mixing).transposed()
        gradient = differentiable(grad, transposed, None, False, ctx.backend)
        if source is not None:
            zeros = gradient.new_zeros(ctx.n_rows, gradient.shape[1])
            gradient = zeros.index_put((source,), gradient, accumulate=True)
        return gradient, None, None, None, *(None for _ in mixing)


def differentiable(
    x: Tensor, mixing: list[Tensor], source: Tensor | None, validate: bool, backend: str | None
) -> Tensor:
    """`teleport_mix` with its derivative, for the compiler or for torch.func and autograd."""
    if torch.compiler.is_compiling():
        mixed: Tensor = teleport_mix(x, mixing, source, validate, backend)
    else:
        mixed = Linear.apply(x, source, validate, backend, *mixing)  # type: ignore[no-untyped-call]
    return mixed


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mixing, source, validate, backend = inputs
    Linear.setup_context(ctx, (x, source, validate, backend, *mixing), output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    gradient, _, _, _, *mixing = Linear.backward(ctx, grad)
    return gradient, mixing, None, None, None


teleport_mix.register_autograd(_backward, setup_context=_setup)


@teleport_mix.register_vmap
def _(
    _: Any,
    in_dims: tuple[Any, ...],
    x: Tensor,
    mixing: Sequence[Tensor],
    source: Tensor | None,
    validate: bool,
    backend: str | None,
) -> tuple[Tensor, int]:
    """A batch of row tensors is one row tensor with more columns."""
    if in_dims[2] is not None or any(dim is not None for dim in in_dims[1]):
        raise ValueError("vmap over the mixing matrix or source is not there: use block_diag")
    batched = x.movedim(in_dims[0], 1)
    mixed = teleport_mix(batched.flatten(1), mixing, source, validate, backend)
    return mixed.unflatten(1, batched.shape[1:]), 1


@torch.library.custom_op("teleport_kernels::mix_into", mutates_args=("out", "momentum"))
def mix_into(
    x: Tensor,
    mixing: Sequence[Tensor],
    out: Tensor,
    source: Tensor | None,
    target: Tensor | None,
    validate: bool,
    backend: str | None,
    grad: Tensor | None,
    lr: Tensor | None,
    momentum: Tensor | None,
    beta: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """`ops.sgd_mix`, or `ops.teleport_mix` without grad, into out."""
    step = Step(grad, lr, momentum, beta, nesterov, weight_decay)
    W = Mixing.from_tensors(mixing)
    backends.mix(x, W, out, source, target, validate=validate, backend=backend, step=step)


@mix_into.register_fake
def _(*_: object) -> None:
    return None


@torch.library.custom_op("teleport_kernels::consensus", mutates_args=())
def consensus(x: Tensor, starts: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
    """`reference.consensus`."""
    return backends.consensus(x, starts, backend)


@consensus.register_fake
def _(x: Tensor, starts: Tensor, _: str | None) -> tuple[Tensor, Tensor]:
    groups, dtype = starts.shape[0] - 1, accumulation_dtype(x.dtype)
    return x.new_empty(groups, x.shape[1], dtype=dtype), x.new_empty(groups, dtype=dtype)
