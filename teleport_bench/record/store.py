"""Records on disk: one file a run, written whole or not at all; thousands of them in one pack."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import re
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from teleport_bench.errors import UserError
from teleport_bench.record.schema import Record
from teleport_bench.spec import RunSpec

PACK_FILE = "packed.jsonl.gz"
"""Beside single records: many, a line each."""

SUITE_FILE = "suite.json"
"""Beside the records: the suite as it was run, overrides applied, which the report is built by."""


class Store:
    """The records of one suite, in `folder/runs/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = folder / "runs"

    def prepare(self) -> None:
        """Make the folders; UserError where that, or writing into them, is not possible."""
        try:
            for folder in (self.runs, self.folder / "tables", self.folder / "figures"):
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            for name in (SUITE_FILE, "index.html"):
                if (self.folder / name).is_dir():
                    raise IsADirectoryError(f"{name} is a folder")
        except OSError as error:
            raise UserError(
                f"cannot write results to {self.folder}: {error.strerror or error}; "
                "name another folder with --out"
            ) from error

    def path(self, spec: RunSpec) -> Path:
        """`dsgd-ring-n32-k32-lr0.1-s0-<id>.json`: readable, and unique by the id."""
        text = (
            f"{spec.algorithm['name']}-{spec.topology['name']}-n{spec.nodes}-k{spec.n_active}"
            f"-lr{spec.lr:g}-s{spec.seed}"
        )
        return self.runs / f"{re.sub(r'[^A-Za-z0-9._+-]', '_', text)}-{spec.id}.json"

    def save(self, record: Record) -> None:
        """Write the record, or leave what was there."""
        text = record.model_dump_json(indent=None) + "\n"
        write_atomically(self.path(RunSpec.model_validate(record.spec)), text.encode())

    def load(self, spec: RunSpec) -> Record | None:
        """The record of that run; None where there is none, or none that can be read."""
        try:
            text = self.path(spec).read_bytes()
        except OSError:
            found = self._packed.get(spec.id)
            if found is None:
                return None
            text = found
        try:
            record = Record.model_validate_json(text)
        except ValidationError:
            return None
        return record if record.id == spec.id else None

    def pack(self, specs: Sequence[RunSpec]) -> None:
        """Put the records of these runs into one file, beside what is there, and remove their own.

        Killed in between, nothing is lost: what has a file of its own is read from there.
        """
        loose = {spec.id: self.path(spec) for spec in specs}
        lines = dict(self._packed)
        for key, path in loose.items():
            if (record := path.read_bytes() if path.is_file() else None) is not None:
                lines[key] = record.strip()
        out = io.BytesIO()
        with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as file:  # no date: equal bytes
            file.writelines(lines[key] + b"\n" for key in sorted(lines))
        write_atomically(self.runs / PACK_FILE, out.getvalue())
        self.__dict__["_packed"] = lines
        for path in loose.values():
            path.unlink(missing_ok=True)

    @functools.cached_property
    def _packed(self) -> dict[str, bytes]:
        """The lines of the pack by run id, as far as it can be read."""
        lines: dict[str, bytes] = {}
        try:
            with gzip.open(self.runs / PACK_FILE) as file:
                for line in file:
                    lines[json.loads(line)["id"]] = line.strip()
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError):
            pass  # what cannot be read is not there: its runs are made again
        return lines


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that no reader, and no crash, ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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
