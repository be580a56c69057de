"""Where a record comes from: the code and the machine."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import teleport_kernels
from teleport_bench import native, registry

PACKAGES = (
    "torch",
    "numpy",
    "triton",
    "scikit-learn",
    "mlxtend",
    "pandas",
    "matplotlib",
    "seaborn",
)


def environment(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that may move a float or a timing; "id" is a hash of them."""
    facts: dict[str, Any] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": native.cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }
    if torch.are_deterministic_algorithms_enabled():
        facts["deterministic"] = True
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return {"id": digest[:12], **facts}


@functools.cache
def code() -> dict[str, Any]:
    """The package's version and a hash of its files; in a checkout, the commit and whether the code
    differs from it. All of it as it was when a process asked first."""
    root = Path(__file__).resolve().parents[2]
    facts: dict[str, Any] = {"version": _version("teleport-bench"), "commit": None, "dirty": None}
    if (root / ".git").exists():
        try:
            # a folder may lie in another's checkout, which git then speaks of
            if Path(_git(root, "rev-parse", "--show-toplevel")).samefile(root):
                facts["commit"] = _git(root, "rev-parse", "HEAD")
                facts["dirty"] = bool(_git(root, "status", *CHANGES))
        except (OSError, subprocess.SubprocessError):
            pass  # no git here, none that answers, or no commit yet: the version is all there is
    return facts | {"sources": _digest(_own())[:12]}


CHANGES = ("--porcelain", "--untracked-files=all", "--", "teleport_bench", "kernels", "suites")

PATIENCE = 60
"""Seconds that git has: on a slow disk it looks at every file."""

SOURCES = (".py", ".cpp", ".hpp")


def loaded() -> str:
    """A hash of the code that this process has loaded from elsewhere than this package: plugins,
    what they import, and whatever is not installed. Other installed packages have versions."""
    places = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    installed = tuple(place + os.sep for place in places if place)
    offered = {
        component.component.__module__.partition(".")[0]
        for kind in registry.KINDS
        for component in kind.entries().values()
    } - {__name__.partition(".")[0]}
    files = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        first = name.partition(".")[0]
        if not isinstance(file, str) or first in OWN or not file.endswith((".py", ".so")):
            continue
        if first in offered or not file.startswith(installed):
            files.add(Path(file))
    return _digest(files)


OWN = ("teleport_bench", "teleport_kernels")


def _own() -> Iterator[Path]:
    """The files of this package and of its kernels."""
    for package in (Path(__file__).parents[1], Path(teleport_kernels.__file__).parent):
        yield from (path for path in package.rglob("*") if path.suffix in SOURCES)


def _digest(files: Iterable[Path]) -> str:
    """SHA-256 of files by name, wherever their folder lies."""
    parts = sorted((path.parent.name, path.name, _content(path)) for path in files)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.cache
def _content(path: Path) -> str:
    """SHA-256 of a file as it was when a process asked first, which is about when it loaded it."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "cannot be read"


def _git(root: Path, *arguments: str) -> str:
    """What git says of that folder, whatever the environment says of others."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    done = subprocess.run(
        ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments],
        cwd=root,
        env=environment | {"LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        timeout=PATIENCE,
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
