"""The choice of step sizes, by hand-made records and from end to end."""

import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teleport_bench import Suite, UserError, tune
from teleport_bench.metrics import METRICS
from teleport_bench.record import Record
from teleport_bench.report.build import build
from teleport_bench.tune import Cost, choose, chosen, costs, resamples

LOWER, HIGHER = "objective_gap", "validation_accuracy"


def make_suite(texts, metric=LOWER, lr=(0.1, 0.2, 0.4), seeds=(100, 101)):
    """Two cells: D-SGD and TELEPORTATION with k = 1, both with n = 4."""
    source = tomllib.loads(texts["tuned" if metric == LOWER else "digits"])
    source["run"].pop("lr", None)
    source["grid"] = {"nodes": [4], "seed": [0, 1]}
    source["method"] = [{"algorithm": "dsgd"}, {"algorithm": "teleportation", "active": 1}]
    source["tune"] = {"lr": list(lr), "seeds": list(seeds), "metric": metric}
    source["table"] = [{"name": "results", "values": [metric], "pivot": "nodes"}]
    return Suite.from_source("hand", source)


@pytest.fixture
def tuned(texts, make_record):
    """Records of the tuning runs from scores (label, lr, seed) -> value or status."""

    def tuned(scores, metric=LOWER, **options):
        suite = make_suite(texts, metric, **options)
        records = {}
        for run in suite.tuning:
            score = scores(run.label, run.spec.lr, run.spec.seed)
            if isinstance(score, str):
                records[run.spec.id] = make_record(run.spec, score)
            elif score is not None:
                records[run.spec.id] = make_record(run.spec, **{metric: score})
        return suite, records

    return tuned


def by_label(suite, choices):
    return {label: choices[cell] for cell, label, _ in suite.cells() if cell in choices}


def test_the_best_mean_over_the_seeds_wins_not_the_best_seed(tuned):
    # 0.1: mean 3, 0.2: mean 2, 0.4: mean 2.5 with the single best seed
    table = {(0.1, 100): 3, (0.1, 101): 3, (0.2, 100): 2, (0.2, 101): 2, (0.4, 100): 0}
    suite, records = tuned(lambda _, lr, seed: table.get((lr, seed), 5.0))
    for choice in choose(suite, records).values():
        assert choice.lr == 0.2
        assert choice.scores == {0.1: 3.0, 0.2: 2.0, 0.4: 2.5}


@pytest.mark.parametrize(("metric", "best"), [(LOWER, 0.1), (HIGHER, 0.4)])
def test_better_is_lower_or_higher_by_the_metric(tuned, metric, best):
    suite, records = tuned(lambda _, lr, __: lr, metric)
    assert {choice.lr for choice in choose(suite, records).values()} == {best}


@pytest.mark.parametrize("metric", [LOWER, HIGHER])
@pytest.mark.parametrize("order", [(0.1, 0.2, 0.4), (0.4, 0.2, 0.1), (0.2, 0.4, 0.1)])
def test_ties_go_to_the_smaller_value_in_whatever_order_they_are_given(tuned, metric, order):
    worse = 9.0 if metric == LOWER else 0.0
    suite, records = tuned(lambda _, lr, __: worse if lr == 0.1 else 0.5, metric, lr=order)
    assert {choice.lr for choice in choose(suite, records).values()} == {0.2}


def test_each_cell_has_a_choice_of_its_own(tuned):
    best = {"D-SGD": 0.1, "TELEPORTATION, k=1": 0.4}
    suite, records = tuned(lambda label, lr, _: abs(lr - best[label]))
    assert {n: c.lr for n, c in by_label(suite, choose(suite, records)).items()} == best
    assert {run.label: run.spec.lr for run in suite.reported(chosen(suite, records))} == best


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_value_with_a_bad_run_on_any_seed_is_out(tuned, status):
    suite, records = tuned(lambda _, lr, seed: status if (lr, seed) == (0.1, 101) else lr)
    for choice in choose(suite, records).values():
        assert choice.scores == {0.1: None, 0.2: 0.2, 0.4: 0.4}
        assert choice.lr == 0.2


def test_where_every_value_is_out_there_is_no_choice(tuned):
    suite, records = tuned(lambda label, lr, _: "diverged" if label == "D-SGD" else lr)
    choices = by_label(suite, choose(suite, records))
    assert choices["D-SGD"].lr is None
    assert choices["D-SGD"].scores == {0.1: None, 0.2: None, 0.4: None}
    assert not choices["D-SGD"].at_edge
    assert {run.label for run in suite.reported(chosen(suite, records))} == {"TELEPORTATION, k=1"}


