"""The derived rates as tables, and the best number of active nodes as a figure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from teleport_bench import theory
from teleport_bench.metrics import METRICS
from teleport_bench.registry import TOPOLOGIES, Choice
from teleport_bench.report.build import of_drawings, of_tables
from teleport_bench.report.figures import Drawing, canvas, legend_beside, rendered
from teleport_bench.report.frame import Frame, column
from teleport_bench.report.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    Style,
    alternatives,
    style_of,
)
from teleport_bench.report.tables import Cell, Table
from teleport_bench.shown import Item
from teleport_bench.suite import MeasuredTheory
from teleport_bench.theory import RATES, TheorySpec
from teleport_bench.topologies.spectrum import Consensus

COLOURS = {"ring": BLUE, "torus": GREEN, "exponential": ORANGE, "complete": PURPLE}
OTHER = "#777777"
A_DECADE = 20
"""Points of a predicted curve in each decade of T."""
MEASURED: dict[str, Any] = {
    "linestyle": "",
    "marker": "o",
    "markersize": 6,
    "markeredgecolor": "white",
}

DERIVED = (
    "Derived for this project after Koloskova et al. 2020 (Theorem 2, with τ and p); not quoted "
    "from the paper."
)
SYMBOLS = (
    "D = L (f(x0) − f*), V = σ² + ζ²; n nodes, k of them active, T rounds; τ rounds contract by "
    "1 − p. Upper bounds on the mean of ‖∇f(x̄)‖² over the rounds, up to constants."
)


class Formula(str):
    """A cell that LaTeX sets as mathematics."""

    tex: str

    def __new__(cls, text: str, tex: str) -> Formula:
        made = super().__new__(cls, text)
        made.tex = tex
        return made


@dataclass(frozen=True)
class FormulaTable(Table):
    """A table with formulas among its cells."""

    def latex(self) -> str:
        formulas: list[str] = []

        def marked(cell: Cell) -> Cell:
            if not isinstance(cell, Formula):
                return cell
            formulas.append(f"${cell.tex}$")
            return f"@{len(formulas)}@"

        plain = Table(
            **{**vars(self), "rows": [[marked(cell) for cell in row] for row in self.rows]}
        )
        text = plain.latex()
        for i, formula in enumerate(formulas, 1):
            text = text.replace(f"@{i}@", formula)
        return text


def _bound(text: str, tex: str) -> Formula:
    """A bound beyond its first term, which is that of n nodes that always agree."""
    return Formula("√(Dσ²/(nT)) + " + text, r"\sqrt{D\sigma^2/(nT)} + " + tex)


def _at_most(exponent: str) -> Formula:
    """The best k, that power of VT/D, within 1 .. n."""
    return Formula(
        f"max{{1, min{{n, (VT/D)^({exponent})}}}}",
        rf"\max\{{1, \min\{{n, (VT/D)^{{{exponent}}}\}}\}}",
    )


_EXACT = _bound("(D²V/T²)^(1/3) + D/T", "(D^2 V/T^2)^{1/3} + D/T")
_LOGARITHMIC = (
    _bound(
        "(D²(σ²(1 + log n) + ζ²(1 + log n)²)/T²)^(1/3) + D(1 + log n)/T",
        r"(D^2 (\sigma^2 (1 + \log n) + \zeta^2 (1 + \log n)^2)/T^2)^{1/3} + D (1 + \log n)/T",
    ),
    _at_most("1/3"),
    _bound(
        "(D²V(1 + log k)/T²)^(1/3) + D(1 + log k)/T",
        r"(D^2 V (1 + \log k)/T^2)^{1/3} + D (1 + \log k)/T",
    ),
)
FORMULAS = {
    "ring": (
        Formula("Θ(1/k²)", r"\Theta(1/k^2)"),
        _bound(
            "(D²(n²σ² + n⁴ζ²)/T²)^(1/3) + Dn²/T",
            r"(D^2 (n^2\sigma^2 + n^4\zeta^2)/T^2)^{1/3} + D n^2/T",
        ),
        _at_most("1/7"),
        _bound(
            "(D⁴V³/T⁴)^(1/7) + (D⁵V²/T⁵)^(1/7) + D/T",
            "(D^4 V^3/T^4)^{1/7} + (D^5 V^2/T^5)^{1/7} + D/T",
        ),
    ),
    "torus": (
        Formula("Θ(1/k)", r"\Theta(1/k)"),
        _bound(
            "(D²(nσ² + n²ζ²)/T²)^(1/3) + Dn/T",
            r"(D^2 (n\sigma^2 + n^2\zeta^2)/T^2)^{1/3} + D n/T",
        ),
        _at_most("1/5"),
        _bound(
            "(D³V²/T³)^(1/5) + (D⁴V/T⁴)^(1/5) + D/T",
            "(D^3 V^2/T^3)^{1/5} + (D^4 V/T^4)^{1/5} + D/T",
        ),
    ),
    "exponential": (Formula("Θ(1/(1 + log k))", r"\Theta(1/(1 + \log k))"), *_LOGARITHMIC),
    "base": (
        Formula("1/τ, τ = Θ(1 + log k)", r"1/\tau, \tau = \Theta(1 + \log k)"),
        *_LOGARITHMIC,
    ),
    "complete": (Formula("1", "1"), _EXACT, Formula("n", "n"), _EXACT),
}
"""Spectral gap, bound of D-SGD, best k, and bound of TELEPORTATION at that k, up to constants."""


FILES = (
    *(
        f"tables/{name}.{form}"
        for name in ("rates", "exponents", "spectral-gaps", "best-k")
        for form in ("md", "csv", "tex")
    ),
    *("figures/best-k.svg", "figures/best-k.png"),
)
"""All that a report may write, beside samples."""


def build(spec: TheorySpec) -> tuple[list[Table], dict[str, bytes]]:
    """The tables, and the content of every file by its path."""
    tables, best_k = report(spec)
    return tables, of_tables(tables) | of_drawings([best_k])


def report(
    spec: TheorySpec, measured: pd.DataFrame | None = None, note: str | None = None
) -> tuple[list[Table], Drawing]:
    """The tables, and the figure of the best k, with what was measured where that is given.

    note: small text in the figure, as in `figures.rendered`.
    """
    known = [g["name"] for g in spec.topologies if g["name"] in RATES]
    tables = [_rates(known), _exponents(known)] if known else []
    tables += [_gaps(spec), _best(spec)]
    caption = f"The best number of active nodes by the derived bounds. {DERIVED}"
    if measured is not None:
        assert isinstance(spec, MeasuredTheory)
        tables.append(_measured(spec, measured))
        caption = f"The best number of active nodes, measured and by the derived bounds. {DERIVED}"
    forms = draw_best_k(predicted(spec), measured, title=_constants(spec), note=note)
    return tables, Drawing("best-k", caption, forms)


def measured(frame: Frame) -> pd.DataFrame | None:
    """topology, nodes, rounds, best_k, and the metric with it: the k of TELEPORTATION with the best
    mean over the seeds, where all its runs finished; None where the suite measures nothing."""
    spec = frame.suite.spec.theory
    if spec is None or spec.measured is None or not len(frame.runs):
        return None
    runs = frame.view(Item(name="measured"), keys=["rounds"]).runs
    runs = runs[(runs["algorithm"] == "teleportation") & (runs["status"] == "finished")]
    runs = runs.assign(graph=[label(frame.specs[i].topology) for i in runs.index])
    rows = []
    sign = METRICS[spec.measured].sign
    for (graph, n, T), group in runs.groupby(["graph", "nodes", column("rounds")], sort=False):
        means = group.groupby("active")[spec.measured].mean().to_dict()
        best = max(means, key=lambda k: sign * means[k])
        rows.append((graph, n, T, best, means[best]))
    return pd.DataFrame(rows, columns=["topology", "nodes", "rounds", "best_k", "value"])


def _measured(spec: MeasuredTheory, measured: pd.DataFrame) -> Table:
    form = METRICS[str(spec.measured)].format
    rows: list[list[Cell]] = []
    graphs = {label(graph): graph for graph in spec.topologies}
    for graph, n, T, best, value in measured.itertuples(index=False):
        known = graph in graphs
        foretold = theory.best_k(graphs[graph], n, T, spec).k if known else ""
        rows.append([graph, int(n), int(T), int(best), form.format(value), foretold])
    name = METRICS[str(spec.measured)].label
    return Table(
        "best-k-measured",
        "Best k, measured and predicted",
        ["topology", "n", "T", "best k, measured", name, "best k, derived"],
        ["topology", "nodes", "rounds", "best_k", str(spec.measured), "best_k_derived"],
        rows,
        [
            f"Measured: the best mean {name} over the seeds after T rounds, each k at its own step "
            "size. Derived: the k that minimises the bound, whose constant factors are unknown.",
        ],
    )


def predicted(spec: TheorySpec) -> pd.DataFrame:
    """topology, nodes, rounds, best_k: by the bound, for T between the ends of spec.rounds."""
    low, high = np.log10([spec.rounds[0], spec.rounds[-1]])
    rounds = np.logspace(low, high, round((high - low) * A_DECADE) + 1)
    return pd.DataFrame(
        [
            (label(graph), n, T, theory.best_k(graph, n, T, spec).k)
            for graph in spec.topologies
            for n in spec.nodes
            for T in rounds.tolist()
        ],
        columns=["topology", "nodes", "rounds", "best_k"],
    )


def label(graph: Choice) -> str:
    """The topology's name, with the options that are not its defaults."""
    usual = TOPOLOGIES.resolve(graph["name"])
    options = [f"{key} = {value}" for key, value in graph.items() if usual.get(key) != value]
    return ", ".join([graph["name"], *options])


