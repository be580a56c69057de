"""Image data sets of the Hugging Face hub: where a copy is, and what it decodes to."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from teleport_bench.data.cache import Splits, cached
from teleport_bench.data.dataset import Labels, Split
from teleport_bench.errors import UserError, nearest

if TYPE_CHECKING:
    import datasets

DATA_VARIABLE = "TELEPORT_BENCH_DATA"
CHANNELS = {"L": 1, "RGB": 3}
"""Of the modes of Pillow that are taken."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF")
"""Trying all that Pillow knows would take a third of the time."""
BATCH = 1000
PATIENCE = 10.0
"""Seconds for the hub's first answer."""
VERSION = 1
"""Of what is cached: to be raised whenever the same files decode to something else."""


@dataclass(frozen=True)
class Source:
    """A data set's id on the hub, and what in it is read."""

    id: str
    subset: str | None = None
    image: str = "image"
    label: str = "label"
    train: str = "train"
    test: str = "test"
    revision: str | None = None


class _NothingThereError(Exception):
    """A folder without data files."""


def read(source: Source) -> tuple[Splits, dict[str, str]]:
    """Training and test images (N, channels, height, width), and what tells their origin.

    Looks in the folder that TELEPORT_BENCH_DATA names, then in the hub's cache, then on the hub.
    Raises UserError where none has a copy, and where a copy is no image classification set: an
    image cannot be decoded, or has another size or mode than the rest, or a label is no integer.
    """
    missing: list[str] = []
    for folder, origin in _copies(source, missing):
        options = (source.subset, source.image, source.label, source.train, source.test)
        text = json.dumps([VERSION, origin, options])
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        try:
            splits = cached(key, functools.partial(_decode, folder, source))
        except _NothingThereError as error:
            missing.append(str(error))
            continue
        return splits, origin
    last = source.id.rpartition("/")[2]
    raise UserError(
        f"no copy of the data set {source.id} was found: {'; '.join(missing)}. Name a folder DIR "
        f"with --data or {DATA_VARIABLE} where DIR/{last} or DIR/{source.id} is a copy of its "
        f"repository, or run once while https://huggingface.co/datasets/{source.id} can be reached"
    )


def _copies(source: Source, missing: list[str]) -> Iterator[tuple[Path, dict[str, str]]]:
    """Folders in the hub's layout, best first; why there are no more goes to `missing`."""
    from huggingface_hub import HfApi, snapshot_download, utils

    if root := os.environ.get(DATA_VARIABLE):
        for name in dict.fromkeys((source.id, source.id.rpartition("/")[2])):
            folder = Path(root).expanduser() / name
            if folder.is_dir():
                yield folder, {"source": source.id, "files": _fingerprint(folder)}
            else:
                missing.append(f"{folder} is not a folder")
    else:
        missing.append(f"neither --data nor {DATA_VARIABLE} names a folder")
    for local in (True, False):
        try:
            if not local:  # what follows would wait for ever for a server that does not answer
                HfApi().dataset_info(source.id, revision=source.revision, timeout=PATIENCE)
            with _no_bars(utils):
                snapshot = snapshot_download(
                    source.id,
                    repo_type="dataset",
                    revision=source.revision,
                    local_files_only=local,
                )
        except Exception as error:  # whatever a network or a server can do
            if local:
                missing.append("the hub's cache has none")
            else:
                reason = str(error.__cause__ or error).strip().partition("\n")[0]
                missing.append(f"the hub gave none ({reason})")
        else:
            folder = Path(snapshot)
            yield folder, {"source": source.id, "revision": folder.name}


