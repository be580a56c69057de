"""C++ to a shared library by the machine's own compiler, once: results stay in the user's cache.

Nothing here needs torch, so that compiling can begin before it is imported.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-pthread", "-std=c++17", "-shared", "-fPIC")

LENT = tuple(Path(__file__).with_name(name) for name in ("parallel.hpp", "mixing.hpp"))
"""Loops on several threads, and how to mix between them: for any library to include."""

FAILURES = (OSError, subprocess.SubprocessError)
"""What `Library.load` raises where there is no compiler, or none that can compile this."""


BUILD = "build-"
DEAD = 3600
"""Seconds after which an unfinished build is that of a killed process; compiling takes ten."""


@dataclass(frozen=True)
class Library:
    """One C++ file as a shared library for this very machine.

    includes: the files that it includes. optional: flags that are left out where they fail.
    """

    source: Path
    flags: tuple[str, ...] = ()
    includes: tuple[Path, ...] = ()
    optional: tuple[str, ...] = ()

    def is_there(self) -> bool:
        """Whether `load` has nothing to compile. One of FAILURES where there is no compiler."""
        return _whole(self._name()) is not None

    def identity(self) -> str:
        """A hash of what it is made from and by: sources, flags, compiler and processor."""
        return self._name()

    def begin(self) -> None:
        """Compile beside what follows, where it is not there; `load` waits, and says what fails.

        What nobody has loaded when the process ends is kept if it is done, and else stopped.
        """
        with contextlib.suppress(*FAILURES):
            if self not in _begun and not self.is_there():
                _begun[self] = self._build(self.optional)
                atexit.register(_end)  # after what would remove the folder, and so before it

    def load(self) -> ctypes.CDLL:
        """What an earlier process compiled, or else compile it now; or one of FAILURES."""
        build = _begun.pop(self, None)
        if build is None and (whole := _whole(self._name())):
            return ctypes.CDLL(str(whole))
        try:
            return (build or self._build(self.optional)).load()
        except FAILURES:  # what is optional; or the cache was removed meanwhile
            return self._build(()).load()

    def _build(self, optional: Sequence[str]) -> _Build:
        folders = {f"-I{include.parent}" for include in self.includes}
        command = [_compiler(), *FLAGS, *self.flags, *folders, str(self.source), *optional]
        return _Build(command, self._name())

    def _name(self) -> str:
        texts = [path.read_text() for path in (self.source, *self.includes)]
        machine = _version(_compiler()), platform.machine(), _instruction_sets()
        key = (*texts, FLAGS, self.flags, self.optional, *machine)
        return f"{self.source.stem}-{hashlib.sha256(repr(key).encode()).hexdigest()[:20]}"


class _Build:
    """A compiler at work, in a folder that goes when it ends."""

    def __init__(self, command: Sequence[str], name: str) -> None:
        self.cache = _cache()
        _clear(self.cache)
        self.folder = tempfile.TemporaryDirectory(dir=self.cache, prefix=BUILD)
        self.built = Path(self.folder.name) / f"{name}.so"
        self.errors = self.built.with_suffix(".txt")
        try:
            with self.errors.open("w") as errors:
                self.process = subprocess.Popen(
                    [*command, "-o", str(self.built)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    process_group=0,  # Ctrl-C is for this process, which then stops the compiler
                )
        except OSError:
            self.folder.cleanup()
            raise

    def load(self) -> ctypes.CDLL:
        """Wait for it, load the library, and put it where others see it."""
        try:
            if code := self.process.wait():
                text = self.errors.read_text()
                raise subprocess.CalledProcessError(code, self.process.args, stderr=text)
            return ctypes.CDLL(str(self.built))
        finally:
            self.end()

    def end(self) -> None:
        """Keep the library where it is done, else stop the compiler."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(OSError):  # the next process compiles it again
            if not self.process.wait():
                self.built.replace(self.cache / f"{self.built.stem}-{_checksum(self.built)}.so")
        with contextlib.suppress(OSError):
            self.folder.cleanup()


_begun: dict[Library, _Build] = {}


def _end() -> None:
    while _begun:
        _begun.popitem()[1].end()


def _whole(name: str) -> Path | None:
    """The library in the cache. A part of one, left by a crash, would end the process: those that
    do not have the checksum in their name are removed."""
    for path in _cache().glob(f"{name}-*.so"):
        with contextlib.suppress(OSError):
            if path.stem.endswith(_checksum(path)):
                return path
            path.unlink()
    return None


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:20]


def _clear(folder: Path) -> None:
    """Remove what killed processes left."""
    for left in folder.glob(f"{BUILD}*"):
        with contextlib.suppress(OSError):
            if abs(time.time() - left.stat().st_mtime) > DEAD:
                shutil.rmtree(left)


def _compiler() -> str:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise FileNotFoundError("no g++ or clang++ on the path, and CXX is not set")
    return compiler


@functools.cache
def _version(compiler: str) -> str:
    command = [compiler, "--version"]
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
