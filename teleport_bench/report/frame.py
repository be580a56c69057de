"""A suite's records as data frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd

from teleport_bench.metrics import AXES
from teleport_bench.record import Record
from teleport_bench.suite import PlannedRun, Suite
from teleport_bench.tune import Choice, choose, chosen


@dataclass(frozen=True, eq=False)
class Frame:
    """What a report is built from.

    runs: one row a reported run: label, cell, settings (nodes, active, lr, seed, ..), status, and
    the final value of every metric and axis, NaN unless finished.
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

    def metrics(self) -> list[str]:
        """Metrics that the reported records have, axes left out."""
        names = dict.fromkeys(
            name
            for run in self.reported
            if (record := self.records.get(run.spec.id))
            for name in record.curves
        )
        return [name for name in names if name not in AXES]


def frame(suite: Suite, records: Mapping[str, Record]) -> Frame:
    """Join a suite's plan with the records that are there; a run without one is "missing"."""
    reported = suite.reported(chosen(suite, records))
    finals, curves = [], []
    for run in reported:
        record = records.get(run.spec.id)
        row: dict[str, object] = {
            "label": run.label,
            "cell": run.cell,
            "algorithm": run.spec.algorithm["name"],
            "topology": run.spec.topology["name"],
            "nodes": run.spec.nodes,
            "active": run.spec.n_active,
            "lr": run.spec.lr,
            "seed": run.spec.seed,
            "status": record.status if record else "missing",
        }
        if record and record.curves:
            curve = pd.DataFrame(record.curves)
            curves.append(curve.assign(**cast("dict[str, Any]", row)))
            if record.status == "finished":
                row |= {name: values[-1] for name, values in record.curves.items()}
        finals.append(row)
    return Frame(
        suite,
        records,
        reported,
        choose(suite, records),
        pd.DataFrame(finals),
        pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(),
    )
