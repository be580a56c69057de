"""Performance profiles: how often each method is within a factor of the best (Dolan and More)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from teleport_bench.metrics import METRICS, TO_TARGET
from teleport_bench.report.figures import Drawing, canvas, legend_beside, rendered, styles_of
from teleport_bench.report.frame import Frame
from teleport_bench.report.tables import Cell, Table
from teleport_bench.shown import ProfileSpec, case_keys, value_of


@dataclass(frozen=True)
class Profile:
    """costs: by method, one a case: infinite where it did not get there, NaN where it was not run.

    Cases are in the same order for all methods.
    """

    spec: ProfileSpec
    costs: Mapping[str, Sequence[float]]

    @property
    def n_cases(self) -> int:
        return max(map(len, self.costs.values()), default=0)

    @property
    def ratios(self) -> dict[str, list[float]]:
        """The cost over the best method's, by method and case; infinite where none got there."""
        best = [
            min((c for c in costs if not math.isnan(c)), default=math.inf)
            for costs in zip(*self.costs.values(), strict=True)
        ]
        return {
            label: [c / b if b < math.inf else math.inf for c, b in zip(costs, best, strict=True)]
            for label, costs in self.costs.items()
        }

    @property
    def ranks(self) -> dict[str, list[float]]:
        """1 for the best of a case; equal costs, and all that did not get there, share a rank."""
        ranks: dict[str, list[float]] = {label: [] for label in self.costs}
        for costs in zip(*self.costs.values(), strict=True):
            known = [c for c in costs if not math.isnan(c)]
            for label, c in zip(self.costs, costs, strict=True):
                less, same = sum(k < c for k in known), sum(k == c for k in known)
                ranks[label].append(math.nan if math.isnan(c) else less + (same + 1) / 2)
        return ranks


def profile(frame: Frame, spec: ProfileSpec) -> Profile:
    """The costs of every method in every case of the runs that the item shows."""
    view = frame.view(spec, names=[spec.metric])
    runs = view.runs
    settings = [view.settings[i] for i in runs.index]
    by = case_keys(spec, runs["label"].tolist(), settings)
    cases: dict[tuple[Any, ...], dict[str, float]] = {}
    for (_, run), mine in zip(runs.iterrows(), settings, strict=True):
        case = cases.setdefault((*(value_of(mine, k) for k in by), int(run["seed"])), {})
        case[str(run["label"])] = _cost(run, spec.metric)
    labels = list(dict.fromkeys(runs["label"].tolist()))
    return Profile(
        spec, {label: [case.get(label, math.nan) for case in cases.values()] for label in labels}
    )


def _cost(run: Any, metric: str) -> float:
    if run["status"] in ("missing", "failed"):
        return math.nan
    if run["status"] != "finished" or (metric in TO_TARGET and bool(run["censored"])):
        return math.inf
    return float(run[metric])


def table(found: Profile) -> Table:
    """Ranks, and how often a method gets there, is the best, and is within twice the best."""
    rows: list[list[Cell]] = []
    ratios, ranks = found.ratios, found.ranks
    for label, costs in found.costs.items():
        run = [c for c in costs if not math.isnan(c)]
        mine = [r for r in ratios[label] if not math.isnan(r)]
        if not run:
            rows.append([label, "", "", "", "", "missing"])
            continue
        solved = [r for r in mine if r < math.inf]
        rows.append(
            [
                label,
                round(float(np.nanmean(ranks[label])), 2),
                f"{len(solved)} of {len(run)}",
                sum(r == 1 for r in mine),
                sum(r <= 2 for r in mine),
                f"{np.median(mine):.3g}" if np.median(mine) < math.inf else "none",
            ]
        )
    rows.sort(key=lambda row: (row[1] == "", row[1]))
    name = METRICS[found.spec.metric].label
    spec = found.spec
    return Table(
        spec.name,
        spec.caption or f"Methods by {name}",
        ["method", "mean rank", "solved", "best", "within 2x", "median ratio to the best"],
        ["method", "mean_rank", "solved", "best", "within_2", "median_ratio"],
        rows,
        [
            f"{name}, over {found.n_cases} cases (problems and seeds). Equal costs share a rank, "
            "as do all that diverged or did not get there. median ratio: none where half of the "
            "cases are not solved."
        ],
        spec.tags,
    )


def drawing(frame: Frame, found: Profile) -> Drawing:
    """The performance profile as a figure."""
    spec, ratios = found.spec, found.ratios
    finite = [r for of in ratios.values() for r in of if r < math.inf]
    most = max([2.0, *finite]) * 1.1
    view = frame.view(spec)
    styles = styles_of(view)
    with canvas(spec.name, 6.4, 3.6) as figure:
        ax = figure.subplots()
        for label, of in ratios.items():
            mine = np.sort([r for r in of if not math.isnan(r)])
            if not len(mine) or label not in styles:
                continue
            x = [1.0, *mine[mine < math.inf], most]
            y = [(mine <= at).mean() for at in x]
            style = styles[label]
            look: dict[str, Any] = {"color": style.colour, "linewidth": 1.5, "label": label}
            marks: dict[str, Any] = {
                "marker": style.marker,
                "markersize": 5,
                "markeredgecolor": "white",
            }
            line = ax.step(x, y, where="post", **look, **marks)[0]
            if style.dashes:
                line.set_dashes(style.dashes)
        ax.set_xscale("log")
        ax.set_xlim(0.97, most)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda factor, _: f"{factor:g}x"))
        ax.set_ylim(0, 1.03)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_xlabel(f"{METRICS[spec.metric].label}, over that of the best method")
        ax.set_ylabel("cases solved")
        legend_beside(figure)
        name = METRICS[spec.metric].label
        caption = f"{spec.caption or name}: the share of cases within a factor of the best method."
        return Drawing(spec.name, caption, rendered(figure, frame.suite.scale_note), spec)
