"""A copy of a hub repository in a folder: its files, their fingerprint, and what its card names."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from teleport_bench.errors import UserError

CARD, STANDALONE = "README.md", ".huggingface.yaml"
"""Where `datasets` reads which files are the data."""
CARD_BYTES = 2**20
"""Limit on a card's YAML, of which 1,000 class names take 20 kB."""
CARD_NODES = 10**6
"""Limit on its values with every alias written out, which may be exponentially many."""
CARD_DEPTH = 50

Files = Mapping[str, Path]
"""The files of a folder by their name in it, as in "data/train.parquet"."""


def files_of(folder: Path) -> Files:
    """All files that may be read as data, in the order of their names.

    Hidden files and those in hidden folders are left out. Links are followed; one that leads
    nowhere, or to a folder that is read already, raises UserError.
    """
    found: dict[str, Path] = {}
    seen: dict[tuple[int, int], Path] = {}
    ahead = [folder]
    try:
        while ahead:
            here = ahead.pop()
            place = here.stat()
            first = seen.setdefault((place.st_dev, place.st_ino), here)
            if first != here:
                raise UserError(f"{here} is the same folder as {first}: remove the link")
            for path in here.iterdir():
                name = path.relative_to(folder).as_posix()
                if path.name.startswith(".") and name != STANDALONE:
                    continue
                if path.is_dir():
                    ahead.append(path)
                elif path.is_file():
                    found[name] = path
                elif path.is_symlink():
                    raise UserError(
                        f"{path} is a link to {path.readlink()}, which is not there: get the "
                        "file, or remove the link"
                    )
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error}") from error
    for name in found:
        if strange := re.search(r"::|\n", name):
            raise UserError(
                f"{folder / name!s:.300}: a name with {strange[0]!r} is not read as that of a "
                "file: rename it"
            )
    return dict(sorted(found.items()))


def fingerprint(files: Files) -> str:
    """SHA-256 over the names and contents of the files: 64 hex digits."""
    digest = hashlib.sha256()
    for name, path in files.items():
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        digest.update(os.fsencode(name) + b"\0" + content)
    return digest.hexdigest()


def stage(files: Files, into: Path) -> dict[str, str]:
    """Link the files, and nothing else, from an empty folder; their names by the links' paths.

    `datasets` takes *, ?, [ and :: in the path of a folder for patterns, and so may read another.
    """
    if strange := re.search(r"[*?[\]]|::", str(into)):
        raise UserError(
            f"data sets are read by way of the folder for temporary files, {into.parent}, whose "
            f"name has '{strange[0]}', which is read as a pattern: set TMPDIR to another"
        )
    links = {}
    for name, path in files.items():
        link = into / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.absolute())
        links[str(link)] = name
    return links


def check_card(files: Files) -> None:
    """UserError where the card is no YAML of a sane size, or names data outside of the folder.

    It is checked before `datasets` reads it, which would fetch what an address names.
    """
    for name in (CARD, STANDALONE):
        path = files.get(name)
        for pattern in _patterns(_yaml(path, whole=name == STANDALONE)) if path else ():
            if not pattern.startswith("/") and not re.search(r"::|://|(^|/)\.\.(/|$)", pattern):
                continue
            raise UserError(
                f"{path} names the data {pattern!r}; expected files of its own folder, since no "
                "others are in its fingerprint: copy them there"
            )


def _yaml(path: Path, *, whole: bool) -> Any:
    """What the YAML of a card says: the whole file, or what is between --- and --- at its top."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(4 * CARD_BYTES)
        if not whole:
            block = re.match(r"\s*---[\r\n]+([\S\s]*?)[\r\n]+---\s", f"{text}\n")
            text = block[1] if block else ""
        return _parsed(text)
    except Exception as error:  # PyYAML raises whatever a hostile text leads to
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        said = getattr(error, "problem", None) or str(error)[:100] or type(error).__name__
        raise UserError(f"{path}{line}: the card is no YAML of a sane size: {said}") from error


def _parsed(text: str) -> Any:
    import yaml

    if len(text) > CARD_BYTES:
        raise ValueError(f"more than {CARD_BYTES:,} characters")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if _written_out(node, {}, 0) > CARD_NODES:
            raise ValueError(f"more than {CARD_NODES:,} values")
        return loader.construct_document(node) if node else None
    finally:
        loader.dispose()


def _written_out(node: Any, known: dict[int, int], depth: int) -> int:
    """The number of values under a YAML node, those behind aliases included."""
    if id(node) not in known:
        if depth > CARD_DEPTH:
            raise ValueError(f"nested more than {CARD_DEPTH} deep")
        inner = node.value if node and isinstance(node.value, list) else []
        known[id(node)] = CARD_NODES + 1  # should it hold itself
        known[id(node)] = 1 + sum(
            _written_out(one, known, depth + 1)
            for entry in inner
            for one in (entry if isinstance(entry, tuple) else (entry,))
        )
    return known[id(node)]


def _patterns(value: Any, *, data: bool = False) -> Iterator[str]:
    """All texts in a card that say where data are: under data_files or data_dir of any entry."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _patterns(inner, data=data or key in ("data_files", "data_dir"))
    elif isinstance(value, list):
        for inner in value:
            yield from _patterns(inner, data=data)
    elif data and isinstance(value, str):
        yield value
