"""The state of a fleet on disk while it runs: a process that is killed loses a minute of it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teleport_bench.algorithms import Rate
from teleport_bench.kept import UnfitError, expect, fields, seconds
from teleport_bench.record.store import write_atomically
from teleport_bench.spec import RunSpec

EVERY = 60.0
"""Seconds from one checkpoint of a fleet to the next."""

LAYOUT = 2
"""Of what is saved; raised where that changes, as a commit in a dirty checkout may not tell."""

DIGEST = hashlib.sha256().digest_size


class Checkpoint:
    """The file of one fleet, as large as its state.

    It holds the SHA-256 of what follows, then numbers and tensors by `torch.save`; reading it
    executes nothing. made_by: all that the floats to come depend on besides the runs' settings,
    as JSON has it; the state that something else has left is not gone on from. note: is told why
    a file that is there is not used.
    """

    def __init__(
        self,
        folder: Path,
        specs: Sequence[RunSpec],
        made_by: object = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        ids = json.dumps([spec.id for spec in specs])
        self._path = folder / f"{hashlib.sha256(ids.encode()).hexdigest()[:20]}.pt"
        self._made_by = json.dumps([LAYOUT, made_by, torch.__version__, ids], sort_keys=True)
        self._note = note
        self._began = self._last = time.monotonic()
        self.spent = 0.0
        """Seconds that the fleet had run before, in the processes that went on from one another."""

    @property
    def due(self) -> bool:
        return time.monotonic() - self._last >= EVERY

    def load(self) -> dict[str, Any] | None:
        """What was saved last, to be checked by whom it is for; None where nothing was, or nothing
        that can be gone on from."""
        if not (self._path.exists() or self._path.is_symlink()):
            return None
        try:
            expect(self._path.is_file() and not self._path.is_symlink(), "it is no file")
            content = self._path.read_bytes()
            written = hashlib.sha256(content[DIGEST:]).digest() == content[:DIGEST]
            expect(written, "it is not as it was written")
            kept = torch.load(io.BytesIO(content[DIGEST:]), "cpu", weights_only=True)
            kept = fields(kept, ("made_by", "seconds", "state"), "it")
            same = type(kept["made_by"]) is str and kept["made_by"] == self._made_by
            expect(same, "it was made by other code, data or software, or on another machine")
            expect(type(kept["state"]) is dict, "it has no state")
            self.spent = seconds(kept["seconds"], "its time")
        except Exception as error:  # torch has many for what it cannot read
            self.refuse(error)
            return None
        state: dict[str, Any] = kept["state"]
        return state

    def refuse(self, error: Exception) -> None:
        """Say why the file is not gone on from: its runs start over."""
        self.spent = 0.0
        why = str(error) if isinstance(error, UnfitError) else f"{type(error).__name__}: {error}"
        self._note(f"{self._path}: {why:.300}; its runs start over")

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
    """Arrays as tensors; tensors as copies, since they may be parts of larger ones."""
    if isinstance(value, np.ndarray):
        return torch.tensor(value)
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {name: _to_plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_to_plain(inner) for inner in value]
    return value


def outline(
    spec: RunSpec, rows: int, stored: int | None, after: int
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The tensors of the algorithm's state after so many rounds, by name: dtype and shape.

    Found by rounds that compute nothing: the first, which may differ, and the last. stored: rows of
    the models of all nodes, where they are stored there.
    """
    width = spec.build_problem().n_params
    r, algorithm = _Outline(spec.momentum, rows, width, stored), spec.build_algorithm()
    state = algorithm.start(r.gradient(), momentum=spec.momentum > 0)
    for r.t in (0, after - 2, after - 1):
        state = algorithm.step(state, r)
    return {name: (x.dtype, tuple(x.shape)) for name, x in state.items()}


class _Outline:
    """A `Round` of which only the shapes of the results have a meaning."""

    lr = Rate()
    t = 0

    def __init__(self, beta: float, rows: int, width: int, stored: int | None) -> None:
        self.beta = beta
        self._shape, self._stored = (rows, width), (stored or rows, width)

    def gradient(self, *_: object) -> Tensor:
        return torch.zeros(self._shape, dtype=torch.float32)

    sgd_step = mix = combine = gradient

    def sgd_mix(self, *_: object) -> Tensor:
        return torch.zeros(self._stored, dtype=torch.float32)

    def fetch(self, x: Tensor) -> Tensor:
        return self.gradient()

    def decayed(self, grad: Tensor, x: Tensor) -> Tensor:
        return grad
