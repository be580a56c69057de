"""Suites: TOML files that expand into runs, and say which tables and figures to draw of them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import json
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from teleport_bench import plugins
from teleport_bench.conditions import Away
from teleport_bench.errors import UserError, nearest
from teleport_bench.locator import MOST_SHOWN, Locator, brief
from teleport_bench.metrics import of_test_set
from teleport_bench.positions import TOO_DEEP, Loc, Positions
from teleport_bench.registry import (
    ALGORITHMS,
    PROBLEMS,
    SCHEDULES,
    TOPOLOGIES,
    StrictModel,
    counts_rounds,
    error_at,
)
from teleport_bench.shown import (
    Check,
    ClaimSpec,
    FigureSpec,
    MetricName,
    ProfileSpec,
    TableSpec,
    distinct,
)
from teleport_bench.spec import RunSpec, Stop, build_algorithm, canonical, usual_eval_every
from teleport_bench.theory import TheorySpec
from teleport_bench.untrusted import check_name, check_plain, filled, parsed, read

Search = Literal["search", "best"]
"""How [tune] chooses k, as a method's `active`. search: all powers of two but the largest share a
network for T rounds, then the largest has it for T more. best: each has a network of its own."""

Scale = Literal["full", "small"]


def _each_once(values: list[Any]) -> list[Any]:
    """Of few values, the runs that are the same are named later; many would take too long."""
    if len(values) > 100 and len({canonical(value) for value in values}) < len(values):
        raise UserError(f"expected each value once, got {len(values)} values with equal ones")
    return values


Values = Annotated[list[Any], Field(min_length=1), AfterValidator(_each_once)]

MAX_RUNS = 100_000

MOST_ITEMS = 500
"""Methods of a suite, and tables, figures, claims and profiles, of each."""

ITEMS = ("table", "figure", "claim", "profile")
"""What a report shows of runs."""

T = TypeVar("T")
Items = Annotated[list[T], Field(max_length=MOST_ITEMS)]

TOGETHER = "*"
"""The key of a grid whose values are tables of settings that go together."""


class Method(StrictModel):
    """One method of the comparison: settings of its own over [run], and a grid of its own.

    label: its name in tables and figures; `{key}` stands for a setting, as in "k = {active}".
    search: set by `active = "search"` or `active = "best"`, for a k that [tune] chooses.
    """

    label: str | None = None
    search: Search | None = None
    grid: dict[str, Values] = {}
    run: dict[str, Any] = {}


class Tune(StrictModel):
    """How step sizes are chosen: every cell of the suite is run at every value, on other seeds.

    The best mean of the metric at the end wins; a value with a diverged run is out; ties go to the
    smaller value. Where a method's k is chosen too, the best pair wins, and ties go to the
    smaller k first.

    runners_up: other seeds might have chosen otherwise. With this, every value is run on the
    reported seeds as well that at least 5 % of the resamples of these seeds would choose
    (`tune.resamples`), and the interval of a claim is over all of them.
    """

    lr: Annotated[list[PositiveFloat], AfterValidator(distinct)] = Field(min_length=1)
    seeds: Annotated[list[NonNegativeInt], AfterValidator(distinct)] = Field(min_length=1)
    metric: MetricName
    runners_up: bool = False


class MeasuredTheory(TheorySpec):
    """What the theory says, in the report of a suite.

    measured: the metric by which the best k of the suite's runs is shown beside the derived one.
    """

    measured: MetricName | None = None


class SuiteSpec(StrictModel):
    """The keys of a suite file.

    run: settings of all runs (keys of RunSpec). grid: lists of values; every combination is run
    (settings that go together are tables under the key "*").
    method: the methods compared, each with settings and a grid of its own, which win over [run] and
    [grid]. set: settings that win over all of these, as `--set` gives them. tune: how step sizes
    are chosen. equal: what the runs have in common: the rounds that are given, or the epochs that
    D-SGD makes in them, for which k of n active nodes with H local steps take n/(k H) times as many
    rounds, and of whatever else is counted in rounds (evaluations, looks at a target, spells away,
    options of the schedule and of other components that are marked with `registry.ROUNDS`).
    alone: no run shares its fleet with another, so that its times are its own.

    table, figure, claim, profile: what the report shows. theory: rates and best k by the derived
    bounds, for a suite with or without runs. network: what simulated time and the bytes of the
    busiest node are computed by. duration: how long it takes, by machine, as text. small: what
    `--scale small` sets instead, in the same tables. scale_note: set by it, the label of all that
    it gives.
    """

    title: str
    about: str = ""
    run: dict[str, Any] = {}
    grid: dict[str, Values] = {}
    method: Items[dict[str, Any]] = []
    set: dict[str, Any] = {}
    small: dict[str, Any] = {}
    scale_note: str | None = None
    tune: Tune | None = None
    alone: bool = False
    equal: Literal["rounds", "epochs"] = "rounds"
    duration: dict[str, str] = {}
    network: dict[str, Any] = {}
    table: Items[TableSpec] = []
    figure: Items[FigureSpec] = []
    claim: Items[ClaimSpec] = []
    profile: Items[ProfileSpec] = []
    theory: MeasuredTheory | None = None

    @model_validator(mode="after")
    def _something(self) -> SuiteSpec:
        if not self.method and not self.theory:
            raise error_at(("method", "is missing: a suite compares at least one [[method]]"))
        return self


@dataclass(frozen=True)
class PlannedRun:
    """A run of a suite: its method's label and its cell, all settings but step size and seed (and
    but k, where that is chosen)."""

    label: str
    cell: str
    spec: RunSpec
    search: Search | None = None


@dataclass
class Suite:
    """A suite, validated and expanded: `Suite.load("demo")`, `Suite.load("my.toml", ["lr=1"])`."""

    name: str
    spec: SuiteSpec
    source: dict[str, Any]
    """The parsed file, overrides applied: what `from_source` takes."""
    tuning: list[PlannedRun] = field(default_factory=list)
    """The runs that choose step sizes; empty without [tune]."""
    overrides: Sequence[str] = ()
    """As given to `load`: `report` applies them to the file again."""
    _reported: list[PlannedRun] = field(default_factory=list)
    _tuned: set[str] = field(default_factory=set)
    """The cells whose trials are in `tuning`."""
    _notes: list[str] = field(default_factory=list)
    """Of `notes`, those on what was left behind when the suite was loaded."""
    _simulated: bool = False
    """Whether the report shows what a network costs."""

    @property
    def scale_note(self) -> str | None:
        """What all that a run at small scale gives is labelled with; None at full scale."""
        return self.spec.scale_note

    @classmethod
    def load(cls, name: str, overrides: Sequence[str] = (), scale: Scale = "full") -> Suite:
        """A built-in suite by name, or any suite file by path; overrides are KEY=VALUE.

        scale: "small" sets what the file has under [small]. Raises UserError naming file, line,
        key, and what was expected, at either scale also for mistakes under [small].
        """
        if scale not in get_args(Scale):
            raise UserError(f"unknown scale '{scale}'{nearest(str(scale), get_args(Scale))}")
        path = find(name)
        text = read(path)
        source = parsed(text, str(path))
        locator = Locator(str(path), text)
        check_plain(source, locator)
        if scale == "small":
            source = _at_small_scale(source, locator)
        tuned = "tune" in source
        for override in overrides:
            locator.overridden[_override(source, override)] = f"--set {override}"
        suite = cls.from_source(suite_name(name, scale), source, locator)
        suite.overrides = list(overrides)
        if tuned and "tune" not in source:
            suite._notes.append("--set lr: it is given, so that [tune] chooses nothing")
        keys = [override.partition("=")[0].strip() for override in overrides]
        for key in dict.fromkeys(key for key in keys if keys.count(key) > 1):
            suite._notes.append(f"--set {key} is given more than once, and the last one holds")
        if scale == "full" and suite.spec.small:
            try:  # what is set for this scale may not suit the other
                cls.load(name, (), "small")
            except UserError:
                cls.load(name, overrides, "small")  # but the file may need it
        return suite

    @classmethod
    def from_source(
        cls, name: str, source: dict[str, Any], locator: Locator | None = None
    ) -> Suite:
        """Validate and expand the parsed content of a suite file."""
        where = locator or Locator(name, "")
        check_plain(source, where)
        try:
            spec = SuiteSpec.model_validate(source)
        except ValidationError as error:
            raise UserError(where.explain(error, lambda loc: [loc])) from None
        suite = cls(name, spec, source)
        suite._expand(where)
        return suite

    def _expand(self, where: Locator) -> None:
        spec, tune = self.spec, self.spec.tune
        if tune:
            for place in ("run", "grid", "set"):
                if "lr" in getattr(spec, place):
                    raise UserError(where.at((place, "lr"), "[tune] chooses lr: leave lr out here"))
        self._check_size(where)
        method_of: dict[str, int] = {}
        for i, raw in enumerate(spec.method):
            for label in self._expand_method(i, raw, where):
                if method_of.setdefault(label, i) != i:
                    message = f"two methods have the label {label!r}: give each a label of its own"
                    raise UserError(where.at(("method", i, "label"), message))
        seen: set[tuple[str, Search | None]] = set()
        for run in self._reported:
            if (run.spec.id, run.search) in seen:
                raise UserError(
                    f"{where.name}: two methods or grid points are the same run ({run.label}, "
                    f"nodes {run.spec.nodes}, seed {run.spec.seed}): remove one"
                )
            seen.add((run.spec.id, run.search))
        self._check_report(where)

    def _expand_method(self, i: int, raw: dict[str, Any], where: Locator) -> list[str]:
        """Plan the runs of method i; returns their labels."""
        tune, places = self.spec.tune, _places(i)
        own = {k: v for k, v in raw.items() if k not in ("label", "grid")}
        options = {k: v for k, v in raw.items() if k not in own}
        self._check_active(own.get("active"), raw.get("grid"), where, i)
        if own.get("active") in get_args(Search) and "active" not in self.spec.set:
            options["search"] = own.pop("active")
            if not tune:
                message = f'active = "{options["search"]}" needs [tune], which chooses it'
                raise UserError(where.at(("method", i, "active"), message))
            if self.spec.equal == "epochs":
                message = "a search for k compares equal rounds: give a k, or leave equal out"
                raise UserError(where.at(("method", i, "active"), message))
        try:
            method = Method.model_validate(options | {"run": own})
        except ValidationError as error:
            raise UserError(where.explain(error, lambda loc: [("method", i, *loc)])) from None
        for place, table in (((), own), (("grid",), method.grid)):
            if tune and "lr" in table:
                message = "[tune] chooses lr: leave lr out here"
                raise UserError(where.at(("method", i, *place, "lr"), message))
        base = _merge(self.spec.run, own)
        if method.search:
            self._check_choosable(base.get("algorithm"), i, where)
        self._check_ignored(i, own, method.grid, where)
        grid = self._grid(own, method.grid)

        def spec_of(cell: dict[str, Any], **trial: Any) -> RunSpec:
            merged = copy.deepcopy(base)
            key = ""
            try:
                for key, value in (*_in_order(cell), *_in_order(self.spec.set)):
                    if key == TOGETHER and isinstance(value, dict):
                        merged = _merge(merged, value)
                    else:
                        _put(merged, key.split("."), value)
                if self.spec.equal == "epochs":
                    _to_equal_epochs(merged)
                return RunSpec.model_validate(merged | trial)
            except _UnevenError as error:
                raise UserError(where.best(places(error.place), str(error))) from None
            except ValidationError as error:
                raise UserError(where.explain(error, places)) from None
            except UserError as error:
                raise UserError(where.best(places((key,)), str(error))) from None

        first = len(self._reported)
        for cell in _product(grid):
            if not tune:
                run = spec_of(cell)
            else:
                k = {"active": 1} if method.search else {}
                run = spec_of(cell, lr=tune.lr[0], **k)
                if method.search and run.share:
                    message = "share: the candidates of a search share their draw: leave it out"
                    raise UserError(where.best(places(("share",)), message))
                if run.stop and of_test_set(run.stop.metric):
                    message = (
                        f"stop: tuning would look at '{run.stop.metric}', of the test set on which "
                        "its choice is then reported: stop at a metric of other data, such as "
                        "validation_accuracy"
                    )
                    raise UserError(where.best(places(("stop", "metric")), message))
                if run.seed in tune.seeds:
                    message = f"seed {run.seed} is both tuned on and reported: take other seeds"
                    raise UserError(where.at(("tune", "seeds"), message))
            planned = self._plan(i, method, run, where)
            self._reported.append(planned)
            if tune and planned.cell not in self._tuned:  # its seeds share their trials
                self._tuned.add(planned.cell)
                for k in candidates(run.nodes, method.search):
                    first_trial = spec_of(cell, lr=tune.lr[0], eval_every=run.rounds, **k)
                    for lr, seed in itertools.product(tune.lr, tune.seeds):
                        trial = first_trial.varied(lr=lr, seed=seed)
                        self.tuning.append(dataclasses.replace(planned, spec=trial))
            if len(self.tuning) + len(self._reported) > MAX_RUNS:
                raise UserError(f"{where.name}: more than {MAX_RUNS} runs: make the grid smaller")
        return [run.label for run in self._reported[first:]]

    def _grid(self, own: dict[str, Any], of_method: dict[str, Any]) -> dict[str, Any]:
        """What a method's runs vary: what it says itself is not varied by the suite's grid, and
        what --set says by none."""
        grid: dict[str, Any] = {
            k: v for k, v in self.spec.grid.items() if not _has(own, k.split("."))
        }
        return {
            k: v
            for k, v in (grid | of_method).items()
            if not any(k == key or k.startswith(f"{key}.") for key in self.spec.set)
        }

    def _check_ignored(
        self, i: int, own: dict[str, Any], of_method: dict[str, list[Any]], where: Locator
    ) -> None:
        """Refuse settings of a method that another place would replace without a word."""
        for key in of_method:
            if key != TOGETHER and key not in self.spec.set and _has(own, key.split(".")):
                message = f"{key}: the method's grid has it too: give it in one of the two"
                raise UserError(where.at(("method", i, *key.split(".")), message))
        grid = self._grid(own, of_method)
        for table in grid.get(TOGETHER, ()):
            for path in _settings(table) if isinstance(table, dict) else ():
                key = ".".join(path)
                if _has(own, path):
                    message = f'{key}: the tables "*" of the grid set it too: give it in one place'
                    raise UserError(where.at(("method", i, *path), message))
                over = [".".join(path[:d]) for d in range(1, len(path) + 1)]
                if both := [k for k in over if k in grid]:
                    message = f'{both[0]}: the tables "*" set {key} too: give it in one place'
                    places: list[Loc] = [("method", i, "grid", both[0]), ("grid", both[0])]
                    raise UserError(where.best(places, message))
        if "topology" not in {key.partition(".")[0] for key in (*own, *of_method)}:
            return
        try:
            choice = ALGORITHMS.resolve(own.get("algorithm", self.spec.run.get("algorithm", "")))
            fixed = build_algorithm(choice).graph and "algorithm" not in {*grid, *self.spec.set}
        except ValueError:
            return  # a run says what is wrong with it, or its algorithm is of a grid
        if fixed:
            message = f"{choice['name']} has graphs of its own: leave topology out"
            places = [("method", i, "topology"), ("method", i, "grid", "topology")]
            raise UserError(where.best(places, f"topology: {message}"))

    def notes(self) -> list[str]:
        """What is given and has no effect on the suite's runs or on its report, in words; a
        mistake it need not be."""
        found = list(self._notes)
        own = [(raw, raw.get("grid") or ()) for raw in self.spec.method]
        for key in self.spec.grid if own else ():
            if all(key in grid or _has(raw, key.split(".")) for raw, grid in own):
                found.append(f"[grid] {key}: every method has its own, so that no run takes this")
        if not own:
            given = [
                key
                for key in ("run", "grid", "set", "tune", "network", *ITEMS)
                if getattr(self.spec, key)
            ]
            found += [f"{key}: there is no [[method]] whose runs it could be of" for key in given]
        kinds = {
            canonical([s.rounds, s.schedule, s.eval_every, s.stop and s.stop.model_dump()]): s
            for s in (run.spec for run in self._reported)
        }
        found += [note for spec in kinds.values() for note in ineffective(spec)]
        tune = self.spec.tune
        if tune and len(self.tuning) == len(tune.seeds) * len(self._tuned):
            found.append(
                f"[tune] has one step size, {tune.lr[0]:g}, so that its runs choose nothing: give "
                "lr in [run] instead"
            )
        elif tune and tune.runners_up and len(tune.seeds) == 1:
            found.append(
                "[tune] runners_up resamples tune.seeds, which has one: give more, or leave "
                "runners_up out"
            )
        if own and self.spec.network and not self._simulated:
            found.append(
                "[network]: no table, figure, claim or profile shows time or bytes_busiest, so "
                "that nothing is computed by it, nor is it checked"
            )
        return list(dict.fromkeys(found))

    def _check_size(self, where: Locator) -> None:
        """Count the runs before any is made; of tuning those that are there whatever else is."""
        runs, tune = 0, self.spec.tune
        for i, raw in enumerate(self.spec.method):
            of_method = raw.get("grid")
            grid = self._grid(raw, of_method if isinstance(of_method, dict) else {})
            sizes = {key: len(v) for key, v in grid.items() if isinstance(v, list)}
            runs += math.prod(sizes.values())
            if tune:
                shared = ("seed", "eval_every", TOGETHER)
                cells = math.prod(size for key, size in sizes.items() if key not in shared)
                runs += cells * len(tune.lr) * len(tune.seeds)
            if runs > MAX_RUNS:
                places: list[Loc] = [("method", i, "grid"), ("grid",), ("tune",)]
                too_many = f"more than {MAX_RUNS} runs: make the grid smaller"
                raise UserError(where.best(places, too_many))

    def _check_active(self, active: Any, grid: Any, where: Locator, i: int) -> None:
        """Where a k to be chosen is misspelt, or stands in a grid."""
        listed = grid.get("active") if isinstance(grid, dict) else None
        words = [w for w in (listed if isinstance(listed, list) else ()) if isinstance(w, str)]
        if isinstance(active, str) and active not in get_args(Search):
            words.append(active)
        if words:
            message = (
                f"active: expected a number of nodes, got {brief(words[0])}; for a k that [tune] "
                'chooses give the method active = "search" or active = "best", and not in a grid'
            )
            places: list[Loc] = [("method", i, "active"), ("method", i, "grid", "active")]
            raise UserError(where.best(places, message))

    def _check_choosable(self, algorithm: Any, i: int, where: Locator) -> None:
        try:
            choice = ALGORITHMS.resolve(algorithm)
        except ValueError:
            return  # a run says what is wrong with it
        if not build_algorithm(choice).partial:
            message = f"{choice['name']} has all nodes active: there is no k to choose, so leave "
            raise UserError(where.at(("method", i, "active"), message + "active out"))

    def _plan(self, i: int, method: Method, spec: RunSpec, where: Locator) -> PlannedRun:
        label = method.label or default_label(spec, method.search)
        # a k that is chosen is not known yet
        unknown = {"lr", "active", "share"} if method.search else {"lr"} if self.spec.tune else None
        try:
            label = filled(label, spec.settings(exclude=unknown))
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            message = (
                f"label {brief(label)} names no setting of a run, or not as it can be shown "
                f"({error}): "
                "use keys such as {active} or {nodes}"
            )
            raise UserError(where.at(("method", i, "label"), message)) from None
        return PlannedRun(label, cell_of(label, spec, method.search), spec, method.search)

    def _check_report(self, where: Locator) -> None:
        """Every table and figure shows metrics that there are, and averages over seeds alone."""
        tune = self.spec.tune
        chosen = {"lr"} if tune else set()
        if any(run.search for run in self._reported):
            chosen |= {"active", "share"}
        runs = [(run.label, run.spec) for run in self._reported]
        check = Check(runs, chosen, self.spec.network, where, small=self.scale_note is not None)
        if tune:
            check.evaluated(tune.metric, "no step size is chosen by it", ("tune", "metric"))
            if of_test_set(tune.metric):
                message = (
                    f"[tune] would choose by '{tune.metric}', of the test set on which its choice "
                    "is then reported: take a metric of other data, such as validation_accuracy"
                )
                raise UserError(where.at(("tune", "metric"), message))
        check.tables(self.spec.table)
        check.figures(self.spec.figure)
        check.claims(self.spec.claim)
        if self.spec.theory and (measured := self.spec.theory.measured):
            check.evaluated(measured, "no best k is found by it", ("theory", "measured"))
        check.profiles(self.spec.profile)
        self._simulated = check.simulated

    def reported(self, chosen: Mapping[str, Mapping[str, Any]] | None = None) -> list[PlannedRun]:
        """The runs that tables and figures show, at the chosen settings of each cell.

        chosen: step size, and k where it is chosen, by cell, for a suite that tunes; a cell without
        a choice is left out.
        """
        if not self.spec.tune:
            return self._reported
        chosen = chosen or {}
        return [
            dataclasses.replace(run, spec=run.spec.varied(**chosen[run.cell]))
            for run in self._reported
            if run.cell in chosen
        ]

    @functools.cached_property
    def exhaustive(self) -> Suite | None:
        """The tuning of the methods that search for k, with every k alone; None without any."""
        if not any(run.search == "search" for run in self.tuning):
            return None
        searching = [raw for raw in self.spec.method if raw.get("active") == "search"]
        source = self.source | {"method": [raw | {"active": "best"} for raw in searching]}
        return Suite.from_source(self.name, {**source, "table": [], "figure": [], "claim": []})

    def planned(self) -> list[PlannedRun]:
        """The reported runs before `lr`, and `active` where it is searched for, are chosen."""
        return self._reported

    def all_runs(self) -> list[PlannedRun]:
        """Tuning runs and reported runs, the latter as in `planned`."""
        return [*self.tuning, *self._reported]

    def cells(self) -> list[tuple[str, str, RunSpec]]:
        """(cell, label, a spec of it) of every cell that is reported, in order."""
        return list({run.cell: (run.cell, run.label, run.spec) for run in self._reported}.values())


def default_label(spec: RunSpec, search: Search | None = None) -> str:
    """The algorithm's own label, with k where the algorithm chooses its active nodes."""
    algorithm = build_algorithm(spec.algorithm)
    k = {"search": "k searched", "best": "best k", None: f"k={spec.n_active}"}[search]
    label: str = getattr(algorithm, "label", spec.algorithm["name"])  # a user's may have none
    return label + (f", {k}" if algorithm.partial else "")


