"""Bounds, best k and spectral gaps: closed forms, brute force, and the exponents that follow."""

from __future__ import annotations

import functools
import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import teleport_bench as tb
from teleport_bench import Suite, theory
from teleport_bench.errors import UserError
from teleport_bench.record import Record
from teleport_bench.registry import TOPOLOGIES
from teleport_bench.report import theory as report
from teleport_bench.report.build import build as build_suite
from teleport_bench.report.tables import Table
from teleport_bench.theory import Constants, TheorySpec, best_k, dsgd_bound, teleportation_bound
from teleport_bench.topologies.spectrum import consensus

positive = st.floats(0.01, 100)
constants = st.builds(
    Constants, L=positive, r0=positive, sigma2=st.floats(0, 10), zeta2=st.floats(0, 10)
)
gaps = st.floats(1e-3, 1)
rounds = st.integers(1, 10**6)
ROUNDING = 1 + 1e-12


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ring", {1: 1, 2: 1, 4: 0.889, 8: 0.352, 16: 0.0989, 32: 0.0255, 64: 0.0064}),
        ("exponential", {1: 1, 2: 1, 4: 0.889, 8: 0.75, 16: 0.64, 32: 0.556, 64: 0.490}),
        ("complete", {1: 1, 5: 1, 300: 1}),
        ("ring", {10_000: 8 * math.pi**2 / 3e8}),
        ("torus", {90_000: 8 * math.pi**2 / (5 * 90_000)}),
    ],
)
def test_spectral_gaps_of_known_graphs(name: str, expected: dict[int, float]) -> None:
    found = theory.spectral_gaps(name, expected)
    assert found == pytest.approx(expected, rel=6e-3)


@pytest.mark.parametrize("name", TOPOLOGIES.names())
def test_tau_and_p_are_those_of_the_matrices(name: str) -> None:
    for n, found in theory.consensus(name, range(1, 28)).items():
        graph = tb.topology(name, n)
        assert found.tau == graph.consensus().tau, n
        assert found.p == pytest.approx(graph.consensus().p, abs=1e-9), n
        if graph.period == 1:
            assert found == (1, pytest.approx(graph.spectral_gap(), abs=1e-9)), n


def test_gaps_by_fourier_are_for_graphs_that_look_the_same_from_every_node() -> None:
    for name in ("ring", "torus", "exponential", "one_peer_exponential", "complete"):
        assert theory.consensus_by_fourier(tb.topology(name, 12).mixings) is not None
    for name in ("star", "random_regular"):
        assert theory.consensus_by_fourier(tb.topology(name, 12).mixings) is None


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("base", [3, 5, 6, 8, 20, 25, 128]),
        ("simple_base", [5, 24]),
        ("hyper_hypercube", [4, 64]),
        ("one_peer_exponential", [4, 8, 64]),
    ],
)
def test_exact_consensus_after_tau_rounds_is_one_gap_for_all_of_them(
    name: str, sizes: list[int]
) -> None:
    """And not p = 1 a round, as the complete graph has it."""
    for n in sizes:
        tau = tb.topology(name, n).period
        assert theory.consensus(name, [n])[n] == (tau, pytest.approx(1, abs=1e-9))
        assert theory.spectral_gaps(name, [n])[n] == pytest.approx(1 / tau)
        # both bounds by hand, D = V / 2 = 1: a heterogeneity that stays has tau^2 / p^2
        T, k = 1000, n
        third = (tau + tau**2) / T**2
        assert dsgd_bound(1, n, T, tau=tau) == pytest.approx(
            (1 / (n * T)) ** 0.5 + third ** (1 / 3) + tau / T
        )
        redrawn = (1 / (k * T)) ** 0.5 + (2 * tau / T**2) ** (1 / 3) + tau / T
        assert teleportation_bound(1, k, n, T, tau=tau) == pytest.approx(redrawn)
        assert best_k(name, n, T, among=[n]).bound == pytest.approx(redrawn)


@settings(deadline=None)
@given(gaps, st.integers(1, 50), st.integers(1, 1000), rounds, constants)
def test_bounds_depend_on_p_over_tau_alone(
    p: float, tau: int, n: int, T: int, c: Constants
) -> None:
    assert dsgd_bound(p, n, T, c, tau) == pytest.approx(dsgd_bound(p / tau, n, T, c))
    one, other = (teleportation_bound(q, n, n, T, c, t) for q, t in ((p, tau), (p / tau, 1)))
    assert one == pytest.approx(other)


