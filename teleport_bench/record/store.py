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
import time
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from teleport_bench.errors import FULL, UserError
from teleport_bench.record.records import Compressed, Fault, Faults
from teleport_bench.record.schema import SCHEMA, Record, digest_of
from teleport_bench.spec import RunSpec, id_of

PACK_FILE = "packed.jsonl.gz"
"""Beside single records: many, a line each."""

MOST_LINE = 2**27
"""Bytes of a record: what a small file can grow to is bounded, and a large one is not read."""

SUITE_FILE = "suite.json"
"""Beside the records: the suite as it was run, overrides applied, which the report is built by."""

LOCK_FILE = ".lock"
"""Locked by the process that runs into the folder; the system unlocks it however that ends."""

UNSAVED_FILE = "unsaved.jsonl"
"""The records of a fleet while they are being written, one a line."""

PART = ".part"
"""Suffix of files that are being written; who writes one has it locked."""

DEAD = 3600
"""Seconds after which a file that is being written is left by a process that ended, where the file
system has no locks to tell."""

EDITED = "was changed after it was written: its digest is that of other content"


class Store:
    """The records of one suite, in `folder/runs/`.

    From `prepare` to the end of its `with` block no other process can run into the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults = Faults(folder)
        """Of what was read so far."""
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
            with contextlib.suppress(OSError):  # Ctrl-C just when a file was begun
                self._clear()
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
            for name in (SUITE_FILE, "index.html", LOCK_FILE, UNSAVED_FILE, f"runs/{PACK_FILE}"):
                if (self.folder / name).is_dir():
                    raise IsADirectoryError(f"{name} is a folder")
            if self._unlock or self._lock():
                self._clear()
            refuse_link(self.checkpoints)
            refuse_link(self._unsaved)
            if self.checkpoints.exists() and not self.checkpoints.is_dir():
                raise NotADirectoryError("checkpoints is no folder")
            if self._unsaved.is_file():
                self._save_unsaved()
            self._unsaved.unlink(missing_ok=True)

    def _save_unsaved(self) -> None:
        """Write the records that a killed process did not come to; all of them, or none."""
        records = []
        for line in self._unsaved.read_bytes().splitlines():
            try:
                spec = RunSpec.model_validate(Record.model_validate_json(line).spec)
                record, why = record_of(spec, line, self._unsaved)
            except ValueError:  # not what `save` wrote
                record, why = None, "holds no record"
            if record is None or why:
                self.faults[UNSAVED_FILE] = Fault(why, lost=True)
                return
            records.append(record)
        self._write(records)

    def _clear(self) -> None:
        """Remove what was being written when a process ended: by another one that runs into the
        folder, as there is none now, or by any that left its file without a lock."""
        for left in self.folder.rglob(f".*{PART}"):
            if left.is_symlink() or not left.is_dir():
                if left.parent == self.runs:
                    left.unlink(missing_ok=True)
                else:
                    _remove_left(left)

    def clear_checkpoints(self) -> None:
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _lock(self) -> bool:
        """False where the file system has no locks: records are whole all the same."""
        handle = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UserError(
                f"another process is running into {self.folder}: wait until it has ended, or name "
                "another folder with --out"
            ) from None
        except OSError:
            os.close(handle)
            return False
        self._unlock = weakref.finalize(self, os.close, handle)
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
                write_atomically(self._unsaved, b"".join(r.to_line() for r in records))
            self._write(records)
            self._unsaved.unlink(missing_ok=True)

    def _write(self, records: Sequence[Record]) -> None:
        for record in records:
            write_atomically(self.path(RunSpec.model_validate(record.spec)), record.to_line())

    def load(self, spec: RunSpec) -> Record | None:
        """The record of that run; None where there is none, or none that can be read.

        `faults` says why not, and whether it was changed since it was written.
        """
        path = self.path(spec)
        name = f"{self.runs.name}/{path.name}"
        self.faults.pop(name, None)
        try:
            content = _read(path)
        except FileNotFoundError:
            if spec.id not in self._packed:
                return None
            content = self._packed[spec.id]
            name = f"{self.runs.name}/{PACK_FILE}, {spec.id}"
        except OSError as error:  # nothing outside, and no pipe, is read
            self.faults[name] = Fault(str(error.strerror or error), lost=True)
            return None
        record, why = record_of(spec, content, path)
        if why:
            self.faults[name] = Fault(why, lost=record is None)
        return record

    def refuse_folder(self, spec: RunSpec) -> None:
        """UserError where a folder is in the place of that run's record."""
        if (path := self.path(spec)).is_dir():
            raise UserError(f"{path} is a folder, where a record is to be written: remove it")

    def pack(self, specs: Sequence[RunSpec]) -> None:
        """Put the records of these runs into one file, beside what is there, and remove their own.

        Killed in between, nothing is lost: what has a file of its own is read from there.
        """
        loose = {s.id: path for s in specs if (path := self.path(s)).is_file()}
        if not loose:
            return
        lines = self._packed
        for key, path in loose.items():
            lines[key] = path.read_bytes().strip()
        out = io.BytesIO()
        with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as file:  # no date: equal bytes
            file.writelines(lines[key] + b"\n" for key in sorted(lines))
        with writing(self.folder):
            write_atomically(self.runs / PACK_FILE, out.getvalue())
            for path in loose.values():
                path.unlink(missing_ok=True)

    @functools.cached_property
    def _packed(self) -> Compressed:
        """The lines of the pack by run id, as far as it can be read."""
        lines = Compressed()
        name = f"{self.runs.name}/{PACK_FILE}"
        path = self.runs / PACK_FILE
        if not (path.exists() or path.is_symlink()):
            return lines
        why = ""
        try:
            _refuse_special(path)
            with gzip.open(path) as file:
                while line := file.readline(MOST_LINE):
                    key = _id_in(line)
                    if key is None:
                        why = why or "has a line that is no record"
                    elif key in lines:
                        why = why or f"has two records of one id, {key}"
                    else:
                        lines[key] = line.strip()
        except (OSError, EOFError, zlib.error) as error:  # the runs of the rest are made again
            why = f"cannot be read to its end ({error})"
        if why:
            self.faults[name] = Fault(why, lost=True)
        return lines