def candidates(n_nodes: int, search: Search | None) -> list[dict[str, Any]]:
    """The settings that a choice of k is made from: none of its own where it is not searched for.

    All powers of two up to n. 1 + 2 + .. + 2^(m-1) = 2^m - 1 < n: in a search all of them but the
    largest, 2^m, are active at disjoint nodes in the same T rounds, and the largest in T more.
    """
    if search is None:
        return [{}]
    largest = 2 ** (n_nodes.bit_length() - 1)
    powers = [2**j for j in range(largest.bit_length())]
    if search == "best":
        return [{"active": k} for k in powers]
    shared = [
        {"active": k, "share": {"first": k - 1, "among": largest - 1}}
        for k in powers
        if k < largest
    ]
    return [*shared, {"active": largest}]


def cell_of(label: str, spec: RunSpec, search: Search | None = None) -> str:
    """What runs that differ only in what is chosen, seed and evaluation rounds have in common."""
    own = {"lr", "seed", "eval_every"} | ({"active", "share"} if search else set())
    return f"{label} | {canonical(spec.model_dump(mode='json', exclude=own))}"


def built_in() -> dict[str, Path]:
    """The suites that come with the package, by name ("demo", "paper/fig2")."""
    package = Path(str(resources.files("teleport_bench")))
    # inside an installed package, or beside it in a checkout
    root = next((p for p in (package / "suites", package.parent / "suites") if p.is_dir()), None)
    if root is None:
        return {}
    return {p.relative_to(root).with_suffix("").as_posix(): p for p in sorted(root.rglob("*.toml"))}


