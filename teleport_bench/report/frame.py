"""A suite's records as data frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd

from teleport_bench.metrics import ROUND_TIME
from teleport_bench.record import Record
from teleport_bench.report.statistics import NO_STEP_SIZE
from teleport_bench.suite import PlannedRun, Suite
from teleport_bench.tune import Choice, choose, step_sizes


@dataclass(frozen=True, eq=False)
class Frame:
    """What a report is built from.

    runs: one row a planned run: label, cell, settings (nodes, active, lr, seed, ..), status, and
    the final value of every metric and axis, NaN unless finished; lr is NaN where none was found.
    reported: the runs among them whose step size is known.
    curves: one row a reported run and evaluation, of finished and diverged runs.
    """

    suite: Suite
    records: Mapping[str, Record]
    reported: list[PlannedRun]
    choices: dict[str, Choice]
    runs: pd.DataFrame
    curves: pd.DataFrame

    @property
    def used(self) -> list[Record]:
        """The records behind the report, tuning runs included, in the order of the suite."""
        runs = [*self.suite.tuning, *self.reported]
        return [self.records[r.spec.id] for r in runs if r.spec.id in self.records]


def frame(suite: Suite, records: Mapping[str, Record]) -> Frame:
    """Join a suite's plan with the records that are there; a run without one is "missing"."""
    choices = choose(suite, records)
    reported = suite.reported(step_sizes(choices))
    at = {(run.cell, run.spec.seed): run for run in reported} if suite.spec.tune else {}
    finals, curves = [], []
    for planned in suite.planned():
        run = at.get((planned.cell, planned.spec.seed)) if suite.spec.tune else planned
        record = records.get(run.spec.id) if run else None
        status: str = record.status if record else "missing"
        if not run and planned.cell in choices:
            status = NO_STEP_SIZE
        row: dict[str, object] = {
            "label": planned.label,
            "cell": planned.cell,
            "algorithm": planned.spec.algorithm["name"],
            "topology": planned.spec.topology["name"],
            "nodes": planned.spec.nodes,
            "active": planned.spec.n_active,
            "lr": run.spec.lr if run else float("nan"),
            "seed": planned.spec.seed,
            "status": status,
        }
        if record and record.curves:
            curve = pd.DataFrame(record.curves)
            curves.append(curve.assign(**cast("dict[str, Any]", row)))
            if record.status == "finished":
                row |= {name: values[-1] for name, values in record.curves.items()}
                spent = [record.made.phases.get(p, 0.0) for p in ("data", "gradient", "mix")]
                row[ROUND_TIME] = 1e6 * sum(spent) / planned.spec.rounds
        finals.append(row)
    return Frame(
        suite,
        records,
        reported,
        choices,
        pd.DataFrame(finals),
        pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(),
    )
