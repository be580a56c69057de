"""What a search for k found, and what it cost beside trying every k alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from teleport_bench.activation import BLOCK
from teleport_bench.errors import counted
from teleport_bench.metrics import METRICS, setting
from teleport_bench.record import Record
from teleport_bench.report.figures import Drawing, canvas, legend_beside, rendered
from teleport_bench.report.style import BLACK, BLUE, DASHES, Style, alternatives
from teleport_bench.report.tables import Cell, Table
from teleport_bench.shown import flat, show
from teleport_bench.spec import RunSpec
from teleport_bench.suite import PlannedRun, Suite
from teleport_bench.tune import Choice, choose


@dataclass(frozen=True)
class Found:
    """One search: the score of each k at its own best step size, and what it cost.

    rounds: of the network, those in which several candidates share it counted once. most_active:
    nodes at most active in a round, as drawn. alone, alone_active, alone_rounds: the same with
    every k alone, where that was run.
    """

    method: str
    nodes: int
    setting: dict[str, Any]
    """What else the method's runs have of their own."""
    lr: float
    scores: dict[int, float | None]
    active: int
    rounds: int
    most_active: int
    alone_rounds: int
    alone: dict[int, float | None] | None = None
    alone_active: int | None = None

    @property
    def regret(self) -> float | None:
        """By how much the metric of the k found is worse than that of the best, both alone."""
        if self.alone is None or self.alone_active is None:
            return None
        found, best = self.alone[self.active], self.alone[self.alone_active]
        return None if found is None or best is None else abs(found - best)


def find(suite: Suite, records: Mapping[str, Record]) -> list[Found]:
    """Every search of a suite whose tuning runs all have records."""
    choices = choose(suite, records)
    alone = suite.exhaustive
    by_setting = {}
    if alone:
        tried = choose(alone, records)
        by_setting = {
            cell[len(label) :]: tried[cell] for cell, label, _ in alone.cells() if cell in tried
        }
    trials: dict[str, list[PlannedRun]] = {}
    for run in suite.tuning:
        if run.search == "search":
            trials.setdefault(run.cell, []).append(run)
    found = []
    for cell, runs in trials.items():
        choice = choices.get(cell)
        if choice is None or choice.lr is None or choice.active is None:
            continue
        label, spec = runs[0].label, runs[0].spec
        seed = spec.seed
        mine = [r.spec for r in runs if r.spec.lr == choice.lr and r.spec.seed == seed]
        other = by_setting.get(cell[len(label) :])
        found.append(
            Found(
                label,
                spec.nodes,
                json.loads(cell[len(label) + 3 :]),
                choice.lr,
                _scores(choice, suite),
                choice.active,
                *_count(mine),
                alone_rounds=sum(s.rounds for s in mine),
                alone=_scores(other, suite) if other else None,
                alone_active=other.active if other else None,
            )
        )
    return found


def _scores(choice: Choice, suite: Suite) -> dict[int, float | None]:
    """The score of each k at the best of its step sizes."""
    assert suite.spec.tune
    sign = METRICS[suite.spec.tune.metric].sign
    scores = {}
    for k, by_lr in (choice.by_active or {}).items():
        sound = [sign * score for score in by_lr.values() if score is not None]
        scores[k] = sign * max(sound) if sound else None
    return scores