def scales(name: str) -> tuple[Scale, ...]:
    """The scales at which a suite can be run."""
    source = tomllib.loads(find(name).read_text("utf-8-sig"))
    return ("full", "small") if "small" in source else ("full",)


def of_group(name: str) -> list[str]:
    """The built-in suites of a folder ("paper"), or the suite of that name alone."""
    if name in built_in():
        return [name]
    folder = name.rstrip("/")
    return [suite for suite in built_in() if suite.startswith(f"{folder}/")] or [name]


def find(name: str) -> Path:
    """The file of a built-in suite, or the path given."""
    suites = built_in()
    if name in suites:
        return suites[name]
    path = Path(name)
    with contextlib.suppress(OSError, ValueError):  # longer than any name, or with a zero byte
        if path.suffix == ".toml" or path.exists():
            return path
    raise UserError(
        f"unknown suite {brief(name)}{nearest(name[:MOST_SHOWN], suites)}; or give the path of a "
        ".toml file"
    )


def suite_name(name: str, scale: Scale = "full") -> str:
    """The folder of a suite's results: the built-in name, or the file's without its ending, and
    the scale unless it is full."""
    stem = name if name in built_in() else Path(name).stem
    if not stem.strip("."):
        raise UserError(f"{name}: results would lie outside of their folder: rename the file")
    if name not in built_in():
        try:
            check_name(stem)
        except UserError as error:
            raise UserError(f"{brief(name)}, by which results are named: {error}") from None
    return stem if scale == "full" else f"{stem}-{scale}"


