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
    """What a run gave; censored: the truth is worse than the value, by an unknown amount."""

    value: float
    censored: bool = False


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

    A run without a value (it diverged) is given as the worst value there is, censored.
    """
    sign = 1 if better == "higher" else -1
    wins = ties = losses = 0
    for x, y in zip(a, b, strict=True):
        d = sign * (x.value - y.value)
        if x.censored and y.censored:
            continue
        if x.censored or y.censored:  # the bound tells only on its own side of the other value
            wins += y.censored and d >= 0
            losses += x.censored and d <= 0
            continue
        wins, ties, losses = wins + (d > 0), ties + (d == 0), losses + (d < 0)
    counts = (len(a), wins, ties, losses, log, _sign_test(wins, losses))
    below, above = (any(r.censored for r in side) for side in (b, a))
    values = [r.value for r in (*a, *b)]
    sound = all(math.isfinite(v) and (v > 0 or not log) for v in values)
    if len(a) < 2 or not sound or (below and above):
        return Comparison(*counts)
    scale = math.log if log else float
    gains = [sign * (scale(x.value) - scale(y.value)) for x, y in zip(a, b, strict=True)]
    mean, half = _t_interval(gains)
    back = _exp if log else float
    low = (0.0 if log else -math.inf) if above else back(mean - half)
    return Comparison(*counts, back(mean), low, math.inf if below else back(mean + half))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:  # an interval of two seeds that are far apart
        return math.inf


def _t_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its interval."""
    from scipy.special import stdtrit

    n = len(values)
    mean = _sum(values) / n
    variance = _sum([(v - mean) * (v - mean) for v in values]) / (n - 1)
    quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return mean, quantile * math.sqrt(variance / n)


def _sign_test(wins: int, losses: int) -> float:
    """The probability of a split at least as uneven, were either side as likely."""
    n, few = wins + losses, min(wins, losses)
    return min(1.0, math.fsum(math.comb(n, i) for i in range(few + 1)) / 2.0 ** (n - 1))
