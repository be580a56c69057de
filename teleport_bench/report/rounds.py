"""What a run of suites/bench/test_rounds.py says, as tables and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter
from pydantic import PositiveInt, model_validator

from teleport_bench.errors import UserError, nearest
from teleport_bench.report import bench
from teleport_bench.report.bench import Positive, Sample, machine_line, machine_name, marked
from teleport_bench.report.figures import canvas, rendered
from teleport_bench.report.style import BLACK, BLUE, GREEN, ORANGE, SKY
from teleport_bench.report.tables import Cell, Table

SOURCE = "test_rounds.py"
WHO = {
    "compiled": "teleport_bench, compiled",
    "torch": "teleport_bench, in torch",
    "vmap": "vmap",
    "loop": "loop over modules",
}
COLOURS = dict(zip(WHO, (BLUE, SKY, GREEN, ORANGE), strict=True))
MARKERS = dict(zip(WHO, ("o", "s", "D", "X"), strict=True))
MODELS = {"logistic": "logistic regression", "mlp": "MLP 64-64-10", "lenet": "LeNet, 28x28"}
METHODS = {"dsgd": "D-SGD", "teleportation": "TELEPORTATION, k = 8"}

FLEETS = {
    "quadratic": "13 step sizes x 5 seeds, quadratic, d = 50, n = 25",
    "lenet": "4 seeds, LeNet, n = 8",
}
FIELD = {"mlp": MODELS["mlp"], "curvature": "quadratic, d = 5,000"}
CASE = ("kind", "model", "method", "nodes", "who")


class _Round(Sample):
    who: Literal["compiled", "torch", "vmap", "loop"]
    model: Literal["logistic", "mlp", "lenet"]
    method: Literal["dsgd", "teleportation"]
    nodes: PositiveInt
    updates_per_second: Positive
    floor_updates_per_second: Positive
    matmul_gflop_per_s: Positive
    copy_gb_per_s: Positive
    times_floor: Positive
    times_floor_range: list[Positive]
    times_ours: Positive | None = None
    times_ours_range: list[Positive] | None = None
    times_dsgd: Positive | None = None
    times_dsgd_range: list[Positive] | None = None

    @model_validator(mode="after")
    def _beside(self) -> Self:
        if self.who != "compiled" and None in (self.times_ours, self.times_ours_range):
            raise ValueError(f"{self.who} has no times_ours, or no range of it")
        if (self.times_dsgd is None) != (self.times_dsgd_range is None):
            raise ValueError("times_dsgd and times_dsgd_range go together")
        return self


class _Fleet(Sample):
    who: str
    model: Literal["quadratic", "lenet"]
    updates_per_second: Positive
    times_ours: Positive | None = None
    times_ours_range: list[Positive] | None = None

    @model_validator(mode="after")
    def _beside(self) -> Self:
        if self.who != "fleet" and None in (self.times_ours, self.times_ours_range):
            raise ValueError(f"{self.who} has no times_ours, or no range of it")
        return self


class _Algorithm(Sample):
    who: str
    model: Literal["mlp", "curvature"]
    method: str
    tensors: PositiveInt
    local_steps: PositiveInt
    times_dsgd: Positive
    times_dsgd_range: list[Positive]


KINDS: dict[str, type[Sample]] = {"rounds": _Round, "fleet": _Fleet, "algorithm": _Algorithm}

FILES = (
    *(
        f"tables/{name}.{form}"
        for name in ("updates", "few-tokens", "fleets", "algorithms")
        for form in ("md", "tex")
    ),
    *("figures/updates.svg", "figures/updates.png"),
)
"""All that a report may write, beside samples."""

__all__ = ["FILES", "SOURCE", "build", "load", "machine_name"]


def _kind(facts: Mapping[str, Any]) -> type[Sample]:
    if not {"updates_per_second", "who", "kind"} <= facts.keys():
        raise UserError(f"benchmarks of other files than {SOURCE}")
    kind = str(facts["kind"])
    if kind not in KINDS:
        raise UserError(f"benchmarks of an unknown kind {kind!r:.80}{nearest(kind, KINDS)}")
    return KINDS[kind]


def load(paths: Sequence[Path]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One row a benchmark, and what pytest-benchmark says of the machine."""
    return bench.load(paths, SOURCE, _kind, CASE)