def _at_small_scale(source: dict[str, Any], where: Locator) -> dict[str, Any]:
    """The parsed file with what stands under [small] in its place, and a note that says so."""
    small = source.get("small")
    if not small or not isinstance(small, dict):
        raise UserError(f"{where.name} has no [small] table, so no other scale: leave --scale out")
    changes = []
    for path, value in _leaves(small, source):
        where.overridden[path] = where.place(("small", *path)) or "[small]"
        full: Any = source
        for key in path:
            full = full.get(key) if isinstance(full, dict) else None
        if path[0] in ("run", "grid", "tune"):
            was = "" if full is None else f" instead of {_brief(full)}"
            changes.append(f"{'.'.join(map(str, path[1:]))} = {_brief(value)}{was}")
    where.name += " at small scale"
    unchanged = {k: v for k, v in source.items() if k != "small"}
    merged = _merge(unchanged, small)
    if merged == unchanged:
        message = "small: all of it is as at full scale: change something, or leave [small] out"
        raise UserError(where.at(("small",), message))
    return merged | {"scale_note": f"Small scale: {'; '.join(changes)}."}


def _leaves(table: dict[str, Any], base: Any, path: Loc = ()) -> Iterator[tuple[Loc, Any]]:
    """Every value of a table of changes with its path; one that replaces a whole is one value."""
    for key, value in table.items():
        under = base.get(key) if isinstance(base, dict) else None
        if isinstance(value, dict) and isinstance(under, dict) and "name" not in value:
            yield from _leaves(value, under, (*path, key))
        else:
            yield (*path, key), value


