"""Checkpoints: a fleet that goes on from one ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import copy
import hashlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from teleport_bench import ALGORITHMS, RunSpec, checkpoint, executor, native
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


# Whatever a file holds, the runs end as if it had not been there


THIN = 4
"""Each of so many changes of a value is tried: 1 tries all, in a minute on an idle core."""

CHANGED = ("momentum", "a target", "models at their nodes")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of everything in nested dicts and lists, these included."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def others(value: Any) -> Iterator[Any]:
    """What may be found in the place of a value, and is not it."""
    yield from (
        "text",
        None if value is not None else 0,
        math.nan,
        -1,
        True,
        [value],
        torch.ones(0),
    )
    if isinstance(value, dict):
        yield value | {"extra": torch.zeros(2)}
    if isinstance(value, list):
        yield [*value, 0]
    if not isinstance(value, torch.Tensor):
        return
    kinds = (torch.float64, torch.float32, torch.int8, torch.int64, torch.bool)
    yield from (value.to(kind) for kind in kinds if kind != value.dtype)
    yield from (torch.cat([value, value]), value.reshape(-1)[:1].clone(), value.unsqueeze(0))
    yield torch.empty_like(value, device="meta")
    if min(value.shape) > 1:
        yield value[:1].expand_as(value)
        yield torch.stack([value, value], -1)[..., 0]
        if value.dim() > 1:
            yield from (value.t(), value.t().contiguous().t(), value.reshape(-1))
    wrong = math.nan if value.is_floating_point() else -(2**40)
    yield torch.full_like(value, wrong)
    if value.is_floating_point():
        yield value.to_sparse()


def signed(kept: Any) -> bytes:
    out = io.BytesIO()
    torch.save(kept, out)
    return hashlib.sha256(out.getvalue()).digest() + out.getvalue()


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", CHANGED)
def test_what_these_runs_would_not_have_kept_is_not_gone_on_from(
    tmp_path: Path, name: str, compiled: bool
) -> None:
    specs, said = specs_of(name), list[str]()
    with pytest.raises(KilledError):
        advance(specs, compiled, tmp_path, 130)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    real = torch.load(io.BytesIO(content[checkpoint.DIGEST :]), weights_only=True)
    fleet = Fleet(specs, compiled=compiled)
    assert fleet._restored(Checkpoint(tmp_path, specs)) is not None
    tried, files = 0, list[bytes]()
    for place in leaves(real):
        some = list(others(at(real, place)))[tried % THIN :: THIN]
        for change in (*some, KeyError):
            kept = copy.deepcopy(real)
            if not place:
                kept = change
            elif change is KeyError:
                del at(kept, place[:-1])[place[-1]]
            else:
                at(kept, place[:-1])[place[-1]] = change
            if kept is KeyError:
                continue
            files.append(signed(kept))
            path.write_bytes(files[-1])
            tried += 1
            restored = fleet._restored(Checkpoint(tmp_path, specs, note=said.append))
            assert restored is None, (place, change)
            assert len(said) == tried, (place, change)
    assert tried > 100
    assert all("; its runs start over" in text for text in said)
    expected, final, _ = advance(specs, compiled)
    for file in files[:: len(files) // 5]:
        path.write_bytes(file)
        found, again, reached = advance(specs, compiled, tmp_path)
        assert reached[0] == 0
        assert [o.curves for o in found] == [o.curves for o in expected]
        assert [o.reached_at for o in found] == [o.reached_at for o in expected]
        assert final is not None
        assert again is not None
        assert again.numpy().tobytes() == final.numpy().tobytes()


def test_parameters_that_are_not_those_that_were_evaluated_start_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a block begins with an evaluation, its checkpoint says what they were."""
    monkeypatch.setattr(checkpoint, "EVERY", 0)
    specs = [spec.varied(eval_every=32) for spec in specs_of("momentum")]
    with pytest.raises(KilledError):
        advance(specs, False, tmp_path, 66)
    (path,) = tmp_path.iterdir()
    kept = torch.load(io.BytesIO(path.read_bytes()[checkpoint.DIGEST :]), weights_only=True)
    kept["state"]["state"]["x"][3, 2] += 1
    path.write_bytes(signed(kept))
    assert advance(specs, False, tmp_path)[2][0] == 0


def test_what_is_no_file_is_no_checkpoint(kept: Path) -> None:
    content, said = kept.read_bytes(), list[str]()
    for make in (kept.mkdir, lambda: os.mkfifo(kept), lambda: kept.symlink_to("/dev/zero")):
        kept.unlink()
        make()
        assert Checkpoint(kept.parent, specs_of("momentum"), note=said.append).load() is None
        assert "it is no file" in said[-1]
        kept.rmdir() if kept.is_dir() and not kept.is_symlink() else kept.unlink()
        kept.write_bytes(content)


def test_a_checkpoint_of_other_content_of_the_code_is_not_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tree may be dirty before and after, and the commit the same."""
    monkeypatch.setattr(checkpoint, "EVERY", 0)
    specs, device, rounds, said = specs_of("momentum"), torch.device("cpu"), [0], list[str]()

    def killed(tick: Tick) -> None:
        if tick.round > 66:
            raise KeyboardInterrupt

    def first_round(**facts: Any) -> int:
        with pytest.raises(KeyboardInterrupt):
            run_group(specs, device, killed, False, tmp_path)
        with monkeypatch.context() as patch:
            for name, value in facts.items():
                patch.setattr(executor, name, lambda *_, value=value: value)
            rounds.clear()
            run_group(specs, device, lambda t: rounds.append(t.round), False, tmp_path, said.append)
        for path in tmp_path.iterdir():
            path.unlink()
        return rounds[0]

    code = executor.code()
    assert first_round() == 64
    assert first_round(code=dict(code)) == 64
    assert not said
    assert first_round(code=code | {"sources": "0" * 12}) == 0
    assert first_round(loaded="0") == 0
    assert len(said) == 2
    assert "made by other code, data or software" in said[0]


def test_what_made_a_fleet_names_its_data_and_its_libraries(compiled: bool) -> None:
    specs = specs_of("samples in epochs")
    made_by = executor._made_by(Fleet(specs, compiled=compiled), torch.device("cpu"))
    assert len(made_by["data"]["sha256"]) == 64
    assert (made_by["libraries"] is not None) == compiled
