"""The public ops: check the arguments, choose a backend, compute.

All row tensors are (rows, n_params) of one dtype and device, float32, bfloat16, float16 or float64,
with a contiguous last dimension; rows may lie apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from teleport_kernels import backends, library
from teleport_kernels.backends import Step
from teleport_kernels.checks import check_lr, check_rows, check_shapes
from teleport_kernels.mixing import Mixing
from teleport_kernels.reference import accumulation_dtype
from teleport_kernels.tensors import (
    check_dense,
    check_memory,
    check_tensor,
    few,
    flag,
    has_memory,
    number,
)


def gossip_mix(
    x: Tensor, mixing: Mixing, out: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Gossip averaging: `out_i = sum_j W[i, j] x_j`.

    x: (k, P); mixing: W, (k, k); out: (k, P) in memory of its own, or None for a new tensor;
    backend: as in
    `teleport_kernels.backends`.
    Differentiable where out is None: the gradient of x is W^T times that of the result.
    Raises ValueError when shapes, dtypes or devices do not fit, or when out overlaps x.
    Source: Xiao and Boyd 2004.
    """
    return teleport_mix(x, mixing, out=out, backend=backend)


def teleport_mix(
    x: Tensor,
    mixing: Mixing,
    source: Tensor | None = None,
    target: Tensor | None = None,
    out: Tensor | None = None,
    *,
    validate: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Teleport and gossip in one pass: `out[target[a]] = sum_b W[a, b] x[source[b]]`.

    x: (n, P); source: (k,) int64 rows of x, default 0..k-1; target: (k,) distinct rows of out,
    default 0..k-1; out: (m, P) in memory of its own, needed with target; other rows stay.
    validate: check the values of source and target, which waits for the device on CUDA (and is left
    out while a CUDA graph is captured); False for indices that are known to be good.
    Differentiable where out is None.
    Raises ValueError on a bad shape, dtype, device or index, or when out overlaps x.
    Source: Takezawa and Stich 2025, Algorithm 1, fused form.
    """
    check_shapes(x, mixing, source, target, out)
    _check_backend(backend)
    validate = bool(validate)
    if not library.needed(x, source, target, out):
        return backends.mix(x, mixing, out, source, target, validate=validate, backend=backend)
    if out is None:
        return library.dispatched(
            library.differentiable, x, mixing.tensors(), source, validate, backend
        )
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise ValueError("a mix into out has no derivative: leave out away, or use torch.no_grad()")
    library.check_no_transform("a mix into out", "leave out away", x, source, target, out)
    _mix_into(x, mixing, out, source, target, validate, backend, Step())
    return out


@torch.no_grad()
def sgd_mix(
    x: Tensor,
    grad: Tensor,
    mixing: Mixing,
    *,
    lr: float | Tensor,
    momentum: Tensor | None = None,
    beta: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    source: Tensor | None = None,
    target: Tensor | None = None,
    out: Tensor | None = None,
    validate: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Local step, teleport and gossip: `out[target[a]] = sum_b W[a, b] (x[source[b]] - lr_b u_b)`.

    u is the step direction: d = grad + weight_decay x; with momentum, m <- beta m + d in place, and
    u = m (heavy ball) or d + beta m (Nesterov); without, u = d.

    x: (n, P); grad: (k, P); mixing: (k, k); lr: a number or (k,); momentum: (k, P), updated;
    source, target, out, validate: as in `teleport_mix`. Like the step of an optimiser, it is not
    recorded for derivatives.
    Raises ValueError on a bad shape, dtype, device or index, or when what is written (out,
    momentum) overlaps what is read.
    Source: D-SGD of Lian et al. 2017 (adapt then combine); Takezawa and Stich 2025.
    """
    check_tensor("grad", grad)
    check_shapes(x, mixing, source, target, out, grad, momentum)
    _check_backend(backend)
    validate = bool(validate)
    if momentum is None and (beta or nesterov):
        raise ValueError(
            f"beta = {beta} and nesterov = {nesterov} need momentum, a buffer kept from one "
            "step to the next: give momentum=torch.zeros_like(grad) at the start"
        )
    k, dtype = mixing.n_rows, accumulation_dtype(x.dtype)
    if isinstance(lr, Tensor):
        check_lr(lr, k, x.device)
        lr = lr.to(dtype).expand(k).contiguous()
    else:
        lr = number("lr", lr, dtype, "a number or a tensor")
        lr = torch.full((k,), lr, dtype=dtype, device=x.device)
    beta, weight_decay = (
        number(name, value, dtype)
        for name, value in (("beta", beta), ("weight_decay", weight_decay))
    )
    step = Step(grad, lr, momentum, beta, flag("nesterov", nesterov), weight_decay)
    if not library.needed(x, grad, lr, momentum, source, target, out):
        return backends.mix(
            x, mixing, out, source, target, validate=validate, backend=backend, step=step
        )
    library.check_no_transform(
        "sgd_mix",
        "give gossip_mix(x - lr * grad, mixing)",
        *(x, grad, lr, momentum, source, target, out),
    )
    if out is None:
        out = library.dispatched(Tensor.new_empty, x, (k, x.shape[1]))
    _mix_into(x, mixing, out, source, target, validate, backend, step)
    return out


def consensus(
    x: Tensor, groups: Tensor | None = None, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """The mean row and the sum of squared distances to it: `xbar`, `sum_i ||x_i - xbar||^2`.

    x: (rows, P). Returns (P,) and a scalar, in float32 (float64 for float64). With groups, (rows,)
    ids 0..g-1 in ascending order and none left out, one result a group: (g, P) and (g,).
    """
    check_rows("x", x)
    _check_backend(backend)
    if groups is None:
        if not x.shape[0]:
            raise ValueError("the mean of no rows is undefined, got x of shape (0, P)")
        starts = torch.arange(2, device=x.device) * x.shape[0]
    else:
        starts = _starts(x, groups)
    if library.needed(x):
        library.check_no_derivative("consensus", library.INSTEAD, x)
        mean, distance = library.dispatched(library.consensus, x, starts, backend)
    else:
        mean, distance = backends.consensus(x, starts, backend)
    return (mean, distance) if groups is not None else (mean[0], distance[0])


def _check_backend(name: str | None) -> None:
    if name is not None:
        backends.known(name, "the argument")


def _starts(x: Tensor, groups: Tensor) -> Tensor:
    """(g + 1,): where each group begins."""
    check_dense("groups", groups)
    if groups.dtype.is_floating_point or groups.dtype.is_complex or groups.dtype == torch.bool:
        raise ValueError(f"groups must be whole numbers, got {groups.dtype}")
    if groups.shape != x.shape[:1] or groups.device != x.device:
        raise ValueError(
            f"groups must have shape ({x.shape[0]},) on {x.device}, "
            f"got {tuple(groups.shape)} on {groups.device}"
        )
    if groups.is_meta or not has_memory(groups):
        raise ValueError("groups must have values, got a tensor on meta or one that wraps another")
    check_memory("groups", groups)
    step = groups.long().diff()
    if not len(groups) or groups[0] != 0 or bool(((step != 0) & (step != 1)).any()):
        raise ValueError(
            f"groups must be ids 0..g-1 in ascending order with none left out, got {few(groups)}"
        )
    ends = torch.ones(len(groups) + 1, dtype=torch.bool, device=x.device)
    ends[1:-1] = step != 0
    return ends.nonzero().squeeze(1)


def _mix_into(
    x: Tensor,
    mixing: Mixing,
    out: Tensor,
    source: Tensor | None,
    target: Tensor | None,
    validate: bool,
    backend: str | None,
    step: Step,
) -> None:
    parts = mixing.tensors()
    library.dispatched(library.mix_into, x, parts, out, source, target, validate, backend, *step)
