"""Claims: sentences of the paper, each decided by the records, method against method."""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from teleport_bench.errors import UserError
from teleport_bench.locator import Locator
from teleport_bench.metrics import METRICS, TO_TARGET, Metric, setting
from teleport_bench.report.frame import Frame
from teleport_bench.report.statistics import (
    NO_STEP_SIZE,
    Comparison,
    Result,
    compare,
    compare_choices,
)
from teleport_bench.report.tables import Cell, Table, percent
from teleport_bench.shown import ClaimSpec, Scalar, case_keys, matches, order, show, value_of
from teleport_bench.spec import canonical
from teleport_bench.tune import RUNNER_UP, Setting, resamples
from teleport_bench.untrusted import check_plain

CLAIMS_FILE = "claims.json"
VERDICTS = ("supported", "not supported", "not tested")
SEEDS = 5
"""Common seeds, and tuning seeds, below which a comparison says nothing."""

SURE = 1 - RUNNER_UP
"""Share of the resamples of the tuning seeds that agree, from which on a choice is sure."""

State = Literal["contradicted", "undecided", "not tested", "holds"]
Key = tuple[tuple[str, Scalar | None], ...]
"""The settings of a case."""


@dataclass(frozen=True)
class Case:
    """Two methods at equal settings; comparison: None where runs are missing or seeds too few.

    settings: also the value to be reached and those of the network, where the claim has several.
    sure: in which part of the resamples of the tuning seeds both methods' settings are those that
    were chosen; None where nothing was tuned. results: of each method by seed, at these settings.
    """

    settings: dict[str, Scalar | None]
    better: str
    than: str
    comparison: Comparison | None
    state: State
    reason: str = ""
    sure: float | None = None
    results: tuple[Sequence[Result], Sequence[Result]] = ((), ())

    @property
    def name(self) -> str:
        """`n = 8, TELEPORTATION, k=2 against D-SGD`."""
        return ", ".join([*_settings(self.settings), f"{self.better} against {self.than}"])


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim: supported if it holds in every case."""

    claim: ClaimSpec
    cases: list[Case]
    tuning_seeds: int = 0
    """0 where nothing was tuned."""
    runners_up: bool = False

    @property
    def fragile(self) -> bool:
        """Whether other tuning seeds might have led to other settings than those it rests on."""
        sure = [case.sure for case in self.cases if case.sure is not None]
        return not self.runners_up and any(share < SURE for share in sure)

    @property
    def tuning(self) -> str:
        """How sure the choices behind the cases are; empty where nothing was tuned."""
        sure = [case.sure for case in self.cases if case.sure is not None]
        if not sure:
            return ""
        least, most = percent(min(sure)), percent(max(sure))
        same = least if least == most else f"{least} to {most}"
        unsure = sum(share < SURE for share in sure)
        text = f"tuned on {self.tuning_seeds} seeds, of whose resamples {same} make the same choice"
        if not unsure:
            return text
        text += f" (fewer than {percent(SURE)} in {unsure} of {len(self.cases)} cases)"
        if self.runners_up:
            return f"{text}; the intervals are over the other choices too"
        return f"{text}; the intervals leave the others out (runners_up = true takes them in)"

    def count(self, state: State) -> int:
        return sum(case.state == state for case in self.cases)

    @property
    def verdict(self) -> str:
        """One of VERDICTS. One case against it decides, however many are not tested."""
        if self.count("contradicted"):
            return "not supported"
        if self.count("not tested"):
            return "not tested"
        return "supported" if self.count("holds") == len(self.cases) else "not supported"

    @property
    def reason(self) -> str:
        """The cases behind a verdict other than "supported"."""
        reasons: dict[str, tuple[State, ...]] = {
            "supported": (),
            "not supported": ("contradicted", "undecided"),
            "not tested": ("not tested",),
        }
        return "; ".join(
            f"{state} in {len(found)} of {len(self.cases)} cases: "
            + _some([c.name + (f" ({c.reason})" if c.reason else "") for c in found])
            for state in reasons[self.verdict]
            if (found := [case for case in self.cases if case.state == state])
        )

    @property
    def worst(self) -> Case:
        """The case that speaks most against the claim."""

        def support(case: Case) -> tuple[int, float, float]:
            rank = ("contradicted", "undecided", "not tested", "holds").index(case.state)
            c = case.comparison
            if c is None:
                return rank, 0.0, 0.0
            known = c.wins + c.ties + c.losses
            share = (c.wins - c.losses) / known if known else 0.0
            # an effect without a number is as strong as its seeds agree
            return rank, share * math.inf if c.effect is None and share else c.effect or 0.0, share

        return min(self.cases, key=support)


def _some(texts: Sequence[str], most: int = 3) -> str:
    more = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return "; ".join([*texts[:most], *more])


class _Run(NamedTuple):
    """A run of a frame, by its index."""

    frame: Frame
    i: Any

    @property
    def status(self) -> str:
        return str(self.frame.runs["status"][self.i])


@dataclass
class _Side:
    """One method in one case: its runs by setting and seed, the setting that was chosen first."""

    label: str
    cell: str
    runs: dict[Setting, dict[int, _Run]]


def judge(frame: Frame, claim: ClaimSpec) -> Verdict:
    """Compare the two sides of a claim in all of its cases."""
    tune = frame.suite.spec.tune
    seeds = len(tune.seeds) if tune else 0
    better, than = _sides(frame, claim)
    measure, networks = _Measure(claim), claim.on_networks
    cases = []
    for key in sorted(better.keys() & than.keys(), key=lambda k: [order(v) for _, v in k]):
        pairs = [(a, b) for b in than[key].values() for a in better[key].values()]
        for at in range(len(networks)):
            own = {f"network.{k}": _plain(networks[at][k]) for k in sorted(claim.networks)}
            levels: Sequence[float | None] = claim.values or [None]
            for value in levels:
                more = {} if value is None else {"value": value}
                settings = {**dict(key), **own, **more}
                gave = functools.partial(measure, at=at, value=value)
                cases += [_case(frame, claim, settings, a, b, gave) for a, b in pairs]
    return Verdict(claim, cases, seeds, bool(tune and tune.runners_up))


def _sides(frame: Frame, claim: ClaimSpec) -> tuple[dict[Key, dict[str, _Side]], ...]:
    """Of either side of a claim the methods of each case, by label."""
    runs = frame.view(claim).runs
    settings = {i: frame.settings[i] for i in runs.index}
    by = case_keys(claim, runs["label"].tolist() if len(runs) else [], list(settings.values()))
    sides: tuple[dict[Key, dict[str, _Side]], ...] = ({}, {})
    for one in (frame, *frame.others):
        # of the other choices only the runs of cells that have one
        has = {run.cell for run in one.reported}
        for i in runs.index:
            label, cell = str(runs["label"][i]), str(runs["cell"][i])
            if one is not frame and cell not in has:
                continue
            key = tuple((k, value_of(settings[i], k)) for k in by)
            at = (one.specs[i].n_active, one.specs[i].lr)
            for side, pattern in zip(sides, (claim.better, claim.than), strict=True):
                if matches(label, pattern):
                    mine = side.setdefault(key, {}).setdefault(label, _Side(label, cell, {}))
                    mine.runs.setdefault(at, {})[int(runs["seed"][i])] = _Run(one, i)
    return sides


class _Measure:
    """What runs gave, on each of the networks of a claim."""

    def __init__(self, claim: ClaimSpec) -> None:
        self.claim, self.networks = claim, claim.on_networks
        self._views: dict[tuple[Frame, int], Any] = {}
        self._found: dict[tuple[_Run, int, float | None], Result] = {}

    def __call__(self, run: _Run, at: int, value: float | None) -> Result:
        """at: the network, by its index; value: to be reached, where the claim is of one."""
        key = (run, at, value)
        if key not in self._found:
            self._found[key] = self._of(run, at, value)
        return self._found[key]

    def _of(self, run: _Run, at: int, value: float | None) -> Result:
        claim, frame = self.claim, run.frame
        if run.status in ("diverged", NO_STEP_SIZE):
            worst = math.inf if claim.measured.better == "lower" else -math.inf
            return Result(worst, censored=True)
        if value is None:
            if (frame, at) not in self._views:
                asked = claim.model_copy(update={"network": self.networks[at]})
                self._views[frame, at] = frame.view(asked, names=[claim.metric]).runs
            runs = self._views[frame, at]
            censored = claim.metric in TO_TARGET and bool(runs["censored"][run.i])
            return Result(float(runs[claim.metric][run.i]), censored)
        spec = frame.specs[run.i]
        curves = frame.records[spec.id].curves
        if claim.metric not in curves:
            return Result(math.nan)
        if claim.x in curves:
            axis = curves[claim.x]
        else:
            network = {**frame.suite.spec.network, **self.networks[at]}
            axis = frame.costs(spec, network)[claim.x]
        return reached(curves[claim.metric], axis, METRICS[claim.metric], value, claim.window)


def reached(
    values: Sequence[float], axis: Sequence[float], metric: Metric, value: float, window: int
) -> Result:
    """What a run had spent on an axis when it reached a value: see `ClaimSpec`.

    values, axis: one an evaluation. Censored at the end of a run that did not reach it.
    """
    goal = metric.sign * value
    for j in range(len(values)):
        mean = statistics.fmean(values[j : j + window])
        if metric.sign * values[j] >= goal and metric.sign * mean >= goal:
            return Result(float(axis[j]), best=float(axis[j - 1]) if j else None)
    return Result(float(axis[-1]), censored=True)


def _case(
    frame: Frame,
    claim: ClaimSpec,
    settings: dict[str, Scalar | None],
    a: _Side,
    b: _Side,
    measure: Callable[[_Run], Result],
) -> Case:
    chosen = [next(iter(side.runs)) for side in (a, b)]
    sure = _sure(frame, a, b)
    joint = {(x, y): share for (x, y), share in sure.items() if x in a.runs and y in b.runs}
    pairs = [(chosen[0], chosen[1]), *(p for p in joint if p != (chosen[0], chosen[1]))]
    part = sure.get((chosen[0], chosen[1]), 0.0) if sure else None

    def untested(why: str) -> Case:
        return Case(settings, a.label, b.label, None, "not tested", why, part)

    every = [run for side in (a, b) for runs in side.runs.values() for run in runs.values()]
    lost = Counter(run.status for run in every if run.status in ("missing", "failed"))
    if lost:
        what = ", ".join(f"{n} of {len(every)} runs {status}" for status, n in lost.items())
        return untested(what)
    seeds = sorted(a.runs[chosen[0]].keys() & b.runs[chosen[1]].keys())
    if len(seeds) < SEEDS:
        return untested(f"common seeds: {len(seeds)}, {SEEDS} are needed")
    tune = frame.suite.spec.tune
    if tune and len(tune.seeds) < SEEDS:
        return untested(f"tuning seeds: {len(tune.seeds)}, {SEEDS} are needed")
    compared = [
        (
            joint.get(pair, 0.0) if len(pairs) > 1 else 1.0,
            [measure(a.runs[pair[0]][s]) for s in seeds],
            [measure(b.runs[pair[1]][s]) for s in seeds],
        )
        for pair in pairs
    ]
    metric = claim.measured
    comparison = compare_choices(compared, metric.better, metric.log)
    state = comparison.exceeds(claim.margin)
    if comparison.low is None and len(compared) > 1:  # then all choices must agree
        every_state = {
            compare(x, y, metric.better, metric.log).exceeds(claim.margin) for _, x, y in compared
        }
        state = every_state.pop() if len(every_state) == 1 else None
    states: dict[bool | None, State] = {True: "holds", False: "contradicted", None: "undecided"}
    return Case(
        settings,
        a.label,
        b.label,
        comparison,
        states[state],
        "",
        part,
        (compared[0][1], compared[0][2]),
    )


def _sure(frame: Frame, a: _Side, b: _Side) -> dict[tuple[Setting, Setting], float]:
    """In which part of the resamples of the tuning seeds both methods have which settings; empty
    where nothing was tuned."""
    choices = [frame.choices.get(side.cell) for side in (a, b)]
    found: dict[tuple[Setting, Setting], float] = {}
    if choices[0] and choices[1]:
        weights = resamples(choices[0].n_seeds)[1]
        for x, y, weight in zip(choices[0].resampled, choices[1].resampled, weights, strict=True):
            if x is not None and y is not None:
                found[x, y] = found.get((x, y), 0.0) + weight
    return found


def _plain(value: Any) -> Scalar:
    return value if isinstance(value, Scalar) else canonical(value)


def _settings(settings: dict[str, Scalar | None]) -> list[str]:
    return [f"{setting(key).short} = {show(value)}" for key, value in settings.items()]


def _effect(metric: Metric, case: Case) -> str:
    """`×3.1 [2.2, 4.4]`, `+0.012 [0.004, 0.020]`, or the bound of a censored effect."""
    c = case.comparison
    if c is None or c.effect is None or c.low is None or c.high is None:
        return ""
    form = "{:.3g}" if c.ratio else metric.format
    text = "×" + form.format(c.effect) if c.ratio else "+" * (c.effect > 0) + form.format(c.effect)
    above, below = (any(r.censored for r in results) for results in case.results)
    text = ("at least " if below else "at most " if above else "") + text
    no_low, no_high = c.low == (0.0 if c.ratio else -math.inf), c.high == math.inf
    if no_low and no_high:
        return f"{text} [no bounds]"
    if no_high:
        return f"{text} [≥ {form.format(c.low)}]"
    if no_low:
        return f"{text} [≤ {form.format(c.high)}]"
    return f"{text} [{form.format(c.low)}, {form.format(c.high)}]"


def _counts(c: Comparison | None) -> str:
    """`5 / 0 / 0`, and how many of the seeds do not tell."""
    if c is None:
        return ""
    return f"{c.wins} / {c.ties} / {c.losses}" + (f" ({c.unknown} open)" if c.unknown else "")


def claims_table(verdicts: Sequence[Verdict]) -> Table:
    """One row a claim: its sentence, whose it is, and what the records say."""
    rows: list[list[Cell]] = []
    for v in verdicts:
        worst, c = v.worst, v.worst.comparison
        seeds = f"{c.wins} of {c.n} seeds better" if c else worst.reason
        numbers = ", ".join(t for t in (_effect(v.claim.measured, worst), seeds) if t)
        cases = f"{v.count('holds')} of {len(v.cases)}"
        row = [v.claim.name, v.claim.text, v.claim.source, v.claim.measured.label]
        verdict = v.verdict + (", choice of settings not sure" if v.fragile else "")
        rows.append([*row, verdict, cases, f"{worst.name}: {numbers}"])
    notes = [
        "Supported: it holds in every case, that is, the 95 % interval of the paired advantage "
        "excludes anything less. Not supported: an interval excludes the claim, or leaves it open. "
        f"Not tested: runs are missing, fewer than {SEEDS} seeds are common, or settings were "
        f"tuned on fewer than {SEEDS} seeds.",
        "An advantage of a metric on a log scale is a factor (×), of another one a difference; it "
        "is of the first method over the second.",
        *(f"{v.claim.name}: {v.tuning}." for v in verdicts if v.tuning),
    ]
    return Table(
        "claims",
        "Claims, each compared on common seeds",
        ["claim", "sentence", "source", "of", "verdict", "holds in cases", "worst case"],
        ["claim", "sentence", "source", "metric", "verdict", "holds", "worst"],
        rows,
        notes,
        texts=range(7),
    )


def case_table(v: Verdict) -> Table:
    """Every case of one claim with its numbers."""
    keys = list(v.cases[0].settings)
    claim, metric = v.claim, v.claim.measured
    reaching = claim.kind == "time_to"
    heads = ["better", "than", *(setting(key).short for key in keys)]
    took = ["it took the first", "the second"] if reaching else []
    sure = ["by resamples"] if v.tuning_seeds else []
    names = ["took_better", "took_than"] if reaching else []
    more = ["resamples"] if sure else []
    rows: list[list[Cell]] = []
    for case in v.cases:
        c = case.comparison
        rows.append(
            [
                case.better,
                case.than,
                *(show(value) for value in case.settings.values()),
                c.n if c else "",
                *([_took(results) for results in case.results] if reaching else []),
                _effect(metric, case),
                _counts(c),
                f"{c.p:.3g}" if c else "",
                *([percent(case.sure) if case.sure is not None else ""] if sure else []),
                case.state + (f": {case.reason}" if case.reason else ""),
            ]
        )
    return Table(
        f"claim-{claim.name}",
        f"{claim.text} ({METRICS[claim.metric].label}: {v.verdict})",
        [*heads, "seeds", *took, "advantage", "better / equal / worse", "p", *sure, "the claim"],
        ["better", "than", *keys, "seeds", *names, "advantage", "counts", "p", *more, "state"],
        rows,
        _notes(v, metric),
        claim.tags,
        (0, 1, len(heads) + len(took) + len(sure) + 4),
    )


def _notes(v: Verdict, metric: Metric) -> list[str]:
    claim = v.claim
    margin = "" if claim.margin is None else f" by more than {claim.margin:g}"
    notes = [
        f"{metric.label}, {metric.better} is better{margin}: the mean advantage over seeds with "
        "its 95 % interval by Student's t"
        + (" on logarithms (a ratio)." if metric.log else ".")
        + " Seeds: better / equal / worse. p: exact two-sided sign test."
    ]
    if claim.metric in TO_TARGET:
        notes.append(
            "A run that ended before the target took more rounds than it had: where that happened "
            "on one side only the advantage is a bound, on both sides it has no interval."
        )
    if claim.kind == "time_to":
        notes.append(
            "A run reaches a value at the first evaluation that is no worse and from which on "
            f"{claim.window} in a row (fewer at its end) are no worse in the mean. The true time "
            "lies between that evaluation and the one before it: seeds whose times may be equal "
            "are counted as open, and each end of the interval takes the times that favour the "
            "effect least. A run that ends without the value takes more than all of its time: "
            "where that happens on one side only the advantage is a bound, on both sides it has "
            "no interval. Times are medians over seeds."
        )
    if v.tuning:
        notes.append(
            f"{v.tuning[0].upper()}{v.tuning[1:]}. by resamples: how often both methods' settings "
            "would be chosen again if the tuning seeds were drawn again from these. "
            + (
                "Every other choice of at least 5 % was run too: the advantage is the mean over "
                "the choices, its interval that of the mixture of their t distributions."
                if v.runners_up
                else ""
            )
        )
    return [note.strip() for note in notes]


def _took(results: Sequence[Result]) -> str:
    """The median, and how many got there: `2390`, `> 240 (not reached)`."""
    if not results:
        return ""
    times = [math.inf if r.censored else r.value for r in results]
    missed = sum(r.censored for r in results)
    median = statistics.median_high(times)
    if median < math.inf:
        return f"{median:.4g}" + (f" ({missed} of {len(times)} not reached)" if missed else "")
    ended = [r.value for r in results if r.censored and math.isfinite(r.value)]
    part = f"{missed} of {len(times)} " if missed < len(times) else ""
    return (f"> {max(ended):.4g} " if ended else "") + f"({part}not reached)"


def network_table(v: Verdict) -> Table | None:
    """On which networks a claim holds, where it names several: a column a value of tau (or of the
    first setting, where that is none), a row a combination of the others."""
    if not v.claim.networks:
        return None
    # a suite that was run has its keys sorted
    across = "network." + ("tau" if "tau" in v.claim.networks else min(v.claim.networks))
    columns = list(dict.fromkeys(case.settings[across] for case in v.cases))
    table: dict[tuple[Any, ...], dict[Any, list[Case]]] = {}
    for case in v.cases:
        rest = {k: x for k, x in case.settings.items() if k not in (across, "value")}
        row = table.setdefault((case.better, case.than, *rest.values()), {})
        row.setdefault(case.settings[across], []).append(case)
    keys = [k for k in v.cases[0].settings if k not in (across, "value")]
    heads = ["better", "than", *(setting(key).short for key in keys)]
    name = setting(across).short
    return Table(
        f"claim-{v.claim.name}-networks",
        f"Where it holds, {METRICS[v.claim.metric].label}: {v.claim.text}",
        [*heads, *(f"{name} = {show(at)}" for at in columns)],
        ["better", "than", *keys, *(f"{name}_{show(at)}" for at in columns)],
        [
            [better, than, *map(show, rest), *(_where(cases.get(at, ())) for at in columns)]
            for (better, than, *rest), cases in table.items()
        ],
        [
            f"{v.claim.measured.label}: the values of which the claim holds, and those against it; "
            "of others it is undecided."
            if v.claim.values
            else f"{v.claim.measured.label}: whether the claim holds."
        ],
        v.claim.tags,
        range(len(heads) + len(columns)),
    )


def _where(cases: Sequence[Case]) -> str:
    """`holds: 0.6, 0.7; against: 0.8`; the state alone for a claim of no values."""
    if len(cases) == 1 and "value" not in cases[0].settings:
        return cases[0].state
    names = {"holds": "holds", "contradicted": "against", "not tested": "not tested"}
    parts = []
    for state, word in names.items():
        at = [show(case.settings["value"]) for case in cases if case.state == state]
        if at:
            parts.append(f"{word}: {', '.join(at)}" if len(at) < len(cases) else f"{word}: all")
    return "; ".join(parts) or "undecided"


def to_json(frame: Frame, verdicts: Sequence[Verdict]) -> str:
    """`claims.json`: all verdicts and cases, for machines; an open end of an interval is null."""
    content = {
        "suite": frame.suite.name,
        "title": frame.suite.spec.title,
        "note": frame.suite.scale_note,
        "claims": [
            {
                **v.claim.model_dump(include={"name", "text", "source", "metric", "margin"}),
                **(
                    v.claim.model_dump(include={"kind", "values", "x", "window"})
                    if v.claim.kind != "final"
                    else {}
                ),
                "verdict": v.verdict,
                "tuning": v.tuning,
                "fragile": v.fragile,
                "reason": v.reason,
                "worst": v.worst.name,
                "cases": [
                    {
                        "better": case.better,
                        "than": case.than,
                        "settings": case.settings,
                        "state": case.state,
                        "reason": case.reason,
                        "sure": case.sure,
                        **_numbers(case.comparison),
                        **(_times(case) if v.claim.kind == "time_to" else {}),
                    }
                    for case in v.cases
                ],
            }
            for v in verdicts
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _times(case: Case) -> dict[str, Any]:
    """What each seed of either method took; null where it did not get there."""
    took = [[None if r.censored else r.value for r in results] for results in case.results]
    return dict(zip(("took_better", "took_than"), took, strict=True))


def _numbers(c: Comparison | None) -> dict[str, Any]:
    if c is None:
        return {}
    ends = {k: v if v is None or math.isfinite(v) else None for k, v in vars(c).items()}
    return ends | {"unknown": c.unknown}


def summary(folders: Sequence[Path]) -> Table:
    """How many claims of several suites are supported, and the reasons where one is not.

    folders: of results, each with what `run` wrote; those without claims are passed over.
    """
    rows: list[list[Cell]] = []
    notes: list[str] = []
    total: Counter[str] = Counter()
    for folder in folders:
        path = folder / CLAIMS_FILE
        try:
            content = json.loads(path.read_text("utf-8"))
            check_plain(content, Locator(str(path), ""))
            found = Counter(str(claim["verdict"]) for claim in content["claims"])
            name = str(content["suite"])
            notes += [
                f"{name}, {claim['name']}: {claim['verdict']}: {claim['reason']}."
                for claim in content["claims"]
                if claim["verdict"] != "supported"
            ]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} cannot be read ({error}): report the suite again") from None
        total.update(found)
        rows.append([name, *(found[verdict] for verdict in VERDICTS)])
    rows.append(["all", *(total[verdict] for verdict in VERDICTS)])
    columns = ["suite", *VERDICTS]
    return Table("summary", "Claims of all suites", columns, columns, rows, notes)
