"""Where a record comes from: the code and the machine."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from teleport_bench import native

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
    """The package's version and, in a checkout, the commit and whether the code differs from it."""
    root = Path(__file__).resolve().parents[2]
    facts: dict[str, Any] = {"version": _version("teleport-bench"), "commit": None, "dirty": None}
    if (root / ".git").exists():
        try:
            facts["commit"] = _git(root, "rev-parse", "HEAD")
            changes = _git(
                root, "status", "--porcelain", "--", "teleport_bench", "kernels", "suites"
            )
            facts["dirty"] = bool(changes)
        except (OSError, subprocess.CalledProcessError):
            pass  # no git here, or no commit yet: the version is all there is to say
    return facts


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
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