def test_where_a_tuning_run_is_missing_there_is_no_choice_yet(tuned):
    suite, records = tuned(
        lambda label, lr, seed: None if (label, lr, seed) == ("D-SGD", 0.4, 101) else lr
    )
    assert set(by_label(suite, choose(suite, records))) == {"TELEPORTATION, k=1"}
    assert choose(suite, {}) == {}


def test_a_suite_without_tuning_has_no_choices(texts):
    suite = Suite.from_source("tiny", tomllib.loads(texts["tiny"]))
    assert choose(suite, {}) == {}
    assert chosen(suite, {}) == {}


@pytest.mark.parametrize(("best", "at_edge"), [(0.1, True), (0.2, False), (0.4, True)])
def test_a_choice_at_an_end_of_the_grid_is_marked(tuned, best, at_edge):
    suite, records = tuned(lambda _, lr, __: abs(lr - best))
    for choice in choose(suite, records).values():
        assert choice.lr == best
        assert choice.at_edge == at_edge


def test_the_end_of_the_grid_is_what_was_tried_not_what_survived(tuned):
    suite, records = tuned(lambda _, lr, __: "diverged" if lr == 0.4 else 1 - lr)
    for choice in choose(suite, records).values():
        assert choice.lr == 0.2
        assert not choice.at_edge


# How sure the choice is


def test_the_shares_of_a_choice_are_those_of_all_resamples_of_its_seeds(tuned):
    """0.1 gains 3 over 0.2 on the first seed and loses 2 on the other: (1, 1), and twice the
    first, choose it. By hand: 3/4 of the four equally likely resamples."""
    table = {(0.1, 100): 1, (0.1, 101): 4, (0.2, 100): 4, (0.2, 101): 2}
    suite, records = tuned(lambda _, lr, seed: table.get((lr, seed), 9))
    for (cell, choice), (_, _, spec) in zip(
        choose(suite, records).items(), suite.cells(), strict=True
    ):
        assert choice.lr == 0.1, cell
        k = spec.n_active
        assert choice.shares == {(k, 0.1): 0.75, (k, 0.2): 0.25}
    markdown = build(suite, records)[1]["tables/step-sizes.md"].decode()
    assert cells(markdown, "D-SGD")[-1] == "0.1: 75 %; 0.2: 25 %"


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9))
def test_resamples_draw_as_many_seeds_as_there_are(n_seeds):
    counts, weights = resamples(n_seeds)
    assert counts.shape == (len(weights), n_seeds)
    assert (counts.sum(1) == n_seeds).all()
    assert math.fsum(weights) == pytest.approx(1, abs=1e-12)
    mean = np.array(weights) @ counts
    few = n_seeds <= 7  # then they are all there are
    assert mean == pytest.approx(np.ones(n_seeds), abs=1e-12 if few else 0.1)
    assert resamples(n_seeds)[0] is counts


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_the_resample_that_has_every_seed_once_chooses_what_is_chosen(data):
    """Also where values tie, runs diverge, or no run reaches its target."""
    metric = data.draw(st.sampled_from(["validation_accuracy", "rounds_to_target"]))
    trial = st.one_of(
        st.none(), st.tuples(st.sampled_from([0.1, 0.2, 0.3]), st.sampled_from([0.0, 0.1]))
    )
    tried = {
        (k, lr): data.draw(st.lists(trial, min_size=3, max_size=3))
        for k in (1, 2)
        for lr in (0.1, 0.2)
    }
    sign = METRICS[metric].sign
    once = resamples(3)[0].tolist().index([1, 1, 1])
    sound = {s: ts for s, ts in tried.items() if None not in ts}
    means = {
        s: (sign * math.fsum(t[0] for t in ts), math.fsum(t[1] for t in ts))
        for s, ts in sound.items()
    }
    best = max(means, key=lambda s: tuple(round(x, 9) for x in means[s])) if means else None
    assert tune._resampled(tried, sign)[once] == best


def test_a_value_that_diverged_on_a_seed_is_out_of_the_resamples_with_that_seed(tuned):
    suite, records = tuned(
        lambda _, lr, seed: "diverged" if (lr, seed) == (0.1, 101) else lr, seeds=(100, 101, 102)
    )
    for choice in choose(suite, records).values():
        shares = {lr: share for (_, lr), share in choice.shares.items()}
        assert shares == pytest.approx({0.1: (2 / 3) ** 3, 0.2: 1 - (2 / 3) ** 3})