def record_of(spec: RunSpec, content: bytes, path: Path) -> tuple[Record | None, str]:
    """The record of that run, None where the content is none; and what is wrong with it, if
    anything.

    UserError where a later version wrote it: to run it again would overwrite what is newer.
    """
    try:
        record = Record.model_validate_json(content)
    except ValidationError as error:
        version = 0
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):  # no record
            version = int(json.loads(content)["schema_version"])
        if version > SCHEMA:
            raise UserError(
                f"{path} has schema version {version}, and this teleport-bench reads {SCHEMA}: "
                "install a newer one, or name another folder with --out"
            ) from None
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        return None, f"is no record ({place + ': ' if place else ''}{first['msg'][:200]})"
    if not record.id == spec.id == id_of(record.spec):
        return None, f"is not the record of its settings: it has the id {record.id[:50]}"
    return record, EDITED if _edited(content) else ""


def _edited(content: bytes) -> bool:
    """Whether a record has a digest, and that of other content."""
    try:
        given = json.loads(content)
        return "digest" in given and given["digest"] != digest_of(given)
    except (ValueError, RecursionError):  # numbers of thousands of digits, which nobody wrote
        return True


def _id_in(line: bytes) -> str | None:
    """The id in a record's line; None in what is no record."""
    try:
        found = json.loads(line)["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _read(path: Path) -> bytes:
    """The content of a file of records; OSError for what is none, or too large for one."""
    _refuse_special(path)
    if path.stat().st_size > MOST_LINE:
        raise OSError(f"has more than {MOST_LINE:,} bytes, too many for a record")
    return path.read_bytes()


def _refuse_special(path: Path) -> None:
    """OSError for a link, a folder, a pipe or a device; FileNotFoundError where nothing is."""
    if path.is_symlink():
        raise OSError("is a link to another place, which is not followed")
    if path.exists() and not path.is_file():
        raise OSError(f"is {'a folder' if path.is_dir() else 'a pipe or a device'}, and no file")


def refuse_link(path: Path) -> None:
    """UserError for a link inside a results folder: it may lead anywhere."""
    if os.path.islink(path):  # noqa: PTH114 - pathlib raises for a name too long
        raise UserError(
            f"{path} is a link to another place, and results are read and written in their folder "
            "alone: remove it, or copy what it names"
        )


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
    handle, name = _begin(path)
    try:
        with os.fdopen(handle, "wb") as file:  # locked until it has its name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _begin(path: Path) -> tuple[int, str]:
    """An empty file beside that path, locked: a handle, and its name."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        with contextlib.suppress(OSError):  # no locks here
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # another process took it for one that was left, before it was locked


def _remove_left(path: Path) -> None:
    """Remove that file, unless somebody still writes it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # gone, a link, or a file of somebody else
        if path.is_symlink() or _old(path):
            path.unlink(missing_ok=True)
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)  # still locked: see `_begin`
    except BlockingIOError:
        pass
    except OSError:
        if _old(path):
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _old(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return abs(time.time() - path.lstat().st_mtime) > DEAD  # clocks are set back, too
    return False