def build(frame: pd.DataFrame, machine: Mapping[str, Any]) -> tuple[list[Table], dict[str, bytes]]:
    """The tables, and the content of every file by its path."""
    rounds, fleets = frame[frame["kind"] == "rounds"], frame[frame["kind"] == "fleet"]
    tables = []
    if len(rounds):
        tables.append(_updates(rounds, machine))
    if "times_dsgd" in rounds and rounds["times_dsgd"].notna().any():
        tables.append(_few_tokens(rounds))
    if len(fleets):
        tables.append(_fleets(fleets))
    if "tensors" in frame:
        tables.append(_algorithms(frame[frame["kind"] == "algorithm"]))
    files = bench.files_of(frame, tables)
    if len(rounds):
        for form, content in _figure(rounds, machine).items():
            files[f"figures/updates.{form}"] = content
    return tables, files


def _updates(rounds: pd.DataFrame, machine: Mapping[str, Any]) -> Table:
    rows: list[Sequence[Cell]] = []
    rounds = rounds.sort_values("nodes", kind="stable")
    for model in MODELS:
        for (n, method), mine in rounds[rounds["model"] == model].groupby(["nodes", "method"]):
            by: dict[str, Any] = {str(row["who"]): row for _, row in mine.iterrows()}
            speed: list[Cell] = [
                f"{by[who]['updates_per_second']:,.0f}" if who in by else "" for who in WHO
            ]
            over: list[Cell] = [
                _ratio(by[who], "times_ours") if who in by else ""
                for who in ("loop", "vmap", "torch")
            ]
            floor = _ratio(by["compiled"], "times_floor") if "compiled" in by else ""
            rows.append([MODELS[model], int(str(n)), METHODS[str(method)], *speed, *over, floor])
    columns = [
        *("model", "n", "method", *WHO.values()),
        *("over loop", "over vmap", "over torch", "times the floor"),
    ]
    rates = [f"{rounds[name].median():.0f}" for name in ("matmul_gflop_per_s", "copy_gb_per_s")]
    return Table(
        "updates",
        "Node-updates a second",
        columns,
        columns,
        rows,
        [
            f"{machine_line(machine)}. Matrix products {rates[0]} GFLOP/s, copies {rates[1]} GB/s.",
            "One node-update is one minibatch gradient of one active node, with its share of "
            "drawing, local step and mixing; evaluations are left out. Batches of 16, LeNet 32.",
            "over: time of that way over ours, compiled; median of pairs timed one after the "
            "other. The results were compared before they were timed.",
            "floor: operations over the rate of the better of two large matrix products, plus the "
            "parameters read and written once over the rate of a copy as large, all cores.",
            f"~ the pairs differ by more than {bench.SPREAD:.0%}.",
        ],
    )


def _ratio(row: Any, name: str, form: str = "{:.1f}") -> str:
    return marked(row[name], row[f"{name}_range"], form)


def _few_tokens(rounds: pd.DataFrame) -> Table:
    mine = rounds[(rounds["who"] == "compiled") & rounds["times_dsgd"].notna()]
    columns = ["model", "n", "time a node-update over D-SGD's"]
    rows: list[Sequence[Cell]] = [
        [
            MODELS[row["model"]],
            int(row["nodes"]),
            _ratio(row, "times_dsgd", "{:.2f}"),
        ]
        for model in MODELS
        for _, row in mine[mine["model"] == model].sort_values("nodes").iterrows()
    ]
    return Table(
        "few-tokens",
        "TELEPORTATION with k = 8: what a round of few rows costs",
        columns,
        columns,
        rows,
        ["Both compiled, timed one after the other. A round of D-SGD has n rows, this one 8."],
    )


