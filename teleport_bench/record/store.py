"""Records on disk: one file a run, written whole or not at all; thousands of them in one pack."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gzip
import io
import json
import os
import re
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from teleport_bench.errors import FULL, UserError
from teleport_bench.record.schema import SCHEMA, Record
from teleport_bench.spec import RunSpec, id_of

PACK_FILE = "packed.jsonl.gz"
"""Beside single records: many, a line each."""

MOST_LINE = 2**27
"""Bytes of a record in the pack: what a small file can grow to is bounded."""

SUITE_FILE = "suite.json"
"""Beside the records: the suite as it was run, overrides applied, which the report is built by."""


LOCK_FILE = ".lock"
"""Locked by the process that runs into the folder; the system unlocks it however that ends."""

UNSAVED_FILE = "unsaved.jsonl"
"""The records of a fleet while they are being written, one a line."""

PART = ".part"
"""Suffix of files that are being written."""


class Store:
    """The records of one suite, in `folder/runs/`.

    From `prepare` to the end of its `with` block no other process can run into the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.checkpoints = folder / "checkpoints"
        self._unsaved = folder / UNSAVED_FILE
        self._unlock: weakref.finalize[..., Store] | None = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._unlock:
            self._unlock()
            self._unlock = None

    def prepare(self) -> None:
        """Make the folders, and clear up after a process that was killed there.

        UserError where that, or writing into them, is not possible, or another process does.
        """
        with writing(self.folder):
            for folder in (self.runs, self.folder / "tables", self.folder / "figures"):
                refuse_link(folder)
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            for name in (SUITE_FILE, "index.html"):
                if (self.folder / name).is_dir():
                    raise IsADirectoryError(f"{name} is a folder")
            if self._unlock or self._lock():
                for left in self.folder.rglob(f".*{PART}"):
                    left.unlink()
            if self._unsaved.exists():
                with contextlib.suppress(ValueError):  # not what `save` wrote
                    lines = self._unsaved.read_bytes().splitlines()
                    self._write([Record.model_validate_json(line) for line in lines])
                self._unsaved.unlink(missing_ok=True)

    def clear_checkpoints(self) -> None:
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _lock(self) -> bool:
        """False where the file system has no locks: records are whole all the same."""
        handle = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        self._unlock = weakref.finalize(self, os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is running into {self.folder}: wait until it has ended, or name "
                "another folder with --out"
            ) from None
        except OSError:
            return False
        return True

    def path(self, spec: RunSpec) -> Path:
        """`dsgd-ring-n32-k32-lr0.1-s0-<id>.json`: readable, and unique by the id."""
        text = (
            f"{spec.algorithm['name']}-{spec.topology['name']}-n{spec.nodes}-k{spec.n_active}"
            f"-lr{spec.lr:g}-s{spec.seed}"
        )
        return self.runs / f"{re.sub(r'[^A-Za-z0-9._+-]', '_', text)}-{spec.id}.json"

    def save(self, *records: Record) -> None:
        """Write the records of a fleet; UserError where that is not possible.

        All of them, or none: those that a killed process did not come to are written by the next
        `prepare`. Run again without the others, they would be another fleet, whose floats agree
        to rounding only.
        """
        with writing(self.folder):
            if len(records) > 1:
                write_atomically(self._unsaved, b"".join(map(_line, records)))
            self._write(records)
            self._unsaved.unlink(missing_ok=True)

    def _write(self, records: Sequence[Record]) -> None:
        for record in records:
            write_atomically(self.path(RunSpec.model_validate(record.spec)), _line(record))

    def load(self, spec: RunSpec) -> Record | None:
        """The record of that run; None where there is none, or none that can be read."""
        path = self.path(spec)
        try:
            if path.is_symlink() or (path.exists() and not path.is_file()):
                return None  # nothing outside, and no pipe, is read
            content = path.read_bytes()
        except OSError:
            found = self._packed.get(spec.id)
            if found is None:
                return None
            content = found
        return record_of(spec, content, path)

    def pack(self, specs: Sequence[RunSpec]) -> None:
        """Put the records of these runs into one file, beside what is there, and remove their own.

        Killed in between, nothing is lost: what has a file of its own is read from there.
        """
        loose = {s.id: path for s in specs if (path := self.path(s)).is_file()}
        if not loose:
            return
        lines = self._packed | {key: path.read_bytes().strip() for key, path in loose.items()}
        out = io.BytesIO()
        with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as file:  # no date: equal bytes
            file.writelines(lines[key] + b"\n" for key in sorted(lines))
        with writing(self.folder):
            write_atomically(self.runs / PACK_FILE, out.getvalue())
            self.__dict__["_packed"] = lines
            for path in loose.values():
                path.unlink(missing_ok=True)

    @functools.cached_property
    def _packed(self) -> dict[str, bytes]:
        """The lines of the pack by run id, as far as it can be read."""
        lines: dict[str, bytes] = {}
        try:
            if (path := self.runs / PACK_FILE).is_symlink() or not path.is_file():
                return lines
            with gzip.open(path) as file:
                while line := file.readline(MOST_LINE):
                    lines[json.loads(line)["id"]] = line.strip()
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError):
            pass  # what cannot be read is not there: its runs are made again
        return lines


def record_of(spec: RunSpec, content: bytes, path: Path) -> Record | None:
    """The record of that run; None where the content is none, or that of another run.

    UserError where a later version wrote it: to run it again would overwrite what is newer.
    """
    try:
        record = Record.model_validate_json(content)
    except ValidationError:
        version = 0
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):  # no record
            version = int(json.loads(content)["schema_version"])
        if version > SCHEMA:
            raise UserError(
                f"{path} has schema version {version}, and this teleport-bench reads {SCHEMA}: "
                "install a newer one, or name another folder with --out"
            ) from None
        return None
    return record if record.id == spec.id == id_of(record.spec) else None


def refuse_link(path: Path) -> None:
    """UserError for a link inside a results folder: it may lead anywhere."""
    if path.is_symlink():
        raise UserError(
            f"{path} is a link to another place, and results are read and written in their folder "
            "alone: remove it, or copy what it names"
        )


def _line(record: Record) -> bytes:
    return record.model_dump_json(indent=None).encode() + b"\n"


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """An error of the file system in here is one that the user can act on."""
    try:
        yield
    except OSError as error:
        remedy = (
            "make room, and the same command goes on with what is left"
            if error.errno in FULL
            else "name another folder with --out"
        )
        raise UserError(
            f"cannot write results to {folder}: {error.strerror or error}; {remedy}"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that no reader, and no crash, ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