def test_the_window_is_the_one_with_the_most_contraction_a_round() -> None:
    ring, pairs = (tb.topology("ring", 6).matrix(), torch.block_diag(*[torch.ones(2, 2) / 2] * 3))
    other = pairs.roll((1, 1), (0, 1))
    eye = torch.eye(6)

    def gap(*matrices: torch.Tensor) -> float:
        product = functools.reduce(lambda P, W: W.double() @ P, matrices, eye.double())
        return 1 - float(torch.linalg.matrix_norm(product - 1 / 6, ord=2)) ** 2

    assert consensus([ring] * 4) == (1, pytest.approx(gap(ring)))
    assert consensus([pairs, other]) == (2, pytest.approx(gap(pairs, other)))
    # windows are those that begin at multiples of tau: (W, I) and (W, I), never (I, W) of a tau = 1
    assert consensus([ring, eye, ring, eye]) == (2, pytest.approx(gap(ring)))
    assert consensus([eye, eye]) == (2, 0)
    # a directed graph that is not normal: no contraction in one round, but in two
    late = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5]])
    late = late[[0, 2, 1, 3]]
    assert gap2(late) == pytest.approx(0)
    assert consensus([late]) == (2, pytest.approx(1))


def gap2(W: torch.Tensor) -> float:
    return 1 - float(torch.linalg.matrix_norm(W.double() - 1 / len(W), ord=2)) ** 2


def test_sizes_without_such_a_graph_are_left_out() -> None:
    cubic = {"name": "random_regular", "degree": 3}
    assert list(theory.spectral_gaps(cubic, [6, 7, 8, 9])) == [6, 8]
    assert best_k(cubic, 64, 1e9, among=range(7, 12)).k in (8, 10)
    with pytest.raises(tb.UserError, match="no graph on any"):
        best_k(cubic, 9, 100, among=[7, 9])


