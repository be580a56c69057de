"""Tables as values, and their rendering as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tabulate import tabulate

from teleport_bench.errors import counted
from teleport_bench.metrics import METRICS, TO_TARGET, setting
from teleport_bench.report.frame import Frame, column, unlike
from teleport_bench.report.statistics import Summary, summarise
from teleport_bench.shown import Scalar, TableSpec, order, settings_of, show, varying
from teleport_bench.tune import RUNNER_UP, Choice, costs


@dataclass(frozen=True)
class Stat:
    """A cell that summarises the runs' values of a metric."""

    summary: Summary
    metric: str

    def __str__(self) -> str:
        return self.summary.text(METRICS[self.metric].format)

    def columns(self) -> dict[str, float | int | None]:
        """In CSV files: mean, std and the number of runs that finished; for what may be censored
        also the lower bound of the mean, and the number of censored runs."""
        s = self.summary
        numbers = {"mean": s.mean, "std": s.std, "finished": s.n - sum(c for _, c in s.states)}
        if self.metric in TO_TARGET:
            numbers |= {"bound": s.bound, "censored": s.censored}
        return numbers


T = TypeVar("T")
Cell = str | int | float | Stat


@dataclass(frozen=True)
class Table:
    """A table as values; `keys` are the names of the columns in CSV files.

    tags: ("paper" | "derived" | "assumed", what of the table is).
    """

    name: str
    caption: str
    columns: Sequence[str]
    keys: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: list[str] = field(default_factory=list)
    tags: Sequence[tuple[str, str]] = ()
    texts: Sequence[int] = (0,)
    """The columns of text, which align left."""

    @property
    def _align(self) -> list[str]:
        return ["left" if i in self.texts else "right" for i in range(len(self.columns))]

    @property
    def remarks(self) -> list[str]:
        """Notes and tags, as texts."""
        return [*self.notes, *(f"{tag.capitalize()}: {text}" for tag, text in self.tags)]

    def markdown(self) -> str:
        caption = markdown(self.caption, bold=True) or markdown(self.name, bold=True)
        lines = [f"**{caption}**", "", self._grid("pipe", markdown), ""]
        lines += [f"{_at_line_start(markdown(note))}  " for note in self.remarks]
        return "\n".join(lines).rstrip() + "\n"

    def terminal(self) -> str:
        return self._grid("simple")

    def html(self) -> str:
        columns = [html.escape(c) for c in self.columns]
        rows = [[html.escape(str(c)) for c in row] for row in self._text()]
        table = tabulate(
            rows, columns, tablefmt="unsafehtml", colalign=self._align, disable_numparse=True
        )
        return str(table)

    def latex(self) -> str:
        grid = _latex(self._grid("latex_booktabs", _one_line))
        # behind the end of a row these would be read as options of it
        grid = re.sub(r"(?m)^ (?=[\[*])", " {}", grid)
        above, below = (
            [f"% {_latex(line)}" for text in texts for line in text.splitlines()]
            for texts in ([self.caption], self.remarks)
        )
        return "\n".join([*above, grid, *below]) + "\n"

    def csv(self) -> str:
        """Numbers in full: a summary becomes several columns, see `Stat.columns`.

        A text that a spreadsheet would take for a formula has an apostrophe before it, see `plain`.
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        stats = [
            next((cell.columns() for row in self.rows if isinstance(cell := row[i], Stat)), None)
            for i in range(len(self.keys))
        ]
        header: list[str] = []
        for key, stat in zip(self.keys, stats, strict=True):
            header += [f"{key}_{name}" for name in stat] if stat else [key]
        writer.writerow(header)
        for row in self.rows:
            line: list[str | int | float | None] = []
            for cell, stat in zip(row, stats, strict=True):
                if isinstance(cell, Stat):
                    line += cell.columns().values()
                else:
                    line += [cell] * (len(stat) if stat else 1)
            writer.writerow(["" if v is None else plain(v) for v in line])
        return out.getvalue()

    def _text(self) -> list[list[str]]:
        return [[f"{c:g}" if isinstance(c, float) else str(c) for c in row] for row in self.rows]

    def _grid(self, form: str, escaped: Callable[[str], str] = str) -> str:
        cells = [[escaped(cell) for cell in row] for row in [list(self.columns), *self._text()]]
        text = tabulate(
            cells[1:], cells[0], tablefmt=form, colalign=self._align, disable_numparse=True
        )
        return str(text)


_MARKUP = re.compile(
    r"""
      \\(?=[!-/:-@\[-`{-~]|$)                  # a backslash that would be taken for an escape
    | [`|<$]
    | \[(?=[^\]]*\][(\[:]) | \](?=[(\[:])      # a link, and no interval in brackets
    | \*(?!\s|$)(?!(?<=[^\W_]\*)[!-/:-@\[-`{-~])   # where emphasis may begin
    | (?<![^\W_])_ | _(?![^\W_])               # neither begins nor ends within a word
    | (?<=\S)~                                 # where a deletion may end
    | &(?=\#?\w+;)
    """,
    re.VERBOSE,
)
_MARKUP_IN_BOLD = re.compile(_MARKUP.pattern + r"| \*", re.VERBOSE)
_BLOCK = re.compile(r"^(\d*)(?=[-+*](\s|$)|(?<=\d)[.)](\s|$)|[-=]+\s*$|#{1,6}(\s|$)|>)")


def markdown(text: str, *, bold: bool = False) -> str:
    """A text as Markdown that shows it as it is written, on one line.

    bold: between asterisks, which one of the text may not close.
    """
    return (_MARKUP_IN_BOLD if bold else _MARKUP).sub(r"\\\g<0>", _one_line(text))


def _at_line_start(text: str) -> str:
    """Markdown for the begin of a line, where some characters make a heading, a list or a quote."""
    return _BLOCK.sub(r"\1\\", text)


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


_FORMULA = re.compile(r"'*([=@\t\r\n＝＠]|[+＋-](?![\d., \[\]e∞+/=-]*$|inf$))")


def plain(value: T) -> T | str:
    """A value of a CSV file that no spreadsheet takes for a formula.

    Texts that begin with =, @ or a tab, or with + or - and are no number, get an apostrophe.
    """
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


_LATEX = {
    "x̄": r"$\bar{x}$",
    "±": r"$\pm$",
    "−": "$-$",
    "‖": r"$\|$",
    "∇": r"$\nabla$",
    "²": "$^2$",
    "×": r"$\times$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "∞": r"$\infty$",
    "→": r"$\to$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "ζ": r"$\zeta$",
    "η": r"$\eta$",
    "σ": r"$\sigma$",
    "τ": r"$\tau$",
    "–": "--",
    "…": r"\dots{}",
}


def _latex(text: str) -> str:
    for symbol, command in _LATEX.items():
        text = text.replace(symbol, command)
    return text


def build_table(frame: Frame, spec: TableSpec) -> Table:
    """The table that a suite asks for."""
    view = frame.view(spec, [spec.pivot] if spec.pivot else [], spec.values)
    columns, keys, rows = _pivot(view, spec) if spec.pivot else _details(view, spec)
    notes = [_seeds_note(view)]
    if any(isinstance(cell, Stat) and cell.summary.censored for row in rows for cell in row):
        notes.append(CENSORED)
    notes += unlike(view)
    caption = spec.caption or spec.name
    return Table(spec.name, caption, columns, keys, rows, notes, spec.tags)


CENSORED = (
    "Not reached: some runs ended before the target, so the mean is above the value, which counts "
    "their rounds."
)

Columns = tuple[list[str], list[str], list[list[Cell]]]
"""Headings, keys and rows."""


def _stat(frame: Frame, chosen: object, metric: str) -> Stat:
    rows = frame.runs[chosen]
    values = rows[metric].tolist() if metric in rows else [float("nan")] * len(rows)
    censored: list[bool] = []
    if metric in TO_TARGET and metric in rows:
        censored = [c is True for c in rows["censored"]]
    return Stat(summarise(values, rows["status"].tolist(), censored), metric)


def _seeds_note(frame: Frame) -> str:
    counts = sorted(set(frame.runs.groupby("cell").size())) if len(frame.runs) else [0]
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Mean ± sample standard deviation over {n} seeds." if n != "1" else "One seed."


def _pivot(frame: Frame, spec: TableSpec) -> Columns:
    runs, pivot = frame.runs, str(spec.pivot)
    at = column(pivot)
    values = sorted(runs[at].dropna().unique(), key=order) if len(runs) else []
    many = len(spec.values) > 1
    pairs = [(m, v) for m in spec.values for v in values]
    heads = [f"{setting(pivot).short} = {show(v)}" for _, v in pairs]
    if many:
        heads = [f"{METRICS[m].label}, {h}" for (m, _), h in zip(pairs, heads, strict=True)]
    rows: list[list[Cell]] = []
    for label in runs["label"].unique() if len(runs) else []:
        mine = runs["label"] == label
        cells: list[Cell] = []
        for metric, value in pairs:
            chosen = mine & (runs[at] == value)
            cells.append(_stat(frame, chosen, metric) if chosen.any() else "")
        rows.append([label, *cells])
    stem = pivot if at == pivot else f"{pivot.removesuffix('.name').rpartition('.')[2]}_"
    return ["method", *heads], ["method", *(f"{m}_{stem}{v}" for m, v in pairs)], rows


def _details(frame: Frame, spec: TableSpec) -> Columns:
    runs = frame.runs
    rows: list[list[Cell]] = []
    settings = [frame.settings[i] for i in runs.index]
    differ = varying(runs["label"].tolist(), settings) if settings else []
    own = Own([key for key in differ if key != "nodes"], settings)
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
                *own.cells(frame.settings[mine.index[0]]),
                "none" if lr != lr else f"{lr:g}",
                *(_stat(frame, chosen, m) for m in spec.values),
                *cost,
            ]
        )
    metrics = [METRICS[m].label for m in spec.values]
    heads = ["method", "n", *own.heads, "step size", *metrics]
    keys = ["method", "nodes", *own.columns, "lr", *spec.values]
    return [*heads, "gradients", "MB sent a node"], [*keys, "gradients", "megabytes_per_node"], rows


MOST_COLUMNS = 4
"""Settings that get a column each; more of them share one."""

Settings = Mapping[str, Scalar]


@dataclass(frozen=True)
class Own:
    """The columns of settings that tell the cells of a method apart."""

    keys: list[str]
    every: Sequence[Settings]
    """The settings of all rows."""

    @property
    def apart(self) -> bool:
        return len(self.keys) <= MOST_COLUMNS

    @property
    def heads(self) -> list[str]:
        return [setting(key).short for key in self.keys] if self.apart else ["settings"]

    @property
    def columns(self) -> list[str]:
        return self.keys if self.apart else ["settings"]

    def cells(self, mine: Settings) -> list[Cell]:
        if self.apart:
            return [show(mine.get(key)) for key in self.keys]
        # what differs from the same problem's other rows, behind the problem's name
        alike = [s for s in self.every if s.get("problem.name") == mine.get("problem.name")]
        differ = [k for k in self.keys if any(s.get(k) != mine.get(k) for s in alike)]
        texts = [f"{setting(key).short} = {show(mine.get(key))}" for key in differ]
        return [", ".join([str(mine.get("problem.name")), *texts])]


def tuning_table(frame: Frame) -> Table | None:
    """How the step sizes were chosen: the score of every value, the best one marked."""
    tune = frame.suite.spec.tune
    if tune is None:
        return None
    form = METRICS[tune.metric].format
    rows: list[list[Cell]] = []
    edges = 0
    own = Own(frame.own, frame.settings)
    for cell, label, spec in frame.suite.cells():
        choice = frame.choices.get(cell)
        settings = settings_of(spec)
        head: list[Cell] = [label, spec.nodes, *own.cells(settings)]
        if choice is None:
            rows.append([*head, *["missing"] * len(tune.lr), "", ""])
            continue
        scores = []
        for lr in sorted(tune.lr):
            score = choice.scores[lr]
            text = choice.lost[lr] if score is None else form.format(score)
            scores.append(f"{text} *" if lr == choice.lr else text)
        edges += choice.at_edge
        chosen = "none" if choice.lr is None else f"{choice.lr:g}"
        rows.append([*head, *scores, chosen, shares_text(choice)])
    notes = [
        f"Mean {METRICS[tune.metric].label} after the last round over "
        f"{counted(len(tune.seeds), 'seed')} that {'is' if len(tune.seeds) == 1 else 'are'} not "
        "reported; * marks the chosen value, the best one (ties to the smaller).",
        f"{edges} of {counted(len(rows), 'choice')} {'lies' if edges == 1 else 'lie'} at an end of "
        "the grid of step sizes.",
        *_ends_of_k(frame),
        "by resamples: how often each value would be chosen if the tuning seeds were drawn again "
        "from these, with replacement; what all of them share, such as the validation data, is not "
        "drawn again"
        + (
            f". Values of at least {percent(RUNNER_UP)} are run on the reported seeds too."
            if tune.runners_up
            else "."
        ),
    ]
    grid = [f"{lr:g}" for lr in sorted(tune.lr)]
    return Table(
        "step-sizes",
        "Step sizes, tuned on the same grid and the same seeds for every method",
        ["method", "n", *own.heads, *grid, "chosen", "by resamples"],
        ["method", "nodes", *own.columns, *(f"lr{g}" for g in grid), "chosen", "resamples"],
        rows,
        notes,
        texts=(0, len(grid) + len(own.heads) + 3),
    )


def _ends_of_k(frame: Frame) -> list[str]:
    """Where k is chosen too: how often it is an end of what was tried, and how often all nodes."""
    chosen = [
        (spec.nodes, choice.active, sorted(choice.by_active))
        for cell, _, spec in frame.suite.cells()
        if (choice := frame.choices.get(cell)) and choice.active and choice.by_active
    ]
    if not chosen:
        return []
    most, least = (sum(k == tried[end] for _, k, tried in chosen) for end in (-1, 0))
    every = sum(k == n for n, k, _ in chosen)
    return [
        f"Of {len(chosen)} choices of k, {most} are the largest that was tried ({every} are k = n) "
        f"and {least} the smallest."
    ]


def shares_text(choice: Choice) -> str:
    """`0.2: 60 %, 0.4: 37 %, others: 3 %`; with k, where it is chosen too."""
    if choice.n_seeds == 1:
        return "one seed"
    texts = [
        ("" if choice.active is None else f"k = {k}, ") + f"{lr:g}: {percent(share)}"
        for (k, lr), share in choice.shares.items()
        if share >= RUNNER_UP
    ]
    rest = sum(share for share in choice.shares.values() if share < RUNNER_UP)
    more = [f"others: {percent(rest)}"] if rest >= 0.005 else []
    return "; ".join([*texts, *more])


def percent(share: float) -> str:
    """`37 %`."""
    return f"{100 * share:.0f} %"


def cost_table(frame: Frame) -> Table | None:
    """What tuning has cost, a row a method."""
    if frame.suite.spec.tune is None:
        return None
    found = costs(frame.suite, frame.records)
    cells = Counter(label for _, label, _ in frame.suite.cells())
    return Table(
        "tuning-cost",
        "What tuning has cost",
        ["method", "cells", "trials", "rounds of the network", "gradients"],
        ["method", "cells", "trials", "rounds", "gradients"],
        [
            [label, cells[label], cost.trials, cost.rounds, cost.gradients]
            for label, cost in found.items()
        ],
        [
            "Every method has the same step sizes and seeds to choose from, but not the same cost: "
            "a trial of k active nodes takes k gradients a round, one that reaches its target ends "
            "there, and a search for k has a trial for every k. Those that share the network count "
            "its rounds once."
        ],
    )
