"""Runs specs on this machine and turns what they leave into records."""

from __future__ import annotations

import datetime
import gc
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from teleport_bench import memory, native, plugins, trace
from teleport_bench.ambient import plain
from teleport_bench.checkpoint import Checkpoint
from teleport_bench.errors import UserError, nearest
from teleport_bench.fleet import Fleet, Tick, fleet_bytes, group, split
from teleport_bench.locator import Locator
from teleport_bench.problems.base import described
from teleport_bench.progress import Meter
from teleport_bench.record.provenance import code, environment, loaded
from teleport_bench.record.records import Records
from teleport_bench.record.schema import Made, Record
from teleport_bench.record.store import SUITE_FILE, Store, write_atomically, writing
from teleport_bench.spec import RunSpec, canonical
from teleport_bench.suite import PlannedRun, Suite, to_json
from teleport_bench.tune import decided


def pick_device(device: str | torch.device) -> torch.device:
    """auto, cpu, cuda or cuda:N; auto is cuda where there is one. UserError for anything else."""
    name = str(device)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name)
    if not match:
        raise UserError(
            f"unknown device '{name}'{nearest(name, ['auto', 'cpu', 'cuda', 'cuda:0'])}"
        )
    if name != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(match[1] or 0) >= count:
            raise UserError(
                f"device '{name}' is not there: torch {torch.__version__} sees {count} CUDA "
                "devices; use --device cpu, or install a CUDA build of torch and its driver"
            )
    return torch.device(name)