def draw_best_k(
    predicted: pd.DataFrame,
    measured: pd.DataFrame | None = None,
    title: str = "",
    note: str | None = None,
) -> dict[str, bytes]:
    """{"svg": .., "png": ..}: the best k against the rounds T, a panel a number of nodes.

    Both frames have the columns topology, nodes, rounds, best_k. Predictions are lines, measured
    values are markers in the colour of their topology.
    """
    names = predicted["topology"].unique()
    sizes = sorted(predicted["nodes"].unique().tolist())
    looks: dict[str, dict[str, Any]] = {}
    for name in names:
        options = map(_line, alternatives(_look(name)))
        looks[name] = next(line for line in options if line not in looks.values())
    with canvas("best-k", 2.4 * len(sizes) + 1.9, 3.0) as figure:
        panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        for ax, n in zip(panels, sizes, strict=True):
            for i, name in enumerate(names):
                mine = predicted[(predicted["topology"] == name) & (predicted["nodes"] == n)]
                # lines that coincide: the later ones are thinner
                width = 1.2 + 0.7 * (len(names) - 1 - i)
                line = {"linewidth": width, "drawstyle": "steps-mid", **looks[name]}
                ax.plot(mine["rounds"], mine["best_k"], **line)
                if measured is None:
                    continue
                seen = measured[(measured["topology"] == name) & (measured["nodes"] == n)]
                ax.plot(seen["rounds"], seen["best_k"], **MEASURED, color=looks[name]["color"])
            ax.set(xscale="log", title=f"nodes n = {n}", xlabel="rounds T")
            ax.set_yscale("log", base=2)
            ax.yaxis.set_major_locator(FixedLocator(theory.candidates(max(sizes))))
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter(ScalarFormatter())
        panels[0].set_ylabel("best number of active nodes k")
        handles = [Line2D([], [], label=f"{name}, derived", **looks[name]) for name in names]
        if measured is not None:
            handles.append(Line2D([], [], label="measured", **MEASURED, color=OTHER))
        legend_beside(figure, handles=handles)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=9)  # away from the legend
        return rendered(figure, note)