def _brief(value: Any) -> str:
    """A setting in a sentence: a component by its name and options, a list in brackets."""
    if isinstance(value, dict) and "name" in value:
        options = ", ".join(f"{k} {_brief(v)}" for k, v in value.items() if k != "name")
        return f"{value['name']}" + (f" ({options})" if options else "")
    return canonical(value).replace('"', "").replace(",", ", ")


def _places(method: int) -> Callable[[Loc], list[Loc]]:
    """Where in the file a setting of that method's runs may have been given, strongest first."""

    def places(loc: Loc) -> list[Loc]:
        dotted = [".".join(map(str, loc[:d])) for d in range(len(loc), 1, -1)]
        tables: list[Loc] = [("set",), ("method", method, "grid"), ("method", method), ("grid",)]
        # a list in a grid has one line, whatever its element or its option
        in_tables = [(*t, *rest) for t in tables for rest in (loc, *((d,) for d in dotted))]
        return [*in_tables, ("run", *loc), ("tune", *loc)]

    return places


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
            message = f"cannot set {'.'.join(path)}: {key} is {brief(inner)}, not a table"
            raise UserError(message)
        table = inner
    table[path[-1]] = copy.deepcopy(value)


class _UnevenError(UserError):
    """A setting that equal epochs cannot stretch."""

    def __init__(self, place: Loc, message: str) -> None:
        super().__init__(message)
        self.place = place


