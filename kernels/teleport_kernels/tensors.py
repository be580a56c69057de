"""What one tensor must be before native code reads it, and numbers of any kind as tensors."""

from __future__ import annotations

import contextlib
import math
import numbers

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

USUAL = (
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64),
    *(torch.complex128, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
UNUSUAL = {
    torch.uint16: torch.int64,
    torch.uint32: torch.int64,
    torch.uint64: torch.float64,
    **{getattr(torch, n): torch.float32 for n in dir(torch) if n.startswith("float8_")},
}
"""Types that few of torch's operations know, and those that hold their values."""


def check_tensor(name: str, value: object) -> Tensor:
    """A torch tensor, and no array or list."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise ValueError(f"{name} must be a tensor, got {kind}: give torch.as_tensor({name})")
    return value


def check_dense(name: str, value: object) -> None:
    """A tensor with strides: neither sparse nor nested."""
    tensor = check_tensor(name, value)
    if tensor.is_nested:
        raise ValueError(f"{name} must be dense, got a nested tensor: give its padded tensor")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} must be dense, got {tensor.layout}: give {name}.to_dense()")


def check_memory(name: str, tensor: Tensor) -> None:
    """Memory that holds every element as it is: what a pointer alone does not tell."""
    if tensor.is_neg():
        raise ValueError(
            f"{name} is a view whose sign is flipped when it is read: give {name}.resolve_neg()"
        )
    if not tensor.numel():
        return
    needed = (tensor.storage_offset() + elements(tensor)) * tensor.element_size()
    if needed > (there := tensor.untyped_storage().nbytes()):
        raise ValueError(
            f"{name} needs {needed} bytes of its storage, which has {there}: it was resized after "
            f"{name} was made"
        )


def has_memory(tensor: Tensor) -> bool:
    """Whether it lies in memory itself, and wraps no other tensor."""
    plain = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    return plain and not is_functorch_wrapped_tensor(tensor)


def elements(tensor: Tensor) -> int:
    """How many elements lie between its first and its last, both and what is between included."""
    if tensor.is_contiguous():
        return tensor.numel()
    last = 0
    for n, stride in zip(tensor.shape, tensor.stride(), strict=True):
        last += (n - 1) * stride
    return last + 1


def number(name: str, value: object, dtype: torch.dtype, kind: str = "a number") -> float:
    """A real number of Python or NumPy, which is one in that dtype too."""
    if isinstance(value, bool) or not isinstance(value, (float, int, numbers.Real)):
        raise ValueError(f"{name} must be {kind}, got {shown(value)}")
    with contextlib.suppress(OverflowError):
        real = float(value)
        if abs(real) <= torch.finfo(dtype).max or not math.isfinite(real):
            return real
    raise ValueError(f"{name} must be a number that {dtype} holds, got {shown(value)}")


def flag(name: str, value: object) -> bool:
    """True or False, also NumPy's."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def size(name: str, value: object, most: int) -> int:
    """A whole number of Python or NumPy, 0 .. most."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be a whole number, got {shown(value)}")
    n = int(value)
    if not 0 <= n <= most:
        raise ValueError(f"{name} must be in 0..{most}, got {n}")
    return n


def shown(value: object) -> str:
    """What an error says of a value: the beginning of a simple one, and else its type."""
    simple = isinstance(value, str | bytes | numbers.Number | list | tuple | dict | None)
    return f"{value!r:.60}" if simple else type(value).__name__


def few(values: Tensor) -> str:
    """What an error says of a vector."""
    first = ", ".join(map(str, values[:8].tolist()))
    return f"[{first}{', ..' if len(values) > 8 else ''}]"


def as_tensor(name: str, value: object) -> Tensor:
    """Numbers as a user has them, a tensor, an array or a list, as a plain tensor. Python's floats
    keep all their digits and are on the CPU, whatever torch's default dtype and device are."""
    if isinstance(value, Tensor):
        return _plain(name, value)
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"{name} must have all its entries, got a masked array: give .filled(0)")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # rows of unlike length
        array = np.asarray(None)
    kind = array.dtype.kind
    if kind not in "biufc" or hasattr(value, "adjacency"):  # a graph is a list of its nodes
        raise ValueError(f"{name} must be an array of numbers, got {shown(value)}")
    if array.size and kind == "u" and array.max() > np.iinfo(np.int64).max:
        kind = "f"
    dtype = {"b": np.bool_, "c": np.complex128, "f": np.float64}.get(kind, np.int64)
    return torch.from_numpy(np.array(array, dtype, order="C"))  # a copy: it may be read-only


def _plain(name: str, value: Tensor) -> Tensor:
    kind = type(value)
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise ValueError(f"{name} must be a plain tensor, got {kind.__name__}")
    if is_functorch_wrapped_tensor(value):
        raise ValueError(f"{name} must be a plain tensor: it is not there inside of torch.func")
    check_dense(name, value)
    if value.is_meta:
        raise ValueError(f"{name} is on meta, where tensors hold no values: give a real tensor")
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"there is no derivative with respect to {name}: give {name}.detach()")
    value = value.detach().as_subclass(Tensor).resolve_neg().resolve_conj()
    check_memory(name, value)
    if value.is_quantized:
        return value.dequantize()
    if value.dtype not in (*USUAL, *UNUSUAL):
        raise ValueError(f"{name} must be numbers, got {value.dtype}")
    return value.to(UNUSUAL.get(value.dtype))
