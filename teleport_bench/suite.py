"""Suites: TOML files that expand into runs, and say which tables and figures to draw of them."""

from __future__ import annotations

import copy
import itertools
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, ValidationError

from teleport_bench.errors import UserError, nearest
from teleport_bench.metrics import AXES, METRICS
from teleport_bench.registry import StrictModel
from teleport_bench.spec import RunSpec, build_algorithm, canonical

MetricName = Literal[tuple(METRICS)]  # type: ignore[valid-type]
AxisName = Literal[tuple(AXES)]  # type: ignore[valid-type]
SpecKey = Literal["nodes", "active", "lr", "seed"]

MAX_RUNS = 100_000


class Method(StrictModel):
    """One method of the comparison: settings of its own over [run], and a grid of its own.

    label: its name in tables and figures; `{key}` stands for a setting, as in "k = {active}".
    """

    label: str | None = None
    grid: dict[str, list[Any]] = {}
    run: dict[str, Any] = {}


class Tune(StrictModel):
    """How step sizes are chosen: every cell of the suite is run at every value, on other seeds.

    The best mean of the metric at the end wins; a value with a diverged run is out; ties go to the
    smaller value.
    """

    lr: list[PositiveFloat] = Field(min_length=1)
    seeds: list[NonNegativeInt] = Field(min_length=1)
    metric: MetricName  # type: ignore[valid-type]


class TableSpec(StrictModel):
    """A table. With `pivot`, one row a method and one column a value of that setting."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    caption: str = ""
    values: list[MetricName] = Field(min_length=1)  # type: ignore[valid-type]
    pivot: SpecKey | None = None


class FigureSpec(StrictModel):
    """A figure of metric y: a curve where x is an axis, final values where x is a setting.

    columns: one panel a value of that setting. ylim: the range of y that is shown.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    caption: str = ""
    y: MetricName  # type: ignore[valid-type]
    x: AxisName | SpecKey = "rounds"  # type: ignore[valid-type]
    columns: SpecKey | None = None
    ylim: tuple[float, float] | None = None


class SuiteSpec(StrictModel):
    """The keys of a suite file.

    run: settings of all runs (keys of RunSpec). grid: lists of values; every combination is run.
    method: the methods compared, each with settings and a grid of its own. tune: how step sizes are
    chosen. table, figure: what the report shows.
    """

    title: str
    about: str = ""
    run: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    method: list[dict[str, Any]] = Field(min_length=1)
    tune: Tune | None = None
    table: list[TableSpec] = []
    figure: list[FigureSpec] = []


@dataclass(frozen=True)
class PlannedRun:
    """A run of a suite: its method's label and its cell, all settings but step size and seed."""

    label: str
    cell: str
    spec: RunSpec


