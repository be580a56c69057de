"""Calls of C functions as values: they can be made, kept, and made again."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from teleport_bench.errors import UserError

PHASES = ("data", "gradient", "mix", "metric")
"""What the time of a run is spent on, in the order by which the library counts them."""

WORD, POINTER = ctypes.c_int64, ctypes.c_void_p


def structure(name: str, **fields: Any) -> type[ctypes.Structure]:
    """A C struct of that name and these fields, in order."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


CPU = torch.device("cpu")


def checked(
    name: str,
    value: object,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    *,
    rows: bool = False,
) -> Tensor:
    """The value as a plain tensor, if that is what it is: of this shape, dtype and device, with
    its numbers in memory one after the other, and there. Else a UserError that names it.

    Whoever passes an address on to C++ gets it from what this gives. rows: rows may lie apart.
    """
    with torch._C.DisableTorchFunction():  # nobody watches, and no subclass interferes
        if _is_there(value, device) and value.dtype == dtype and value.shape == shape:
            return value  # which is contiguous
        tensor = dense(name, value, device)
        if tensor.dtype != dtype or tensor.shape != shape:
            kind = f"{dtype} of shape {tuple(shape)}"
            raise UserError(
                f"{name} must be {kind}, got {tensor.dtype} of shape {tuple(tensor.shape)}: "
                + (f"give its .to({dtype})" if tensor.shape == shape else "give one of that shape")
            )
        one_by_one = rows and len(shape) == 2 and (shape[1] == 1 or tensor.stride(1) == 1)
        if not (one_by_one or tensor.is_contiguous()):
            raise UserError(
                f"{name} must be contiguous, got strides {tensor.stride()}: give its .contiguous()"
            )
        return tensor


def dense(name: str, value: object, device: torch.device = CPU) -> Tensor:
    """The value as a plain dense tensor on the device, whose memory is there, without its history.
    Else a UserError."""
    with torch._C.DisableTorchFunction():
        if _is_there(value, device):
            return value
        tensor = value
        if type(tensor) is not Tensor:
            kind = type(value).__name__
            if not isinstance(tensor, Tensor):
                raise UserError(f"{name} must be a tensor, got {kind}: give torch.as_tensor of it")
            if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
                raise UserError(f"{name} must be a plain tensor, got {kind}: give what is in it")
            tensor = tensor.as_subclass(Tensor)
        if tensor.layout != torch.strided or tensor.is_nested:
            kind = "a nested tensor" if tensor.is_nested else str(tensor.layout)
            raise UserError(f"{name} must be dense, got {kind}: give its .to_dense()")
        if tensor.device != device:
            raise UserError(f"{name} must be on {device}, got {tensor.device}: move it there")
        if tensor.is_neg() or tensor.is_conj():
            raise UserError(f"{name} is a view with another sign: give its .resolve_neg()")
        try:
            held = tensor.untyped_storage().nbytes()
        except RuntimeError:  # one that torch.func transforms
            held = -1
        if held < tensor.element_size() * _extent(tensor):
            raise UserError(
                f"{name} has no memory any more, or none of its own, got {tuple(tensor.shape)}: "
                "give a tensor whose storage is as it was made, outside of torch.func"
            )
        return tensor.detach() if tensor.requires_grad else tensor


def _is_there(value: object, device: torch.device) -> TypeGuard[Tensor]:
    """Whether `dense` has nothing to say or do, of most tensors: these checks are for each round
    that is not replayed."""
    try:
        return (
            type(value) is Tensor
            and value.layout == torch.strided
            and value.device == device
            and value.is_contiguous()
            and not (value.requires_grad or value.is_neg() or value.is_conj() or value.is_nested)
            and value.untyped_storage().nbytes()
            >= value.element_size() * (value.storage_offset() + value.numel())
        )
    except RuntimeError:
        return False  # nested, or without memory: `dense` says so


def _extent(tensor: Tensor) -> int:
    """Elements of its storage up to the last one that the tensor has."""
    if not tensor.numel():
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + int(tensor.storage_offset()) + sum((n - 1) * step for n, step in steps)


Table = Sequence[tuple[int, int, int]]
"""Tensors with one row a round: where each begins and ends, and the bytes of a row."""
Steps = Sequence[tuple[int, int]]
"""Places of pointers in a struct, and by how many bytes each moves from round to round."""


@functools.cache
def _pointers(kind: type[ctypes.Structure]) -> list[int]:
    """The places of all pointers in a struct, and in the structs within it."""
    found = []
    for name, field, *_ in kind._fields_:
        offset = getattr(kind, name).offset
        if field is POINTER:
            found.append(offset)
        elif issubclass(field, ctypes.Structure):
            found += [offset + inner for inner in _pointers(field)]
        elif field not in (WORD, ctypes.c_int32, ctypes.c_float, ctypes.c_double):
            raise TypeError(f"a call's arguments are numbers and c_void_p, got {field} {name}")
    return found


@dataclass(frozen=True, eq=False)
class Call:
    """A C function with its arguments.

    function: takes a pointer to `arguments`. What a block chooses at random these point to
    themselves, as c_void_p, and not by way of a table. keep: whatever the arguments point to.
    """

    function: Any
    arguments: ctypes.Structure
    phase: str
    keep: tuple[Any, ...]

    def __call__(self) -> None:
        self.function(ctypes.byref(self.arguments))

    def steps(self, table: Table) -> Steps:
        """Which of the arguments point into that table, and how far its rows are apart."""
        found = []
        for offset in _pointers(type(self.arguments)):
            address = POINTER.from_buffer(self.arguments, offset).value or 0
            found += [(offset, step) for begin, end, step in table if begin <= address < end]
        return found

    def moved(self, steps: Steps, rows: int) -> Call:
        """The same call, so many rows further on in the table."""
        arguments = type(self.arguments).from_buffer_copy(self.arguments)
        for offset, step in steps:
            WORD.from_buffer(arguments, offset).value += rows * step
        return Call(self.function, arguments, self.phase, (self,))


RowsStruct = structure(
    "Rows",
    n=WORD,
    order=POINTER,
    member=POINTER,
    x=POINTER,
    x_stride=WORD,
    grad=POINTER,
    grad_stride=WORD,
    threads=WORD,
)


class Rows:
    """The rows of a fleet, and which of them share their random choices.

    member: (rows,) int64, the row of the random choices that each row of parameters takes.
    """

    def __init__(self, member: Tensor) -> None:
        n = len(member)
        self.member = checked("member", member, (n,), torch.int64)
        self.members = int(member.max()) + 1 if n else 0
        self.threads = min(n, torch.get_num_threads())
        # each row's thread, as `in_pieces` deals them: it keeps its rows, in its core's cache
        part = ((torch.arange(n) + 1) * self.threads - 1) // n
        self.order = torch.argsort(part * n + member, stable=True)

    def struct(self, x: Tensor, grad: Tensor, width: int) -> ctypes.Structure:
        """`Rows` of rounds.cpp; x, grad: (rows, width)."""
        shape = len(self.member), width
        x, grad = checked("x", x, shape, rows=True), checked("grad", grad, shape, rows=True)
        return RowsStruct(
            len(self.member),
            self.order.data_ptr(),
            self.member.data_ptr(),
            x.data_ptr(),
            x.stride(0),
            grad.data_ptr(),
            grad.stride(0),
            self.threads,
        )