def _to_equal_epochs(run: dict[str, Any]) -> None:
    """Give a run with k of n active nodes, each of H local steps, n/(k H) times its rounds, and so
    with all that is counted in rounds: see `registry.ROUNDS`."""
    n, k = run.get("nodes"), run.get("active", run.get("nodes"))
    try:
        steps = ALGORITHMS.resolve(run["algorithm"]).get("local_steps", 1)
    except (KeyError, ValueError, UserError):
        return  # validation says what is wrong
    if not (isinstance(n, int) and isinstance(k, int) and n > 0 and k > 0) or n == k * steps:
        return
    if isinstance(rounds := run.get("rounds"), int) and run.get("eval_every") is None:
        run["eval_every"] = usual_eval_every(rounds)

    more, fewer = n, k * steps

    def times(value: Any, place: Loc) -> Any:
        if isinstance(value, list):
            return [times(one, place) for one in value]
        if isinstance(value, float):
            return value * more / fewer
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        key = ".".join(map(str, place))
        if value * more % fewer:
            raise _UnevenError(
                place,
                f'equal = "epochs" makes {key} = {value} x nodes / (active x steps), and '
                f"{value} x {more} / {fewer} is no whole number: take another {key}",
            )
        return value * more // fewer

    def stretch(table: Any, model: type[BaseModel], place: Loc = ()) -> None:
        if isinstance(table, dict):
            for key in counts_rounds(model):
                value = table.get(key)
                if isinstance(value, int) and model.model_fields[key].annotation is float:
                    value = float(value)
                if value is not None:
                    table[key] = times(value, (*place, key))

    stretch(run, RunSpec)
    stretch(run.get("stop"), Stop, ("stop",))
    stretch(run.get("away"), Away, ("away",))
    for key, kind in COMPONENTS.items():
        if isinstance(choice := run.get(key), dict) and choice.get("name") in kind.names():
            stretch(choice, kind[choice["name"]].options, (key,))
    if isinstance(stop := run.get("stop"), dict) and stop.get("every") is None:
        raise _UnevenError(
            ("stop",),
            'equal = "epochs" needs the rounds between looks at the target, which are else as '
            "dense in long runs as in short ones: give stop an every, as in every = 10",
        )


