"""What the ops refuse, with what was got, what was expected and what to do."""

from __future__ import annotations

from operator import ge

import torch
from torch import Tensor

from teleport_kernels.mixing import Mixing
from teleport_kernels.tensors import check_dense, check_memory, elements, few, has_memory

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_rows(name: str, x: Tensor) -> None:
    """A (rows, n_params) tensor that the kernels can read."""
    check_dense(name, x)
    if x.ndim != 2:
        raise ValueError(f"{name} must be (rows, n_params), got shape {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise ValueError(f"{name} must be one of {names}, got {x.dtype}")
    if x.shape[1] > 1 and x.shape[0] and x.stride(1) != 1:
        raise ValueError(
            f"the last dimension of {name} must be contiguous, got strides {tuple(x.stride())}: "
            f"give {name}.contiguous()"
        )


def check_shapes(
    x: Tensor,
    mixing: Mixing,
    source: Tensor | None,
    target: Tensor | None,
    out: Tensor | None,
    grad: Tensor | None = None,
    momentum: Tensor | None = None,
) -> None:
    """Shapes, dtypes and devices of all arguments; no value is looked at."""
    check_rows("x", x)
    if not isinstance(mixing, Mixing):
        kind = type(mixing).__name__
        raise ValueError(f"mixing must be a Mixing, got {kind}: give Mixing.from_dense(W)")
    if not torch.compiler.is_compiling():
        mixing.check_unchanged()
    k = mixing.n_rows
    if mixing.device != x.device:
        raise ValueError(
            f"the mixing matrix is on {mixing.device} and x on {x.device}: use mixing.to(x.device)"
        )
    if source is not None:
        _check_index("source", source, k, x.device)
    elif x.shape[0] != k:
        raise ValueError(f"a ({k}, {k}) mixing matrix needs {k} rows, got {x.shape[0]}")
    for name, tensor in (("grad", grad), ("momentum", momentum)):
        if tensor is not None:
            check_rows(name, tensor)
            _check_like(name, tensor, x)
            if tensor.shape[0] != k:
                raise ValueError(f"{name} must have {k} rows, got {tensor.shape[0]}")
    if out is None:
        if target is not None:
            raise ValueError("target names rows of out: give out as well")
        return
    check_rows("out", out)
    _check_like("out", out, x)
    if target is not None:
        _check_index("target", target, k, x.device)
    elif out.shape[0] != k:
        raise ValueError(f"out must have {k} rows, got {out.shape[0]}")


def _check_like(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.dtype != x.dtype or tensor.device != x.device or tensor.shape[1] != x.shape[1]:
        raise ValueError(
            f"{name} must be rows of {x.shape[1]} {x.dtype} values on {x.device}, "
            f"got {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
        )


def _check_index(name: str, index: Tensor, k: int, device: torch.device) -> None:
    check_dense(name, index)
    if index.shape != (k,) or index.dtype != torch.int64 or index.device != device:
        raise ValueError(
            f"{name} must be ({k},) int64 on {device}, "
            f"got {tuple(index.shape)} {index.dtype} on {index.device}"
        )


def check_lr(lr: Tensor, k: int, device: torch.device) -> None:
    """One step size, or one for each of k rows."""
    check_dense("lr", lr)
    if lr.shape not in ((), (k,)) or lr.device != device:
        raise ValueError(
            f"lr must be a number or have shape ({k},) on {device}, "
            f"got {tuple(lr.shape)} on {lr.device}"
        )
    if lr.dtype.is_complex or lr.dtype == torch.bool:
        raise ValueError(f"lr must be real numbers, got {lr.dtype}")
    if not torch.compiler.is_compiling() and has_memory(lr):
        check_memory("lr", lr)


def check_step(x: Tensor, grad: Tensor | None, lr: Tensor | None, k: int) -> None:
    """A gradient has a step size for each of k rows, in the type that x is added up in."""
    if grad is None:
        return
    if lr is None:
        raise ValueError(f"grad needs lr, ({k},) step sizes, got None")
    check_dense("lr", lr)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if lr.shape != (k,) or lr.dtype != dtype or lr.device != x.device:
        raise ValueError(
            f"lr must be ({k},) {dtype} on {x.device}, "
            f"got {tuple(lr.shape)} {lr.dtype} on {lr.device}"
        )
    check_contiguous(lr=lr)


def check_contiguous(**vectors: Tensor | None) -> None:
    """Vectors that are read by address."""
    for name, vector in vectors.items():
        if vector is not None and not vector.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous, got strides {tuple(vector.stride())}: "
                f"give {name}.contiguous()"
            )


def check_starts(x: Tensor, starts: Tensor) -> None:
    """Rows of x in groups that begin, and end, where starts says."""
    check_rows("x", x)
    check_dense("starts", starts)
    if starts.ndim != 1 or starts.dtype != torch.int64 or starts.device != x.device:
        raise ValueError(
            f"starts must be an int64 vector on {x.device}, "
            f"got {tuple(starts.shape)} {starts.dtype} on {starts.device}"
        )
    check_memories(x=x, starts=starts)
    check_contiguous(starts=starts)
    if x.is_cuda:  # nothing waits for a device
        return
    values = starts.tolist()
    if len(values) < 2 or values[0] or values[-1] > len(x) or any(map(ge, values, values[1:])):
        raise ValueError(f"starts must ascend from 0 to at most {len(x)}, got {few(starts)}")


def check_memories(**tensors: Tensor | None) -> None:
    """`check_memory` of what a call reads and writes."""
    for name, tensor in tensors.items():
        if tensor is not None:
            check_memory(name, tensor)


def check_source(source: Tensor, x: Tensor) -> None:
    """Every source is a row of x."""
    _check_range("source", source, x.shape[0])


def check_target(target: Tensor, out: Tensor) -> None:
    """Every target is a row of out, named once."""
    _check_range("target", target, out.shape[0])
    if bool((target.sort().values.diff() == 0).any()):
        raise ValueError("target names a row twice: each row of out has one writer")


def _check_range(name: str, index: Tensor, n: int) -> None:
    bad = (index < 0) | (index >= n)
    if bool(bad.any()):
        first = index[bad][0].item()
        there = f"expected 0..{n - 1}" if n else "there are no rows"
        raise ValueError(f"{name} {first} is out of range, {there}")


def check_apart(name: str, written: Tensor, **read: Tensor | None) -> None:
    """What is written has rows of its own, and shares no memory with what is still to be read: rows
    of its kind, or vectors."""
    if written.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            f"{name} was made in torch.inference_mode() and cannot be written outside of it: "
            f"give {name}.clone()"
        )
    rows, width = written.shape
    if rows > 1 and written.stride(0) < width:
        raise ValueError(
            f"the rows of {name} overlap, got strides {tuple(written.stride())} for {width} "
            f"columns: give {name}.contiguous()"
        )
    for other, tensor in read.items():
        if tensor is not None and _overlap(written, tensor):
            raise ValueError(
                f"{name} shares memory with {other}, which is still needed while it is written: "
                f"give another {name}"
            )


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have an element in common; it is assumed where both have memory between
    the same addresses, unless they are rows of one dtype and width that interleave."""
    if not a.numel() or not b.numel():
        return False
    first, second = sorted((a, b), key=Tensor.data_ptr)
    offset, beyond = divmod(second.data_ptr() - first.data_ptr(), first.element_size())
    if offset >= elements(first):
        return False
    if a.ndim != b.ndim or a.dtype != b.dtype:
        return True
    width, stride = a.shape[1], first.stride(0)
    if beyond or stride != second.stride(0) or stride < width:
        return True
    column = offset % stride
    return column < width or column + width > stride