def _fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files, hidden ones apart: 64 hex digits."""
    digest = hashlib.sha256()
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    for name, path in sorted(paths.items()):
        if path.is_file() and not f"/{name}".count("/."):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


@contextlib.contextmanager
def _no_bars(package: ModuleType) -> Iterator[None]:
    """Without the progress bars of `datasets` or `huggingface_hub.utils`."""
    shown = not package.are_progress_bars_disabled()
    package.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            package.enable_progress_bars()


def _decode(folder: Path, source: Source) -> Splits:
    import datasets

    names = (source.train, source.test)
    # streamed, so that no second copy of the files is made; the cache is for lock files
    with _no_bars(datasets), tempfile.TemporaryDirectory() as cache:
        try:
            rows = datasets.load_dataset(
                str(folder.absolute()), source.subset, streaming=True, cache_dir=cache
            )
            train, test = (_split(rows, name, f"{folder}, {name}", source) for name in names)
        except FileNotFoundError as error:
            raise _NothingThereError(f"{folder} holds no data files") from error
        except UserError:
            raise
        except (ValueError, OSError) as error:
            raise UserError(f"{folder} cannot be read as a data set: {error}") from error
    return train, test


def _split(splits: datasets.IterableDatasetDict, name: str, where: str, source: Source) -> Split:
    """Decode one split. Not by threads: for small images they wait for each other's GIL."""
    import datasets

    if name not in splits:
        raise UserError(
            f"{where}: there is no split '{name}'{nearest(name, splits)}; say which with the "
            "options 'train' and 'test'"
        )
    rows = splits[name]
    columns = rows.column_names or list(next(iter(rows), {}))
    for option, column in (("image", source.image), ("label", source.label)):
        if column not in columns:
            raise UserError(
                f"{where} has no column '{column}'{nearest(column, columns)}; say which with the "
                f"option '{option}'"
            )
    rows = rows.select_columns([source.image, source.label])
    rows = rows.cast_column(source.image, datasets.Image(decode=False)).with_format("arrow")
    pixels, labels = bytearray(), list[Labels]()
    first: tuple[str, tuple[int, int]] | None = None
    for batch in rows.iter(batch_size=BATCH):
        images: list[bytes] = []
        for cell in batch[source.image].to_pylist():
            row = len(labels) * BATCH + len(images)
            kind, image = _pixels(cell, f"{where}, row {row}")
            first = first or kind
            if kind != first:
                raise UserError(
                    f"{where}: the image of row {row} is {_words(kind)}, that of row 0 "
                    f"{_words(first)}; all must have one size and mode: convert them"
                )
            images.append(image)
        mode, (width, height) = first or ("L", (0, 0))
        block = np.frombuffer(b"".join(images), np.uint8)
        block = block.reshape(len(images), height, width, CHANNELS[mode])
        pixels += block.transpose(0, 3, 1, 2).tobytes()
        found = batch[source.label]
        if found.null_count or not str(found.type).startswith(("int", "uint")):
            raise UserError(
                f"{where}: the labels in the column '{source.label}' are {found.type} "
                f"with {found.null_count} missing; expected a whole number for every image"
            )
        labels.append(found.to_numpy().astype(np.int64))
    if not first:
        raise UserError(f"{where} has no rows")
    (width, height), channels = first[1], CHANNELS[first[0]]
    array = np.frombuffer(pixels, np.uint8).reshape(-1, channels, height, width)
    return Split(array, np.concatenate(labels))


def _pixels(cell: dict[str, Any] | None, where: str) -> tuple[tuple[str, tuple[int, int]], bytes]:
    """(mode, (width, height)) and the bytes of an image, row by row, channels last."""
    from PIL import Image

    if not cell or not (cell["bytes"] or cell["path"]):
        raise UserError(f"{where} has no image")
    try:
        file = io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"]
        with Image.open(file, formats=FORMATS) as image:
            kind, pixels = (image.mode, image.size), image.tobytes()
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{where}: the image cannot be decoded ({error})") from error
    if image.mode not in CHANNELS:
        raise UserError(
            f"{where}: the image has mode '{image.mode}'; expected L (grey) or RGB: convert it"
        )
    return kind, pixels


def _words(kind: tuple[str, tuple[int, int]]) -> str:
    mode, (width, height) = kind
    return f"{mode} {width}x{height}"
