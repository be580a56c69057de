"""A suite's records as data frames."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pandas as pd

from teleport_bench.metrics import COSTS, ROUND_TIME, TO_TARGET, setting
from teleport_bench.record import Record
from teleport_bench.record.records import Chosen
from teleport_bench.report.statistics import NO_STEP_SIZE
from teleport_bench.shown import Item, Scalar, settings_of, show, value_of, varying
from teleport_bench.spec import RunSpec, canonical
from teleport_bench.suite import PlannedRun, Suite
from teleport_bench.tune import Choice, choose, runners_up, step_sizes


@dataclass(frozen=True, eq=False)
class Frame:
    """What a report is built from.

    runs: one row a planned run: label, cell, settings (nodes, active, lr, seed, ..), status, and
    the final value of every metric and axis, NaN unless finished; lr is NaN where none was found.
    Rounds to a target are there for runs that have one, with `censored` where they did not reach it
    and the value is the rounds that they ran.
    reported: the runs among them whose step size is known.
    curves: one row a reported run and evaluation, of finished and diverged runs; `run` is the index
    of the run in `runs`.
    specs, settings: of each run, by its index in `runs`.
    others: the same runs at what else tuning may have chosen (`tune.runners_up`); there `reported`
    has the runs alone whose cell has another choice.
    """

    suite: Suite
    records: Mapping[str, Record]
    reported: list[PlannedRun]
    choices: dict[str, Choice]
    runs: pd.DataFrame
    curves: pd.DataFrame
    specs: Sequence[RunSpec]
    settings: Sequence[Mapping[str, Scalar]]
    others: Sequence[Frame] = ()
    _costs: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)

    def view(self, item: Item, keys: Sequence[str] = (), names: Sequence[str] = ()) -> Frame:
        """The runs that an item shows.

        keys: settings that get a column, `column(key)`. names: the metrics and axes of the item;
        simulated costs are computed where they are among them.
        """
        if not len(self.runs):
            return self
        labels = self.runs["label"]
        shown = [i for i in self.runs.index if item.shows(labels[i], self.settings[i])]
        runs, curves, reported = self.runs, self.curves, self.reported
        if len(shown) < len(runs):
            runs = runs.loc[shown]
            curves = curves[curves["run"].isin(shown)] if len(curves) else curves
            of = {(run["label"], run["cell"], run["seed"]) for _, run in runs.iterrows()}
            reported = [r for r in reported if (r.label, r.cell, r.spec.seed) in of]
        for key in dict.fromkeys(keys):
            if column(key) not in runs:
                values = {i: value_of(self.settings[i], key) for i in shown}
                runs = runs.assign(**{column(key): pd.Series(values)})
                if len(curves):
                    curves = curves.assign(**{column(key): curves["run"].map(values)})
        view = replace(self, runs=runs, curves=curves, reported=reported)
        network = {**self.suite.spec.network, **item.network}
        asked = {TO_TARGET.get(name, name) for name in names}
        return view._with_costs(network) if asked & set(COSTS) else view

    def _with_costs(self, network: dict[str, Any]) -> Frame:
        """Columns for simulated time and the bytes of the busiest node, at every evaluation."""
        if not len(self.curves):
            return self
        by_run = {
            i: pd.DataFrame(self.costs(self.specs[cast("int", i)], network), curve.index)
            for i, curve in self.curves.groupby("run")
        }
        curves = self.curves.join(pd.concat(by_run.values()))
        last = pd.DataFrame({i: costs.iloc[-1] for i, costs in by_run.items()}).T
        runs = self.runs.join(last[self.runs["status"].reindex(last.index) == "finished"])
        for i, of_run in by_run.items():
            spec = self.specs[cast("int", i)]
            record = self.records[spec.id]
            if spec.stop and record.status == "finished":
                times = {"rounds": record.curves["rounds"], "time": of_run["time"].tolist()}
                runs.loc[i, "time_to_target"] = _to_target(record.reached_at, times)[
                    "time_to_target"
                ]
        return replace(self, runs=runs, curves=curves)

    def costs(self, spec: RunSpec, network: Mapping[str, Any]) -> dict[str, list[float]]:
        """What a run has cost on that network, by the names of `COSTS`, at each evaluation of its
        record."""
        from teleport_bench.network import Network, simulate

        record = self.records[spec.id]
        at = [round(t) for t in record.curves["rounds"]]
        n_params, compute = record.problem.get("parameters"), 0.0
        if "compute" in network and not network.get("stragglers") and not spec.away:
            # then every way through the rounds has each round's gradients once
            compute = network["compute"] * spec.build_algorithm().local_steps
            network = {**network, "compute": 0.0}
        # runs that differ in what they compute alone send the same messages
        sent = spec.model_dump(mode="json", exclude=NOT_SENT) | {"momentum": spec.momentum > 0}
        key = canonical([sent, at, n_params or spec.id, network])
        if key not in self._costs:
            costs = simulate(spec, Network.model_validate(network), at, n_params)
            self._costs[key] = (list(costs.time), list(costs.busiest_bytes))
        times, busiest = self._costs[key]
        later = [time + compute * t for time, t in zip(times, at, strict=True)]
        return dict(zip(COSTS, (later, busiest), strict=True))

    @functools.cached_property
    def own(self) -> list[str]:
        """The settings, beside n, in which runs of one method differ."""
        labels = [run.label for run in self.suite.planned()]
        return [key for key in varying(labels, self.settings) if key != "nodes"]

    def name(self, label: str, spec: RunSpec) -> str:
        """`D-SGD, n = 8`, and what else tells a method's cells apart: `D-SGD, n = 8, ζ² = 1`."""
        settings = settings_of(spec)
        own = [f"{setting(key).short} = {show(settings.get(key))}" for key in self.own]
        return ", ".join([label, f"n = {spec.nodes}", *own])

    @property
    def used(self) -> Chosen:
        """The records behind the report, tuning runs included, in the order of the suite."""
        others = (run for other in self.others for run in other.reported)
        ids = [run.spec.id for run in (*self.suite.tuning, *self.reported, *others)]
        return Chosen(self.records, [key for key in ids if key in self.records])


