"""Image data sets of the Hugging Face hub: where a copy is, and what it decodes to."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import io
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teleport_bench.data.cache import Splits, cached
from teleport_bench.data.dataset import Labels, Split
from teleport_bench.data.folder import Files, check_card, files_of, fingerprint, stage
from teleport_bench.errors import UserError, nearest

if TYPE_CHECKING:
    import datasets

DATA_VARIABLE = "TELEPORT_BENCH_DATA"
CHANNELS = {"L": 1, "RGB": 3}
"""Of the modes of Pillow that are taken."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF")
"""Trying all that Pillow knows would take a third of the time."""
KINDS = ("parquet", "arrow", "imagefolder", "webdataset")
"""Of the readers of `datasets`: those whose files hold images."""
TEXTS = ("csv", "json", "text")
"""Those whose files are at least read without opening others, as those of "hdf5" may."""
Kind = tuple[str, tuple[int, int]]
"""(mode, (width, height)) of an image."""
CAUSE = 300
"""Characters of a library's error that are shown."""
BATCH = 1000
PATIENCE = 10.0
"""Seconds for the hub's first answer."""
VERSION = 2
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
    parts = source.id.split("/") if isinstance(source.id, str) else [""]
    if not all(part.strip() and part not in (".", "..") for part in parts):
        raise UserError(
            f"the id of a data set is a name, or two with a slash, got {source.id!r:.200}: give "
            'one as in source = "uoft-cs/cifar100"; a folder is named with --data'
        )
    missing: list[str] = []
    for folder, origin in _copies(source, missing):
        options = (source.subset, source.image, source.label, source.train, source.test)
        text = json.dumps([VERSION, origin, options])
        key = hashlib.sha256(text.encode()).hexdigest()[:32]
        try:
            splits = cached(key, functools.partial(_decoded, folder, source, origin))
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


def _decoded(folder: Path, source: Source, origin: Mapping[str, str]) -> Splits:
    splits = _decode(folder, source)
    if origin.get("files") not in (None, fingerprint(files_of(folder))):
        raise UserError(f"{folder} was changed while it was read: run again")
    return splits


def _copies(source: Source, missing: list[str]) -> Iterator[tuple[Path, dict[str, str]]]:
    """Folders in the hub's layout, best first; why there are no more goes to `missing`."""
    from huggingface_hub import HfApi, snapshot_download, utils

    if root := os.environ.get(DATA_VARIABLE):
        for name in dict.fromkeys((source.id, source.id.rpartition("/")[2])):
            folder = _expanded(root) / name
            if os.path.isdir(folder):  # noqa: PTH112 - pathlib raises for a name too long
                files = fingerprint(files_of(folder))
                yield folder, {"source": source.id, "files": files}
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


