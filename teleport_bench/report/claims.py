"""Claims: sentences of the paper, each decided by the records, method against method."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from teleport_bench.errors import UserError
from teleport_bench.locator import Locator
from teleport_bench.metrics import METRICS, TO_TARGET, setting
from teleport_bench.report.frame import Frame
from teleport_bench.report.statistics import NO_STEP_SIZE, Comparison, Result, compare
from teleport_bench.report.tables import Cell, Table
from teleport_bench.shown import ClaimSpec, Scalar, case_keys, matches, order, show, value_of
from teleport_bench.untrusted import check_plain

CLAIMS_FILE = "claims.json"
VERDICTS = ("supported", "not supported", "not tested")
SEEDS = 2
"""Common seeds below which a comparison says nothing."""

State = Literal["contradicted", "undecided", "not tested", "holds"]


@dataclass(frozen=True)
class Case:
    """Two methods at equal settings; comparison: None where runs are missing or seeds too few."""

    settings: dict[str, Scalar | None]
    better: str
    than: str
    comparison: Comparison | None
    state: State
    reason: str = ""

    @property
    def name(self) -> str:
        """`n = 8, TELEPORTATION, k=2 against D-SGD`."""
        return ", ".join([*_settings(self.settings), f"{self.better} against {self.than}"])


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim: supported if it holds in every case."""

    claim: ClaimSpec
    cases: list[Case]

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


def judge(frame: Frame, claim: ClaimSpec) -> Verdict:
    """Compare the two sides of a claim in all of its cases."""
    view = frame.view(claim, names=[claim.metric])
    runs = view.runs
    settings = [view.settings[i] for i in runs.index]
    labels = runs["label"].tolist()
    by = case_keys(claim, labels, settings)
    # seeds by case and label, on either side
    sides: list[dict[tuple[Any, ...], dict[str, dict[int, Any]]]] = [{}, {}]
    for (_, run), label, mine in zip(runs.iterrows(), labels, settings, strict=True):
        key = tuple(value_of(mine, k) for k in by)
        for side, pattern in zip(sides, (claim.better, claim.than), strict=True):
            if matches(label, pattern):
                side.setdefault(key, {}).setdefault(label, {})[int(run["seed"])] = run
    better, than = sides
    return Verdict(
        claim,
        [
            _case(claim, dict(zip(by, key, strict=True)), (a, better[key][a]), (b, than[key][b]))
            for key in sorted(better.keys() & than.keys(), key=lambda k: [order(v) for v in k])
            for b in than[key]
            for a in better[key]
        ],
    )


def _case(
    claim: ClaimSpec,
    settings: dict[str, Scalar | None],
    a: tuple[str, dict[int, Any]],
    b: tuple[str, dict[int, Any]],
) -> Case:
    (better, ours), (than, theirs) = a, b
    seeds = sorted(ours.keys() & theirs.keys())
    lost = Counter(
        run["status"]
        for run in (*ours.values(), *theirs.values())
        if run["status"] in ("missing", "failed")
    )
    if lost or len(seeds) < SEEDS:
        all_runs = len(ours) + len(theirs)
        what = ", ".join(f"{n} of {all_runs} runs {status}" for status, n in lost.items())
        what = what or f"common seeds: {len(seeds)}"
        return Case(settings, better, than, None, "not tested", what)
    metric = METRICS[claim.metric]
    results = [[_result(claim.metric, side[s]) for s in seeds] for side in (ours, theirs)]
    comparison = compare(results[0], results[1], metric.better, metric.log)
    state = comparison.exceeds(claim.margin)
    states: dict[bool | None, State] = {True: "holds", False: "contradicted", None: "undecided"}
    return Case(settings, better, than, comparison, states[state])


def _result(metric: str, run: Any) -> Result:
    if run["status"] in ("diverged", NO_STEP_SIZE):
        return Result(math.inf if METRICS[metric].better == "lower" else -math.inf, censored=True)
    return Result(float(run[metric]), metric in TO_TARGET and bool(run["censored"]))


def _settings(settings: dict[str, Scalar | None]) -> list[str]:
    return [f"{setting(key).short} = {show(value)}" for key, value in settings.items()]


