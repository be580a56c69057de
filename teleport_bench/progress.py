"""The progress bar: how far, how long still, and how well the runs do."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm

from teleport_bench.fleet import Tick
from teleport_bench.metrics import METRICS
from teleport_bench.spec import RunSpec


class Meter:
    """Counts node rounds (one row through one round), the unit that takes about constant time."""

    def __init__(self, *, show: bool = True) -> None:
        self._show = show
        self._bar: tqdm[None] | None = None
        self._rounds = 0
        self._metric = ""
        self.executed = 0
        """Runs started so far."""

    def start(self, specs: Sequence[RunSpec]) -> None:
        """What is to be done in all."""
        if not specs:
            return
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=sum(s.n_active * s.rounds for s in specs),
            disable=not self._show,
            unit=" node rounds",
            unit_scale=True,
            # a log file gets a line now and then, a terminal a bar that moves
            mininterval=0.1 if terminal else 10,
            dynamic_ncols=terminal,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {elapsed} < {remaining}{postfix}",
        )

    def note(self, text: str) -> None:
        """A line beside the bar, or before there is one."""
        if self._bar is not None and self._show:
            self._bar.write(text, file=sys.stderr)
        elif self._show:
            print(text, file=sys.stderr)

    def fleet(self, specs: Sequence[RunSpec]) -> None:
        """These runs advance together from now on."""
        self._rounds, self._metric = specs[0].rounds, ""
        self.executed += len(specs)
        if self._bar is not None:
            runs = "1 run" if len(specs) == 1 else f"{len(specs)} runs"
            self._bar.set_description(f"{specs[0].algorithm['name']}, {runs}", refresh=False)

    def tick(self, tick: Tick) -> None:
        """A step of the round loop."""
        if self._bar is None:
            return
        if tick.metric is not None and tick.value is not None:
            known = METRICS.get(tick.metric)
            text = known.format.format(tick.value) if known else f"{tick.value:.3g}"
            self._metric = f", {tick.metric} {text}"
        self._bar.set_postfix_str(f"round {tick.round}/{self._rounds}{self._metric}", refresh=False)
        self._bar.update(tick.updates)

    def close(self) -> None:
        """End the bar's line."""
        if self._bar is not None:
            self._bar.close()
