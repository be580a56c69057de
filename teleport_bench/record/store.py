"""Records on disk: one file a run, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from pathlib import Path

from pydantic import ValidationError

from teleport_bench.errors import UserError
from teleport_bench.record.schema import SCHEMA, Record
from teleport_bench.spec import RunSpec, id_of

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
                refuse_link(folder)
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
        path = self.path(spec)
        try:
            if path.is_symlink() or not path.is_file():  # nothing outside, and no pipe, is read
                return None
            content = path.read_bytes()
        except OSError:
            return None
        return record_of(spec, content, path)


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
