"""C++ to a shared library by the machine's own compiler, once: results stay in the user's cache."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-pthread", "-std=c++17", "-shared", "-fPIC")

FAILURES = (OSError, subprocess.SubprocessError)
"""What `load` raises where there is no compiler, or none that can compile this."""


BUILD = "build-"
DEAD = 3600
"""Seconds after which an unfinished build is that of a killed process; compiling takes ten."""


def load(
    source: Path,
    flags: Sequence[str] = (),
    *,
    includes: Sequence[Path] = (),
    optional: Sequence[str] = (),
) -> ctypes.CDLL:
    """Compile a file for this very machine, or take what an earlier process compiled, and load it.

    includes: the files that it includes. optional: flags that are left out where they fail.
    """
    name = _name(source, flags, includes)
    if whole := _whole(name):
        return ctypes.CDLL(str(whole))
    folders = {f"-I{include.parent}" for include in includes}
    command = [_compiler(), *FLAGS, *flags, *folders, str(source)]
    try:
        return _compile([*command, *optional], name)
    except FAILURES:  # what is optional; or the cache was removed meanwhile
        return _compile(command, name)


def is_there(source: Path, flags: Sequence[str] = (), *, includes: Sequence[Path] = ()) -> bool:
    """Whether `load` has nothing to compile."""
    return _whole(_name(source, flags, includes)) is not None


def _whole(name: str) -> Path | None:
    """The library in the cache. A part of one, left by a crash, would end the process: those that
    do not have the checksum in their name are removed."""
    for path in _cache().glob(f"{name}-*.so"):
        with contextlib.suppress(OSError):
            if path.stem.endswith(_checksum(path)):
                return path
            path.unlink()
    return None


def _compile(command: Sequence[str], name: str) -> ctypes.CDLL:
    """Compile, put it where others see it, and load it."""
    folder = _cache()
    _clear(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=BUILD) as build:
        built = Path(build) / f"{name}.so"
        call = [*command, "-o", str(built)]
        subprocess.run(call, capture_output=True, text=True, check=True)
        loaded = ctypes.CDLL(str(built))
        with contextlib.suppress(OSError):  # the next process compiles it again
            built.replace(folder / f"{name}-{_checksum(built)}.so")
        return loaded


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:20]


def _clear(folder: Path) -> None:
    """Remove what killed processes left."""
    for left in folder.glob(f"{BUILD}*"):
        with contextlib.suppress(OSError):
            if abs(time.time() - left.stat().st_mtime) > DEAD:
                shutil.rmtree(left)


def _name(source: Path, flags: Sequence[str], includes: Sequence[Path]) -> str:
    texts = [path.read_text() for path in (source, *includes)]
    key = (*texts, FLAGS, tuple(flags), _version(), platform.machine(), _instruction_sets())
    return f"{source.stem}-{hashlib.sha256(repr(key).encode()).hexdigest()[:20]}"


def _compiler() -> str:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise FileNotFoundError("no g++ or clang++ on the path, and CXX is not set")
    return compiler


def _version() -> str:
    command = [_compiler(), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@functools.cache
def _own() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="teleport-kernels-")


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teleport-kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:  # a home that cannot be written: compile for this process alone
        folder = Path(_own().name)
    return folder


def _instruction_sets() -> str:
    """What -march=native depends on, so that a cache in a shared home serves different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
