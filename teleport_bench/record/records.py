"""Many records in little memory."""

from __future__ import annotations

import zlib
from collections.abc import Collection, ItemsView, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic_core import from_json

from teleport_bench.record.schema import Made, Record

SHOWN = 5
"""Faults that are shown one by one, at most."""


class Fault(NamedTuple):
    """What is wrong with a file among the records. lost: no record was read from it."""

    why: str
    lost: bool


class Faults(dict[str, Fault]):
    """The faults of a folder's files, by their path in it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._said: set[str] = set()

    def say(self, *, lost: bool) -> list[str]:
        """Those of one kind in words, each once, and of many the first."""
        found = {name: fault.why for name, fault in self.items() if fault.lost == lost}
        new = [f"{self._folder / n} {why}" for n, why in found.items() if n not in self._said]
        self._said |= found.keys()
        more = [f"and {len(new) - SHOWN:,} more files"] if len(new) > SHOWN else []
        return new[:SHOWN] + more


class Compressed(MutableMapping[str, bytes]):
    """Texts by key, compressed by what they have in common with the first of them."""

    def __init__(self) -> None:
        self._first = b""
        self._parts: dict[str, bytes] = {}

    def __setitem__(self, key: str, text: bytes) -> None:
        self._first = self._first or text
        packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=self._first)
        self._parts[key] = packer.compress(text) + packer.flush()

    def __getitem__(self, key: str) -> bytes:
        packed = self._parts[key]
        return zlib.decompressobj(-zlib.MAX_WBITS, zdict=self._first).decompress(packed)

    def __delitem__(self, key: str) -> None:
        del self._parts[key]

    def __contains__(self, key: object) -> bool:
        return key in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


class Records(MutableMapping[str, Record]):
    """Records by run id. Each takes a few hundred bytes, and is made anew when it is asked for.

    faults: of the files that they were read from.
    """

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = Faults(Path()) if faults is None else faults
        self._packed = Compressed()

    def __setitem__(self, key: str, record: Record) -> None:
        self._packed[key] = record.model_dump_json(exclude_unset=True).encode()

    def __getitem__(self, key: str) -> Record:
        content = from_json(self._packed[key])  # was validated
        made = Made.model_construct(**content.pop("made"))
        return Record.model_construct(made=made, **content)

    def __delitem__(self, key: str) -> None:
        del self._packed[key]

    def __contains__(self, key: object) -> bool:
        return key in self._packed

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def __reversed__(self) -> Iterator[str]:
        return reversed(list(self._packed))

    def items(self) -> _Items:
        return _Items(self)


class _Items(ItemsView[str, Record]):
    """Items in either order, as those of a dict."""

    _mapping: Records

    def __reversed__(self) -> Iterator[tuple[str, Record]]:
        return ((key, self._mapping[key]) for key in reversed(self._mapping))


class Chosen(Collection[Record]):
    """The records of some runs, in order; one at a time in memory."""

    def __init__(self, records: Mapping[str, Record], ids: Sequence[str]) -> None:
        self._records, self._ids = records, ids

    def __contains__(self, record: object) -> bool:
        return any(record == each for each in self)

    def __iter__(self) -> Iterator[Record]:
        return (self._records[key] for key in self._ids)

    def __len__(self) -> int:
        return len(self._ids)