@settings(deadline=None)
@given(gaps, st.integers(1, 1000), rounds, constants)
def test_a_bound_falls_with_the_gap_and_with_rounds_and_grows_with_noise(
    p: float, n: int, T: int, c: Constants
) -> None:
    k = max(1, n // 2)
    bounds: list[Callable[..., Any]] = [
        lambda p, T, c: dsgd_bound(p, n, T, c),
        lambda p, T, c: teleportation_bound(p, k, n, T, c),
    ]
    for bound in bounds:
        value = bound(p, T, c)
        assert value > 0
        assert bound(min(1, 2 * p), T, c) <= value * ROUNDING
        assert bound(p, 2 * T, c) < value
        for key in ("sigma2", "zeta2", "L", "r0"):
            more = c.model_copy(update={key: getattr(c, key) + 1})
            assert bound(p, T, more) >= value / ROUNDING


@settings(deadline=None)
@given(gaps, st.integers(2, 1000), st.data(), rounds, constants)
def test_more_tokens_at_the_same_gap_are_never_worse(
    p: float, n: int, data: st.DataObject, T: int, c: Constants
) -> None:
    k = data.draw(st.integers(1, n - 1))
    more, fewer = teleportation_bound(p, [k + 1, k], n, T, c)
    assert more <= fewer * ROUNDING


@settings(deadline=None)
@given(gaps, st.integers(1, 1000), rounds, constants)
def test_with_all_nodes_active_the_heterogeneity_is_in_the_second_term_alone(
    p: float, n: int, T: int, c: Constants
) -> None:
    D, V = c.L * c.r0, c.sigma2 + c.zeta2
    rest = (D**2 * V / (p * T**2)) ** (1 / 3) + D / (p * T)
    expected = math.sqrt(D * c.sigma2 / (n * T)) + rest
    assert teleportation_bound(p, n, n, T, c) == pytest.approx(expected)
    one = math.sqrt(D * (V if n > 1 else c.sigma2) / T) + rest  # n = 1: nothing to sample
    assert teleportation_bound(p, 1, n, T, c) == pytest.approx(one)
    assert teleportation_bound(p, 1, math.inf, T, c) == pytest.approx(math.sqrt(D * V / T) + rest)


@settings(deadline=None)
@given(st.integers(1, 1000), rounds, constants)
def test_where_one_round_agrees_exactly_both_methods_have_one_bound(
    n: int, T: int, c: Constants
) -> None:
    assert teleportation_bound(1, n, n, T, c) == pytest.approx(dsgd_bound(1, n, T, c))
    assert best_k("complete", n, T, c, [1, n]).bound <= teleportation_bound(1, 1, n, T, c)


def test_without_heterogeneity_all_nodes_active_is_dsgd() -> None:
    c = Constants(zeta2=0, sigma2=3)
    assert teleportation_bound(0.2, 9, 9, 50, c) == pytest.approx(dsgd_bound(0.2, 9, 50, c))


def test_a_graph_that_never_agrees_has_no_bound() -> None:
    assert dsgd_bound(0, 4, 10) == math.inf
    assert teleportation_bound([0, 1], 2, 4, 10)[0] == math.inf


@settings(deadline=None)
@given(
    st.sampled_from(["ring", "torus", "exponential", "complete"]),
    st.integers(1, 24),
    st.sampled_from([1, 30, 1000, 10**6]),
    constants,
)
def test_the_best_k_is_the_one_of_brute_force(name: str, n: int, T: int, c: Constants) -> None:
    def bound(k: int) -> float:
        return float(teleportation_bound(tb.topology(name, k).spectral_gap(), k, n, T, c))

    every = best_k(name, n, T, c, range(1, n + 1))
    assert every.bound == pytest.approx(min(map(bound, range(1, n + 1))))
    assert bound(every.k) == pytest.approx(every.bound)
    search = best_k(name, n, T, c)
    assert search.k in theory.candidates(n)
    assert search.bound == pytest.approx(min(map(bound, theory.candidates(n))))
    assert search.bound >= every.bound


def test_candidates_are_those_of_a_search() -> None:
    assert theory.candidates(1) == [1]
    assert theory.candidates(25) == [1, 2, 4, 8, 16]
    assert theory.candidates(32) == [1, 2, 4, 8, 16, 32]


def test_without_noise_one_node_is_enough() -> None:
    assert best_k("ring", 64, 1000, Constants(sigma2=0, zeta2=0)).k == 1


@pytest.mark.parametrize(
    ("name", "bound", "k"), [("ring", -4 / 7, 1 / 7), ("torus", -3 / 5, 1 / 5)]
)
def test_exponents_are_what_the_minimised_bound_has(name: str, bound: float, k: float) -> None:
    found = theory.exponents(name)
    assert found.bound == pytest.approx(bound, abs=2e-4)
    assert found.best_k == pytest.approx(k, abs=2e-4)
    rate = theory.RATES[name]
    assert (float(rate.bound), float(rate.best_k or 0)) == pytest.approx((bound, k))


def test_exponents_of_the_exponential_graph_come_close_as_logarithms_die() -> None:
    near, far = (theory.exponents("exponential", (d, d + 20)) for d in (10, 60))
    assert near.best_k is not None
    assert far.best_k is not None
    assert abs(far.best_k - 1 / 3) < abs(near.best_k - 1 / 3) < 0.05
    assert abs(far.bound + 2 / 3) < abs(near.bound + 2 / 3) < 0.02


def test_where_p_is_one_every_node_is_best() -> None:
    assert theory.exponents("complete") == (None, pytest.approx(-2 / 3, abs=1e-3))
    assert theory.RATES["complete"].best_k is None
    assert best_k("complete", 64, 10).k == 64


@pytest.mark.parametrize("name", ["ring", "torus", "exponential", "base"])
def test_gaps_of_large_graphs_go_as_the_rates_say(name: str) -> None:
    k = np.array([128, 512] if name == "base" else [256, 1024])
    true = [theory.spectral_gaps(name, [n])[n] for n in k.tolist()]
    assert theory.RATES[name].gap(k.astype(float)) == pytest.approx(true, rel=0.05)


SUPERSCRIPTS = str.maketrans({"²": "**2", "³": "**3", "⁴": "**4", "⁵": "**5"})


def value(formula: str, **symbols: float) -> float:
    """Of a cell of the table of rates, as it is printed."""
    text = formula.translate(SUPERSCRIPTS).replace("^", "**").replace("√", "sqrt")
    text = re.sub(r"log ([nk])", r"log(\1)", text).translate(str.maketrans("{}", "()"))
    text = re.sub(r"(?<=[\dDVTnkσζ)])\s*(?=[DVTnkσζ(])", "*", text.replace("min", "MIN"))
    names = {"sqrt": math.sqrt, "log": math.log2, "max": max, "MIN": min, **symbols}
    return float(eval(text, names))


@pytest.mark.parametrize("name", theory.RATES)
@settings(deadline=None)
@given(
    st.integers(0, 9),
    st.floats(0, 12),
    st.builds(Constants, L=positive, r0=positive, sigma2=st.floats(0, 10), zeta2=st.floats(0, 10))
    | st.just(Constants(sigma2=0, zeta2=0)),
)
def test_the_smallest_bound_is_the_tables_up_to_a_constant(
    name: str, doublings: int, decades: float, c: Constants
) -> None:
    """The text of the table, evaluated; also where noise is so little that one node is best."""
    n, T, V = 2**doublings, 10**decades, c.sigma2 + c.zeta2
    _, dsgd, k, teleportation = report.FORMULAS[name]
    symbols = {"n": n, "T": T, "D": c.L * c.r0, "V": V, "σ": c.sigma2**0.5, "ζ": c.zeta2**0.5}
    one = theory.consensus(name, [n])[n]
    # a ring's tau / p is 3 n^2 / (8 pi^2)
    assert 0.03 < dsgd_bound(one.p, n, T, c, one.tau) / value(dsgd, **symbols) < 8
    best, at = best_k(name, n, T, c), value(k, **symbols)
    assert 1 <= at <= n
    ratio = best.bound / value(teleportation, **symbols, k=at)
    assert ratio < 4
    if best.k < n:  # with all nodes active less noise is left than V
        assert ratio > 0.15


def test_without_noise_a_ring_takes_as_long_as_gradient_descent() -> None:
    *_, formula = report.FORMULAS["ring"]
    quiet = dict.fromkeys("σζV", 0.0)
    assert value(formula, n=64, T=1000, D=1, **quiet) == pytest.approx(1e-3)
    found = best_k("ring", 64, 1000, Constants(sigma2=0, zeta2=0))
    assert found == (1, pytest.approx(1e-3))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"nodes": []}, "at least 1 item"),
        ({"rounds": [0]}, "greater than 0"),
        ({"zeta2": -1}, "greater than or equal to 0"),
        ({"L": 0}, "greater than 0"),
        ({"topologies": ["rnig"]}, "did you mean 'ring'"),
        ({"topology": ["ring"]}, "did you mean 'topologies'"),
    ],
)
def test_a_mistake_in_the_settings_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TheorySpec.model_validate(given)


