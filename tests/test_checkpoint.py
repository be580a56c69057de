"""Checkpoints: a fleet that goes on from one ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from teleport_bench import ALGORITHMS, RunSpec, checkpoint, native
from teleport_bench.checkpoint import Checkpoint
from teleport_bench.curves import Outcome
from teleport_bench.executor import run_group
from teleport_bench.fleet import Fleet, Tick
from teleport_bench.spec import build_algorithm

DIGITS = {"name": "classification", "model": "logistic", "data": "digits", "batch_size": 8}
TARGET = {"metric": "objective_gap", "value": 0.02, "window": 3, "every": 1}
RUNS: dict[str, list[dict[str, Any]]] = {
    "momentum": [{"momentum": 0.9, "nesterov": True, "seed": s} for s in (0, 1)],
    "teleportation": [{"algorithm": "teleportation", "active": k, "lr": 0.05} for k in (2, 3)],
    "models at their nodes": [
        {"algorithm": "teleportation", "active": k, "storage": "nodes", "momentum": m}
        for k, m in ((2, 0.5), (4, 0.5))
    ],
    "a target": [{"lr": lr, "stop": TARGET} for lr in (0.01, 0.03, 0.3)],
    "a run that diverges": [{"lr": lr} for lr in (0.1, 4.0)],
    "lost messages and absent nodes": [
        {"loss": q, "away": {"share": 0.3, "spell": 10}} for q in (0.0, 0.2)
    ],
    "graphs that change": [{"topology": "one_peer_exponential", "nodes": n} for n in (4, 8)],
    "samples in epochs": [
        {
            "algorithm": {"name": "teleportation", "local_steps": 2},
            "active": 2,
            "problem": DIGITS | {"batches": "shuffle"},
        }
    ],
    "messages that are lost": [{"loss": q} for q in (0.2, 0.5)],
    "graphs that are drawn": [{"topology": "equi_dyn", "lr": lr} for lr in (0.1, 0.2)],
    "nodes that are away": [{"away": {"share": share, "spell": 10}} for share in (0.2, 0.4)],
    "samples with replacement, and crops": [{"problem": DIGITS | {"augment": "crop_flip"}}],
}
for entry in ALGORITHMS:
    method = build_algorithm({"name": entry.name})
    own = {"algorithm": entry.name, "momentum": 0.5 if method.momentum else 0}
    RUNS[entry.name] = [own | ({"active": 2} if method.partial else {})]
ROUNDS = 200


def specs_of(name: str) -> list[RunSpec]:
    quadratic = {"name": "quadratic", "dim": 7}
    shared = {"algorithm": "dsgd", "nodes": 5, "topology": "ring", "lr": 0.1, "problem": quadratic}
    shared |= {"rounds": ROUNDS, "eval_every": 24}
    return [RunSpec.model_validate(shared | own) for own in RUNS[name]]


@pytest.fixture(params=[False, True], ids=["torch", "compiled"])
def compiled(request: pytest.FixtureRequest) -> bool:
    if request.param and not native.available():
        pytest.skip("no C++ compiler on this machine")
    return bool(request.param)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every block."""
    monkeypatch.setattr(checkpoint, "EVERY", 0)


class KilledError(Exception):
    pass


