"""Summaries over seeds, and comparisons of methods on common seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

NO_STEP_SIZE = "no step size"
STATES = ("diverged", "failed", NO_STEP_SIZE, "missing")
"""Why a run has no result. "no step size": no value of the grid worked for its method."""


@dataclass(frozen=True)
class Summary:
    """The runs of one cell over its seeds.

    mean and std (sample standard deviation, n - 1) are there only when every run finished: the mean
    of the runs that happened to survive would flatter the method. Neither is there where a run is
    censored, known only to exceed its value: then `bound`, the mean of all values, is below the
    mean.
    """

    n: int
    states: tuple[tuple[str, int], ...]
    """How many runs did not finish, by status, most severe first."""
    mean: float | None
    std: float | None
    bound: float | None = None
    censored: int = 0

    def text(self, form: str) -> str:
        """`0.912 ± 0.004`, the mean alone for one run, or what became of the runs instead.

        `> 3120 (2 of 5 not reached)` for censored ones.
        """
        if self.bound is not None:
            missed = f"{self.censored} of {self.n} " if self.censored < self.n else ""
            return f"> {form.format(self.bound)} ({missed}not reached)"
        if self.mean is None:
            return ", ".join(
                state if count == self.n else f"{state} ({count} of {self.n})"
                for state, count in self.states
            )
        if self.std is None:
            return form.format(self.mean)
        return f"{form.format(self.mean)} ± {form.format(self.std)}"


def summarise(
    values: Sequence[float], states: Sequence[str], censored: Sequence[bool] = ()
) -> Summary:
    """values: one a run, NaN unless it finished; states: the status of each run.

    censored: which runs are known only to exceed their values; none unless given.
    """
    n = len(states)
    # a finished run whose record has not the metric
    states = [
        "missing" if v != v and s == "finished" else s for v, s in zip(values, states, strict=True)
    ]
    bad = tuple((state, count) for state in STATES if (count := sum(s == state for s in states)))
    if bad or n == 0:
        return Summary(n, bad or (("missing", 0),), None, None)
    mean = _sum(values) / n
    if any(censored):
        return Summary(n, (), None, None, mean, sum(censored))
    if n == 1:
        return Summary(n, (), mean, None)
    variance = _sum([(v - mean) * (v - mean) for v in values]) / (n - 1)
    return Summary(n, (), mean, math.sqrt(variance))


def _sum(values: Sequence[float]) -> float:
    """The exact sum, rounded; infinite where it is too large."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.copysign(math.inf, sum(values))


CONFIDENCE = 0.95


class Result(NamedTuple):
    """What a run gave; censored: the truth is worse than the value, by an unknown amount.

    best: where the truth is only known to lie between two values, the better one, which it does
    not reach: a time between two evaluations. `value` is the worse one.
    """

    value: float
    censored: bool = False
    best: float | None = None

    @property
    def most(self) -> float:
        return self.value if self.best is None else self.best


@dataclass(frozen=True)
class Comparison:
    """Method a against method b, on the seeds that both have.

    wins, ties, losses: seeds on which a is better, equal, worse; unknown: those that do not tell,
    as both are censored. p: of the exact two-sided sign test, ties left out.

    effect: by how much a is better. The mean difference or, where `ratio`, the geometric mean of
    the factor; above 0 (above 1) a is better. low, high: its 95 % interval, by Student's t on the
    differences (of the logarithms). Where seeds of b alone are censored, the effect of each is a
    lower bound, so `effect` and `low` are lower bounds of their own and `high` is infinite;
    likewise from above where seeds of a alone are. None of the three is there for censored seeds on
    both sides, for a run without any value, for the logarithm of a value that is not positive, or
    for fewer than two seeds.
    """

    n: int
    wins: int
    ties: int
    losses: int
    ratio: bool
    p: float
    effect: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def unknown(self) -> int:
        return self.n - self.wins - self.ties - self.losses

    def exceeds(self, margin: float | None = None) -> bool | None:
        """Whether the effect is above the margin (no effect, unless given): True or False where
        the interval excludes the other, or, without interval and margin, the sign test does;
        None where that is open.
        """
        if self.low is not None and self.high is not None:
            neutral = (1.0 if self.ratio else 0.0) if margin is None else margin
            return True if self.low > neutral else False if self.high < neutral else None
        if margin is None and self.p < 1 - CONFIDENCE:
            return self.wins > self.losses
        return None


def compare(a: Sequence[Result], b: Sequence[Result], better: str, log: bool = False) -> Comparison:
    """Compare seed by seed; better: "higher" or "lower" values; log: by their ratio.

    A run without a value (it diverged) is given as the worst value there is, censored. Where a
    truth is only known to lie between two values, a seed counts for a method where no value in
    between says otherwise, and either end of the interval is that of the values least in favour of
    the effect on its side.
    """
    return compare_choices([(1.0, a, b)], better, log)