def _effect(metric: str, c: Comparison | None) -> str:
    """`×3.1 [2.2, 4.4]`, `+0.012 [0.004, 0.020]`, or the bound of a censored effect."""
    if c is None or c.effect is None or c.low is None or c.high is None:
        return ""
    form = "{:.3g}" if c.ratio else METRICS[metric].format
    text = "×" + form.format(c.effect) if c.ratio else "+" * (c.effect > 0) + form.format(c.effect)
    if c.high == math.inf:
        return f"at least {text} [≥ {form.format(c.low)}]"
    if c.low == (0.0 if c.ratio else -math.inf):
        return f"at most {text} [≤ {form.format(c.high)}]"
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
        numbers = ", ".join(t for t in (_effect(v.claim.metric, c), seeds) if t)
        cases = f"{v.count('holds')} of {len(v.cases)}"
        row = [v.claim.name, v.claim.text, v.claim.source, v.verdict, cases]
        rows.append([*row, f"{worst.name}: {numbers}"])
    notes = [
        "Supported: it holds in every case, that is, the 95 % interval of the paired advantage "
        "excludes anything less. Not supported: an interval excludes the claim, or leaves it open. "
        "Not tested: runs are missing, or fewer than two seeds are common.",
        "An advantage of a metric on a log scale is a factor (×), of another one a difference; it "
        "is of the first method over the second.",
    ]
    return Table(
        "claims",
        "Claims, each compared on common seeds",
        ["claim", "sentence", "source", "verdict", "holds in cases", "worst case"],
        ["claim", "sentence", "source", "verdict", "holds", "worst"],
        rows,
        notes,
        texts=range(6),
    )


def case_table(v: Verdict) -> Table:
    """Every case of one claim with its numbers."""
    keys = list(v.cases[0].settings)
    heads = ["better", "than", *(setting(key).short for key in keys)]
    rows: list[list[Cell]] = []
    for case in v.cases:
        c = case.comparison
        rows.append(
            [
                case.better,
                case.than,
                *(show(value) for value in case.settings.values()),
                c.n if c else "",
                _effect(v.claim.metric, c),
                _counts(c),
                f"{c.p:.3g}" if c else "",
                case.state + (f": {case.reason}" if case.reason else ""),
            ]
        )
    metric = METRICS[v.claim.metric]
    margin = "" if v.claim.margin is None else f" by more than {v.claim.margin:g}"
    notes = [
        f"{metric.label}, {metric.better} is better{margin}: the mean advantage over seeds with "
        "its 95 % interval by Student's t"
        + (" on logarithms (a ratio)." if metric.log else ".")
        + " Seeds: better / equal / worse. p: exact two-sided sign test."
    ]
    if v.claim.metric in TO_TARGET:
        notes.append(
            "A run that ended before the target took more rounds than it had: where that happened "
            "on one side only the advantage is a bound, on both sides it has no interval."
        )
    return Table(
        f"claim-{v.claim.name}",
        f"{v.claim.text} ({v.verdict})",
        [*heads, "seeds", "advantage", "better / equal / worse", "p", "the claim"],
        ["better", "than", *keys, "seeds", "advantage", "counts", "p", "state"],
        rows,
        notes,
        v.claim.tags,
        (0, 1, len(heads) + 4),
    )


def to_json(frame: Frame, verdicts: Sequence[Verdict]) -> str:
    """`claims.json`: all verdicts and cases, for machines; an open end of an interval is null."""
    content = {
        "suite": frame.suite.name,
        "title": frame.suite.spec.title,
        "note": frame.suite.scale_note,
        "claims": [
            {
                **v.claim.model_dump(include={"name", "text", "source", "metric", "margin"}),
                "verdict": v.verdict,
                "reason": v.reason,
                "worst": v.worst.name,
                "cases": [
                    {
                        "better": case.better,
                        "than": case.than,
                        "settings": case.settings,
                        "state": case.state,
                        "reason": case.reason,
                        **_numbers(case.comparison),
                    }
                    for case in v.cases
                ],
            }
            for v in verdicts
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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
