"""Rounds on tape: the calls that an algorithm's steps make, recorded once and made again.

A round with the same graphs, and the state in the same places, is the same calls on other choices;
once a whole block is on tape, a replay runs it without Python in between. That is right only if the
recorded calls are all that happens in a round: `Watch` sees any operation of torch in between, and
most of what Python keeps from round to round; a tape on which there was one is not replayed. Where
it saves time, a replay does not go call by call either: each row goes on as soon as its neighbours
are there (stages.hpp), with the same bits.
"""

from __future__ import annotations

import ctypes
import inspect
import pickle
import random
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from teleport_bench import trace
from teleport_bench.native.calls import PHASES, POINTER, WORD, Call, Rows, Steps, Table, structure
from teleport_bench.native.library import library

_CallStruct = structure("Call", run=POINTER, arguments=POINTER, phase=WORD)
_CopyStruct = structure("Copy", rows=WORD, width=WORD, source=POINTER, to=POINTER, threads=WORD)


class Buffers:
    """(rows, P) tensors that are used again once nobody holds what `take` gave, or anything that
    shares its memory, however it came by it (`detach`, a slice, `numpy`)."""

    def __init__(self, rows: int, width: int) -> None:
        self.shape = rows, width
        self._all: dict[int, Tensor] = {}
        self._users: dict[int, weakref.ref[NDArray[np.float32]]] = {}

    def take(self) -> Tensor:
        """A buffer that is free; its content is arbitrary."""
        for address, user in self._users.items():
            if user() is None:
                return self.lend(address)
        buffer = torch.empty(self.shape, dtype=torch.float32, device="cpu")
        self._all[buffer.data_ptr()] = buffer
        return self.lend(buffer.data_ptr())

    def has(self, tensor: Tensor) -> bool:
        """Whether the tensor is one of these buffers, the whole of it."""
        whole = tensor.data_ptr() in self._all and tensor.shape == self.shape
        return whole and tensor.dtype == torch.float32 and tensor.is_contiguous()

    def lend(self, address: int) -> Tensor:
        """The buffer at an address; it is taken until nobody holds what this gives."""
        # an array of its own lives as long as any storage over it
        lent: NDArray[np.float32] = self._all[address].numpy()
        self._users[address] = weakref.ref(lent)
        return torch.from_numpy(lent)

    def kept(self, tensor: Tensor) -> Tensor:
        """The same memory for a call to keep: a buffer is free when the algorithm drops it."""
        return self._all[tensor.data_ptr()] if self.has(tensor) else tensor


def remembered(algorithm: object) -> bytes | None:
    """What a step may have changed outside of tensors, as far as that can be seen: attributes of
    the algorithm and of its class, variables around its methods, and the generators that all of
    Python and NumPy share. None where they cannot be compared."""
    members = [
        (name, value) for kind in type(algorithm).__mro__ for name, value in vars(kind).items()
    ]
    of_class = [value for name, value in members if _may_change(value) and name[:2] != "__"]
    generators = random.getstate(), np.random.get_state()  # noqa: NPY002 - others may use it
    try:
        around = [_around(value) for _, value in members if isinstance(value, FunctionType)]
        return pickle.dumps((algorithm.__getstate__(), of_class, around, generators))
    except Exception:  # whatever a class of a user's own raises
        return None


def _may_change(value: object) -> bool:
    plain = (int, float, str, list, dict, set, random.Random, np.random.Generator, np.ndarray)
    return isinstance(value, plain)


def _around(function: FunctionType) -> list[object]:
    """The variables of its module, and of the functions around it, that a function names."""
    names = inspect.getclosurevars(function)
    return [
        value
        for value in (*names.globals.values(), *names.nonlocals.values())
        if _may_change(value)
    ]


class Watch(TorchFunctionMode):
    """Notices what a step does besides calls: whatever torch is asked for, but for what is within
    `pause`, and what is `remembered` from one round to the next."""

    def __init__(self, algorithm: object) -> None:
        super().__init__()
        self.seen = False
        self._algorithm = algorithm

    def __enter__(self) -> Watch:
        self._before = remembered(self._algorithm)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        after = remembered(self._algorithm)
        self.seen |= after is None or after != self._before

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.seen = True
        return func(*args, **(kwargs or {}))

    def pause(self) -> AbstractContextManager[None]:
        """Operations of torch in here are no part of the round."""
        return torch._C.DisableTorchFunction()  # not even asked: forty operations of a round are


@dataclass(frozen=True)
class Recorded:
    """A round on some tape: its calls, its place in the block, and where the state is after it."""

    calls: list[tuple[Call, Steps]]
    i: int
    after: dict[str, int]