@dataclass
class Suite:
    """A suite, validated and expanded: `Suite.load("demo")`, `Suite.load("my.toml", ["lr=1"])`."""

    name: str
    spec: SuiteSpec
    source: dict[str, Any]
    """The parsed file, overrides applied: what `from_source` takes."""
    tuning: list[PlannedRun] = field(default_factory=list)
    """The runs that choose step sizes; empty without [tune]."""
    _reported: list[PlannedRun] = field(default_factory=list)

    @classmethod
    def load(cls, name: str, overrides: Sequence[str] = ()) -> Suite:
        """A built-in suite by name, or any suite file by path; overrides are KEY=VALUE.

        Raises UserError naming file, line, key, and what was expected.
        """
        path = find(name)
        try:
            text = path.read_text()
            source = tomllib.loads(text)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot read suite {path}: {reason}") from error
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{path} is not TOML: {error}") from error
        for override in overrides:
            _override(source, override)
        return cls.from_source(suite_name(name), source, _Locator(str(path), text))

    @classmethod
    def from_source(
        cls, name: str, source: dict[str, Any], locator: _Locator | None = None
    ) -> Suite:
        """Validate and expand the parsed content of a suite file."""
        where = locator or _Locator(name, "")
        try:
            spec = SuiteSpec.model_validate(source)
        except ValidationError as error:
            raise UserError(where.explain(error, lambda loc: [loc])) from None
        suite = cls(name, spec, source)
        suite._expand(where)
        return suite

    def _expand(self, where: _Locator) -> None:
        tune, base, grid = self.spec.tune, self.spec.run, self.spec.grid
        if tune:
            for place, table in (("run", base), ("grid", grid)):
                if "lr" in table:
                    raise UserError(where.at((place, "lr"), "[tune] chooses lr: leave lr out here"))
        for i, raw in enumerate(self.spec.method):
            own = {k: v for k, v in raw.items() if k not in ("label", "grid")}
            head = {k: v for k, v in raw.items() if k in ("label", "grid")}
            places = _places(i)
            try:
                method = Method.model_validate({**head, "run": own})
            except ValidationError as error:
                raise UserError(where.explain(error, places)) from None

            def spec_of(
                cell: dict[str, Any],
                own: dict[str, Any] = own,
                places: Callable[[Loc], list[Loc]] = places,
                **settings: Any,
            ) -> RunSpec:
                merged = _merge(_merge(base, own), {})
                for key, value in {**cell, **settings}.items():
                    _put(merged, key.split("."), value)
                try:
                    return RunSpec.model_validate(merged)
                except ValidationError as error:
                    raise UserError(where.explain(error, places)) from None

            for cell in _product({**grid, **method.grid}):
                if tune:
                    rounds = (_merge(base, own) | cell).get("rounds")
                    trial = {k: v for k, v in cell.items() if k != "seed"} | {"eval_every": rounds}
                    for lr, seed in itertools.product(tune.lr, tune.seeds):
                        run = spec_of(trial, lr=lr, seed=seed)
                        self._plan(self.tuning, method, run)
                    spec = spec_of(cell, lr=tune.lr[0])
                    if spec.seed in tune.seeds:
                        raise UserError(
                            where.at(
                                ("tune", "seeds"),
                                f"seed {spec.seed} is both tuned on and reported: take other seeds",
                            )
                        )
                else:
                    spec = spec_of(cell)
                self._plan(self._reported, method, spec)
                if len(self.all_runs()) > MAX_RUNS:
                    raise UserError(
                        f"{where.name}: more than {MAX_RUNS} runs: make the grid smaller"
                    )
        if tune:  # cells differ in seed; their trials are the same runs
            self.tuning = list({run.spec.id: run for run in self.tuning}.values())
        ids = [run.spec.id for run in self._reported]
        if len(set(ids)) < len(ids):
            twice = next(run for run in self._reported if ids.count(run.spec.id) > 1)
            raise UserError(
                f"{where.name}: two methods or grid points are the same run ({twice.label}, "
                f"nodes {twice.spec.nodes}, seed {twice.spec.seed}): remove one"
            )

    def _plan(self, runs: list[PlannedRun], method: Method, spec: RunSpec) -> None:
        label = method.label or default_label(spec)
        try:
            label = label.format(**spec.model_dump(mode="json"))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.name}: label {label!r} names no setting of a run ({error}): "
                "use keys such as {active} or {nodes}"
            ) from None
        runs.append(PlannedRun(label, cell_of(label, spec), spec))

    def reported(self, chosen: dict[str, float] | None = None) -> list[PlannedRun]:
        """The runs that tables and figures show, at the chosen step size of each cell.

        chosen: step size by cell, for a suite that tunes; a cell without one is left out.
        """
        if not self.spec.tune:
            return self._reported
        chosen = chosen or {}
        return [
            PlannedRun(run.label, run.cell, _with_lr(run.spec, chosen[run.cell]))
            for run in self._reported
            if run.cell in chosen
        ]

    def planned(self) -> list[PlannedRun]:
        """The reported runs before step sizes are chosen: all but `lr` is as it will be."""
        return self._reported

    def all_runs(self) -> list[PlannedRun]:
        """Tuning runs and reported runs, the latter as in `planned`."""
        return [*self.tuning, *self._reported]

    def cells(self) -> list[tuple[str, str, RunSpec]]:
        """(cell, label, a spec of it) of every cell that is reported, in order."""
        return list({run.cell: (run.cell, run.label, run.spec) for run in self._reported}.values())


def default_label(spec: RunSpec) -> str:
    """The algorithm's own label, with k where the algorithm chooses its active nodes."""
    algorithm = build_algorithm(spec.algorithm)
    return algorithm.label + (f", k={spec.n_active}" if algorithm.partial else "")


def cell_of(label: str, spec: RunSpec) -> str:
    """What runs that differ only in step size, seed and evaluation rounds have in common."""
    rest = spec.model_dump(mode="json", exclude={"lr", "seed", "eval_every"})
    return f"{label} | {canonical(rest)}"


def _with_lr(spec: RunSpec, lr: float) -> RunSpec:
    return RunSpec.model_validate(spec.model_dump(mode="json") | {"lr": lr})