def _look(name: str) -> Style:
    graph = name.partition(",")[0]
    return style_of("dsgd", 1, graph)._replace(colour=COLOURS.get(graph, OTHER))


def _line(look: Style) -> dict[str, Any]:
    return {"color": look.colour, "linestyle": (0, look.dashes) if look.dashes else "-"}


def _constants(spec: TheorySpec) -> str:
    return f"L = {spec.L:g}, f(x0) − f* = {spec.r0:g}, σ² = {spec.sigma2:g}, ζ² = {spec.zeta2:g}"


def _rates(names: Sequence[str]) -> Table:
    columns = ["topology", "p/τ", "D-SGD", "best k", "TELEPORTATION at its best k"]
    keys = ["topology", "spectral_gap", "dsgd", "best_k", "teleportation"]
    rows: list[list[Cell]] = [[name, *FORMULAS[name]] for name in names]
    caption = "Rates of D-SGD and TELEPORTATION (derived)"
    return FormulaTable("rates", caption, columns, keys, rows, [SYMBOLS, DERIVED])


def _exponents(names: Sequence[str]) -> Table:
    rows: list[list[Cell]] = []
    for name in names:
        rate, found = RATES[name], theory.exponents(name)
        rows.append(
            [
                name,
                _fraction(rate.bound),
                round(found.bound, 3),
                "k = n" if rate.best_k is None else _fraction(rate.best_k),
                "k = n" if found.best_k is None else round(found.best_k, 3),
            ]
        )
    low, high = theory.DECADES
    return Table(
        "exponents",
        "Exponents of T in the bound at the best k, and in that k, n unlimited (derived)",
        ["topology", "bound, derived", "by minimising", "best k, derived", "by minimising"],
        ["topology", "bound", "bound_minimised", "best_k", "best_k_minimised"],
        rows,
        [
            f"By minimising: slope over T = 1e{low:g} .. 1e{high:g} of the smallest bound over k. "
            "For the exponential and the base graph the derived exponents leave out logarithms.",
            DERIVED,
        ],
    )