def be_deterministic() -> None:
    """From now on torch takes only algorithms that give the same bits each time; where it has none,
    a run fails and says so. That matters on CUDA: on the CPU it is so anyway."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


PACKED = 1000
"""Tuning runs whose records are kept in one file instead of one each."""

COMPILE = ("auto", "on", "off")

COMPILING = 4.0
"""Seconds that compiling the round takes, once a machine: measured on two cores."""


def pick_engine(mode: str, specs: Sequence[RunSpec], device: torch.device) -> bool:
    """Whether rounds are compiled: C++ on the CPU, graphs on CUDA. mode: "auto", "on" or "off".

    auto: where that costs nothing (on CUDA; on the CPU once it has been compiled on this machine),
    or less than these runs take without: by their arithmetic and a millisecond a round. UserError
    for "on" where there is no compiler; "auto" warns and runs in torch.
    """
    if mode not in COMPILE:
        raise UserError(f"unknown compile mode '{mode}'{nearest(str(mode), COMPILE)}")
    if mode == "off" or device.type == "cuda":
        return mode != "off"
    if mode == "auto" and not native.compiled() and _seconds_in_torch(specs) < COMPILING:
        return False
    native.prepare()
    if mode == "on" and not native.available():
        raise UserError(
            "compile on needs a C++ compiler, and none works here: install g++, or leave it at auto"
        )
    return True


def _seconds_in_torch(specs: Sequence[RunSpec]) -> float:
    """A guess, at five operations a nanosecond and a millisecond a round of a fleet."""
    operations = sum(
        s.rounds * s.n_active * s.build_algorithm().local_steps * s.build_problem().operations()
        for s in specs
    )
    return operations / 5e9 + sum(part[0].rounds for part in group(specs)) * 1e-3


def run(spec: RunSpec, device: str | torch.device = "auto", compile: str = "auto") -> Record:  # noqa: A002
    """One run, alone. Source of the settings: `RunSpec`. Returns its record; writes nothing."""
    return run_fleet([spec], device, compile=compile)[0]


@plain()
def run_fleet(
    specs: Iterable[RunSpec],
    device: str | torch.device = "auto",
    on_tick: Callable[[Tick], None] = lambda _: None,
    compile: str = "auto",  # noqa: A002
) -> list[Record]:
    """Runs that fit together advance in lockstep; the records come in the order of the specs.

    specs: any iterable, of which equal specs are one run. compile: as in `pick_engine`. Raises
    UserError, before anything runs, for an unknown device, settings that are not valid or a problem
    that cannot be posed.
    A run that fails or diverges is a record that says so.
    """
    given = _listed(specs)
    distinct = list({spec.id: spec for spec in given}.values())
    for spec in distinct:
        spec.check()
    on = pick_device(device)
    compiled = pick_engine(compile, distinct, on)
    parts = group(distinct, fleet_bytes(on))
    records = {r.id: r for part in parts for r in run_group(part, on, on_tick, compiled)}
    return [records[spec.id] for spec in given]


def _listed(specs: object) -> list[RunSpec]:
    """The specs, taken once from whatever holds them, each validated: `model_copy` and
    `model_construct` do not."""
    expected = "expected a list of RunSpecs, as in run_fleet([spec]), got"
    # a RunSpec can be iterated over, too, and a dict gives its keys
    if isinstance(specs, RunSpec | Mapping | str) or not isinstance(specs, Iterable):
        raise UserError(f"{expected} {specs!r:.200}")
    found = []
    for i, spec in enumerate(specs):
        if not isinstance(spec, RunSpec):
            raise UserError(f"{expected} {type(spec).__name__} {spec!r:.200} at place {i}")
        try:
            found.append(spec.validated())
        except ValidationError as error:
            raise UserError(Locator(f"run {i}", "").explain(error, lambda loc: [loc])) from None
    return found


@plain()
def run_group(
    specs: Sequence[RunSpec],
    device: torch.device,
    on_tick: Callable[[Tick], None],
    compiled: bool,
    checkpoints: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> list[Record]:
    """The records of runs that advance in lockstep (see `fleet.group`), by halves where they do not
    fit into memory together. checkpoints: the folder of theirs. note: is told why one that is there
    is not gone on from."""
    began, updates = time.perf_counter(), 0
    fleet, outcomes, error, checkpoint, short = None, None, None, None, False

    def count(tick: Tick) -> None:
        nonlocal updates
        updates += tick.updates
        on_tick(tick)

    try:
        memory.check(specs, device, compiled=compiled)
        fleet = Fleet(specs, device, compiled=compiled)
        if checkpoints:
            checkpoint = Checkpoint(checkpoints, specs, _made_by(fleet, device), note)
        outcomes = fleet.advance(count, checkpoint)
    except Exception as exception:  # whatever it is, it ends as a record that says so
        where = traceback.extract_tb(exception.__traceback__)[-1]
        error = (
            f"{type(exception).__name__}: {exception} ({Path(where.filename).name}:{where.lineno})"
        )
        if short := memory.is_shortage(exception):
            error = f"{error}: the run {memory.shortage(specs, device, compiled=compiled)}"
    if short:
        fleet = None
        gc.collect()  # its tensors, which refer to each other, before there are others
    if short and len(specs) > 1:
        on_tick(Tick(-updates, 0))
        middle = len(specs) // 2
        return [
            record
            for half in (specs[:middle], specs[middle:])
            for record in run_group(half, device, on_tick, compiled, checkpoints, note)
        ]
    seconds = time.perf_counter() - began
    if tracing := trace.current():
        tracing.add(specs[0].algorithm["name"], began, seconds, 0, runs=[s.id for s in specs])
    made: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": seconds + (checkpoint.spent if checkpoint else 0),
        "fleet": {"runs": len(specs), "rows": sum(spec.n_active for spec in specs)},
        "engine": fleet.engine if fleet else None,
        "environment": environment(device),
    }
    records = []
    for i, spec in enumerate(specs):
        outcome = outcomes[i] if outcomes else None
        settings = spec.model_dump(mode="json")
        by = code() | ({"plugins": used} if (used := plugins.used(settings)) else {})
        common = {
            "id": spec.id,
            "spec": settings,
            "made": Made(phases=outcome.phases if outcome else {}, code=by, **made),
        }
        posed: dict[str, Any] = {}
        if outcome is not None:
            try:
                posed = described(spec.build_problem(), spec.seed, spec.nodes)
            except UserError as fault:  # of a problem from outside of the package
                outcome, error = None, str(fault)
        if outcome is None:
            records.append(Record(status="failed", error=error, **common))
            continue
        records.append(
            Record(
                status="finished" if outcome.diverged_at is None else "diverged",
                problem=posed,
                curves=outcome.curves,
                diverged_at=outcome.diverged_at,
                reached_at=outcome.reached_at,
                **common,
            )
        )
    return records


def _made_by(fleet: Fleet, device: torch.device) -> dict[str, Any]:
    """All that the floats of a fleet depend on besides the settings of its runs, as JSON has it."""
    problem, spec = fleet.spec.build_problem(), fleet.spec
    return {
        "code": code(),
        "loaded": loaded(),
        "plugins": [plugins.used(each.model_dump(mode="json")) for each in fleet.specs],
        "environment": environment(device),
        "engine": fleet.engine,
        "libraries": native.identity() if fleet.compiled else None,
        "data": described(problem, spec.seed, spec.nodes).get("data"),
    }


@plain()
def run_suite(
    suite: Suite,
    store: Store,
    device: torch.device,
    meter: Meter,
    rerun: bool = False,
    compile: str = "auto",  # noqa: A002
    *,
    tuning_only: bool = False,
    exhaustive: bool = False,
) -> Records:
    """All runs of a suite that have no record yet (all of them with rerun), tuning runs first.

    Every fleet's records are on disk before the next fleet starts. A failed run is tried again; a
    diverged one has a result and is not. tuning_only: no reported runs. exhaustive: where the suite
    searches for k, also every k alone. Returns the records of the runs by id.
    """
    for posed in {(canonical(r.spec.problem), r.spec.nodes): r for r in suite.all_runs()}.values():
        try:
            posed.spec.check()
        except UserError as error:
            raise UserError(
                f"{suite.name}, {posed.label}, nodes {posed.spec.nodes}: {error}"
            ) from None
    code()  # of the files as they are now: runs may take hours, in which somebody edits them
    compiled = pick_engine(compile, [run.spec for run in suite.all_runs()], device)
    store.prepare()
    if rerun:
        store.clear_checkpoints()
    with writing(store.folder):
        write_atomically(store.folder / SUITE_FILE, to_json(suite).encode())
    records = Records(store.faults)
    failed: set[str] = set()
    most = fleet_bytes(device)

    def keep(record: Record) -> None:
        records[record.id] = record
        (failed.add if record.status == "failed" else failed.discard)(record.id)

    def pending(runs: Sequence[PlannedRun]) -> list[RunSpec]:
        for run in runs:
            if run.spec.id not in records and not rerun and (record := store.load(run.spec)):
                keep(record)
        # a k that was searched for may be another method's own: one run for both
        distinct = {run.spec.id: run.spec for run in runs}
        left = [spec for key, spec in distinct.items() if key not in records or key in failed]
        for spec in left:
            store.refuse_folder(spec)
        for text in store.faults.say(lost=True):
            meter.note(f"{text}; its runs are made again")
        return left

    def execute(specs: list[RunSpec]) -> None:
        parts = [[spec] for spec in specs] if suite.spec.alone else group(specs, most)
        if len(parts) > 1:
            meter.note(split(parts, most))
        for part in parts:
            meter.fleet(part)
            made = run_group(part, device, meter.tick, compiled, store.checkpoints, meter.note)
            store.save(*made)
            Checkpoint(store.checkpoints, part).remove()
            for record in made:
                keep(record)

    def pack(trials: Sequence[PlannedRun]) -> None:
        done = {r.spec.id: r.spec for r in trials if r.spec.id not in failed}
        if len(done) >= PACKED:
            store.pack(list(done.values()))

    alone = suite.exhaustive if exhaustive else None
    trials = [*suite.tuning, *(alone.tuning if alone else ())]
    tuning = pending(trials)
    if tuning_only:
        meter.start(tuning)
        execute(tuning)
        pack(trials)
        return records
    # while runs tune it is not known yet which of the reported runs are there
    ahead = [r.spec for r in suite.planned()] if tuning else pending(decided(suite, records))
    meter.start([*tuning, *ahead])
    execute(tuning)
    pack(trials)
    execute(pending(decided(suite, records)))
    store.clear_checkpoints()  # those of other settings, which nothing may ever go on from
    return records
