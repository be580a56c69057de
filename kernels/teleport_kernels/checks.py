"""What the ops refuse, with what was got, what was expected and what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from teleport_kernels.mixing import Mixing

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensor(name: str, value: object) -> None:
    """A torch tensor, and no array or list."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise ValueError(f"{name} must be a tensor, got {kind}: give torch.as_tensor({name})")


def check_rows(name: str, x: Tensor) -> None:
    """A (rows, n_params) tensor that the kernels can read."""
    check_tensor(name, x)
    if x.layout != torch.strided:
        raise ValueError(f"{name} must be dense, got {x.layout}: give {name}.to_dense()")
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
    check_tensor(name, index)
    if index.shape != (k,) or index.dtype != torch.int64 or index.device != device:
        raise ValueError(
            f"{name} must be ({k},) int64 on {device}, "
            f"got {tuple(index.shape)} {index.dtype} on {index.device}"
        )


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
        raise ValueError(f"{name} {index[bad][0].item()} is out of range, expected 0..{n - 1}")


def check_apart(name: str, written: Tensor, **read: Tensor | None) -> None:
    """What is written has rows of its own, and shares no memory with what is still to be read."""
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
    """Whether two row tensors of one dtype and width have an element in common; where their rows
    interleave with unlike strides, it is assumed."""
    if not a.numel() or not b.numel():
        return False
    first, second = sorted((a, b), key=Tensor.data_ptr)
    offset, beyond = divmod(second.data_ptr() - first.data_ptr(), a.element_size())
    width, stride = a.shape[1], first.stride(0)
    if offset >= (first.shape[0] - 1) * stride + width:
        return False
    if beyond or stride != second.stride(0) or stride < width:
        return True
    column = offset % stride
    return column < width or column + width > stride