def _fraction(value: Fraction) -> str:
    return f"{value} = {float(value):.3f}"


def _gaps(spec: TheorySpec) -> Table:
    sizes = sorted({*spec.nodes, *theory.candidates(spec.nodes[-1])[1:]})
    rows: list[list[Cell]] = []
    for graph in spec.topologies:
        found = theory.consensus(graph, sizes)
        rows.append([label(graph), *(_gap(found[n]) if n in found else "" for n in sizes)])
    return Table(
        "spectral-gaps",
        "Spectral gap p of the graphs on k nodes, where they change over τ rounds: p / τ",
        ["topology", *(f"k = {n}" for n in sizes)],
        ["topology", *(f"k{n}" for n in sizes)],
        rows,
        [
            "Computed from the matrices: 1 − p = ‖W − J‖² of a graph that stays (τ = 1), and of "
            "the product of τ rounds of one that changes. Of the τ that divide the period it is "
            "the one with the largest p/τ, on which alone the bounds depend.",
        ],
    )


def _gap(found: Consensus) -> str:
    return f"{found.p:.4g}" if found.tau == 1 else f"{found.p:.4g} / {found.tau}"


def _best(spec: TheorySpec) -> Table:
    rows: list[list[Cell]] = []
    for graph in spec.topologies:
        found = theory.consensus(graph, spec.nodes)
        for n in spec.nodes:
            cells: list[Cell] = [label(graph), n]
            for T in spec.rounds:
                best = theory.best_k(graph, n, T, spec)
                dsgd = ""
                if n in found:
                    dsgd = f"{theory.dsgd_bound(found[n].p, n, T, spec, found[n].tau):.3g}"
                cells += [best.k, f"{best.bound:.3g}", dsgd]
            rows.append(cells)
    columns = [(f"T = {T:,}: best k", "bound", "D-SGD") for T in spec.rounds]
    keys = [(f"best_k_T{T}", f"teleportation_T{T}", f"dsgd_T{T}") for T in spec.rounds]
    return Table(
        "best-k",
        "Best k, and the bounds of TELEPORTATION with it and of D-SGD (derived)",
        ["topology", "n", *itertools.chain(*columns)],
        ["topology", "nodes", *itertools.chain(*keys)],
        rows,
        [
            f"{_constants(spec)}. k among 1, 2, 4, .. up to n, as in the search for k. Bounds lack "
            "a constant factor: their order and how they go with n and T is what they tell.",
            DERIVED,
        ],
    )
