"""Tables as values, and their rendering as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from tabulate import tabulate

from teleport_bench.metrics import METRICS
from teleport_bench.report.frame import Frame
from teleport_bench.report.statistics import Summary, summarise
from teleport_bench.suite import TableSpec


@dataclass(frozen=True)
class Stat:
    """A cell that summarises runs, with the format of its metric."""

    summary: Summary
    form: str

    def __str__(self) -> str:
        return self.summary.text(self.form)


Cell = str | int | float | Stat


@dataclass(frozen=True)
class Table:
    """A table as values; `keys` are the names of the columns in CSV files."""

    name: str
    caption: str
    columns: Sequence[str]
    keys: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [f"**{self.caption}**", "", self._grid("pipe", {"|": "\\|"}), ""]
        lines += [f"{note}  " for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"

    def terminal(self) -> str:
        return self._grid("simple")

    def html(self) -> str:
        columns = [html.escape(c) for c in self.columns]
        rows = [[html.escape(str(c)) for c in row] for row in self._text()]
        align = ["left", *["right"] * (len(columns) - 1)]
        table = tabulate(
            rows, columns, tablefmt="unsafehtml", colalign=align, disable_numparse=True
        )
        return str(table)

    def latex(self) -> str:
        grid = _latex(self._grid("latex_booktabs"))
        above, below = (
            [f"% {_latex(line)}" for text in texts for line in text.splitlines()]
            for texts in ([self.caption], self.notes)
        )
        return "\n".join([*above, grid, *below]) + "\n"

    def csv(self) -> str:
        """Numbers in full: a summary becomes mean, std and the number of runs that finished."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        header: list[str] = []
        widths: list[int] = []
        for i, key in enumerate(self.keys):
            is_stat = any(isinstance(row[i], Stat) for row in self.rows)
            columns = [f"{key}_mean", f"{key}_std", f"{key}_finished"] if is_stat else [key]
            header += columns
            widths.append(len(columns))
        writer.writerow(header)
        for row in self.rows:
            line: list[str | int | float | None] = []
            for cell, width in zip(row, widths, strict=True):
                if isinstance(cell, Stat):
                    s = cell.summary
                    line += [s.mean, s.std, s.n - sum(count for _, count in s.states)]
                else:
                    line += [cell] * width
            writer.writerow(["" if v is None else v for v in line])
        return out.getvalue()

    def _text(self) -> list[list[str]]:
        return [[f"{c:g}" if isinstance(c, float) else str(c) for c in row] for row in self.rows]

    def _grid(self, form: str, escapes: Mapping[str, str] = MappingProxyType({})) -> str:
        align = ["left", *["right"] * (len(self.columns) - 1)]
        cells = [list(self.columns), *self._text()]
        for symbol, escaped in escapes.items():
            cells = [[cell.replace(symbol, escaped) for cell in row] for row in cells]
        text = tabulate(cells[1:], cells[0], tablefmt=form, colalign=align, disable_numparse=True)
        return str(text)


_LATEX = {
    "x̄": r"$\bar{x}$",
    "±": r"$\pm$",
    "−": "$-$",
    "‖": r"$\|$",
    "∇": r"$\nabla$",
    "²": "$^2$",
}


def _latex(text: str) -> str:
    for symbol, command in _LATEX.items():
        text = text.replace(symbol, command)
    return text


def build_table(frame: Frame, spec: TableSpec) -> Table:
    """The table that a suite asks for."""
    return _pivot(frame, spec) if spec.pivot else _details(frame, spec)


def _stat(frame: Frame, chosen: object, metric: str) -> Stat:
    rows = frame.runs[chosen]
    values = rows[metric].tolist() if metric in rows else [float("nan")] * len(rows)
    return Stat(summarise(values, rows["status"].tolist()), METRICS[metric].format)


def _seeds_note(frame: Frame) -> str:
    counts = sorted(set(frame.runs.groupby("cell").size())) if len(frame.runs) else [0]
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Mean ± sample standard deviation over {n} seeds." if n != "1" else "One seed."


