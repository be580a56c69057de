"""Calls of C functions as values: they can be made, kept, and made again."""

from __future__ import annotations

import ctypes
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


@dataclass(frozen=True, eq=False)
class Call:
    """A C function with its arguments.

    function: takes a pointer to `arguments`. keep: whatever the arguments point to.
    """

    function: Any
    arguments: ctypes.Structure
    phase: str
    keep: tuple[Any, ...]

    def __call__(self) -> None:
        self.function(ctypes.byref(self.arguments))


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
