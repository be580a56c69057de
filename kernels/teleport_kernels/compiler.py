"""C++ to a shared library by the machine's own compiler, once: results stay in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-pthread", "-std=c++17", "-shared", "-fPIC")

FAILURES = (OSError, subprocess.SubprocessError)
"""What `load` raises where there is no compiler, or none that can compile this."""


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
    path = _target(source, flags, includes)
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as build:
            built = Path(build) / path.name
            folders = {f"-I{include.parent}" for include in includes}
            command = [_compiler(), *FLAGS, *flags, *folders, str(source), "-o", str(built)]
            try:
                subprocess.run([*command, *optional], capture_output=True, text=True, check=True)
            except subprocess.CalledProcessError:
                if not optional:
                    raise
                subprocess.run(command, capture_output=True, text=True, check=True)
            built.replace(path)
    return ctypes.CDLL(str(path))


def is_there(source: Path, flags: Sequence[str] = (), *, includes: Sequence[Path] = ()) -> bool:
    """Whether `load` has nothing to compile."""
    return _target(source, flags, includes).exists()


def _target(source: Path, flags: Sequence[str], includes: Sequence[Path]) -> Path:
    texts = [path.read_text() for path in (source, *includes)]
    key = (*texts, FLAGS, tuple(flags), _version(), platform.machine(), _instruction_sets())
    name = hashlib.sha256(repr(key).encode()).hexdigest()[:20]
    return _cache() / f"{source.stem}-{name}.so"


def _compiler() -> str:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise FileNotFoundError("no g++ or clang++ on the path, and CXX is not set")
    return compiler


def _version() -> str:
    command = [_compiler(), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teleport-kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:  # a home that cannot be written: compile for this process alone
        folder = Path(tempfile.mkdtemp(prefix="teleport-kernels-"))
    return folder


def _instruction_sets() -> str:
    """What -march=native depends on, so that a cache in a shared home serves different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
