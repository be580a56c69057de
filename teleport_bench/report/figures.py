"""Figures as SVG and PNG, the same bytes from the same records."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

from teleport_bench.metrics import AXES, METRICS
from teleport_bench.report.frame import Frame
from teleport_bench.report.style import Style, style_of
from teleport_bench.suite import FigureSpec

SETTINGS = {
    "nodes": "nodes n",
    "active": "active nodes k",
    "lr": "step size",
    "seed": "seed",
}


def draw(frame: Frame, spec: FigureSpec) -> dict[str, bytes]:
    """{"svg": .., "png": ..}: one panel a value of spec.columns, one line a method."""
    runs = frame.runs
    values = sorted(runs[spec.columns].unique()) if spec.columns and len(runs) else [None]
    longest = max((len(run.label) for run in frame.suite.planned()), default=0)
    with canvas(spec.name, 3.4 * len(values) + 0.9 + 0.065 * longest, 3.1) as figure:
        panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
        for ax, value in zip(panels, values, strict=True):
            inside = lambda data, v=value: data if v is None else data[data[spec.columns] == v]  # noqa: E731
            _panel(ax, frame, spec, inside)
            if value is not None:
                ax.set_title(f"{SETTINGS[str(spec.columns)]} = {value}")
        for ax in panels[1:]:
            ax.set_ylabel("")
        _legend(figure, frame)
        return rendered(figure)


@contextmanager
def canvas(name: str, width: float, height: float) -> Iterator[Figure]:
    """An empty figure in the project's style, width and height in inches."""
    settings = {**sns.axes_style("whitegrid"), **sns.plotting_context("paper")}
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's own settings would make other bytes of the same records
        mpl.rcParams.update({**settings, "svg.hashsalt": name})
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def rendered(figure: Figure) -> dict[str, bytes]:
    """{"svg": .., "png": ..}."""
    return {"svg": _save(figure, "svg"), "png": _save(figure, "png")}


def _panel(ax: Axes, frame: Frame, spec: FigureSpec, inside: Any) -> None:
    x_axis: str = spec.x
    curve = x_axis in AXES
    runs = inside(frame.runs)
    data = inside(frame.curves) if curve and len(frame.curves) else runs
    # Only cells in which every run finished have a line; the others are named below it.
    points = ["cell", "lr"]
    bad = runs.loc[runs["status"] != "finished", points].drop_duplicates()
    if len(data):
        data = data[~data.set_index(points).index.isin(bad.set_index(points).index)]
    metric = METRICS[spec.y]
    if len(data) and spec.y in data:
        if curve:
            # Seeds may differ a little in x (bytes): each evaluation is drawn at their mean.
            mean_x = data.groupby(["cell", "rounds"])[spec.x].transform("mean")
            data = data.assign(**{spec.x: mean_x})
        styles = _styles(frame)
        sns.lineplot(
            data.assign(method=data["label"]),
            x=spec.x,
            y=spec.y,
            hue="method",
            style="method",
            palette={k: s.colour for k, s in styles.items()},
            markers={k: s.marker for k, s in styles.items()},
            dashes={k: s.dashes for k, s in styles.items()},
            estimator="mean",
            errorbar=("pi", 100),
            err_style="band" if curve else "bars",
            err_kws={"alpha": 0.15, "linewidth": 0} if curve else {"capsize": 2},
            markevery=0.2 if curve else None,
            markersize=5,
            legend=False,
            ax=ax,
        )
    if metric.log and len(data) and (data[spec.y] > 0).all():
        ax.set_yscale("log")
    if spec.ylim:
        ax.set_ylim(spec.ylim)
    ax.set_ylabel(metric.label)
    ax.set_xlabel(AXES.get(x_axis) or SETTINGS[x_axis])
    if spec.x in ("nodes", "active") and len(data):
        ax.set_xscale("log", base=2)
        ax.margins(x=0.12)
        ax.xaxis.set_major_locator(FixedLocator(sorted(data[spec.x].unique())))
        ax.xaxis.set_minor_locator(NullLocator())
        large = data[spec.x].max() >= 10_000
        ax.xaxis.set_major_formatter(EngFormatter(places=0, sep="") if large else ScalarFormatter())
    elif spec.x == "lr":
        ax.set_xscale("log")
    elif curve and x_axis != "rounds":
        unit = "B" if x_axis.startswith("bytes") else ""
        ax.xaxis.set_major_formatter(EngFormatter(unit=unit))
        ax.xaxis.set_major_locator(MaxNLocator(4))
    for i, line in enumerate(_unfinished(runs)):
        note = ax.text(0.02, 0.02 + 0.07 * i, line, transform=ax.transAxes, fontsize=7)
        note.set(color="#a00000", parse_math=False, in_layout=False)


def _unfinished(runs: pd.DataFrame) -> list[str]:
    """`D-SGD, n = 8: 2 of 5 diverged` for each cell without a line."""
    lines = []
    for _, mine in runs.groupby("cell", sort=False) if len(runs) else ():
        counts = mine.loc[mine["status"] != "finished", "status"].value_counts(sort=False)
        label, nodes = mine["label"].iloc[0], mine["nodes"].iloc[0]
        lines += [f"{label}, n = {nodes}: {c} of {len(mine)} {s}" for s, c in counts.items()]
    return lines


def _styles(frame: Frame) -> dict[str, Style]:
    styles: dict[str, Style] = {}
    for run in frame.reported:
        spec = run.spec
        style = style_of(spec.algorithm["name"], spec.n_active, spec.topology["name"])
        styles.setdefault(run.label, style)
    return styles


def _legend(figure: Figure, frame: Frame) -> None:
    handles = []
    for label, style in _styles(frame).items():
        line = Line2D([], [], color=style.colour, marker=style.marker, markersize=5, label=label)
        line.set_markeredgecolor("white")
        if style.dashes:
            line.set_dashes(style.dashes)
        handles.append(line)
    seeds = frame.runs.groupby("cell").size().max() if len(frame.runs) else 0
    title = f"mean of {seeds} seeds,\nand range from min to max" if seeds > 1 else "one seed"
    legend = figure.legend(
        handles=handles, loc="outside right upper", title=title, frameon=False, alignment="left"
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a label is text, whatever characters it has


def _save(figure: Figure, form: str) -> bytes:
    out = io.BytesIO()
    # No date and no version of the renderer: the bytes depend on the records.
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[form]
    figure.savefig(out, format=form, dpi=150, metadata=metadata)
    return out.getvalue()