class Tape:
    """The calls of the rounds of one block, and the state between them.

    table: the tensors with what a block chooses, a row a round. moves: whether these are graphs as
    well, so that rows have other neighbours in another block.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        buffers: Buffers,
        rows: Rows,
        table: Table,
        *,
        moves: bool = False,
    ) -> None:
        self._moves = moves
        self._buffers, self._rows, self._choices = buffers, rows, table
        self._states = [self._addresses(state)]
        self._calls: list[Call] = []
        self._ends = [0]
        self._whole: ctypes.c_void_p | None = None
        """The library's own, once all is recorded."""

    @property
    def rounds(self) -> int:
        """Rounds recorded so far."""
        return len(self._ends) - 1

    @property
    def staged(self) -> bool:
        """Whether its replays go on row by row (stages.hpp), and not call by call."""
        loaded = library()
        return loaded is not None and bool(self._whole and loaded.teleport_staged(self._whole))

    def record(self, call: Call) -> None:
        self._calls.append(call)

    def end_round(self, state: Mapping[str, Tensor]) -> Recorded:
        """What has been recorded since the last round's end is a round."""
        calls = [(call, call.steps(self._choices)) for call in self._calls[self._ends[-1] :]]
        recorded = Recorded(calls, self.rounds, self._addresses(state))
        self._end(recorded.after)
        return recorded

    def again(self, recorded: Recorded, make: Callable[[Call], None]) -> dict[str, Tensor]:
        """Make and record a round as one that began with the state in the same places; the state
        after it."""
        for call, steps in recorded.calls:
            moved = call.moved(steps, self.rounds - recorded.i)
            make(moved)
            self.record(moved)
        self._end(recorded.after)
        return self._lend(recorded.after)

    def _end(self, state: dict[str, int]) -> None:
        self._states.append(state)
        self._ends.append(len(self._calls))
        self._whole = None

    def replay(
        self, state: dict[str, Tensor], first: int, last: int, phases: dict[str, float]
    ) -> dict[str, Tensor]:
        """Rounds first .. last - 1 of the block from a state to the one after them."""
        loaded = library()
        assert loaded is not None
        if self._whole is None:
            self._whole = self._make(loaded)
        begins, ends = self._states[first], self._states[last]
        moved = {name: t for name, t in state.items() if t.data_ptr() != begins[name]}
        places = {begins[name] for name in moved}
        if any(tensor.data_ptr() in places for tensor in moved.values()):
            moved = {name: tensor.clone() for name, tensor in moved.items()}
        # copied by the library, as torch would let go of Python, which the next draw then takes
        shape = self._buffers.shape
        copies = (_CopyStruct * len(moved))(
            *(
                _CopyStruct(*shape, tensor.data_ptr(), begins[name], self._rows.threads)
                for name, tensor in moved.items()
            )
        )
        seconds = (ctypes.c_double * len(PHASES))()
        start, stop = self._ends[first], self._ends[last]
        tracing = trace.current()
        spans = (ctypes.c_double * (stop - start))() if tracing else None
        began = time.perf_counter()
        loaded.teleport_replay(
            self._whole, copies, WORD(len(copies)), WORD(start), WORD(stop), seconds, spans
        )
        if tracing and spans:
            tracing.add_calls([call.phase for call in self._calls[start:stop]], began, list(spans))
        for name, spent in zip(PHASES, seconds, strict=True):
            phases[name] += spent
        return self._lend(ends)

    def _lend(self, state: dict[str, int]) -> dict[str, Tensor]:
        """The tensors at these places, of which two names may share one."""
        lent = {address: self._buffers.lend(address) for address in set(state.values())}
        return {name: lent[address] for name, address in state.items()}

    def _make(self, loaded: ctypes.CDLL) -> ctypes.c_void_p:
        entries = [
            _CallStruct(
                ctypes.cast(call.function, ctypes.c_void_p).value,
                ctypes.addressof(call.arguments),
                PHASES.index(call.phase),
            )
            for call in self._calls
        ]
        table, rows = (_CallStruct * len(entries))(*entries), self._rows
        n, order = len(rows.order), ctypes.c_void_p(rows.order.data_ptr())
        whole = loaded.teleport_tape(table, WORD(len(entries)), order, WORD(n), WORD(rows.threads))
        made = ctypes.c_void_p(whole)
        if self._moves:
            loaded.teleport_moves(made)
        weakref.finalize(self, loaded.teleport_forget, made)
        return made

    def _addresses(self, state: Mapping[str, Tensor]) -> dict[str, int]:
        return {name: tensor.data_ptr() for name, tensor in state.items()}
