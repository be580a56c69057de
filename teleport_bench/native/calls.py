"""Calls of C functions as values: they can be made, kept, and made again."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PHASES = ("data", "gradient", "mix", "metric")
"""What the time of a run is spent on, in the order by which the library counts them."""

WORD, POINTER = ctypes.c_int64, ctypes.c_void_p


def structure(name: str, **fields: Any) -> type[ctypes.Structure]:
    """A C struct of that name and these fields, in order."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


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
        self.member = member.contiguous()
        self.threads = min(n, torch.get_num_threads())
        # each row's thread, as `in_pieces` deals them: it keeps its rows, in its core's cache
        part = ((torch.arange(n) + 1) * self.threads - 1) // n
        self.order = torch.argsort(part * n + member, stable=True)

    def struct(self, x: Tensor, grad: Tensor) -> ctypes.Structure:
        """`Rows` of rounds.cpp."""
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