def _pivot(frame: Frame, spec: TableSpec) -> Table:
    runs = frame.runs
    values = sorted(runs[spec.pivot].unique()) if len(runs) else []
    many = len(spec.values) > 1
    pairs = [(m, v) for m in spec.values for v in values]
    name = {"nodes": "n", "active": "k", "lr": "step size", "seed": "seed"}[str(spec.pivot)]
    columns = [f"{METRICS[m].label}, {name} = {v}" if many else f"{name} = {v}" for m, v in pairs]
    rows: list[list[Cell]] = []
    for label in runs["label"].unique() if len(runs) else []:
        mine = runs["label"] == label
        cells: list[Cell] = []
        for metric, value in pairs:
            chosen = mine & (runs[spec.pivot] == value)
            cells.append(_stat(frame, chosen, metric) if chosen.any() else "")
        rows.append([label, *cells])
    return Table(
        spec.name,
        spec.caption or spec.name,
        ["method", *columns],
        ["method", *(f"{m}_{spec.pivot}{v}" for m, v in pairs)],
        rows,
        [_seeds_note(frame)],
    )


def _details(frame: Frame, spec: TableSpec) -> Table:
    runs = frame.runs
    rows: list[list[Cell]] = []
    keys_of_rows = (
        runs[["cell", "lr"]].drop_duplicates().itertuples(index=False) if len(runs) else []
    )
    for cell, lr in keys_of_rows:
        chosen = (runs["cell"] == cell) & ((runs["lr"] == lr) | (runs["lr"].isna() & (lr != lr)))
        mine = runs[chosen]
        first = mine.iloc[0]
        done = mine[mine["status"] == "finished"]
        cost: list[Cell] = ["", ""]
        if len(done):
            cost = [round(done["gradients"].mean()), round(done["bytes_per_node"].mean() / 1e6, 2)]
        rows.append(
            [
                first["label"],
                int(first["nodes"]),
                "none" if lr != lr else f"{lr:g}",
                *(_stat(frame, chosen, m) for m in spec.values),
                *cost,
            ]
        )
    columns = ["method", "n", "step size", *(METRICS[m].label for m in spec.values)]
    keys = ["method", "nodes", "lr", *spec.values]
    return Table(
        spec.name,
        spec.caption or spec.name,
        [*columns, "gradients", "MB sent a node"],
        [*keys, "gradients", "megabytes_per_node"],
        rows,
        [_seeds_note(frame)],
    )


def tuning_table(frame: Frame) -> Table | None:
    """How the step sizes were chosen: the score of every value, the best one marked."""
    tune = frame.suite.spec.tune
    if tune is None:
        return None
    form = METRICS[tune.metric].format
    rows: list[list[Cell]] = []
    edges = 0
    for cell, label, spec in frame.suite.cells():
        choice = frame.choices.get(cell)
        if choice is None:
            rows.append([label, spec.nodes, *["missing"] * len(tune.lr), ""])
            continue
        scores = []
        for lr in sorted(tune.lr):
            score = choice.scores[lr]
            text = choice.lost[lr] if score is None else form.format(score)
            scores.append(f"{text} *" if lr == choice.lr else text)
        edges += choice.at_edge
        rows.append([label, spec.nodes, *scores, "none" if choice.lr is None else f"{choice.lr:g}"])
    notes = [
        f"Mean {METRICS[tune.metric].label} after the last round over {len(tune.seeds)} seeds that "
        "are not reported; * marks the chosen value, the best one (ties to the smaller).",
        f"{edges} of {len(rows)} choices lie at an end of the grid.",
    ]
    grid = [f"{lr:g}" for lr in sorted(tune.lr)]
    return Table(
        "step-sizes",
        "Step sizes, tuned on the same grid with the same budget for every method",
        ["method", "n", *grid, "chosen"],
        ["method", "nodes", *(f"lr{g}" for g in grid), "chosen"],
        rows,
        notes,
    )