def test_one_seed_says_nothing_of_how_sure_its_choice_is(tuned):
    suite, records = tuned(lambda _, lr, __: lr, seeds=(100,))
    markdown = build(suite, records)[1]["tables/step-sizes.md"].decode()
    assert cells(markdown, "D-SGD")[-1] == "one seed"


def test_what_tuning_has_cost_counts_a_shared_network_once(texts, make_record):
    source = tomllib.loads(texts["tuned"]) | {"table": []}
    source["grid"] = {"nodes": [9], "seed": [0, 1]}
    source["method"] = [
        {"algorithm": "dsgd"},
        {"algorithm": "teleportation", "active": "search"},
        {"algorithm": {"name": "local_sgd", "local_steps": 3}},
    ]
    suite = Suite.from_source("hand", source)
    records = {r.spec.id: make_record(r.spec, objective_gap=1.0) for r in suite.tuning}
    found = costs(suite, records)
    # 3 step sizes on 2 seeds, 8 rounds each; 1, 2 and 4 of 9 nodes share a network, then 8 have it
    assert found["D-SGD"] == Cost(6, 48, 48 * 9)
    assert found["TELEPORTATION, k searched"] == Cost(24, 2 * 48, 48 * (1 + 2 + 4 + 8))
    assert found["Local SGD"] == Cost(6, 48, 48 * 9 * 3)
    markdown = build(suite, records)[1]["tables/tuning-cost.md"].decode()
    tried = build(suite, records)[1]["tables/step-sizes.md"].decode()
    assert "Of 1 choices of k, 0 are the largest that was tried (0 are k = n) and 1 the" in tried
    row = cells(markdown, "TELEPORTATION, k searched")
    assert row == ["TELEPORTATION, k searched", "1", "24", "96", "720"]


def test_a_trial_that_ended_early_has_cost_what_it_ran(tuned):
    suite, records = tuned(lambda _, lr, __: "diverged" if lr == 0.4 else lr)
    diverged = {
        k: r.model_copy(update={"diverged_at": 4})
        for k, r in records.items()
        if r.status == "diverged"
    }
    assert costs(suite, records | diverged)["D-SGD"] == Cost(6, 4 * 8 + 2 * 4, 40 * 4)


# How the choice is shown