def advance(
    specs: list[RunSpec],
    compiled: bool,
    folder: Path | None = None,
    killed_at: float = float("inf"),
) -> tuple[list[Outcome], torch.Tensor | None, list[int]]:
    """Outcomes, the last parameters, and the rounds that were reached."""
    reached: list[int] = []

    def on_tick(tick: Tick) -> None:
        reached.append(tick.round)
        if tick.round >= killed_at:
            raise KilledError

    fleet = Fleet(specs, compiled=compiled)
    outcomes = fleet.advance(on_tick, Checkpoint(folder, specs) if folder else None)
    return outcomes, fleet.final, reached


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", RUNS)
def test_a_fleet_that_was_killed_ends_as_if_it_had_not_been(
    tmp_path: Path, name: str, compiled: bool
) -> None:
    specs = specs_of(name)
    expected, final, ended = advance(specs, compiled)
    for killed_at in (70, 144, 199):
        if killed_at > max(r for r in ended if r < ROUNDS) + 1:
            continue  # the runs had reached their target by then
        with pytest.raises(KilledError):
            advance(specs, compiled, tmp_path, killed_at)
    found, again, reached = advance(specs, compiled, tmp_path)
    assert reached[0] in range(64, ROUNDS, 64)
    for one, other in zip(found, expected, strict=True):
        assert one.curves == other.curves
        assert one.diverged_at == other.diverged_at
        assert one.reached_at == other.reached_at
    assert (again is None) == (final is None)
    if final is not None and again is not None:
        assert again.numpy().tobytes() == final.numpy().tobytes()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint that a killed fleet of the runs "momentum" left."""
    monkeypatch.setattr(checkpoint, "EVERY", 0)
    with pytest.raises(KilledError):
        advance(specs_of("momentum"), False, tmp_path, 66)
    (path,) = tmp_path.iterdir()
    return path


def begins_at(path: Path) -> int:
    return advance(specs_of("momentum"), False, path.parent)[2][0]


def test_a_checkpoint_is_taken_when_its_time_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = specs_of("momentum")
    advance(specs, False, tmp_path)
    assert list(tmp_path.iterdir()) == []  # a minute has not passed
    monkeypatch.setattr(checkpoint, "EVERY", 0)
    advance(specs, False, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    Checkpoint(tmp_path, specs).remove()
    assert not tmp_path.exists()


@pytest.mark.usefixtures("always")
def test_a_checkpoint_is_as_large_as_the_state(tmp_path: Path) -> None:
    sizes = []
    for dim in (1000, 2000):
        specs = [
            spec.model_copy(update={"problem": {**spec.problem, "family": "curvature", "dim": dim}})
            for spec in specs_of("momentum")
        ]
        with pytest.raises(KilledError):
            advance(specs, False, tmp_path / str(dim), 66)
        sizes.append(next((tmp_path / str(dim)).iterdir()).stat().st_size)
    rows, tensors = 10, 2  # parameters and momentum
    assert sizes[1] - sizes[0] == pytest.approx(4 * rows * tensors * 1000, rel=0.05)
    assert sizes[0] < 4 * rows * tensors * 1000 + 20_000


@pytest.mark.parametrize("at", [0, 10, 100, 3000, -1])
def test_a_checkpoint_that_is_damaged_is_not_gone_on_from(kept: Path, at: int) -> None:
    content = bytearray(kept.read_bytes())
    for damaged in (content[:at], content[:at] + bytes([content[at] ^ 1]) + content[at:][1:], b""):
        kept.write_bytes(damaged)
        assert begins_at(kept) == 0
        kept.write_bytes(content)
        assert Checkpoint(kept.parent, specs_of("momentum")).load() is not None


def test_a_checkpoint_of_other_code_is_not_gone_on_from(kept: Path) -> None:
    specs = specs_of("momentum")
    assert Checkpoint(kept.parent, specs, {"commit": "another"}).load() is None
    assert Checkpoint(kept.parent, specs[::-1]).load() is None
    assert Checkpoint(kept.parent, specs).load() is not None


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_a_checkpoint_executes_nothing(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kept.parent)
    out = io.BytesIO()
    torch.save({"made_by": "", "state": Hostile()}, out)
    kept.write_bytes(hashlib.sha256(out.getvalue()).digest() + out.getvalue())
    assert begins_at(kept) == 0
    assert not Path("executed").exists()


def test_a_full_disk_is_no_reason_to_stop(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    specs = specs_of("momentum")
    before = kept.read_bytes()
    monkeypatch.setattr(checkpoint, "write_atomically", full)
    found = advance(specs, False, kept.parent)[0]
    assert [o.curves for o in found] == [o.curves for o in advance(specs, False)[0]]
    assert kept.read_bytes() == before


@pytest.mark.usefixtures("always")
def test_the_seconds_of_all_processes_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, device = specs_of("momentum"), torch.device("cpu")
    save = Checkpoint.save

    def much_later(self: Checkpoint, state: dict[str, Any]) -> None:
        self.spent += 1000
        save(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", much_later)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run_group(specs, device, lambda _: None, False, tmp_path)
    for record in run_group(specs, device, lambda _: None, False, tmp_path):
        assert 2000 < record.made.seconds < 2100