def built_in() -> dict[str, Path]:
    """The suites that come with the package, by name ("demo", "paper/fig2")."""
    package = Path(str(resources.files("teleport_bench")))
    # inside an installed package, or beside it in a checkout
    root = next((p for p in (package / "suites", package.parent / "suites") if p.is_dir()), None)
    if root is None:
        return {}
    return {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.toml"))}


def find(name: str) -> Path:
    """The file of a built-in suite, or the path given."""
    suites = built_in()
    if name in suites:
        return suites[name]
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        return path
    raise UserError(
        f"unknown suite '{name}'{nearest(name, suites)}; or give the path of a .toml file"
    )


def suite_name(name: str) -> str:
    """The folder of a suite's results: the built-in name, or the file's without its ending."""
    return name if name in built_in() else Path(name).stem


Loc = tuple[str | int, ...]


def _places(method: int) -> Callable[[Loc], list[Loc]]:
    """Where in the file a setting of that method's runs may have been given, likeliest first."""

    def places(loc: Loc) -> list[Loc]:
        return [
            ("method", method, *loc),
            ("method", method, "grid", *loc),
            ("method", method, "grid", ".".join(map(str, loc))),
            ("grid", *loc),
            ("grid", ".".join(map(str, loc))),
            ("run", *loc),
            ("tune", *loc),
            ("method", method),
        ]

    return places


@dataclass
class _Locator:
    """Finds the line of a key in a TOML file, for error messages."""

    name: str
    text: str

    def explain(self, error: ValidationError, places: Callable[[Loc], list[Loc]]) -> str:
        """All mistakes, one a line, each with its place."""
        lines = []
        for problem in error.errors(include_url=False):
            loc: Loc = tuple(p for p in problem["loc"])
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "missing":
                message = "is missing"
            elif problem["type"] not in ("invalid", "value_error"):
                message = f"{message[0].lower()}{message[1:]}, got {problem['input']!r}"
            candidates = places(loc)
            numbered = [(loc_, n) for c in candidates if (n := self.line(c)) for loc_ in (c,)]
            place = numbered[0][0] if numbered else candidates[0]
            lines.append(self.at(place, f"{_dotted(loc)}: {message}"))
        return "\n".join(dict.fromkeys(lines))

    def at(self, place: Loc, message: str) -> str:
        line = self.line(place)
        return f"{self.name}, line {line}: {message}" if line else f"{self.name}: {message}"

    def line(self, place: Loc) -> int | None:
        """The line where that key, or its nearest parent below the top level, is given."""
        lines = dict(self._keys())
        for depth in range(len(place), 0, -1):
            if place[:depth] in lines and (depth > 1 or len(place) == 1):
                return lines[place[:depth]]
        return None

    def _keys(self) -> Iterator[tuple[Loc, int]]:
        header: Loc = ()
        counts: dict[str, int] = {}
        for number, line in enumerate(self.text.splitlines(), start=1):
            if match := re.match(r"\s*\[\[\s*([^\]]+?)\s*\]\]", line):
                name = match[1]
                header = (name, counts.get(name, 0))
                counts[name] = header[1] + 1
                yield header, number
            elif match := re.match(r"\s*\[\s*([^\]]+?)\s*\]", line):
                parts = _split(match[1])
                inside = counts.get(parts[0])
                header = (parts[0], inside - 1, *parts[1:]) if inside else tuple(parts)
                yield header, number
            elif match := re.match(r"\s*([\w.\"'-]+)\s*=(.*)", line):
                key = (*header, *_split(match[1]))
                yield key, number
                # keys of an inline table stand on the same line
                for inner in re.finditer(r"[{,]\s*([\w.\"-]+)\s*=", match[2]):
                    yield (*key, *_split(inner[1])), number


def _split(dotted: str) -> list[str]:
    if dotted.startswith(('"', "'")):
        return [dotted.strip("\"'")]
    return [part.strip().strip("\"'") for part in dotted.split(".")]


def _dotted(loc: Loc) -> str:
    return ".".join(map(str, loc)) or "suite"


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables merge key by key; a table that names another component replaces the whole."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and "name" not in value:
            merged[key] = _merge(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _put(table: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """table[a][b].. = value; a name on the way becomes a table with that name."""
    for key in path[:-1]:
        inner = table.setdefault(key, {})
        if isinstance(inner, str):
            inner = table[key] = {"name": inner}
        if not isinstance(inner, dict):
            raise UserError(f"cannot set {'.'.join(path)}: {key} is {inner!r}, not a table")
        table = inner
    table[path[-1]] = copy.deepcopy(value)


def _product(grid: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))


def _override(source: dict[str, Any], override: str) -> None:
    """Apply KEY=VALUE: a dotted key of the suite file, or a setting of RunSpec for all runs."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"--set takes KEY=VALUE, got {override!r}")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    path = key.split(".")
    if path[0] in SuiteSpec.model_fields:
        _put(source, path, value)
        return
    if path[0] not in RunSpec.model_fields:
        known = [*RunSpec.model_fields, *SuiteSpec.model_fields]
        raise UserError(f"--set {key}: unknown key '{path[0]}'{nearest(path[0], known)}")
    # one setting for all runs: it replaces whatever the grid and the methods say
    tables = [source, *(m for m in source.get("method", []) if isinstance(m, dict))]
    for table in tables:
        if isinstance(table.get("grid"), dict):
            table["grid"].pop(key, None)
    for method in tables[1:]:
        _drop(method, path)
    if key == "lr":
        source.pop("tune", None)
    _put(source, ["run", *path], value)


def _drop(table: dict[str, Any], path: Sequence[str]) -> None:
    for part in path[:-1]:
        inner = table.get(part)
        if not isinstance(inner, dict):
            return
        table = inner
    table.pop(path[-1], None)


def to_json(suite: Suite) -> str:
    """What `report` needs of a suite, beside its records."""
    return json.dumps({"name": suite.name, "suite": suite.source}, indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> Suite:
    """The suite that `to_json` wrote."""
    content = json.loads(text)
    return Suite.from_source(content["name"], content["suite"])
