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
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-pthread", "-std=c++17", "-shared", "-fPIC")

LENT = tuple(Path(__file__).with_name(name) for name in ("parallel.hpp", "mixing.hpp"))
"""Loops on several threads, and how to mix between them: for any library to include."""

FAILURES = (OSError, subprocess.SubprocessError)
"""What `Library.load` raises where there is no compiler, or none that can compile this."""

Command = tuple[str, ...]
"""A compiler with its arguments."""

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
        compiler = _compilers()[0]
        return any(_whole(self._name(compiler, flags)) for flags in (self.optional, ()))

    def identity(self) -> str:
        """A hash of what it is made from and by: sources, flags, compiler and processor; of what
        `load` gave in this process, or else would try first."""
        return _loaded.get(self) or self._name(_compilers()[0], self.optional)

    def begin(self) -> None:
        """Compile beside what follows, where it is not there; `load` waits, and says what fails.

        What nobody has loaded when the process ends is kept if it is done, and else stopped.
        """
        with contextlib.suppress(*FAILURES):
            if self not in _begun and not self.is_there():
                _begun[self] = self._build(_compilers()[0], self.optional)
                atexit.register(_end)  # after what would remove the folder, and so before it

    def load(self) -> ctypes.CDLL:
        """What an earlier process compiled, or else compile it now; or one of FAILURES.

        Without the optional flags, or by another compiler, only where it cannot be had with them:
        each has a name of its own in the cache, so that a failure that passes (a full disk, a cache
        that was removed meanwhile) costs one process.
        """
        build, failures = _begun.pop(self, None), list[Exception]()
        compilers = _compilers()
        for compiler in compilers:
            for flags in (self.optional, ()):
                try:
                    loaded = self._load(compiler, flags, build)
                except FAILURES as error:
                    build = None
                    failures.append(error)
                else:
                    if len(failures) > 1:
                        _warn(f"{shlex.join(compilers[0])} cannot compile", failures[0], compiler)
                    _loaded[self] = self._name(compiler, flags)
                    return loaded
        raise failures[0]

    def _load(self, compiler: Command, flags: tuple[str, ...], build: _Build | None) -> ctypes.CDLL:
        if build is None and (whole := _whole(self._name(compiler, flags))):
            return ctypes.CDLL(str(whole))
        return (build or self._build(compiler, flags)).load()

    def _build(self, compiler: Command, flags: tuple[str, ...]) -> _Build:
        folders = {f"-I{include.parent}" for include in self.includes}
        command = [*compiler, *FLAGS, *self.flags, *folders, str(self.source), *flags]
        return _Build(command, self._name(compiler, flags))

    def _name(self, compiler: Command, flags: tuple[str, ...]) -> str:
        texts = [path.read_text() for path in (self.source, *self.includes)]
        machine = compiler, _version(compiler), platform.machine(), _instruction_sets()
        key = (*texts, FLAGS, self.flags, flags, *machine)
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
                self.built.chmod(0o700)  # whatever the umask: see `_refusal`
                self.built.replace(self.cache / f"{self.built.stem}-{_checksum(self.built)}.so")
        with contextlib.suppress(OSError):
            self.folder.cleanup()


_begun: dict[Library, _Build] = {}
_loaded: dict[Library, str] = {}
"""The names of those that `load` gave."""


def _end() -> None:
    while _begun:
        _begun.popitem()[1].end()


def _whole(name: str) -> Path | None:
    """The library in the cache. A part of one, left by a crash, would end the process: those that
    do not have the checksum in their name are removed, and so are those that others could have
    written."""
    for path in _cache().glob(f"{name}-*.so"):
        with contextlib.suppress(OSError):
            if not _refusal(path, stat.S_ISREG) and path.stem.endswith(_checksum(path)):
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


def _compilers() -> list[Command]:
    """The command of CXX, with its arguments, where it runs; then g++ and clang++, what there is.
    FileNotFoundError where there is nothing."""
    named, reason, found = os.environ.get("CXX", "").strip(), None, list[Command]()
    if named:
        try:
            command = tuple(shlex.split(named))
            _version(command)
            found.append(command)
        except (ValueError, *FAILURES) as error:
            reason = error
    found += [(path,) for name in ("g++", "clang++") if (path := shutil.which(name))]
    if not found:
        asked = f"CXX={named} does not run ({reason})" if named else "CXX is not set"
        raise FileNotFoundError(f"no g++ or clang++ on the path, and {asked}")
    if reason:
        _warn(f"CXX={named} does not run", reason, found[0])
    return found


def _warn(what: str, error: Exception, taken: Command) -> None:
    detail = " ".join(str(getattr(error, "stderr", None) or error).split())
    warnings.warn(
        f"teleport_kernels: {what} ({detail:.300}): {shlex.join(taken)} is taken. Set CXX to a "
        "C++ compiler, or unset it.",
        RuntimeWarning,
        stacklevel=3,
    )


@functools.cache
def _version(compiler: Command) -> str:
    command = [*compiler, "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@functools.cache
def _own() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="teleport-kernels-")


def _cache() -> Path:
    """The folder of compiled libraries: the user's, or one of this process alone where there is
    none, it cannot be written, or others could put libraries there, which would run here."""
    try:
        folder = user_cache() / "teleport-kernels"
        for missing in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
        if refusal := _refusal(folder, stat.S_ISDIR):
            warnings.warn(
                f"teleport_kernels: {refusal}, so nothing that is compiled is loaded from there or "
                "kept. Make it yours alone (chmod go-w), or set XDG_CACHE_HOME to one that is.",
                RuntimeWarning,
                stacklevel=2,
            )
            return Path(_own().name)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):  # no home, or none that can be written
        return Path(_own().name)
    return folder


def user_cache() -> Path:
    """$XDG_CACHE_HOME, which its specification wants ignored where it is relative, or ~/.cache.
    RuntimeError where the user has no home."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"


def _refusal(path: Path, is_kind: Callable[[int], bool]) -> str | None:
    """Why code under this path is not to be trusted; None where nobody else can have put it there.

    It must be of that kind and ours, and not writable by others. Nor may a folder above it be,
    unless only owners may move what lies there (the sticky bit).
    """
    if not hasattr(os, "geteuid"):
        return None  # no POSIX, no owners and modes to read
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) and is_kind is stat.S_ISDIR:
        return _refusal(path.resolve(), is_kind)
    if not is_kind(found.st_mode):
        return f"{path} is not what is expected there"
    if found.st_uid != os.geteuid():
        return f"{path} belongs to user {found.st_uid}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others can write {path}"
    for parent in path.resolve().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"others can write {parent}, above {path}"
    return None


def _instruction_sets() -> str:
    """What -march=native depends on, so that a cache in a shared home serves different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
