"""The public ops: check the arguments, then compute. All row tensors are (rows, n_params)."""

from __future__ import annotations

import torch
from torch import Tensor

from teleport_kernels import cpu, reference
from teleport_kernels.mixing import Mixing

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def gossip_mix(x: Tensor, mixing: Mixing, out: Tensor | None = None) -> Tensor:
    """Gossip averaging: `out_i = sum_j W[i, j] x_j`.

    x: (k, P); mixing: W, (k, k); out: (k, P) in memory of its own, or None for a new tensor.
    Raises ValueError when shapes, dtypes or devices do not fit, or when out shares storage with x.
    Source: Xiao and Boyd 2004.
    """
    return teleport_mix(x, mixing, out=out)


def teleport_mix(
    x: Tensor,
    mixing: Mixing,
    source: Tensor | None = None,
    target: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Teleport and gossip in one pass: `out[target[a]] = sum_b W[a, b] x[source[b]]`.

    x: (n, P); source: (k,) int64 rows of x, default 0..k-1; target: (k,) distinct rows of out,
    default 0..k-1; out: (m, P) in memory of its own, needed with target; other rows stay.
    Raises ValueError on a bad shape, dtype, device or index, or when out shares storage with x.
    Source: Takezawa and Stich 2025, Algorithm 1, fused form.
    """
    _check_rows("x", x)
    k = mixing.n_rows
    _check_source(x, source, k, mixing)
    _check_out(x, k, target, out)
    if _compiled(x):
        y = x.new_empty(k, x.shape[1]) if out is None else out
        if cpu.mix(x, mixing, y, source=source, target=target):
            return y
    return _scatter(reference.gossip(_gather(x, source), mixing), x, target, out)


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
) -> Tensor:
    """Local step, teleport and gossip: `out[target[a]] = sum_b W[a, b] (x[source[b]] - lr_b u_b)`.

    u is the step direction: d = grad + weight_decay x; with momentum, m <- beta m + d in place, and
    u = m (heavy ball) or d + beta m (Nesterov); without, u = d.

    x: (n, P); grad: (k, P); mixing: (k, k); lr: a number or (k,); momentum: (k, P), updated;
    source, target, out: as in `teleport_mix`.
    Raises ValueError on a bad shape, dtype, device or index, or when out shares storage with x.
    Source: D-SGD of Lian et al. 2017 (adapt then combine); Takezawa and Stich 2025.
    """
    _check_rows("x", x)
    k = mixing.n_rows
    _check_source(x, source, k, mixing)
    shape = (k, x.shape[1])
    for name, tensor in (("grad", grad), ("momentum", momentum)):
        if tensor is not None and (tensor.shape != shape or tensor.device != x.device):
            raise ValueError(
                f"{name} must have shape {shape} on {x.device}, "
                f"got {tuple(tensor.shape)} on {tensor.device}"
            )
    if isinstance(lr, Tensor):
        if lr.shape not in ((), (k,)):
            raise ValueError(f"lr must be a number or have shape ({k},), got {tuple(lr.shape)}")
        lr = lr.reshape(-1, 1).to(reference.accumulation_dtype(x.dtype))
    _check_out(x, k, target, out)  # before the momentum changes
    if _compiled(x, grad):
        mixed = x.new_empty(shape) if out is None else out
        if cpu.mix(
            x,
            mixing,
            mixed,
            grad=grad,
            lr=lr,
            momentum=momentum,
            beta=beta,
            nesterov=nesterov,
            weight_decay=weight_decay,
            source=source,
            target=target,
        ):
            return mixed
    rows = _gather(x, source)
    y, m = reference.descend(rows, grad, lr, momentum, beta, nesterov, weight_decay)
    if momentum is not None and m is not None:
        momentum.copy_(m)
    return _scatter(reference.gossip(y, mixing), x, target, out)


def consensus(x: Tensor, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean row and the sum of squared distances to it: `xbar`, `sum_i ||x_i - xbar||^2`.

    x: (rows, P). Returns (P,) and a scalar. With groups, (rows,) ids 0..g-1 in ascending order and
    none left out, one result a group: (g, P) and (g,).
    """
    _check_rows("x", x)
    if groups is None:
        if not x.shape[0]:
            raise ValueError("the mean of no rows is undefined, got x of shape (0, P)")
        mean, distance = reference.consensus(
            x, torch.zeros(x.shape[0], dtype=torch.int64, device=x.device), 1
        )
        return mean[0], distance[0]
    if groups.shape != x.shape[:1]:
        raise ValueError(f"groups must have shape ({x.shape[0]},), got {tuple(groups.shape)}")
    step = groups.diff()
    if not len(groups) or groups[0] != 0 or bool((step < 0).any()) or bool((step > 1).any()):
        raise ValueError("groups must be ids 0..g-1 in ascending order with none left out")
    return reference.consensus(x, groups, int(groups[-1]) + 1)


def _check_rows(name: str, x: Tensor) -> None:
    if x.ndim != 2:
        raise ValueError(f"{name} must be (rows, n_params), got shape {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise ValueError(f"{name} must be one of {names}, got {x.dtype}")


def _compiled(*tensors: Tensor) -> bool:
    """Whether the compiled CPU path serves these: it has no derivatives."""
    tracked = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return tensors[0].device.type == "cpu" and not tracked


def _check_source(x: Tensor, source: Tensor | None, k: int, mixing: Mixing) -> None:
    if mixing.device != x.device:
        raise ValueError(
            f"the mixing matrix is on {mixing.device} and x on {x.device}: use mixing.to(x.device)"
        )
    if source is not None:
        _check_index("source", source, k, x.shape[0])
    elif x.shape[0] != k:
        raise ValueError(f"a ({k}, {k}) mixing matrix needs {k} rows, got {x.shape[0]}")


def _gather(x: Tensor, source: Tensor | None) -> Tensor:
    return x if source is None else x[source]


def _check_out(x: Tensor, k: int, target: Tensor | None, out: Tensor | None) -> None:
    if out is None:
        if target is not None:
            raise ValueError("target names rows of out: give out as well")
        return
    _check_rows("out", out)
    if out.dtype != x.dtype or out.device != x.device or out.shape[1] != x.shape[1]:
        raise ValueError(
            f"out must be rows of {x.shape[1]} {x.dtype} values on {x.device}, "
            f"got {tuple(out.shape)} {out.dtype} on {out.device}"
        )
    if out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() and out.numel():
        raise ValueError("out shares memory with x, whose rows are still needed: give another out")
    if target is None:
        if out.shape[0] != k:
            raise ValueError(f"out must have {k} rows, got {out.shape[0]}")
        return
    _check_index("target", target, k, out.shape[0])
    if bool((target.sort().values.diff() == 0).any()):
        raise ValueError("target names a row twice: each row of out has one writer")


def _scatter(y: Tensor, x: Tensor, target: Tensor | None, out: Tensor | None) -> Tensor:
    if out is None:
        return y.to(x.dtype)
    if target is None:
        return out.copy_(y)
    out[target] = y.to(out.dtype)
    return out


def _check_index(name: str, index: Tensor, k: int, n: int) -> None:
    if index.shape != (k,) or index.dtype != torch.int64:
        raise ValueError(f"{name} must be ({k},) int64, got {tuple(index.shape)} {index.dtype}")
    if k and (index.min() < 0 or index.max() >= n):
        bad = index[(index < 0) | (index >= n)][0].item()
        raise ValueError(f"{name} {bad} is out of range, expected 0..{n - 1}")