def cells(markdown, label):
    """The cells of the row that starts with that label."""
    (row,) = [line for line in markdown.splitlines() if line.startswith(f"| {label} ")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_table_of_step_sizes_shows_every_score_and_marks_the_choice(tuned):
    suite, records = tuned(lambda _, lr, __: "diverged" if lr == 0.4 else 1 - lr)
    _, files = build(suite, records)
    markdown = files["tables/step-sizes.md"].decode()
    assert cells(markdown, "D-SGD") == [
        "D-SGD",
        "4",
        "0.9",
        "0.8 *",
        "diverged",
        "0.2",
        "0.2: 100 %",
    ]
    assert "over 2 seeds that are not reported" in markdown
    assert "0 of 2 choices lie at an end of the grid of step sizes" in markdown


def test_the_number_of_choices_at_an_end_of_the_grid_is_told(tuned):
    suite, records = tuned(lambda label, lr, _: lr if label == "D-SGD" else abs(lr - 0.2))
    _, files = build(suite, records)
    assert (
        "1 of 2 choices lies at an end of the grid of step sizes"
        in files["tables/step-sizes.md"].decode()
    )


def test_a_failed_trial_is_not_called_diverged(tuned):
    suite, records = tuned(lambda _, lr, __: "failed" if lr == 0.4 else lr)
    _, files = build(suite, records)
    row = cells(files["tables/step-sizes.md"].decode(), "D-SGD")
    assert row == ["D-SGD", "4", "0.1 *", "0.2", "failed", "0.1", "0.1: 100 %"]


def test_a_cell_without_a_sound_value_is_shown_as_such(tuned):
    suite, records = tuned(lambda label, lr, _: "diverged" if label == "D-SGD" else lr)
    _, files = build(suite, records)
    row = cells(files["tables/step-sizes.md"].decode(), "D-SGD")
    assert row == ["D-SGD", "4", "diverged", "diverged", "diverged", "none", ""]
    page = files["index.html"].decode()
    assert "No step size of the grid worked for D-SGD, n = 4: it has no results." in page


def test_a_cell_without_a_sound_value_keeps_its_row_among_the_results(tuned):
    suite, records = tuned(lambda label, lr, _: "diverged" if label == "D-SGD" else lr)
    _, files = build(suite, records)
    row = cells(files["tables/results.md"].decode(), "D-SGD")
    assert row[1]
    assert not re.search(r"\d", row[1])


def test_a_cell_whose_tuning_is_not_complete_is_shown_as_missing(tuned):
    suite, records = tuned(lambda label, lr, _: None if label == "D-SGD" else lr)
    _, files = build(suite, records)
    row = cells(files["tables/step-sizes.md"].decode(), "D-SGD")
    assert row == ["D-SGD", "4", "missing", "missing", "missing", "", ""]


# From end to end


@pytest.fixture
def tuned_run(write, texts, run, tmp_path):
    """Run the suite "tuned", changed by `edit`; then its outcome, suite and records by id."""

    def tuned_run(*options, edit=lambda text: text):
        path = write(edit(texts["tuned"]), "tuned")
        done = run(path, *options)
        folder = tmp_path / "out" / "tuned"
        found = [
            Record.model_validate_json(p.read_bytes()) for p in (folder / "runs").glob("*.json")
        ]
        return done, Suite.load(str(path)), {record.id: record for record in found}

    return tuned_run


def test_a_run_tunes_and_then_reports_at_the_best_step_size_only(tuned_run):
    done, suite, records = tuned_run()
    assert done.code == 0
    assert "48 runs, 48 of them now" in done.err
    trials = {run.spec.id for run in suite.tuning}
    assert trials <= set(records)
    reported = {key: record for key, record in records.items() if key not in trials}
    assert len(reported) == 12
    for cell, _, spec in suite.cells():
        scores = {}
        for run in suite.tuning:
            if run.cell == cell:
                scores.setdefault(run.spec.lr, []).append(records[run.spec.id])
        assert {record.status for record in scores[1e6]} == {"diverged"}
        means = {lr: sum(r.final("objective_gap") for r in scores[lr]) / 2 for lr in (0.05, 0.1)}
        used = {
            record.spec["lr"]
            for record in reported.values()
            if record.spec["algorithm"] == spec.algorithm
            and (record.spec["nodes"], record.spec["active"]) == (spec.nodes, spec.n_active)
        }
        assert used == {min(means, key=means.__getitem__)}


def test_runners_up_are_run_on_the_reported_seeds_and_no_others(tuned_run):
    """Step sizes so close that seeds disagree; what at least 5 % of the resamples choose is run."""

    def close(text):
        return text.replace("[0.05, 0.1, 1e6]", "[0.6, 0.8, 1.0]").replace("101]", "101, 102]")

    _, _, alone = tuned_run(edit=close)
    more = lambda text: close(text) + "runners_up = true\n"  # noqa: E731
    done, suite, records = tuned_run(edit=more)
    assert done.code == 0
    assert set(alone) < set(records)  # the id of none has changed
    found = {
        (r.spec["algorithm"]["name"], r.spec["active"], r.spec["nodes"], r.spec["lr"])
        for r in records.values()
        if r.spec["seed"] < 100
    }
    wanted = {
        (spec.algorithm["name"], k, spec.nodes, lr)
        for (cell, _, spec) in suite.cells()
        for (k, lr), share in choose(suite, records)[cell].shares.items()
        if share >= 0.05
    }
    assert found == wanted
    assert len(wanted) > len(suite.cells())
    again, _, after = tuned_run(edit=more)
    assert f"{len(records)} runs, 0 of them now" in again.err
    assert after == records
    assert again.out == done.out


def test_a_second_run_of_a_tuned_suite_does_nothing(tuned_run):
    first, _, before = tuned_run()
    second, _, after = tuned_run()
    assert "48 runs, 0 of them now" in second.err
    assert before == after
    assert second.out == first.out


def test_a_tuned_run_goes_on_where_it_stopped(tuned_run, tmp_path):
    _, suite, before = tuned_run()
    folder = tmp_path / "out" / "tuned" / "runs"
    trial, reported = suite.tuning[3].spec.id, set(before) - {r.spec.id for r in suite.tuning}
    for key in (trial, min(reported)):
        (path,) = folder.glob(f"*-{key}.json")
        path.unlink()
    again, _, after = tuned_run()
    assert "48 runs, 2 of them now" in again.err
    assert set(after) == set(before)


def test_tuning_runs_are_evaluated_at_their_ends_only(tuned_run):
    _, suite, records = tuned_run()
    for run in suite.tuning:
        if records[run.spec.id].status == "finished":
            assert records[run.spec.id].curves["rounds"] == [0, 8]


def test_a_suite_where_every_step_size_diverges_ends_in_a_report_that_says_so(tuned_run, tmp_path):
    done, suite, records = tuned_run(
        edit=lambda text: text.replace("lr = [0.05, 0.1, 1e6]", "lr = [1e6, 1e9]")
    )
    assert done.code == 0
    assert set(records) == {run.spec.id for run in suite.tuning}
    assert {record.status for record in records.values()} == {"diverged"}
    page = (tmp_path / "out" / "tuned" / "index.html").read_text()
    assert page.count("No step size of the grid worked for") == 6


def test_where_no_step_size_converges_there_is_a_report_without_results(
    texts: dict[str, str], write: Callable[..., Path], run: Callable[..., Any], tmp_path: Path
) -> None:
    text = texts["tuned"].replace("[0.05, 0.1, 1e6]", "[1e30, 1e35]")
    curves = '[[figure]]\nname = "curves"\ny = "objective_gap"\ncolumns = "nodes"\n'
    done = run(write(text + curves))
    assert done.code == 0, done.err
    assert "diverged" in done.out
    assert (tmp_path / "out" / "tiny" / "figures" / "curves.svg").is_file()
    rows = (tmp_path / "out" / "tiny" / "tables" / "details.csv").read_text().splitlines()[1:]
    assert len(rows) == 6
    assert all(",none,,,0," in row for row in rows)


def test_a_table_of_a_suite_without_runs_is_empty(
    write: Callable[..., Path], run: Callable[..., Any], tmp_path: Path
) -> None:
    text = 'title = "t"\n[theory]\n[[table]]\nname = "gap"\nvalues = ["objective_gap"]\n'
    assert run(write(text)).code == 0
    table = tmp_path / "out" / "tiny" / "tables" / "gap.csv"
    assert len(table.read_text().splitlines()) == 1


# What may choose


@pytest.mark.parametrize("metric", ["test_accuracy", "test_accuracy_rows"])
def test_nothing_is_tuned_by_a_metric_of_the_test_set(texts, metric):
    with pytest.raises(UserError, match=f"choose by '{metric}', of the test set.* take a metric"):
        make_suite(texts, metric)


@pytest.mark.parametrize("tuned_by", ["rounds_to_target", "validation_accuracy"])
@pytest.mark.parametrize("place", ["run", "method", "together"])
def test_no_tuning_run_stops_by_a_metric_of_the_test_set(texts, write, tuned_by, place):
    stop = 'stop = { metric = "test_accuracy", value = 0.5, every = 2 }\n'
    text = texts["digits"].replace("lr = 0.1\n", "")
    text += f'[tune]\nlr = [0.1]\nseeds = [100]\nmetric = "{tuned_by}"\n'
    if place == "run":
        text = text.replace("rounds = 8\n", "rounds = 8\n" + stop)
    elif place == "method":
        text = text.replace('algorithm = "dsgd"\n', 'algorithm = "dsgd"\n' + stop)
    else:
        text = text.replace("[grid]\n", f'[grid]\n"*" = [{{ {stop.strip()} }}]\n')
    if tuned_by == "rounds_to_target" and place == "method":
        text = text.replace(
            "rounds = 8\n", "rounds = 8\n" + stop.replace("test_acc", "validation_acc")
        )
    with pytest.raises(UserError) as error:
        Suite.load(str(write(text)))
    assert re.search(r"line \d+: stop: tuning would look at 'test_accuracy'", str(error.value))
    Suite.load(str(write(text.replace('"test_accuracy"', '"validation_accuracy"'))))
    fine = write(text.replace('"test_accuracy"', '"validation_accuracy"'))
    with pytest.raises(UserError, match=r"--set .*stop: tuning would look at 'test_accuracy'"):
        Suite.load(str(fine), ["stop.metric=test_accuracy", "stop.value=0.5"])


def test_a_k_is_not_searched_for_by_a_metric_of_the_test_set(texts):
    source = tomllib.loads(texts["digits"])
    del source["run"]["lr"]
    source["method"] = [{"algorithm": "teleportation", "active": "search"}]
    source["tune"] = {"lr": [0.1], "seeds": [100], "metric": "test_accuracy_rows"}
    with pytest.raises(UserError, match="of the test set"):
        Suite.from_source("hand", source)


def test_a_run_that_is_not_tuned_may_stop_by_any_metric(texts, write):
    stop = 'stop = { metric = "test_accuracy", value = 0.5, every = 2 }\n'
    Suite.load(str(write(texts["digits"].replace("rounds = 8\n", "rounds = 8\n" + stop))))