def _fleets(fleets: pd.DataFrame) -> Table:
    columns = ["runs", "who", "node-updates a second", "time over the fleet's"]
    rows: list[Sequence[Cell]] = []
    for _, row in fleets.iterrows():
        over = ""
        if row["who"] != "fleet":
            over = _ratio(row, "times_ours")
        speed = f"{row['updates_per_second']:,.0f}"
        rows.append([FLEETS[row["model"]], row["who"], speed, over])
    return Table(
        "fleets",
        "A fleet against the same runs one by one",
        columns,
        columns,
        rows,
        ["From the making of each fleet to its end; evaluations are left out."],
    )


def _algorithms(field: pd.DataFrame) -> Table:
    columns = ["model", "algorithm", "tensors", "gradients", "a node-update", "a tensor"]
    rows: list[Sequence[Cell]] = []
    for _, row in field.sort_values(["model", "method"], ascending=[False, True]).iterrows():
        tensors, steps = int(row["tensors"]), int(row["local_steps"])
        each = row["times_dsgd"] / tensors / steps
        over = _ratio(row, "times_dsgd", "{:.2f}")
        mixed = marked(each, row["times_dsgd_range"], "{:.2f}")
        rows.append([FIELD[row["model"]], row["method"], tensors, steps, over, mixed])
    return Table(
        "algorithms",
        "A round of every algorithm over one of D-SGD",
        columns,
        columns,
        rows,
        [
            "n = 16 on a ring, where an algorithm has no graph of its own; k = 8 of them active "
            "where only some are. Momentum 0.9 where an algorithm has it, as has D-SGD beside it.",
            "tensors: that it mixes in a round; gradients: that a row takes in a round. a "
            "node-update: time of a round over D-SGD's, both divided by their rows; a tensor: "
            "that, divided by tensors and gradients. The quadratic has no noise, and gradients "
            "that cost next to nothing: there passes over memory are what is timed.",
            f"~ the pairs differ by more than {bench.SPREAD:.0%}.",
        ],
    )


def _figure(rounds: pd.DataFrame, machine: Mapping[str, Any]) -> dict[str, bytes]:
    """Node-updates a second against n, a panel a model."""
    models = [model for model in MODELS if (rounds["model"] == model).any()]
    with canvas("updates", 2.6 * len(models) + 2.4, 3.2) as figure:
        panels = figure.subplots(1, len(models), squeeze=False)[0]
        for ax, model in zip(panels, models, strict=True):
            data = rounds[rounds["model"] == model].sort_values("nodes")
            for (who, method), mine in data.groupby(["who", "method"], sort=False):
                ax.plot(
                    mine["nodes"],
                    mine["updates_per_second"],
                    color=COLOURS[str(who)],
                    marker=MARKERS[str(who)],
                    markersize=5,
                    markeredgecolor="white",
                    markeredgewidth=0.5,
                    linestyle="-" if method == "dsgd" else (0, (2, 1)),
                )
            floor = data[(data["who"] == "compiled") & (data["method"] == "dsgd")]
            ax.plot(floor["nodes"], floor["floor_updates_per_second"], color=BLACK, linewidth=1)
            ax.set(xscale="log", yscale="log", title=MODELS[model], xlabel="nodes n")
            ax.xaxis.set_major_locator(FixedLocator(sorted({16, 64, 256} & {*data["nodes"]})))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(ScalarFormatter())
            ax.yaxis.set_minor_formatter(NullFormatter())  # powers of ten say enough
        panels[0].set_ylabel("node-updates a second")
        plain: dict[str, Any] = {"markersize": 5, "markeredgecolor": "white"}
        there = [who for who in WHO if (rounds["who"] == who).any()]
        handles = [
            Line2D([], [], color=BLACK, linewidth=1, label="the floor, D-SGD"),
            *(
                Line2D([], [], color=COLOURS[who], marker=MARKERS[who], label=WHO[who], **plain)
                for who in there
            ),
            Line2D([], [], color="#777777", label="D-SGD, ring"),
            Line2D([], [], color="#777777", linestyle=(0, (2, 1)), label=METHODS["teleportation"]),
        ]
        figure.legend(handles=handles, loc="outside right upper", frameon=False)
        figure.suptitle(machine_line(machine), fontsize=9)
        return rendered(figure)
