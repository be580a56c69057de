"""Figures as SVG and PNG, the same bytes from the same records."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    ScalarFormatter,
)
from matplotlib.transforms import ScaledTranslation

from teleport_bench.metrics import AXES, COST_AXES, METRICS, TO_TARGET, setting
from teleport_bench.report.frame import Frame, column
from teleport_bench.report.statistics import summarise
from teleport_bench.report.style import MARKERS, Style, alternatives, style_of
from teleport_bench.report.tables import plain
from teleport_bench.shown import FigureSpec, Item, order, show


@dataclass(frozen=True)
class Drawing:
    """A figure in its forms ("svg", "png", and "csv" where it has one); item: of the suite file."""

    name: str
    caption: str
    forms: dict[str, bytes]
    item: Item | None = None


def draw(frame: Frame, spec: FigureSpec) -> dict[str, bytes]:
    """{"svg": .., "png": .., "csv": ..}: a panel a value of spec.columns and spec.rows, a line a
    method; as CSV the points that are drawn.
    """
    view = frame.view(spec, spec.keys, [spec.x, spec.y])
    runs = view.runs
    across, down = (
        (sorted(runs[column(key)].dropna().unique(), key=order) if key and len(runs) else [])
        or [None]  # no run yet whose value is known
        for key in (spec.columns, spec.rows)
    )
    shown = runs["label"].unique() if spec.patterns or spec.where else _labels(frame)
    longest = max(map(len, shown), default=0)
    width = 3.4 * len(across) + 0.9 + 0.065 * longest
    height = 3.1 if len(down) == 1 else 2.6 * len(down) + 0.5
    points: list[dict[str, Any]] = []
    with canvas(spec.name, width, height) as figure:
        # panels of one row may differ in x: other numbers of nodes send other bytes
        share: Any = "none" if len(down) == 1 else "col"
        grid = figure.subplots(len(down), len(across), squeeze=False, sharex=share, sharey="row")
        for i, low in enumerate(down):
            for j, value in enumerate(across):
                both = ((spec.rows, low), (spec.columns, value))
                at = {str(key): v for key, v in both if v is not None}
                ax = grid[i][j]
                drawn = _panel(ax, view, spec, at)
                points += [at | point for point in drawn]
                if value is not None and i == 0:
                    ax.set_title(_is(str(spec.columns), value))
                if low is not None and j == len(across) - 1:
                    # beside the panel, as the title is above it
                    ax.text(1.02, 0.5, _is(str(spec.rows), low), rotation=270, va="center")
                    ax.texts[-1].set(transform=ax.transAxes, parse_math=False)
                if j:
                    ax.set_ylabel("")
                if i < len(down) - 1:
                    ax.set_xlabel("")
        _legend(figure, view, spec)
        return rendered(figure, frame.suite.scale_note) | {"csv": _csv(points)}


def _labels(frame: Frame) -> list[str]:
    return [run.label for run in frame.suite.planned()]


def _is(key: str, value: Any) -> str:
    """`nodes n = 8`, and `ring` for what has a name."""
    return value if isinstance(value, str) else f"{setting(key).label} = {show(value)}"


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


def rendered(figure: Figure, note: str | None = None) -> dict[str, bytes]:
    """{"svg": .., "png": ..}; note: small text in a corner below the panels."""
    if note:
        lines = textwrap.fill(note, int(20 * figure.get_size_inches()[0]))  # 20 letters to an inch
        figure.supxlabel(lines, x=0.01, ha="left", fontsize=6, color="#888888")
        figure.texts[-1].set_parse_math(False)
    return {"svg": _save(figure, "svg"), "png": _save(figure, "png")}


def _panel(ax: Axes, frame: Frame, spec: FigureSpec, at: dict[Any, Any]) -> list[dict[str, Any]]:
    """Draw the runs with the settings `at`; returns the points."""
    x = spec.x if spec.curve else column(spec.x)
    runs, data = frame.runs, frame.curves if spec.curve and len(frame.curves) else frame.runs
    for key, value in at.items():
        runs, data = (d[d[column(key)] == value] for d in (runs, data))
    # Only cells in which every run finished have a line; the others are named below it.
    cell = ["cell", "lr"]
    bad = runs.loc[runs["status"] != "finished", cell].drop_duplicates()
    if len(data):
        data = data[~data.set_index(cell).index.isin(bad.set_index(cell).index)]
    metric = METRICS[spec.y]
    points: list[dict[str, Any]] = []
    if len(data) and spec.y in data:
        if spec.curve:
            # A run that reached its target ended there: its cell is drawn as far as all its seeds.
            here = data.groupby([*cell, "rounds"])["seed"].transform("size")
            data = data[here == here.groupby([data[k] for k in cell]).transform("max")]
            # Seeds may differ a little in x (bytes): each evaluation is drawn at their mean.
            mean_x = data.groupby(["cell", "rounds"])[x].transform("mean")
            data = data.assign(**{x: mean_x})
        elif not pd.api.types.is_numeric_dtype(data[x]) or data[x].dtype == bool:
            data = data.assign(**{x: data[x].map(show)}).sort_values(x, kind="stable")
        points = _points(data, x, spec)
        _lines(ax, frame, spec, data, x, points)
    if metric.log and len(data) and (data[spec.y] > 0).all():
        ax.set_yscale("log")
    if spec.y in TO_TARGET and len(data):
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    if spec.curve:
        _target(ax, frame, spec, runs)
    if spec.ylim:
        ax.set_ylim(spec.ylim)
    ax.set_ylabel(metric.label)
    _x_axis(ax, spec, sorted(data[x].unique(), key=order) if not spec.curve and len(data) else [])
    for i, line in enumerate(_unfinished(runs, spec)):
        note = ax.text(0.02, 0.02 + 0.07 * i, line, transform=ax.transAxes, fontsize=7)
        note.set(color="#a00000", parse_math=False, in_layout=False)
    return points


def _points(data: pd.DataFrame, x: str, spec: FigureSpec) -> list[dict[str, Any]]:
    """What is drawn: of each method and x the mean and the range over seeds, or a lower bound."""
    points = []
    for (label, at), mine in data.groupby(["label", x], sort=False):
        censored = [c is True for c in mine["censored"]] if spec.y in TO_TARGET else []
        values = mine[spec.y].tolist()
        s = summarise(values, ["finished"] * len(values), censored)
        low, high = (min(values), max(values)) if s.mean is not None else (None, None)
        point = {"method": label, spec.x: at, "mean": s.mean, "min": low, "max": high, "seeds": s.n}
        if spec.y in TO_TARGET:
            point |= {"bound": s.bound, "censored": s.censored}
        points.append(point)
    return points


def _lines(
    ax: Axes,
    frame: Frame,
    spec: FigureSpec,
    data: pd.DataFrame,
    x: str,
    points: Sequence[dict[str, Any]],
) -> None:
    styles = styles_of(frame)
    if spec.y in TO_TARGET:
        shown = [label for label in styles if any(label == point["method"] for point in points)]
        for i, label in enumerate(shown):
            mine = [point for point in points if point["method"] == label]
            mine.sort(key=lambda p: order(p[spec.x]))
            # side by side: methods that do not reach the target share one bound
            aside = (i - (len(shown) - 1) / 2) * 2.5
            _censored_line(ax, spec, mine, styles[label], aside)
        return
    sns.lineplot(
        data.assign(method=data["label"]),
        x=x,
        y=spec.y,
        hue="method",
        style="method",
        palette={k: s.colour for k, s in styles.items()},
        markers={k: s.marker for k, s in styles.items()},
        dashes={k: s.dashes for k, s in styles.items()},
        estimator="mean",
        errorbar=("pi", 100),
        err_style="band" if spec.curve else "bars",
        err_kws={"alpha": 0.15, "linewidth": 0} if spec.curve else {"capsize": 2},
        markevery=0.2 if spec.curve else None,
        markersize=5,
        legend=False,
        ax=ax,
    )


def _censored_line(
    ax: Axes, spec: FigureSpec, points: Sequence[dict[str, Any]], style: Style, aside: float
) -> None:
    """Means with their ranges; where seeds are censored an open marker at the bound, an arrow up.

    aside: points (1/72 inch) to the right of x.
    """
    figure: Any = ax.figure
    to = ax.transData + ScaledTranslation(aside / 72, 0, figure.dpi_scale_trans)
    xs = [point[spec.x] for point in points]
    ys = [point["bound"] if point["mean"] is None else point["mean"] for point in points]
    drawn: list[Any] = [*ax.plot(xs, ys, color=style.colour, linewidth=1.5)]
    if style.dashes:
        drawn[0].set_dashes(style.dashes)
    for point, x, y in zip(points, xs, ys, strict=True):
        look: dict[str, Any] = {"marker": style.marker, "color": style.colour, "markersize": 5}
        if point["mean"] is None:
            drawn += ax.plot([x], [y], markerfacecolor="white", zorder=4, ls="none", **look)
            up = {"arrowstyle": "<-", "color": style.colour, "shrinkA": 0, "shrinkB": 3}
            at = (ax.xaxis.convert_units(x), y)  # type: ignore[no-untyped-call]
            ax.annotate("", at, (0, 17), to, "offset points", arrowprops=up)
            ax.update_datalim([(0, 1.8 * y)], updatex=False)  # room for the arrow
        else:
            spread = [[y - point["min"]], [point["max"] - y]]
            look["markeredgecolor"] = "white"
            drawn += ax.errorbar([x], [y], spread, capsize=2, ls="none", **look).get_children()
    for artist in drawn:
        artist.set_transform(to)  # after the limits of the axes took its values


def _target(ax: Axes, frame: Frame, spec: FigureSpec, runs: pd.DataFrame) -> None:
    """A line at the value that the runs are to reach, where it is of the metric shown."""
    stops = [frame.specs[i].stop for i in runs.index]
    for value in sorted({s.value for s in stops if s and s.metric == spec.y}):
        ax.axhline(value, color="#666666", linewidth=0.8, linestyle=":", zorder=1)


def _x_axis(ax: Axes, spec: FigureSpec, values: Sequence[Any]) -> None:
    """Label and scale; values: those of a setting, ascending."""
    if spec.curve:
        ax.set_xlabel(AXES.get(spec.x) or COST_AXES[spec.x])
        if spec.x != "rounds":
            unit = "B" if spec.x.startswith("bytes") else ""
            ax.xaxis.set_major_locator(MaxNLocator(4))
            if spec.x != "epochs":  # half an epoch is no 500 m
                ax.xaxis.set_major_formatter(EngFormatter(unit=unit))
        return
    ax.set_xlabel(setting(spec.x).label)
    if values and isinstance(values[0], str):
        ax.margins(x=0.2)
    numbers = [v for v in values if not isinstance(v, str)]
    if spec.x == "lr":
        ax.set_xscale("log")
    elif numbers and (spec.x in ("nodes", "active") or _wide(numbers)):
        ax.set_xscale("log", base=2 if spec.x in ("nodes", "active") or _powers(numbers) else 10)
        ax.margins(x=0.12)
        ax.xaxis.set_major_locator(FixedLocator(numbers))
        ax.xaxis.set_minor_locator(NullLocator())
        if spec.x not in ("nodes", "active"):
            ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        elif numbers[-1] >= 10_000:
            ax.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
        else:
            ax.xaxis.set_major_formatter(ScalarFormatter())


def _powers(values: Sequence[float]) -> bool:
    return all(v > 0 and math.frexp(v)[0] == 0.5 for v in values)


def _wide(values: Sequence[float]) -> bool:
    """Whether ascending values belong on a log axis: powers of two, or more than a decade."""
    return len(values) > 1 and (_powers(values) or 0 < 10 * values[0] < values[-1])


def _csv(points: Sequence[dict[str, Any]]) -> bytes:
    out = io.StringIO()
    names = dict.fromkeys(name for point in points for name in point)
    writer = csv.DictWriter(out, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: plain(v) for k, v in point.items()} for point in points)
    return out.getvalue().encode()


def _unfinished(runs: pd.DataFrame, spec: FigureSpec) -> list[str]:
    """`D-SGD, n = 8: 2 of 5 diverged` for each cell without a line."""
    lines = []
    key = "nodes" if spec.curve or spec.x == "seed" else spec.x
    for _, mine in runs.groupby("cell", sort=False) if len(runs) else ():
        counts = mine.loc[mine["status"] != "finished", "status"].value_counts(sort=False)
        label, at = mine["label"].iloc[0], mine[column(key)].iloc[0]
        where = f"{label}, {setting(key).short} = {show(at)}"
        lines += [f"{where}: {c} of {len(mine)} {s}" for s, c in counts.items()]
    more = len(lines) - MOST_NOTES
    return [*lines[:MOST_NOTES], f"and {more} more"] if more > 1 else lines


MOST_NOTES = 12
"""Lines that fit into a panel."""

MOST_DASHED = 4
"""Methods of one colour and marker, told apart by their dashes."""


def styles_of(frame: Frame) -> dict[str, Style]:
    """The look of each method shown; no two of the suite look alike."""
    styles: dict[str, Style] = {}
    taken: set[Style] = set()
    dashed: Counter[tuple[str, str]] = Counter()
    for run in frame.suite.planned():
        if run.label in styles:
            continue
        spec = run.spec
        active = run.search or spec.n_active
        style = style_of(spec.algorithm["name"], active, spec.topology["name"])
        others = (s for s in alternatives(style) if s not in taken)
        # dashes alone tell a few methods apart, not a dozen
        free = next(others)
        if dashed[free[:2]] >= MOST_DASHED:
            fewest = min(dashed[style.colour, marker] for marker in MARKERS)
            free = next(s for s in others if dashed[s[:2]] == fewest)
        dashed[free[:2]] += 1
        taken.add(free)
        styles[run.label] = free
    return {run.label: styles[run.label] for run in frame.reported}


def _legend(figure: Figure, frame: Frame, spec: FigureSpec) -> None:
    handles = []
    for label, style in styles_of(frame).items():
        line = Line2D([], [], color=style.colour, marker=style.marker, markersize=5, label=label)
        line.set_markeredgecolor("white")
        if style.dashes:
            line.set_dashes(style.dashes)
        handles.append(line)
    runs = frame.runs
    look: dict[str, Any] = {"color": "#666666", "linestyle": "none", "markersize": 5}
    if spec.y in TO_TARGET and "censored" in runs and (runs["censored"] == True).any():  # noqa: E712
        label = "open: not reached by all\nseeds, so it takes more"
        handles.append(Line2D([], [], marker="o", markerfacecolor="white", label=label, **look))
    if spec.curve and any(
        run.spec.stop and run.spec.stop.metric == spec.y for run in frame.reported
    ):
        handles.append(Line2D([], [], color="#666666", lw=0.8, linestyle=":", label="target"))
    seeds = runs.groupby("cell").size().max() if len(runs) else 0
    title = f"mean of {seeds} seeds,\nand range from min to max" if seeds > 1 else "one seed"
    legend_beside(figure, handles=handles, title=title, alignment="left")


TALLEST = 12.0
"""Inches of a legend's height, beyond which it gets another column."""

NARROWEST = 2.4
"""Inches that a legend leaves to the panels."""


def legend_beside(figure: Figure, **options: Any) -> None:
    """A legend to the right of the panels; the figure grows where it would be cut."""
    columns = 1
    while True:
        legend = figure.legend(loc="outside right upper", frameon=False, ncols=columns, **options)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a label is text, whatever characters it has
        box = legend.get_window_extent()
        width, height = box.width / figure.dpi, box.height / figure.dpi
        if columns > 1 or height <= TALLEST:
            break
        columns = math.ceil(height / TALLEST)
        legend.remove()
    across, down = figure.get_size_inches()
    figure.set_size_inches(max(across, width + NARROWEST), max(down, height + 0.2))


def _save(figure: Figure, form: str) -> bytes:
    out = io.BytesIO()
    # No date and no version of the renderer: the bytes depend on the records.
    metadata = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[form]
    figure.savefig(out, format=form, dpi=150, metadata=metadata)
    return out.getvalue()
