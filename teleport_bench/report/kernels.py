"""What a run of suites/bench/test_kernels.py says, as tables and a roofline figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, StrMethodFormatter
from pydantic import PositiveInt

from teleport_bench.errors import UserError
from teleport_bench.report import bench
from teleport_bench.report.bench import Positive, Sample, machine_line, machine_name, marked
from teleport_bench.report.figures import canvas, rendered
from teleport_bench.report.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION
from teleport_bench.report.tables import Cell, Table

OURS = "teleport_kernels"
OPS = ("gossip_mix", "teleport_mix", "sgd_mix", "consensus")
COLOURS = dict(zip(OPS, (BLUE, GREEN, VERMILION, PURPLE), strict=True))
MARKERS = {"ring": "o", "exponential": "s", "regular": "D", "base": "v", "complete": "*"}
MARKERS |= {"fleet": "h", "-": "P"}
SOURCE = "test_kernels.py"

CASE = ("op", "who", "rows", "params", "graph", "dtype")


class _Sample(Sample):
    op: Literal["gossip_mix", "teleport_mix", "sgd_mix", "consensus"]
    who: str
    graph: Literal["ring", "exponential", "regular", "base", "complete", "fleet", "-"]
    dtype: str
    rows: PositiveInt
    params: PositiveInt
    bytes: PositiveInt
    operations: PositiveInt
    times_copy: Positive
    times_copy_range: list[Positive]
    share: Positive
    copy_gb_per_s: Positive


FILES = (
    *(f"tables/{name}.{form}" for name in ("times-a-copy", "rivals") for form in ("md", "tex")),
    *("figures/roofline.svg", "figures/roofline.png"),
)
"""All that a report may write, beside samples."""

__all__ = ["FILES", "OPS", "SOURCE", "build", "load", "machine_name"]


def _kind(facts: Mapping[str, Any]) -> type[Sample]:
    if not {"times_copy", "who"} <= facts.keys():
        raise UserError(f"benchmarks of other files than {SOURCE}")
    return _Sample


def load(paths: Sequence[Path]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One row a benchmark, and what pytest-benchmark says of the machine."""
    frame, machine = bench.load(paths, SOURCE, _kind, CASE)
    frame["shape"] = [f"{k:,} x {p:,}" for k, p in zip(frame["rows"], frame["params"], strict=True)]
    return frame, machine


def build(frame: pd.DataFrame, machine: Mapping[str, Any]) -> tuple[list[Table], dict[str, bytes]]:
    """The tables, and the content of every file by its path."""
    ours, theirs = frame[frame["who"] == OURS], frame[frame["who"] != OURS]
    tables = [_times_copy(ours, machine)] if len(ours) else []
    if len(ours) and len(theirs):
        tables.append(_rivals(frame))
    files = bench.files_of(frame.drop(columns="shape"), tables)
    single = frame[frame["dtype"] == "float32"]
    if len(single):
        for form, content in _roofline(single, machine).items():
            files[f"figures/roofline.{form}"] = content
    return tables, files


def _times_copy(ours: pd.DataFrame, machine: Mapping[str, Any]) -> Table:
    shapes = list(ours["shape"].unique())
    rows: list[list[Cell]] = []
    for (op, graph, dtype), mine in ours.groupby(["op", "graph", "dtype"], sort=False):
        by_shape = mine.set_index("shape")
        bound = mine["times_copy"] * mine["share"]
        cells: list[Cell] = [
            _times(by_shape.loc[shape]) if shape in by_shape.index else "" for shape in shapes
        ]
        rows.append([*_names(op, graph, dtype), f"{bound.iloc[0]:.2g}", *cells])
    rows.sort(key=lambda row: OPS.index(str(row[0])))
    copies = ours.groupby("shape")["copy_gb_per_s"].median()
    bandwidth = ", ".join(f"{copies[shape]:.0f} for {shape}" for shape in shapes)
    columns = ["op", "graph", "dtype", "bound", *shapes]
    return Table(
        "times-a-copy",
        "Time over that of a plain copy of the same rows",
        columns,
        columns,
        rows,
        [
            f"{machine_line(machine)}. Copies, GB/s read and written: {bandwidth}.",
            "bound: bytes that the op must move over those of the copy; median of the rounds, each "
            "over a copy timed just before it, memory to memory. sgd_mix with momentum.",
            f"~ the rounds of this case differ by more than {bench.SPREAD:.0%}.",
        ],
    )