def _count(specs: Sequence[RunSpec]) -> tuple[int, int]:
    """(rounds of the network, nodes at most active in one), of the candidates of one seed.

    Candidates that share a draw run in the same rounds; that no node is active for two of them is
    counted, not assumed.
    """
    together = [s for s in specs if s.share]
    rounds = sum(s.rounds for s in specs if not s.share)
    most = max((s.n_active for s in specs if not s.share), default=0)
    if together:
        rounds += together[0].rounds
        for block in range(-(-together[0].rounds // BLOCK)):
            holders = np.concatenate([s.holders(block) for s in together], axis=1)
            distinct = (np.diff(np.sort(holders, axis=1), axis=1) > 0).sum(1) + 1
            if (distinct < holders.shape[1]).any():
                raise RuntimeError("two candidates of a search are active at one node")
            most = max(most, int(distinct.max()))
    return rounds, most


def table(suite: Suite, found: Sequence[Found]) -> Table:
    """Scores of every k, the one chosen marked, and the rounds that it took to know."""
    assert suite.spec.tune
    metric = METRICS[suite.spec.tune.metric]
    ks = sorted({k for f in found for k in f.scores})
    alone = any(f.alone for f in found)
    rows: list[list[Cell]] = []
    for f in found:
        names = [f.method, *own_settings(f, found)]
        cells: list[Cell] = [", ".join(names), f.nodes, f"{f.lr:g}"]
        for k in ks:
            text = "" if k not in f.scores else _text(f.scores[k], metric.format)
            cells.append(f"{text} *" if k == f.active else text)
        cells += [f.active, f.rounds, f.alone_rounds]
        if alone:
            cells += ["" if f.alone_active is None else f.alone_active]
            cells += ["" if f.regret is None else metric.format.format(f.regret)]
        rows.append(cells)
    columns = ["method", "n", "step size", *(f"k={k}" for k in ks), "k", "rounds", "rounds, alone"]
    keys = ["method", "nodes", "lr", *(f"k{k}" for k in ks), "active", "rounds", "rounds_alone"]
    if alone:
        columns += ["best k alone", "loss by the search"]
        keys += ["active_alone", "regret"]
    seeds = counted(len(suite.spec.tune.seeds), "tuning seed")
    notes = [
        f"Mean {metric.label} over {seeds}, every k at its own best step size; * "
        "marks the k chosen: the best, ties to the smaller (the rule is assumed; that 2T rounds "
        "are enough is the paper's).",
        "rounds: of one step size. All k but the largest run at the same time at disjoint nodes "
        "for T rounds, then the largest for T: 2T, as counted from the nodes drawn (at most "
        f"{max(f.most_active for f in found)} active at once). rounds, alone: every k after the "
        "other.",
    ]
    return Table("search", "The search for k within 2T rounds", columns, keys, rows, notes)


def _text(score: float | None, form: str) -> str:
    return "diverged" if score is None else form.format(score)


def own_settings(f: Found, found: Sequence[Found]) -> list[str]:
    """The settings in which a search differs from others of its method and n, as text."""
    same = [g for g in found if (g.method, g.nodes) == (f.method, f.nodes)]
    mine = flat(f.setting)
    differ = [k for k, v in mine.items() if any(flat(g.setting).get(k) != v for g in same)]
    return [f"{setting(key).short} = {show(mine[key])}" for key in differ]


def to_json(found: Sequence[Found]) -> str:
    """The searches as a record that other programs read."""
    return json.dumps([asdict(f) for f in found], indent=1) + "\n"


def drawing(suite: Suite, found: Sequence[Found]) -> Drawing:
    """The search as a figure of the report."""
    caption = "The search for k: the metric of every candidate, the chosen k marked."
    if any(f.alone for f in found):
        caption += " Beside it, what every k gives that has the network to itself."
    return Drawing("search", caption, draw(suite, found))


def draw(suite: Suite, found: Sequence[Found]) -> dict[str, bytes]:
    """{"svg": .., "png": ..}: the metric against k, one panel an n and setting, the chosen k marked
    and the scores of every k alone beside it."""
    assert suite.spec.tune
    metric = METRICS[suite.spec.tune.metric]
    panels: dict[tuple[int, tuple[str, ...]], list[Found]] = {}
    for f in found:
        panels.setdefault((f.nodes, tuple(own_settings(f, found))), []).append(f)
    columns = min(4, len(panels))
    height = -(-len(panels) // columns)
    with canvas("search", 2.6 * columns + 2.2, 2.3 * height + 0.6) as figure:
        grid = figure.subplots(height, columns, squeeze=False, sharey="row").ravel()
        looks: dict[str, Style] = {}
        for ax, ((nodes, own), searches) in zip(grid, panels.items(), strict=False):
            for f in searches:
                if f.method not in looks:
                    first = Style(BLUE, "o", DASHES.get(f.setting["topology"]["name"], ""))
                    looks[f.method] = next(
                        s for s in alternatives(first) if s not in looks.values()
                    )
                look = looks[f.method]
                for scores, face, colour in (
                    (f.scores, BLUE, BLUE),
                    (f.alone or {}, "white", "#999999"),
                ):
                    points = {k: s for k, s in scores.items() if s is not None}
                    ax.plot(
                        list(points),
                        list(points.values()),
                        linestyle=_line(look),
                        color=colour,
                        marker=look.marker,
                        markersize=4,
                        markerfacecolor=face,
                        zorder=2 if face == BLUE else 1,
                    )
                ax.plot(
                    f.active, f.scores[f.active], "*", color=BLACK, markersize=11, zorder=3
                )  # fmt: skip
            ax.set_title(", ".join([f"n = {nodes}", *own]), fontsize=8)
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_locator(
                FixedLocator(sorted({k for f in searches for k in f.scores}))
            )
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.set_xlabel("active nodes k")
            if metric.log:
                ax.set_yscale("log")
        for ax in grid[len(panels) :]:
            ax.set_visible(False)
        for ax in grid[:: columns or 1]:
            ax.set_ylabel(metric.label, fontsize=8)
        handles = [
            Line2D(
                *([], []),
                color=BLUE,
                linestyle=_line(look),
                marker=look.marker,
                markersize=4,
                label=label,
            )
            for label, look in looks.items()
        ]
        handles.append(
            Line2D([], [], color=BLACK, linestyle="", marker="*", markersize=9, label="chosen k")
        )
        if any(f.alone for f in found):
            handles.append(
                Line2D(
                    *([], []),
                    color="#999999",
                    marker="o",
                    markersize=4,
                    markerfacecolor="white",
                    label="every k alone",
                )
            )
        legend_beside(figure, handles=handles)
        return rendered(figure, suite.scale_note)


def _line(look: Style) -> Any:
    """A look's dashes as a line style of matplotlib."""
    return (0, look.dashes) if look.dashes else "-"
