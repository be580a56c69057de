"""Runs specs on this machine and turns what they leave into records."""

from __future__ import annotations

import datetime
import re
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from teleport_bench import native, plugins, trace
from teleport_bench.errors import UserError, nearest
from teleport_bench.fleet import Fleet, Tick, fleet_bytes, group, split
from teleport_bench.progress import Meter
from teleport_bench.record.provenance import code, environment
from teleport_bench.record.schema import Made, Record
from teleport_bench.record.store import SUITE_FILE, Store, write_atomically
from teleport_bench.spec import RunSpec, canonical
from teleport_bench.suite import PlannedRun, Suite, to_json
from teleport_bench.tune import chosen


def pick_device(name: str) -> torch.device:
    """auto, cpu, cuda or cuda:N; auto is cuda where there is one. UserError for anything else."""
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


COMPILE = ("auto", "on", "off")

COMPILING = 5.0
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
    operations = sum(s.rounds * s.n_active * s.build_problem().operations() for s in specs)
    return operations / 5e9 + sum(part[0].rounds for part in group(specs)) * 1e-3


def run(spec: RunSpec, device: str = "auto", compile: str = "auto") -> Record:  # noqa: A002
    """One run, alone. Source of the settings: `RunSpec`. Returns its record; writes nothing."""
    return run_fleet([spec], device, compile=compile)[0]


def run_fleet(
    specs: Sequence[RunSpec],
    device: str = "auto",
    on_tick: Callable[[Tick], None] = lambda _: None,
    compile: str = "auto",  # noqa: A002
) -> list[Record]:
    """Runs that fit together advance in lockstep; the records come in the order of the specs.

    compile: as in `pick_engine`. Raises UserError, before anything runs, for an unknown device or a
    problem that cannot be posed.
    A run that fails or diverges is a record that says so.
    """
    if isinstance(specs, RunSpec) or not all(isinstance(spec, RunSpec) for spec in specs):
        raise UserError(f"expected a list of RunSpecs, as in run_fleet([spec]), got {specs!r:.200}")
    for spec in specs:
        spec.check()
    on = pick_device(device)
    compiled = pick_engine(compile, specs, on)
    parts = group(specs, fleet_bytes(on))
    records = {r.id: r for part in parts for r in run_group(part, on, on_tick, compiled)}
    return [records[spec.id] for spec in specs]


def run_group(
    specs: Sequence[RunSpec],
    device: torch.device,
    on_tick: Callable[[Tick], None],
    compiled: bool,
) -> list[Record]:
    """The records of runs that advance in lockstep (see `fleet.group`)."""
    began = time.perf_counter()
    fleet, outcomes, error = None, None, None
    try:
        fleet = Fleet(specs, device, compiled=compiled)
        outcomes = fleet.advance(on_tick)
    except Exception as exception:  # whatever it is, it ends as a record that says so
        where = traceback.extract_tb(exception.__traceback__)[-1]
        error = (
            f"{type(exception).__name__}: {exception} ({Path(where.filename).name}:{where.lineno})"
        )
    seconds = time.perf_counter() - began
    if tracing := trace.current():
        tracing.add(specs[0].algorithm["name"], began, seconds, 0, runs=[s.id for s in specs])
    made: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
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
        if outcome is None:
            records.append(Record(status="failed", error=error, **common))
            continue
        records.append(
            Record(
                status="finished" if outcome.diverged_at is None else "diverged",
                problem=spec.build_problem().describe(spec.seed, spec.nodes),
                curves=outcome.curves,
                diverged_at=outcome.diverged_at,
                reached_at=outcome.reached_at,
                **common,
            )
        )
    return records


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
) -> dict[str, Record]:
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
    compiled = pick_engine(compile, [run.spec for run in suite.all_runs()], device)
    store.prepare()
    write_atomically(store.folder / SUITE_FILE, to_json(suite).encode())
    records: dict[str, Record] = {}
    most = fleet_bytes(device)

    def pending(runs: Sequence[PlannedRun]) -> list[RunSpec]:
        for run in runs:
            if run.spec.id not in records and not rerun and (record := store.load(run.spec)):
                records[run.spec.id] = record
        # a k that was searched for may be another method's own: one run for both
        distinct = {run.spec.id: run.spec for run in runs}
        return [
            spec
            for key, spec in distinct.items()
            if key not in records or records[key].status == "failed"
        ]

    def execute(specs: list[RunSpec]) -> None:
        parts = [[spec] for spec in specs] if suite.spec.alone else group(specs, most)
        if len(parts) > 1:
            meter.note(split(parts, most))
        for part in parts:
            meter.fleet(part)
            for record in run_group(part, device, meter.tick, compiled):
                store.save(record)
                records[record.id] = record

    alone = suite.exhaustive if exhaustive else None
    tuning = pending([*suite.tuning, *(alone.tuning if alone else ())])
    if tuning_only:
        meter.start(tuning)
        execute(tuning)
        return records
    if tuning:  # then it is not known yet which of the reported runs are there
        ahead = [run.spec for run in suite.planned()]
    else:
        ahead = pending(suite.reported(chosen(suite, records)))
    meter.start([*tuning, *ahead])
    execute(tuning)
    execute(pending(suite.reported(chosen(suite, records))))
    return records