def _names(*names: object) -> list[str]:
    return ["" if name == "-" else str(name) for name in names]


def _times(row: pd.Series) -> str:
    return marked(row["times_copy"], row["times_copy_range"], "{:.2f}")


def _rivals(frame: pd.DataFrame) -> Table:
    shapes = list(frame["shape"].unique())
    key = ["op", "graph", "dtype", "shape"]
    own = frame[frame["who"] == OURS].set_index(key)["times_copy"]
    rows: list[list[Cell]] = []
    theirs = frame[frame["who"] != OURS]
    for (op, graph, who), mine in theirs.groupby(["op", "graph", "who"], sort=False):
        ratio = {
            row["shape"]: row["times_copy"] / own[tuple(row[key])]
            for _, row in mine.iterrows()
            if tuple(row[key]) in own.index
        }
        cells = [f"{ratio[shape]:.1f}" if shape in ratio else "" for shape in shapes]
        rows.append([*_names(op, graph, who), *cells])
    rows.sort(key=lambda row: OPS.index(str(row[0])))
    columns = ["op", "graph", "what a user would write", *shapes]
    return Table(
        "rivals",
        "Time over that of teleport_kernels for the same result, float32",
        columns,
        columns,
        rows,
        ["Each over the copies timed beside it. Results were compared before they were timed."],
    )


def _roofline(data: pd.DataFrame, machine: Mapping[str, Any]) -> dict[str, bytes]:
    """Operations a second against operations a byte; the roof is what a copy moves."""
    with canvas("roofline", 6.6, 3.8) as figure:
        ax = figure.subplots()
        intensity = data["operations"] / data["bytes"]
        roof = data["copy_gb_per_s"].median() * 1e9
        ends = [intensity.min() / 1.5, intensity.max() * 1.5]
        ax.plot(ends, [roof * end for end in ends], color=BLACK, linewidth=1)
        ax.annotate(
            f"the median copy:\n{roof / 1e9:.0f} GB/s",
            (ends[0], roof * ends[0]),
            xytext=(0, 12),
            textcoords="offset points",
            ha="left",
            va="bottom",
            fontsize=8,
        )
        for (op, graph, who), mine in data.groupby(["op", "graph", "who"], sort=False):
            own = who == OURS
            # each over the copy beside it, so that a busy moment moves no point
            rate = mine["share"] * roof * mine["operations"] / mine["bytes"]
            colour = COLOURS[str(op)] if own else ORANGE
            ax.plot(
                mine["operations"] / mine["bytes"],
                rate,
                linestyle="",
                marker=MARKERS[str(graph)] if own else "x",
                markersize=6 if own else 4,
                color=colour,
                markeredgecolor="white" if own else colour,
                markeredgewidth=0.5 if own else 1,
                zorder=3 if own else 2,
            )
        ax.set_yscale("log")
        ax.set_xscale("log", base=2)  # a few octaves: ticks at 1/4, 1/2, 1, 2, and no others
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.set_xlabel("operations for each byte that must move")
        ax.set_ylabel("operations a second")
        ax.set_title(machine_line(machine), fontsize=9)
        plain: dict[str, Any] = {"linestyle": "", "markersize": 6}
        handles = [
            *(Line2D([], [], color=COLOURS[op], marker="o", label=op, **plain) for op in OPS),
            Line2D([], [], color=ORANGE, marker="x", label="what a user\nwould write", **plain),
            *(
                Line2D([], [], color="#777777", marker=marker, label=name, **plain)
                for name, marker in MARKERS.items()
                if name in data["graph"].unique() and name != "-"
            ),
        ]
        figure.legend(handles=handles, loc="outside right upper", frameon=False)
        return rendered(figure)