def _expanded(root: str) -> Path:
    expanded = os.path.expanduser(root)  # noqa: PTH111 - pathlib takes ./~ for ~
    if expanded.startswith("~"):
        raise UserError(
            f"--data or {DATA_VARIABLE} names the folder {root!r}, but there is no home of that "
            "user: name it without ~, or with ./ before it"
        )
    return Path(expanded)


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries print and warn of: what matters is raised."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _decode(folder: Path, source: Source) -> Splits:
    """Training and test images of a copy.

    Exactly the files of `files_of` are read: `datasets` sees links to them, and what it would read
    beside them is refused.
    """
    import datasets

    files = files_of(folder)
    if f"{folder.name}.py" in files:
        raise UserError(
            f"{folder} is read by its script {folder.name}.py, which is not executed: convert the "
            "set to parquet, or get a copy that is"
        )
    check_card(files)
    with _no_bars(datasets), _quiet(), _links(files) as (place, links):

        def cause(error: BaseException) -> str:
            return _one_line(error).replace(str(place), str(folder))

        try:
            # streamed, so that no second copy of the files is made; the cache is for lock files
            builder = datasets.load_dataset_builder(
                str(place), source.subset, cache_dir=str(place.with_name("cache"))
            )
            _check_files(builder, folder, links)
            if hasattr(builder.config, "batch_size"):  # of parquet: else all rows of a group
                builder.config.batch_size = BATCH
            rows = builder.as_streaming_dataset()
            train, test = (
                _split(rows, name, f"{folder}, {name}", source, links)
                for name in (source.train, source.test)
            )
        except (FileNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
            raise _NothingThereError(f"{folder} holds no data files") from error
        except UserError:
            raise
        except KeyError as error:  # of a row, from the reader of folders of images
            raise UserError(
                f"{folder}: not every image has the column {error}; expected one folder for each "
                "class in that of each split"
            ) from error
        except Exception as error:  # a copy may hold anything, and the libraries raise anything
            said = str(error)
            if "Config name is missing" in said or "BuilderConfig" in said:
                known = re.search(r"\[.*\]", said)
                raise UserError(
                    f"{folder}: {_subset(source)}; say which of its configurations "
                    f"{known[0] if known else ''} is meant with the option 'subset'"
                ) from error
            raise UserError(f"{folder} cannot be read as a data set: {cause(error)}") from error
    return train, test


def _subset(source: Source) -> str:
    if source.subset is None:
        return "the set has several configurations"
    return f"there is no configuration '{source.subset}'"


@contextlib.contextmanager
def _links(files: Files) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """A folder of links to the files, in a place of its own; the files' names by the links."""
    with tempfile.TemporaryDirectory() as there:
        place = Path(there).resolve() / "data"
        place.mkdir()
        yield place, stage(files, place)


def _check_files(builder: datasets.DatasetBuilder, folder: Path, links: Mapping[str, str]) -> None:
    """UserError where other files would be read, or files that may name others."""
    kind = type(builder).__module__.split(".")[-1]
    if kind not in KINDS + TEXTS:
        raise UserError(
            f"{folder} holds files of the kind '{kind}'; expected images in one of "
            f"{', '.join(KINDS)}: convert them"
        )
    for paths in (builder.config.data_files or {}).values():
        for path in paths:
            if path not in links:
                raise UserError(
                    f"{folder} names the data {path!r}; expected files of its own, since no "
                    "others are in its fingerprint: copy them there"
                )


def _split(
    splits: datasets.IterableDatasetDict,
    name: str,
    where: str,
    source: Source,
    links: Mapping[str, str],
) -> Split:
    """Decode one split. Not by threads: for small images they wait for each other's GIL."""
    import datasets

    if name not in splits:
        raise UserError(
            f"{where}: there is no split '{name}'{nearest(name, splits)}; say which with the "
            "options 'train' and 'test'"
        )
    rows = splits[name]
    columns = rows.column_names
    if columns is None:
        with contextlib.closing(rows.iter(batch_size=1)) as ahead:
            columns = list(next(ahead, {}))
        gc.collect()  # readers of text leave their file open, of which Python warns
    for option, column in (("image", source.image), ("label", source.label)):
        if column not in columns:
            raise UserError(
                f"{where} has no column '{column}'{nearest(column, columns)}; say which with the "
                f"option '{option}'"
            )
    kind = rows.features[source.image] if rows.features else "texts or numbers"
    if not _may_hold_images(kind):
        raise ValueError(
            f"{name}: the column '{source.image}' holds {kind}, expected images; say which does "
            "with the option 'image'"
        )
    rows = rows.select_columns([source.image, source.label])
    rows = rows.cast_column(source.image, datasets.Image(decode=False)).with_format("arrow")
    pixels, labels = bytearray(), list[Labels]()
    first: Kind | None = None
    done, room = 0, _most()
    with contextlib.closing(rows.iter(batch_size=BATCH)) as batches:
        for batch in batches:
            images: list[bytes] = []
            for row, cell in enumerate(batch[source.image].to_pylist(), done):
                kind, image = _pixels(cell, f"{where}, row {row}", links, room)
                room -= len(image)
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
            labels.append(_labels(batch[source.label], source.label, where))
            done += len(images)
    if not first:
        raise UserError(f"{where} has no rows")
    (width, height), channels = first[1], CHANNELS[first[0]]
    array = np.frombuffer(pixels, np.uint8).reshape(-1, channels, height, width)
    return Split.of_own(array, np.concatenate(labels))


def _may_hold_images(kind: Any) -> bool:
    """Whether a column of that feature type may: as images, or as their files' bytes."""
    import datasets

    if isinstance(kind, dict):
        return kind.keys() == {"bytes", "path"}
    if isinstance(kind, datasets.Value):
        return kind.dtype in ("binary", "large_binary", "string", "large_string", "null")
    return isinstance(kind, datasets.Image)


def _labels(found: Any, column: str, where: str) -> Labels:
    """The labels of an arrow column."""
    if found.null_count or not str(found.type).startswith(("int", "uint")):
        raise UserError(
            f"{where}: the labels in the column '{column}' are {found.type} "
            f"with {found.null_count} missing; expected a whole number for every image"
        )
    labels: NDArray[np.integer] = found.to_numpy()
    if len(labels) and labels.max() >= 2**63:
        raise UserError(
            f"{where}: the column '{column}' has the label {labels.max()}, expected 0 to C-1 for "
            "C classes: number the classes anew, or choose another column with 'label'"
        )
    return labels.astype(np.int64)


def _pixels(cell: Any, where: str, links: Mapping[str, str], room: int) -> tuple[Kind, bytes]:
    """(mode, (width, height)) and the bytes of an image, row by row, channels last.

    It is turned as its EXIF orientation says, like `datasets` does. room: how many bytes may be
    decoded.
    """
    from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(_file(cell, where, links), formats=FORMATS) as image:
            _check_image(image.mode, image.size, where, room)
            image.load()
            # not asked of all: it takes as long as decoding a small image
            if (image.info or image.format == "TIFF") and image.getexif().get(
                ExifTags.Base.Orientation
            ):
                turned = ImageOps.exif_transpose(image)
                return (turned.mode, turned.size), turned.tobytes()
            return (image.mode, image.size), image.tobytes()
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(
            f"{where}: the image cannot be decoded; expected one of {', '.join(FORMATS)}: "
            "convert it"
        ) from error
    except Exception as error:  # the image may be anything, and Pillow raises anything
        raise UserError(f"{where}: the image cannot be decoded ({_one_line(error)})") from error


def _file(cell: Any, where: str, links: Mapping[str, str]) -> io.BytesIO | str:
    """What holds the image of a cell."""
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (None, None)
    if data:
        return io.BytesIO(data)
    if not path:
        raise UserError(f"{where} has no image")
    if os.path.normpath(path) not in links:
        raise UserError(
            f"{where} names the file {path!r} in the place of an image; expected the image "
            "itself, since that file is not in the fingerprint of the data"
        )
    return str(path)


def _check_image(mode: str, size: tuple[int, int], where: str, room: int) -> None:
    """UserError where an image is of no use, or too large to decode."""
    if mode not in CHANNELS:
        raise UserError(
            f"{where}: the image has mode '{mode}'; expected L (grey) or RGB: convert it"
        )
    if size[0] * size[1] * CHANNELS[mode] > room:
        raise UserError(
            f"{where}: with this image of {size[0]}x{size[1]} pixels the split takes more than "
            f"the {_most() / 2**30:.3g} GiB that may be decoded, a quarter of this machine's "
            "memory: take fewer or smaller images"
        )


def _most() -> int:
    """Bytes that a split may decode to: a set is in memory twice for a moment."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


def _words(kind: Kind) -> str:
    mode, (width, height) = kind
    return f"{mode} {width}x{height}"


def _one_line(error: BaseException) -> str:
    """What a library's error says: on a line, of a sane length, without the memory's addresses."""
    said = re.sub(r" (object )?at 0x[0-9a-fA-F]+", "", str(error))
    said = " ".join("".join(c if c.isprintable() else " " for c in said).split())
    if not isinstance(error, ValueError | OSError) or not said:
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return f"{said[:CAUSE]} .." if len(said) > CAUSE else said
