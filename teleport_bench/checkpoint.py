"""The state of a fleet on disk while it runs: a process that is killed loses a minute of it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teleport_bench.record.store import write_atomically
from teleport_bench.spec import RunSpec

EVERY = 60.0
"""Seconds from one checkpoint of a fleet to the next."""

DIGEST = hashlib.sha256().digest_size


class Checkpoint:
    """The file of one fleet, as large as its state.

    It holds the SHA-256 of what follows, then numbers and tensors by `torch.save`; reading it
    executes nothing. made_by: all that the floats to come depend on besides the runs' settings,
    as JSON has it; the state that something else has left is not gone on from.
    """

    def __init__(self, folder: Path, specs: Sequence[RunSpec], made_by: object = None) -> None:
        ids = json.dumps([spec.id for spec in specs])
        self._path = folder / f"{hashlib.sha256(ids.encode()).hexdigest()[:20]}.pt"
        self._made_by = json.dumps([made_by, torch.__version__, ids], sort_keys=True)
        self._began = self._last = time.monotonic()
        self.spent = 0.0
        """Seconds that the fleet had run before, in the processes that went on from one another."""

    @property
    def due(self) -> bool:
        return time.monotonic() - self._last >= EVERY

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None where nothing was, or nothing that can be gone on from."""
        if self._path.is_symlink() or not self._path.is_file():
            return None
        try:
            content = self._path.read_bytes()
            if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
                return None
            kept = torch.load(io.BytesIO(content[DIGEST:]), weights_only=True)
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError):
            return None
        if not isinstance(kept, dict) or kept.get("made_by") != self._made_by:
            return None
        self.spent = kept["seconds"]
        state: dict[str, Any] = _from_plain(kept["state"])
        return state

    def save(self, state: dict[str, Any]) -> None:
        """state: dicts and lists of numbers, texts, arrays and tensors. A disk that is full is no
        reason to stop: the state that was saved before is as good, if older."""
        seconds = self.spent + time.monotonic() - self._began
        kept = {"made_by": self._made_by, "seconds": seconds, "state": _to_plain(state)}
        out = io.BytesIO()
        torch.save(kept, out)
        content = out.getvalue()
        with contextlib.suppress(OSError):
            write_atomically(self._path, hashlib.sha256(content).digest() + content)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Once the fleet has its records."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._path.parent.rmdir()


def _to_plain(value: Any) -> Any:
    """Arrays as tensors in a tuple; tensors as copies, since they may be parts of larger ones."""
    if isinstance(value, np.ndarray):
        return (torch.tensor(value),)
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {name: _to_plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_to_plain(inner) for inner in value]
    return value


def _from_plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return value[0].numpy()
    if isinstance(value, dict):
        return {name: _from_plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_from_plain(inner) for inner in value]
    return value