COMPONENTS = {
    "algorithm": ALGORITHMS,
    "topology": TOPOLOGIES,
    "problem": PROBLEMS,
    "schedule": SCHEDULES,
}
"""The settings of a run that are components with options."""


def ineffective(spec: RunSpec) -> Iterator[str]:
    """Settings of a run that have no effect within its rounds, in words."""
    rounds, schedule = spec.rounds, spec.schedule
    warmup, milestones = schedule.get("warmup", 0), schedule.get("milestones", ())
    if SCHEDULES[schedule["name"]].component.__module__ == "teleport_bench.schedules":
        if warmup >= rounds:
            yield (
                f"schedule: {rounds} rounds end within a warm-up of {warmup}, before the step size "
                "that is given"
            )
        if late := [m for m in milestones if m >= rounds]:
            yield f"schedule: {rounds} rounds end before the milestones {', '.join(map(str, late))}"
    if stop := spec.stop:
        looks = len(spec.looks())
        if looks < stop.window:
            yield (
                f"stop: the target is never reached: it takes window = {stop.window} looks in a "
                f"row, and {rounds} rounds have {looks}"
            )
        elif (stop.every or 1) > rounds:
            yield f"stop: the one look of {rounds} rounds, every {stop.every}, is at the start"
    assert spec.eval_every is not None
    if spec.eval_every > rounds:
        yield (
            f"eval_every = {spec.eval_every} is more than the {rounds} rounds: a run is evaluated "
            "at its start and at its end alone"
        )


