"""The record of one run."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator, with_config
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from teleport_bench.metrics import AXES
from teleport_bench.registry import StrictModel

SCHEMA: Literal[1] = 1
"""Version of the record's layout; a record of another version is not read."""

LARGEST = 2.0**100
"""On an axis: of rounds, gradients or bytes."""

Round = Annotated[int, Field(ge=0, le=2**31 - 1)]

Status = Literal["finished", "diverged", "failed"]


@with_config(ConfigDict(extra="allow"))
class Code(TypedDict, total=False):
    """Of the package; sources: a hash of its files, native ones too; plugins: the version of each
    that the run used."""

    version: str | None
    commit: str | None
    dirty: bool | None
    sources: str
    plugins: dict[str, str]


@with_config(ConfigDict(extra="allow"))
class Environment(TypedDict):
    """Of the machine; `provenance.environment` says what else."""

    id: str
    device: str
    processor: str


@with_config(ConfigDict(extra="allow"))
class Posed(TypedDict, total=False):
    """What `Problem.describe` says."""

    data: dict[str, Any]
    parameters: int
    label_histogram: list[list[int]]


class Made(StrictModel):
    """When, how fast, where and by which code: all that two runs of one command may differ in."""

    date: str
    seconds: float
    """Wall time of the run's fleet."""
    fleet: dict[str, int]
    """Runs and rows that advanced together."""
    engine: Literal["compiled", "graph", "torch"] | None = None
    """What advanced the rounds: "compiled" (C++), "graph" (CUDA graphs) or "torch"."""
    phases: dict[str, float]
    """Seconds in data, gradient, mix and metric: the run's share of its fleet, by rows."""
    environment: Environment
    code: Code


class Record(StrictModel):
    """One run: its resolved settings, its status, its curves.

    curves: by axis or metric name, one value an evaluation; empty for a failed run, and up to the
    last sound evaluation for a diverged one, which has no final value.

    In a file it has a digest besides (`to_line`), by which `Store.load` sees whether it was changed
    there; records of earlier versions have none.
    """

    schema_version: Literal[1] = SCHEMA
    id: str
    status: Status
    spec: dict[str, Any]
    problem: Posed = {}
    curves: dict[str, list[float]] = {}
    diverged_at: Round | None = None
    reached_at: Round | None = None
    """The round in which the run reached its target (`spec.stop`); None where it did not, or has
    none. A run that reached it ended soon after, and its curves with it."""
    error: str | None = None
    made: Made

    @model_validator(mode="before")
    @classmethod
    def _without_digest(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("digest"), str):
            return {key: value for key, value in data.items() if key != "digest"}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        lengths = {len(values) for values in self.curves.values()}
        if len(lengths) > 1:
            raise ValueError(f"curves must have one length, got {sorted(lengths)}")
        if self.status == "finished":
            if missing := [axis for axis in AXES if not self.curves.get(axis)]:
                raise ValueError(f"a finished run has curves, and none of {', '.join(missing)}")
            if not all(0 <= self.curves[axis][-1] <= LARGEST for axis in AXES):
                raise ValueError(f"rounds, gradients and bytes are 0 to {LARGEST:.3g}")
        if self.status == "failed" and self.curves:
            raise ValueError("a failed run has no curves")
        if (self.status == "diverged") != (self.diverged_at is not None):
            raise ValueError("diverged_at goes with status 'diverged', and with no other")
        if (self.status == "failed") != (self.error is not None):
            raise ValueError("error goes with status 'failed', and with no other")
        return self

    def to_line(self) -> bytes:
        """The record as a line of JSON, its digest at the end."""
        text = self.model_dump_json(indent=None)
        return f'{text[:-1]},"digest":"{digest_of(json.loads(text))}"}}\n'.encode()

    def final(self, metric: str) -> float:
        """The metric's value at the end; KeyError unless the run finished."""
        if self.status != "finished":
            raise KeyError(f"run {self.id} is {self.status}: it has no final {metric}")
        return self.curves[metric][-1]

    def result(self) -> dict[str, Any]:
        """All that the run's settings decide: the record without `made`."""
        return self.model_dump(exclude={"made"})


def digest_of(content: dict[str, Any]) -> str:
    """SHA-256 of a record's content, without its digest, as JSON with sorted keys: 32 hex digits.

    Neither spaces nor the order of keys matter.
    """
    content = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