def compare_choices(
    choices: Sequence[tuple[float, Sequence[Result], Sequence[Result]]],
    better: str,
    log: bool = False,
) -> Comparison:
    """`compare`, where several settings of a and b might have been chosen.

    choices: (weight, a, b) of each, the one that was chosen first: wins, ties, losses and p are of
    it. effect: the weighted mean. low, high: quantiles of the mixture, by weight, of the t
    distributions of the single choices, so that the interval has what the choice adds.
    """
    sign = 1 if better == "higher" else -1
    _, a, b = choices[0]
    wins, ties, losses = _counted(a, b, sign)
    counts = (len(a), wins, ties, losses, log, _sign_test(wins, losses))
    found = [_gains(mine, theirs, sign, log) for _, mine, theirs in choices]
    gains = [one for one in found if one is not None]
    if len(a) < 2 or len(gains) < len(found):
        return Comparison(*counts)
    total = math.fsum(weight for weight, *_ in choices)
    weights = [weight / total for weight, *_ in choices]
    back = _exp if log else float
    effect = _sum([w * _mean(g.middle) for w, g in zip(weights, gains, strict=True)])
    ends = []
    for side, sure in ((0, [g.low for g in gains]), (1, [g.high for g in gains])):
        open_ended = any(values is None for values in sure)
        parts = [_t_interval(values) for values in sure if values is not None]
        ends.append(None if open_ended else _quantile(weights, parts, side, len(a)))
    low = (0.0 if log else -math.inf) if ends[0] is None else back(ends[0])
    return Comparison(*counts, back(effect), low, math.inf if ends[1] is None else back(ends[1]))


def _counted(a: Sequence[Result], b: Sequence[Result], sign: int) -> tuple[int, int, int]:
    """Wins, ties and losses of a."""
    wins = ties = losses = 0
    for x, y in zip(a, b, strict=True):
        if x.censored and y.censored:
            continue
        least, most = sign * (x.value - y.most), sign * (x.most - y.value)
        if x.censored or y.censored:  # the bound tells only on its own side of the other value
            wins += y.censored and sign * (x.value - y.value) >= 0
            losses += x.censored and sign * (x.value - y.value) <= 0
        elif least == most:
            wins, ties, losses = wins + (least > 0), ties + (least == 0), losses + (least < 0)
        else:  # the better end is not reached: from there on is apart
            wins += least > 0 or (least == 0 and y.best is not None)
            losses += most < 0 or (most == 0 and x.best is not None)
    return wins, ties, losses


class _Gains(NamedTuple):
    """By how much a is better on each seed: as the values say, at least, and at most; None where
    there is no bound."""

    middle: list[float]
    low: list[float] | None
    high: list[float] | None


def _gains(a: Sequence[Result], b: Sequence[Result], sign: int, log: bool) -> _Gains | None:
    """None where they are not numbers, or censored on both sides."""
    below, above = (any(r.censored for r in side) for side in (b, a))
    values = [r.value for r in (*a, *b)]
    if not all(math.isfinite(v) and (v > 0 or not log) for v in values) or (below and above):
        return None

    def scale(value: float) -> float:
        return (math.log(value) if value > 0 else -math.inf) if log else value

    pairs = list(zip(a, b, strict=True))
    middle = [sign * (scale(x.value) - scale(y.value)) for x, y in pairs]
    low = [sign * (scale(x.value) - scale(y.most)) for x, y in pairs]
    high = [sign * (scale(x.most) - scale(y.value)) for x, y in pairs]
    return _Gains(
        middle,
        None if above or not all(map(math.isfinite, low)) else low,
        None if below or not all(map(math.isfinite, high)) else high,
    )


def _quantile(
    weights: Sequence[float], parts: Sequence[tuple[float, float]], side: int, n: int
) -> float:
    """An end of the interval of a mixture: 0 for the lower, 1 for the upper one.

    parts: (mean, half) of each t distribution with n - 1 degrees of freedom.
    """
    from scipy.special import stdtr, stdtrit

    ends = [mean + (half if side else -half) for mean, half in parts]
    if len(parts) == 1:
        return ends[0]
    unit = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    goal = (1 + CONFIDENCE) / 2 if side else (1 - CONFIDENCE) / 2

    def below(value: float) -> float:
        shares = [
            float(stdtr(n - 1, (value - mean) * unit / half)) if half else float(value >= mean)
            for mean, half in parts
        ]
        return math.fsum(w * share for w, share in zip(weights, shares, strict=True))

    low, high = min(ends), max(ends)
    for _ in range(100):  # the quantile of a mixture lies between those of its parts
        middle = low + (high - low) / 2
        low, high = (low, middle) if below(middle) >= goal else (middle, high)
    return high


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:  # an interval of two seeds that are far apart
        return math.inf


def _mean(values: Sequence[float]) -> float:
    return _sum(values) / len(values)


def _t_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its interval."""
    from scipy.special import stdtrit

    n, mean = len(values), _mean(values)
    variance = _sum([(v - mean) * (v - mean) for v in values]) / (n - 1)
    quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return mean, quantile * math.sqrt(variance / n)


def _sign_test(wins: int, losses: int) -> float:
    """The probability of a split at least as uneven, were either side as likely."""
    n, few = wins + losses, min(wins, losses)
    return min(1.0, math.fsum(math.comb(n, i) for i in range(few + 1)) / 2.0 ** (n - 1))