def _in_order(settings: dict[str, Any]) -> list[tuple[str, Any]]:
    """Settings by dotted key as they are put into a run, whatever the order in the file: tables
    under "*" first, and what is of a component after the component."""
    return sorted(settings.items(), key=lambda item: (item[0] != TOGETHER, item[0].count(".")))


def _settings(table: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The settings that `_merge` replaces by those of a table: a component as a whole."""
    for key, value in table.items():
        if isinstance(value, dict) and "name" not in value:
            yield from _settings(value, (*path, key))
        else:
            yield (*path, key)


def _product(grid: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values()))


def _has(table: Any, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(table, dict) or key not in table:
            return False
        table = table[key]
    return True


def _override(source: dict[str, Any], override: str) -> Loc:
    """Apply KEY=VALUE: a dotted key of the suite file, or a setting of RunSpec for all runs.

    Returns the place that it sets.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    path = key.split(".")
    if not equals or not all(path):
        raise UserError(
            f"--set takes KEY=VALUE, as in rounds=50 or problem.dim=7, got {override!r}"
        )
    assignment = f"value = {text.strip()}"
    if fault := Positions.of(assignment).fault:
        raise UserError(f"--set {key}: {fault[1]}")
    try:
        given = tomllib.loads(assignment)
        value = given["value"] if len(given) == 1 else text.strip()
    except ValueError:
        value = text.strip()  # a bare word is a string
    except RecursionError:
        raise UserError(f"--set {key}: {TOO_DEEP}") from None
    if path[0] in SuiteSpec.model_fields:
        _put(source, path, value)
        return tuple(path)
    if path[0] not in RunSpec.model_fields:
        known = [*RunSpec.model_fields, *SuiteSpec.model_fields]
        raise UserError(f"--set {key}: unknown key '{path[0]}'{nearest(path[0], known)}")
    if key == "lr":  # given, so not tuned
        source.pop("tune", None)
    source.setdefault("set", {})[key] = value
    return ("set", key)


def to_json(suite: Suite) -> str:
    """What `report` needs of a suite, beside its records; the plugins that it needs too, if any."""
    content: dict[str, Any] = {"name": suite.name, "suite": suite.source}
    if suite.overrides:
        content["overrides"] = suite.overrides
    if used := plugins.used(suite.source):
        content["plugins"] = used
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def from_json(text: str, path: str = "suite.json") -> Suite:
    """The suite that `to_json` wrote; UserError naming the path where it did not."""
    remedy = "run the suite again"
    try:
        content = json.loads(text)
        check_plain(content, Locator(path, ""))
        suite = Suite.from_source(content["name"], content["suite"], Locator(path, ""))
        suite.overrides = [str(override) for override in content.get("overrides", [])]
    except UserError as error:
        needed = content.get("plugins", {}) if isinstance(content, dict) else {}
        if isinstance(needed, dict) and (missing := needed.keys() - plugins.LOADED.keys()):
            names = ", ".join(sorted(missing))
            remedy = f"it was run with {names}: give files with --plugin here too, install packages"
        raise UserError(f"{error}\n{remedy}") from None
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}): {remedy}"
        ) from None
    return suite
