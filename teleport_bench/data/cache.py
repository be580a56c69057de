"""Decoded data sets on disk: one file each, checked against its SHA-256 whenever it is read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from teleport_bench.data.dataset import Split
from teleport_kernels.compiler import user_cache

Splits = tuple[Split, Split]
"""Training and test images as their source has them."""

DIGEST = hashlib.sha256().digest_size
OTHERS = stat.S_IWGRP | stat.S_IWOTH
"""Rights to write that are the user's alone."""
DEAD = 3600
"""Seconds after which an unfinished file is that of a killed process; writing one takes one."""


def cached(key: str, decode: Callable[[], Splits]) -> Splits:
    """What the cache holds under `key`; where it holds nothing that is sound, `decode` and keep it.

    The file is the SHA-256 of what follows, then four arrays as NumPy's .npy. It appears whole or
    not at all, so that processes may decode the same set at once. A cache that cannot be written,
    or that others can write, is done without.
    """
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        return _read(folder() / key)
    splits = decode()
    with contextlib.suppress(OSError, RuntimeError):
        _write(folder() / key, splits)
    return splits


def folder() -> Path:
    """`teleport-bench/data` in the user's cache; RuntimeError where the user has no home."""
    return user_cache() / "teleport-bench" / "data"


def _check_owner(status: os.stat_result) -> None:
    """PermissionError where others may have written what has that status: do not trust it."""
    if status.st_uid != os.geteuid() or status.st_mode & OTHERS:
        raise PermissionError("others can write it")


def _read(path: Path) -> Splits:
    _check_owner(path.parent.stat())
    with path.open("rb") as file:
        _check_owner(os.fstat(file.fileno()))
        digest = file.read(DIGEST)
        if hashlib.file_digest(file, "sha256").digest() != digest:
            raise ValueError("not what was written")
        file.seek(DIGEST)
        train, train_labels, test, test_labels = (
            np.load(file, allow_pickle=False) for _ in range(4)
        )
    return Split.of_own(train, train_labels), Split.of_own(test, test_labels)


def _write(path: Path, splits: Splits) -> None:
    for parent in (*reversed(path.parents[1:3]), path.parent):
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.parent.stat()
    if status.st_uid == os.geteuid() and status.st_mode & OTHERS:  # made under a lax umask
        path.parent.chmod(0o700)
    _check_owner(path.parent.stat())
    for left in path.parent.glob("*.part"):
        with contextlib.suppress(OSError):
            if abs(time.time() - left.stat().st_mtime) > DEAD:  # clocks are set back, too
                left.unlink()
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        # not synced to the disk: what a crash of the machine leaves does not pass the checksum
        with os.fdopen(handle, "w+b") as file:
            file.write(bytes(DIGEST))
            for split in splits:
                np.save(file, split.images)
                np.save(file, split.labels)
            file.seek(DIGEST)
            digest = hashlib.file_digest(file, "sha256").digest()
            file.seek(0)
            file.write(digest)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