SMALL = TheorySpec(nodes=[16, 4], rounds=[1000, 10])
Built = tuple[list[Table], dict[str, bytes]]


@pytest.fixture(scope="module")
def built() -> Built:
    return report.build(SMALL)


def test_settings_are_sorted_and_each_named_once() -> None:
    assert SMALL.nodes == [4, 16]
    assert TheorySpec(rounds=[7, 5, 7]).rounds == [5, 7]


def test_tables_say_what_the_functions_say(built: Built) -> None:
    tables, files = built
    named = {table.name: table for table in tables}
    assert list(named) == ["rates", "exponents", "spectral-gaps", "best-k"]
    figures = {f"figures/best-k.{form}" for form in ("svg", "png")}
    paths = {f"tables/{name}.{form}" for name in named for form in ("md", "csv", "tex")}
    assert set(files) == paths | figures
    for name in ("rates", "exponents", "best-k"):
        assert "(derived)" in named[name].caption
        assert "not quoted from the paper" in named[name].markdown()
    rows = {(row[0], row[1]): row for row in named["best-k"].rows}
    assert len(rows) == 4 * 2
    best = best_k("ring", 16, 1000)
    assert rows["ring", 16][5:7] == [best.k, f"{best.bound:.3g}"]
    gap = tb.topology("ring", 16).spectral_gap()
    assert rows["ring", 16][7] == f"{dsgd_bound(gap, 16, 1000):.3g}"
    (ring,) = (row for row in named["spectral-gaps"].rows if row[0] == "ring")
    assert ring == ["ring", "1", "0.8889", "0.3524", "0.09892"]
    assert named["exponents"].rows[0] == ["ring", "-4/7 = -0.571", -0.571, "1/7 = 0.143", 0.143]


def test_formulas_are_mathematics_in_latex_and_text_elsewhere(built: Built) -> None:
    (rates, *_), files = built
    tex = files["tables/rates.tex"].decode()
    assert r"$\max\{1, \min\{n, (VT/D)^{1/7}\}\}$" in tex
    assert "@" not in tex
    body = tex.partition("midrule")[2].partition("bottomrule")[0]
    assert body.isascii()
    assert "max{1, min{n, (VT/D)^(1/7)}}" in rates.markdown()
    assert files["tables/rates.csv"].decode().count("\n") == 5


def test_a_graph_without_closed_form_has_gaps_and_a_best_k() -> None:
    cubic = {"name": "random_regular", "degree": 4}
    tables, _ = report.build(TheorySpec(topologies=[cubic], nodes=[8], rounds=[10, 100]))
    assert [table.name for table in tables] == ["spectral-gaps", "best-k"]
    assert all(row[0] == "random_regular, degree = 4" for table in tables for row in table.rows)


