"""Where the time of a run goes, as a trace that chrome://tracing and ui.perfetto.dev open."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

MOST_EVENTS = 500_000
"""Of a trace, 40 MB: viewers take no more; what comes later is not in it."""

_current: ContextVar[Trace | None] = ContextVar("teleport_bench.trace", default=None)


class Trace:
    """Spans of time by name, on two tracks: fleets, and the phases of their rounds."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._events: list[dict[str, Any]] = []
        self.dropped = 0

    def add(self, name: str, began: float, seconds: float, track: int = 1, **facts: Any) -> None:
        """A span that began at that time of `time.perf_counter`."""
        if len(self._events) == MOST_EVENTS:
            self.dropped += 1
            return
        event = {"name": name, "ph": "X", "pid": 1, "tid": track, "cat": "teleport-bench"}
        event |= {"ts": 1e6 * (began - self._began), "dur": 1e6 * seconds, "args": facts}
        self._events.append(event)

    def add_calls(self, names: Sequence[str], began: float, ends: Sequence[float]) -> None:
        """Calls one after the other; ends: seconds from the first's begin to the end of each."""
        for name, start, end in zip(names, [0.0, *ends], ends, strict=False):
            self.add(name, began + start, end - start)

    def write(self, path: Path) -> None:
        """As JSON in the trace event format."""
        tracks = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": {"name": name}}
            for tid, name in enumerate(("fleets", "phases of the rounds"))
        ]
        path.write_text(json.dumps({"traceEvents": tracks + self._events}), "utf-8")


def current() -> Trace | None:
    """The trace that is being taken, if any."""
    return _current.get()


@contextmanager
def taking() -> Iterator[Trace]:
    """What runs in here is traced."""
    trace = Trace()
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)
