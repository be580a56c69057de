"""Registration with torch.library: the ops under torch.compile, torch.func and autograd.

Eager calls on plain tensors go past it, since dispatch costs more than a small mix takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import (
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    is_gradtrackingtensor,
)
from torch.autograd import forward_ad

from teleport_kernels import backends
from teleport_kernels.backends import Step
from teleport_kernels.checks import check_shapes, check_starts, check_step
from teleport_kernels.mixing import Mixing
from teleport_kernels.reference import accumulation_dtype

PLAIN = (Tensor, torch.nn.Parameter)

Result = TypeVar("Result")

PARTS = [torch.int64, torch.int64, torch.float64, torch.float32, torch.int64, torch.int64]
"""The types of `Mixing.tensors()`."""


def needed(*tensors: Tensor | None) -> bool:
    """Whether a call must be seen by torch: traced, transformed, to be differentiated, or without
    values, on meta."""
    return (
        torch.compiler.is_compiling()
        or _len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or any(
            type(t) not in PLAIN
            or t.is_meta
            or is_functorch_wrapped_tensor(t)
            or (t.requires_grad and torch.is_grad_enabled())
            for t in tensors
            if t is not None
        )
    )


def check_no_transform(what: str, instead: str, *tensors: Tensor | None) -> None:
    """Nobody asks for a batch or a derivative of what has none."""
    if torch.compiler.is_compiling():
        return
    for t in tensors:
        if t is not None and _wrapped(t, is_batchedtensor):
            raise ValueError(f"{what} has no vmap: {instead}")
    check_no_derivative(what, instead, *tensors)


def check_no_derivative(what: str, instead: str, *tensors: Tensor | None) -> None:
    """Nobody asks for a derivative, by torch.func or in forward mode, of what has none."""
    if torch.compiler.is_compiling():
        return
    for t in tensors:
        if t is not None and (_wrapped(t, is_gradtrackingtensor) or _has_tangent(t)):
            raise ValueError(f"{what} has no derivative: {instead}")


def _wrapped(x: Tensor, how: Callable[[Tensor], bool]) -> bool:
    while is_functorch_wrapped_tensor(x):
        if how(x):
            return True
        x = get_unwrapped(x)
    return False


def _has_tangent(x: Tensor) -> bool:
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def dispatched(op: Callable[..., Result], *arguments: Any) -> Result:
    """The result of an op. What a class of tensors, or a mode, says that does not know it, such as
    a masked or a fake tensor, becomes a ValueError."""
    if torch.compiler.is_compiling():
        return op(*arguments)
    try:
        return op(*arguments)
    except (AssertionError, NotImplementedError, TypeError) as error:
        kinds = {type(t).__name__ for t in arguments if isinstance(t, Tensor)} - {"Tensor"}
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"the ops do not know {' and '.join(sorted(kinds)) or 'this mode'}: "
            f"give plain tensors ({reason:.200})"
        ) from error


@torch.library.custom_op("teleport_kernels::teleport_mix", mutates_args=())
def teleport_mix(
    x: Tensor,
    mixing: Sequence[Tensor],
    source: Tensor | None,
    validate: bool,
    backend: str | None,
) -> Tensor:
    """`ops.teleport_mix` into a new tensor; mixing: `Mixing.tensors()`."""
    W = _matrix(mixing)
    x = x if x.ndim != 2 or x.stride(1) == 1 else x.contiguous()  # derivatives may come expanded
    check_shapes(x, W, source, None, None)
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
        ctx.save_for_forward(source, *mixing)

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

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        """The op is linear: the tangent is mixed as x was."""
        source, *mixing = ctx.saved_tensors
        return differentiable(tangent, mixing, source, False, ctx.backend)


def _matrix(parts: Sequence[Tensor]) -> Mixing:
    """The matrix of `Mixing.tensors()`, whose types are looked at, as anybody can call an op."""
    dtypes = [part.dtype if part.ndim == 1 and part.is_contiguous() else None for part in parts]
    if dtypes != PARTS:
        raise ValueError("mixing must be what Mixing.tensors() gives")
    return Mixing.from_tensors(parts)


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
    W = _matrix(mixing)
    check_shapes(x, W, source, target, out, grad, momentum)
    check_step(x, grad, lr, W.n_rows)
    backends.mix(x, W, out, source, target, validate=validate, backend=backend, step=step)


@mix_into.register_fake
def _(*_: object) -> None:
    return None


INSTEAD = "take that of ((x - x.mean(0)) ** 2).sum()"
"""Of the derivative of `consensus`."""


@torch.library.custom_op("teleport_kernels::consensus", mutates_args=())
def consensus(x: Tensor, starts: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
    """`reference.consensus`."""
    check_starts(x, starts)
    return backends.consensus(x, starts, backend)


@consensus.register_fake
def _(x: Tensor, starts: Tensor, _: str | None) -> tuple[Tensor, Tensor]:
    groups, dtype = starts.shape[0] - 1, accumulation_dtype(x.dtype)
    return x.new_empty(groups, x.shape[1], dtype=dtype), x.new_empty(groups, dtype=dtype)


def _refuse(*_: object) -> Any:
    raise ValueError(f"consensus has no derivative: {INSTEAD}")


consensus.register_autograd(_refuse)


@consensus.register_vmap
def _(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, starts: Tensor, backend: str | None
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """A batch of row tensors is one with more groups."""
    batch, rows = x.movedim(in_dims[0], 0), starts[-1]
    first = torch.arange(info.batch_size, device=x.device).unsqueeze(1) * rows
    begins = torch.cat([(first + starts[:-1]).flatten(), rows.unsqueeze(0) * info.batch_size])
    mean, distance = consensus(batch.flatten(0, 1), begins, backend)
    each = (info.batch_size, len(starts) - 1)
    return (mean.unflatten(0, each), distance.unflatten(0, each)), (0, 0)