def test_the_same_settings_give_the_same_bytes(built: Built) -> None:
    assert report.build(SMALL) == built


def test_measured_values_are_drawn_beside_the_predicted_ones() -> None:
    predicted = report.predicted(SMALL)
    assert set(predicted["nodes"]) == {4, 16}
    assert predicted["rounds"].min() == pytest.approx(10)
    assert predicted["rounds"].max() == pytest.approx(1000)
    measured = pd.DataFrame(
        [("ring", 16, 500, 4)], columns=["topology", "nodes", "rounds", "best_k"]
    )
    alone, both = (report.draw_best_k(predicted, m)["svg"].decode() for m in (None, measured))
    assert "measured" not in alone
    assert "<!-- measured -->" in both
    assert "<!-- ring, derived -->" in both


def test_the_command_prints_tables_and_writes_them(
    tmp_path: Path, bench: Callable[..., Any]
) -> None:
    options = ["--nodes", "4", "--rounds", "10,100", "--zeta2", "0.5", "--out", tmp_path]
    done = bench("theory", *options, "--topology", "ring", "star")
    assert done.code == 0, done.err
    _, files = report.build(
        TheorySpec(nodes=[4], rounds=[10, 100], zeta2=0.5, topologies=["ring", "star"])
    )
    place = tmp_path / "theory"
    written = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()}
    assert written == set(files)
    for name, content in files.items():
        assert (place / name).read_bytes() == content, name
    for words in ("Rates of D-SGD", "Exponents of T", "Spectral gap", "Best k", "ζ² = 0.5"):
        assert words in done.out
    assert done.out.rstrip().endswith(str(place))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nodes", "8,x"], "nodes.1: input should be a valid integer"),
        (["--nodes", ""], "nodes.0"),
        (["--topology", "rnig"], "did you mean 'ring'"),
        (["--sigma2", "-1"], "sigma2: input should be greater than or equal to 0, got -1"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(
    options: list[str], words: str, tmp_path: Path, bench: Callable[..., Any]
) -> None:
    done = bench("theory", *options, "--out", tmp_path)
    assert done.code == 2
    assert words in done.err
    assert not list(tmp_path.iterdir())


MEASURING = """
title = "Best k"
[run]
topology = "ring"
lr = 0.1
problem = { name = "quadratic", dim = 5 }
nodes = 8
[grid]
rounds = [5, 10]
seed = [0, 1]
[[method]]
algorithm = "teleportation"
grid = { active = [1, 2, 4] }
[[method]]
algorithm = "dsgd"
[theory]
nodes = [8]
rounds = [5, 10]
topologies = ["ring"]
measured = "objective_gap"
"""


def test_a_suite_shows_the_measured_best_k_beside_the_derived_one(
    make_record: Callable[..., Record],
) -> None:
    suite = Suite.from_source("best", tomllib.loads(MEASURING))
    gaps = {(5, 1): 3.0, (5, 2): 1.0, (5, 4): 2.0, (10, 1): 2.0, (10, 2): 2.5, (10, 4): 0.5}
    records = {}
    for run in suite.reported():
        # D-SGD is better than all, and is no k of TELEPORTATION
        gap = gaps.get((run.spec.rounds, run.spec.n_active), 0.0) + run.spec.seed
        records[run.spec.id] = make_record(run.spec, objective_gap=gap)
    tables, files = build_suite(suite, records)
    (table,) = [t for t in tables if t.name == "best-k-measured"]
    best = {T: theory.best_k("ring", 8, T).k for T in (5, 10)}
    assert table.rows == [
        ["ring", 8, 5, 2, "1.5", best[5]],
        ["ring", 8, 10, 4, "1", best[10]],
    ]
    assert {"figures/best-k.svg", "tables/rates.tex", "tables/best-k-measured.csv"} <= set(files)
    assert "The best number of active nodes, measured and by" in files["index.html"].decode()
    again = build_suite(suite, records)[1]
    assert again == files


def test_a_suite_of_theory_alone_needs_no_runs(
    write: Callable[..., Path], run: Callable[..., Any], tmp_path: Path
) -> None:
    text = 'title = "Rates"\n[theory]\nnodes = [4, 8]\nrounds = [10, 100]\n'
    done = run(write(text, "rates"))
    assert done.code == 0, done.err
    assert "Rates of D-SGD and TELEPORTATION (derived)" in done.out
    page = (tmp_path / "out/rates/index.html").read_text()
    assert "figures/best-k.svg" in page
    with pytest.raises(UserError, match="compares at least one"):
        Suite.from_source("nothing", {"title": "nothing"})