NOT_SENT = {"problem", "lr", "schedule", "weight_decay", "eval_every", "stop"}
"""Settings that do not change what a run of so many rounds and parameters sends, and when."""


def unlike(frame: Frame) -> list[str]:
    """What differs between the seeds of one cell beside the seed, so that their mean is of unlike
    things: code, uncommitted changes in it, plugins, or the data of one name."""
    facts: dict[tuple[str, str], dict[str, set[str]]] = {}
    for run in frame.reported:
        if record := frame.records.get(run.spec.id):
            code, data = record.made.code, record.problem.get("data", {})
            of = facts.setdefault((run.cell, frame.name(run.label, run.spec)), {})
            for what, value in (
                ("commits", code.get("commit")),
                ("code with and without uncommitted changes", code.get("dirty")),
                ("versions of plugins", code.get("plugins")),
                ("versions of the data", data.get("sha256")),
                ("versions of the package", code.get("version")),
            ):
                of.setdefault(what, set()).add(canonical(value))
    found: dict[str, list[str]] = {}
    for (_, name), of in facts.items():
        for what, values in of.items():
            if len(values) > 1:
                found.setdefault(what, []).append(name)
    return [
        f"Careful: seeds of different {what} in one cell: {'; '.join(names[:3])}"
        + (f"; and {len(names) - 3} more." if len(names) > 3 else ".")
        for what, names in found.items()
    ]


def _to_target(reached: int | None, curves: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """What the run had cost when it reached its target, or when it ended without: costs grow evenly
    between evaluations."""
    return {
        name: curves[axis][-1]
        if reached is None
        else float(np.interp(reached, curves["rounds"], curves[axis]))
        for name, axis in TO_TARGET.items()
        if axis in curves
    }


def column(key: str) -> str:
    """The column of a setting: apart from the axes of curves, which also have `rounds`."""
    return key if key in ("nodes", "active", "lr", "seed") else f"run.{key}"


def frame(suite: Suite, records: Mapping[str, Record]) -> Frame:
    """Join a suite's plan with the records that are there; a run without one is "missing"."""
    choices = choose(suite, records)
    found = _at(suite, records, choices, step_sizes(choices))
    others = [_at(suite, records, choices, settings) for settings in runners_up(suite, choices)]
    return replace(found, others=others)


def _at(
    suite: Suite,
    records: Mapping[str, Record],
    choices: dict[str, Choice],
    settings: Mapping[str, Mapping[str, Any]],
) -> Frame:
    """The frame of the runs with those settings of each cell."""
    reported = suite.reported(settings)
    at = {(run.cell, run.spec.seed): run for run in reported} if suite.spec.tune else {}
    finals: list[dict[str, object]] = []
    curves, specs = [], []
    for planned in suite.planned():
        run = at.get((planned.cell, planned.spec.seed)) if suite.spec.tune else planned
        record = records.get(run.spec.id) if run else None
        status: str = record.status if record else "missing"
        if not run and planned.cell in choices:
            status = NO_STEP_SIZE
        specs.append(run.spec if run else planned.spec)
        row: dict[str, object] = {
            "label": planned.label,
            "cell": planned.cell,
            "algorithm": planned.spec.algorithm["name"],
            "topology": planned.spec.topology["name"],
            "nodes": planned.spec.nodes,
            "active": specs[-1].n_active if run or not planned.search else float("nan"),
            "lr": run.spec.lr if run else float("nan"),
            "seed": planned.spec.seed,
            "status": status,
        }
        if record and record.curves:
            curve = pd.DataFrame(record.curves)
            curves.append(curve.assign(run=len(finals), **cast("dict[str, Any]", row)))
            if record.status == "finished":
                row = {name: values[-1] for name, values in record.curves.items()} | row
                spent = [record.made.phases.get(p, 0.0) for p in ("data", "gradient", "mix")]
                if rounds := record.curves["rounds"][-1]:  # none, where the start was the target
                    row[ROUND_TIME] = 1e6 * sum(spent) / rounds
                if specs[-1].stop:
                    row["censored"] = record.reached_at is None
                    row |= _to_target(record.reached_at, record.curves)
        finals.append(row)
    return Frame(
        suite,
        records,
        reported,
        choices,
        pd.DataFrame(finals),
        pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(),
        specs,
        [settings_of(spec) for spec in specs],
    )
