"""What a report shows of a suite: tables, figures and claims that its runs can fill."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from teleport_bench.errors import UserError, nearest
from teleport_bench.locator import Locator, brief
from teleport_bench.metrics import (
    AXES,
    COST_AXES,
    COSTS,
    METRICS,
    NOT_EVALUATED,
    ROUND_TIME,
    ROUNDS_TO_TARGET,
    TO_TARGET,
    Metric,
)
from teleport_bench.positions import Loc
from teleport_bench.registry import StrictModel, error_at
from teleport_bench.spec import RunSpec
from teleport_bench.topologies import topology
from teleport_bench.untrusted import check_name

Scalar = str | bool | int | float
T = TypeVar("T")


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise UserError(f"unknown metric '{name}'{nearest(name, METRICS)}")
    return name


def _ascending(limits: tuple[float, float]) -> tuple[float, float]:
    if max(map(abs, limits)) > 1e100:
        raise UserError(f"expected limits of at most 1e100, got {list(limits)}")
    if limits[0] >= limits[1]:
        raise UserError(f"expected the lower limit before the upper, got {list(limits)}")
    return limits


def distinct(values: list[T]) -> list[T]:
    if len(set(values)) < len(values):
        raise UserError(f"expected each value once, got {values}")
    return values


def _scalars(value: Any) -> Any:
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, Scalar):
            raise UserError(
                f"expected a text, a number, true or false, or a list of them, got {brief(one)}"
            )
    return value


MetricName = Annotated[str, AfterValidator(_known_metric)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=64), AfterValidator(check_name)]


class Item(StrictModel):
    """What tables, figures and claims have in common.

    where: settings by dotted key, each with its value or a list of values; only runs that agree are
    shown. network: settings that win over the suite's [network]. paper, derived, assumed: what of
    the item is the paper's, what follows from it, and what is a choice made here.
    """

    name: Name
    where: dict[str, Annotated[Scalar | list[Scalar], BeforeValidator(_scalars)]] = {}
    network: dict[str, Any] = {}
    paper: str | None = None
    derived: str | None = None
    assumed: str | None = None

    @property
    def tags(self) -> list[tuple[str, str]]:
        """("paper" | "derived" | "assumed", text) of those that are given."""
        tags = (("paper", self.paper), ("derived", self.derived), ("assumed", self.assumed))
        return [(tag, text) for tag, text in tags if text]

    @property
    def patterns(self) -> list[str]:
        """Patterns of the labels that are shown; none for all."""
        return []

    def shows(self, label: str, settings: Mapping[str, Scalar]) -> bool:
        """Whether a run with that label and those settings (`settings_of`) is shown."""
        patterns = self.patterns
        return (not patterns or any(matches(label, p) for p in patterns)) and all(
            value_of(settings, key) in (want if isinstance(want, list) else [want])
            for key, want in self.where.items()
        )


class _Drawn(Item):
    """methods: patterns of the labels that are shown, as in "D-SGD*"; all where there is none."""

    caption: str = ""
    methods: list[str] = []

    @property
    def patterns(self) -> list[str]:
        return self.methods


class TableSpec(_Drawn):
    """A table. With `pivot`, one row a method and one column a value of that setting.

    pivot: any setting of the runs by its dotted key, as in "problem.partition.alpha".
    """

    values: Annotated[list[MetricName], AfterValidator(distinct)] = Field(min_length=1)
    pivot: str | None = None


class FigureSpec(_Drawn):
    """A figure of metric y: a curve where x is an axis, final values where x is a setting.

    x: "rounds", "epochs", .. (an axis of curves), or a setting by its dotted key. columns, rows:
    one panel a value of that setting. ylim: the range of y that is shown.
    """

    y: MetricName
    x: str = "rounds"
    columns: str | None = None
    rows: str | None = None
    ylim: Annotated[tuple[float, float], AfterValidator(_ascending)] | None = None

    @property
    def curve(self) -> bool:
        return self.x in AXES or self.x in COSTS

    @property
    def keys(self) -> list[str]:
        """The settings on its axes."""
        keys = [self.columns, self.rows, None if self.curve else self.x]
        return [key for key in keys if key]


class ClaimSpec(Item):
    """A sentence of the paper as a comparison that the records decide.

    better, than: patterns of labels. Every pair of their methods at equal settings is a case, and
    its seeds are paired. by: the settings that make cases; all that vary within a method, unless
    given. match: settings in which the two methods must agree beyond these, as in "topology.name".
    margin: the advantage that is claimed: of a metric on a log scale the factor (1 unless given),
    of another one the difference (0 unless given). source: whose the sentence is.
    also: other metrics, of which the same is judged beside the first.

    kind: "final" compares the metric at the end; "time_to" what it takes to reach each of `values`
    of it, counted on `x` (an axis of curves, such as "rounds" or "time"): each value is a case. A
    run is there at the first evaluation that is no worse and from which on `window` in a row (fewer
    at the end of the run) are no worse in the mean: noise alone does not carry it there. It was not
    at the evaluation before, and what lies between the two is open.
    networks: lists of settings of the network; each combination is a case.
    """

    text: str
    source: Literal["paper", "derived", "assumed"]
    metric: MetricName
    better: str
    than: str
    by: list[str] | None = None
    match: list[str] = []
    margin: float | None = None
    also: Annotated[list[MetricName], AfterValidator(distinct)] = []
    kind: Literal["final", "time_to"] = "final"
    values: Annotated[list[float], AfterValidator(distinct)] = []
    x: str = "rounds"
    window: PositiveInt = 3
    networks: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}

    @model_validator(mode="after")
    def _of_its_kind(self) -> ClaimSpec:
        if self.kind == "time_to" and not self.values:
            message = "is missing: name the values to be reached, as in values = [0.7, 0.8]"
            raise error_at(("values", message))
        if self.x not in (known := (*AXES, *COSTS)):
            message = f"unknown axis '{self.x}'{nearest(self.x, known)}"
            raise error_at(("x", message))
        if self.kind == "final":
            for key in sorted({"values", "x", "window"} & self.model_fields_set):
                message = 'is of kind = "time_to": give that, or leave it out'
                raise error_at((key, message))
        return self

    @property
    def patterns(self) -> list[str]:
        return [self.better, self.than]

    @property
    def measured(self) -> Metric:
        """What is compared."""
        if self.kind == "final":
            return METRICS[self.metric]
        axis = {**AXES, **COST_AXES}[self.x]
        label = f"{axis}, to a given {METRICS[self.metric].label}"
        return Metric(label, "lower", "{:.4g}", log=True)

    @property
    def costs(self) -> list[str]:
        """The axes and metrics that it needs."""
        return [self.x] if self.kind == "time_to" else [self.metric, *self.also]

    @property
    def each(self) -> list[ClaimSpec]:
        """The claim, and the same of every other metric."""
        others = [
            self.model_copy(update={"name": f"{self.name}-{name}", "metric": name, "also": []})
            for name in self.also
        ]
        return [self.model_copy(update={"also": []}), *others] if others else [self]

    @property
    def on_networks(self) -> list[dict[str, Any]]:
        """What wins over the suite's [network], one a combination of `networks`."""
        keys = sorted(self.networks)  # as a suite that was run has them
        grid = itertools.product(*(self.networks[key] for key in keys))
        return [{**self.network, **dict(zip(keys, at, strict=True))} for at in grid]


class ProfileSpec(_Drawn):
    """How close each method comes to the best of all, over many cases: a performance profile.

    metric: a cost, of which less is better. A case is a problem with one seed; `by` names the
    settings that make cases, all that vary within a method unless given. The figure has, for every
    factor, the share of the cases that a method solves within that factor of the best method's
    cost; the table has mean ranks. Source: Dolan and More 2002.
    """

    metric: MetricName
    by: list[str] | None = None


OWN = ("seed", "lr", "active", "share.first", "share.among", "eval_every")
"""Settings that make no case of a claim by themselves: they belong to a method, or to a seed."""


def matches(label: str, pattern: str) -> bool:
    return label == pattern or fnmatchcase(label, pattern)


def settings_of(spec: RunSpec) -> dict[str, Scalar]:
    """Every setting of a run by its dotted key; of a component its name, as "topology.name"."""
    return {
        key: value if isinstance(value, Scalar) else str(value)
        for key, value in flat(spec.settings()).items()
        if value is not None
    }


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted key."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return found


def value_of(settings: Mapping[str, Scalar], key: str) -> Scalar | None:
    """A setting; a component is its name and its options: "torus", "random_regular (degree 3)"."""
    if key in settings or f"{key}.name" not in settings:
        return settings.get(key)
    options = {k.removeprefix(f"{key}."): v for k, v in settings.items() if k.startswith(f"{key}.")}
    name = options.pop("name")
    inner = ", ".join(f"{k.removesuffix('.name')} {v}" for k, v in options.items())
    return f"{name} ({inner})" if inner else name


def show(value: Scalar | None) -> str:
    """A setting's value as text."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def order(value: Scalar | None) -> tuple[bool, bool, Scalar]:
    """Sorts settings: numbers by value, then texts, and none last."""
    return value is None, isinstance(value, str), 0 if value is None else value


def keys_of(settings: Mapping[str, Scalar]) -> list[str]:
    """The keys that `value_of` knows."""
    return [*settings, *(k.removesuffix(".name") for k in settings if k.endswith(".name"))]


def varying(labels: Sequence[str], settings: Sequence[Mapping[str, Scalar]]) -> list[str]:
    """The settings that differ between runs of one label, without those of `OWN`."""
    first: dict[str, Mapping[str, Scalar]] = {}
    names: dict[str, None] = {}
    differ: set[str] = set()
    for label, mine in zip(labels, settings, strict=True):
        other = first.setdefault(label, mine)
        names |= dict.fromkeys(mine)
        differ |= {k for k in {**other, **mine} if other.get(k) != mine.get(k)}
    return [k for k in names if k in differ and k not in OWN]


TABLES = (
    *("step-sizes", "tuning-cost", "claims", "search"),
    *("rates", "exponents", "spectral-gaps", "best-k", "best-k-measured"),
)
FIGURES = ("search", "best-k")
"""Names that a report gives to what it has of its own."""


@dataclass
class Check:
    """Refuses, at load, items that the runs of a suite cannot fill.

    runs: (label, spec) of the reported runs, as planned. chosen: the settings that tuning decides.
    """

    runs: Sequence[tuple[str, RunSpec]]
    chosen: Collection[str]
    network: Mapping[str, Any]
    where: Locator
    small: bool = False
    """Whether some of what items ask for may be left out at this scale."""

    def __post_init__(self) -> None:
        self._settings = [settings_of(spec) for _, spec in self.runs]
        self._files: dict[str, str] = {}
        """Of the names of tables and figures, in small letters, their kinds."""
        self.simulated = False
        """Whether an item shows what a network costs."""

    def evaluated(self, name: str, why: str, place: Loc) -> None:
        """A metric that records hold, and not one that is measured or computed of a whole run."""
        if name in (*COSTS, *NOT_EVALUATED) and name != ROUNDS_TO_TARGET:
            how = "measured" if name == ROUND_TIME else "computed for a report"
            message = f"'{name}' is {how} and not evaluated along a run; {why}"
            raise UserError(self.where.at(place, message))
        self._metrics([name], range(len(self.runs)), place)

    def tables(self, items: Sequence[TableSpec]) -> None:
        for i, item in enumerate(items):
            place: Loc = ("table", i)
            shown = self._shown(item, place)
            self._metrics(item.values, shown, (*place, "values"))
            self._costs(item, item.values, place)
            self._name(items, i, "table", TABLES)
            if item.pivot:
                self._key(item.pivot, shown, (*place, "pivot"))
                self._average(f"table '{item.name}'", [item.pivot], shown, place)

    def figures(self, items: Sequence[FigureSpec]) -> None:
        for i, item in enumerate(items):
            place: Loc = ("figure", i)
            shown = self._shown(item, place)
            self._metrics([item.y], shown, (*place, "y"))
            self._costs(item, [item.y, item.x], place)
            for name in ("x", "columns", "rows"):
                key = getattr(item, name)
                if key and not (name == "x" and item.curve):
                    more = (*AXES, *COSTS) if name == "x" else ()
                    self._key(key, shown, (*place, name), more)
            if item.curve and item.y in NOT_EVALUATED:
                message = (
                    f"'{item.y}' is of a whole run, and there is no curve of it: take a setting as "
                    "x, such as nodes, active, lr or seed"
                )
                raise UserError(self.where.at((*place, "y"), message))
            if len(set(item.keys)) < len(item.keys):
                message = f"x, columns and rows are to be distinct, got {', '.join(item.keys)}"
                raise UserError(self.where.at(place, f"{message}: leave one out"))
            if item.ylim and METRICS[item.y].log and item.ylim[0] < 1e-100:
                message = f"{item.y} is drawn on a logarithmic axis, so ylim is to be of numbers "
                message += f"of 1e-100 or more, got {list(item.ylim)}"
                raise UserError(self.where.at((*place, "ylim"), message))
            self._name(items, i, "figure", FIGURES)
            self._average(f"figure '{item.name}'", item.keys, shown, place)

    def claims(self, items: Sequence[ClaimSpec]) -> None:
        for i, item in enumerate(items):
            place: Loc = ("claim", i)
            shown = self._shown(item, place)
            self._metrics([item.metric], shown, (*place, "metric"))
            self._metrics(item.also, shown, (*place, "also"))
            if item.metric in item.also:
                message = f"{item.metric} is the claim's own metric: leave it out here"
                raise UserError(self.where.at((*place, "also"), message))
            if item.kind == "time_to":
                for key, name in [("metric", item.metric), *(("also", m) for m in item.also)]:
                    if name in (*COSTS, *NOT_EVALUATED):
                        message = f"'{name}' has no curve, along which a value could be reached"
                        raise UserError(self.where.at((*place, key), message))
            simulated = {TO_TARGET.get(name, name) for name in item.costs} & set(COSTS)
            if item.networks and not simulated:
                message = (
                    'nothing here depends on the network: give x = "time" or '
                    'x = "bytes_busiest", or leave networks out'
                )
                raise UserError(self.where.at((*place, "networks"), message))
            for network in item.on_networks:
                self._costs(item, item.costs, place, network)
            named = [each for claim in items[:i] for each in claim.each]
            for each in item.each:
                if each.name.lower() in [other.name.lower() for other in named]:
                    message = f"two claims have the name '{each.name}': give each a name of its own"
                    raise UserError(self.where.at((*place, "name"), message))
                named.append(each)
            log = [each.metric for each in item.each if each.measured.log]
            if log and item.margin is not None and item.margin <= 0:
                message = f"the margin of {log[0]} is a factor, so more than 0, got {item.margin}"
                raise UserError(self.where.at((*place, "margin"), message))
            by = case_keys(
                item, [self.runs[j][0] for j in shown], [self._settings[j] for j in shown]
            )
            for name in ("by", "match"):
                for key in getattr(item, name) or []:
                    if key == "seed":
                        message = "seeds are paired within a case, and make none: leave seed out"
                        raise UserError(self.where.at((*place, name), message))
                    self._key(key, shown, (*place, name))
            self._average(f"claim '{item.name}'", by, shown, place)
            cases: list[set[tuple[Any, ...]]] = [set(), set()]
            labels: list[set[str]] = [set(), set()]
            for j in shown:
                for side, pattern in enumerate(item.patterns):
                    if matches(self.runs[j][0], pattern):
                        cases[side].add(tuple(value_of(self._settings[j], key) for key in by))
                        labels[side].add(self.runs[j][0])
            if both := labels[0] & labels[1]:
                message = f"{sorted(both)[0]!r} is on both sides: compare it with another method"
                raise UserError(self.where.at((*place, "than"), message))
            if not cases[0] & cases[1]:
                message = (
                    f"no {item.better!r} and no {item.than!r} agree in {', '.join(by)}: nothing to "
                    "compare; name the settings that must agree with by = [..]"
                )
                raise UserError(self.where.at(place, message))

    def profiles(self, items: Sequence[ProfileSpec]) -> None:
        for i, item in enumerate(items):
            place: Loc = ("profile", i)
            shown = self._shown(item, place)
            self._metrics([item.metric], shown, (*place, "metric"))
            self._costs(item, [item.metric], place)
            self._name(items, i, "profile")
            if METRICS[item.metric].better != "lower":
                message = f"a profile is of a cost, and of {item.metric} more is better"
                raise UserError(self.where.at((*place, "metric"), message))
            by = case_keys(
                item, [self.runs[j][0] for j in shown], [self._settings[j] for j in shown]
            )
            for key in item.by or []:
                self._key(key, shown, (*place, "by"))
            self._average(f"profile '{item.name}'", by, shown, place)

    def _shown(self, item: Item, place: Loc) -> list[int]:
        """The runs that the item shows, each of its patterns and conditions being met by some."""
        labels = list(dict.fromkeys(label for label, _ in self.runs))
        for pattern in item.patterns:
            if not any(matches(label, pattern) for label in labels):
                message = f"no method has a label like {pattern!r}: there are "
                message += ", ".join(map(repr, labels))
                key = "methods"
                if isinstance(item, ClaimSpec):
                    key = "better" if pattern == item.better else "than"
                raise UserError(self.where.at((*place, key), message))
        for key in item.where:
            if key in self.chosen:
                message = f"[tune] chooses {key}: it cannot be a condition"
                raise UserError(self.where.best([(*place, "where", key)], message))
            there = {k for settings in self._settings for k in keys_of(settings)}
            if key not in there:
                message = f"unknown setting '{key}'{nearest(key, there)}"
                raise UserError(self.where.best([(*place, "where", key)], message))
        shown = [
            j for j, (label, _) in enumerate(self.runs) if item.shows(label, self._settings[j])
        ]
        if not shown and self.runs:
            found = {k: sorted({str(value_of(s, k)) for s in self._settings}) for k in item.where}
            values = "; ".join(f"{key} is {', '.join(v)}" for key, v in found.items())
            message = f"no run has {item.where}: {values}"
            raise UserError(self.where.at((*place, "where"), message))
        for key, want in item.where.items() if self.runs and not self.small else ():
            there_too = [value_of(settings, key) for settings in self._settings]
            for value in want if isinstance(want, list) else ():
                if value not in there_too:
                    known = ", ".join(sorted({show(v) for v in there_too}))
                    message = f"no run has {key} = {value!r}: {key} is {known}"
                    raise UserError(self.where.best([(*place, "where", key)], message))
        return shown

    def _metrics(self, names: Sequence[str], shown: Sequence[int], place: Loc) -> None:
        for j in shown:
            spec = self.runs[j][1]
            known = (*spec.known_metrics(), ROUND_TIME, *COSTS)
            missing = [name for name in names if name not in (*known, *TO_TARGET)]
            if missing:
                message = (
                    f"problem {spec.problem['name']} does not report '{missing[0]}': "
                    f"it reports {', '.join(known)}"
                )
                raise UserError(self.where.at(place, message))
            to_target = [name for name in names if name in TO_TARGET]
            if to_target and not spec.stop:
                message = (
                    f"{self.runs[j][0]} has no target, so no {to_target[0]}: give its runs "
                    'one, as in [run.stop] metric = "gradient_norm2", value = 0.01'
                )
                raise UserError(self.where.at(place, message))

    def _costs(
        self,
        item: Item,
        names: Sequence[str],
        place: Loc,
        network_of_item: Mapping[str, Any] | None = None,
    ) -> None:
        if not {TO_TARGET.get(name, name) for name in names} & set(COSTS):
            if item.network:
                message = "nothing here is computed by a network: show time or bytes, or leave it "
                raise UserError(self.where.at((*place, "network"), f"network: {message}out"))
            return
        from teleport_bench.network import Network

        self.simulated = True
        try:
            own = item.network if network_of_item is None else network_of_item
            network = Network.model_validate({**self.network, **own})
        except ValidationError as error:
            places = lambda loc: [  # noqa: E731
                (*place, "networks", *loc),
                (*place, "network", *loc),
                ("network", *loc),
            ]
            raise UserError(self.where.explain(error, places)) from None
        for nodes in {spec.nodes for _, spec in self.runs}:
            try:
                topology(network.preferred, nodes)
            except UserError as error:
                where: list[Loc] = [
                    (*place, "networks", "preferred"),
                    (*place, "network", "preferred"),
                    ("network", "preferred"),
                ]
                raise UserError(self.where.best(where, f"network.preferred: {error}")) from None

    def _key(self, key: str, shown: Sequence[int], place: Loc, more: Collection[str] = ()) -> None:
        there = [set(keys_of(self._settings[j])) for j in shown]
        known = set.intersection(*there) if there else {key}
        if key not in known:
            some = set.union(*there)
            what = "a setting of some runs only" if key in some else "no setting of these runs"
            message = f"{'.'.join(map(str, place))}: '{key}' is {what}"
            raise UserError(self.where.at(place, message + nearest(key, {*known, *more})))

    def _name(
        self, items: Sequence[Item], i: int, kind: str, reserved: Collection[str] = ()
    ) -> None:
        name = items[i].name
        if name.lower() in [item.name.lower() for item in items[:i]]:  # some file systems
            message = f"two {kind}s have the name '{name}': give each a name of its own"
            raise UserError(self.where.at((kind, i, "name"), message))
        if kind == "profile":  # which is both a table and a figure
            reserved = (*TABLES, *FIGURES)
            if other := self._files.get(name.lower()):
                message = f"a {other} has the name '{name}' already: give each a name of its own"
                raise UserError(self.where.at((kind, i, "name"), message))
        elif kind in ("table", "figure"):
            self._files[name.lower()] = kind
        of_claims = kind in ("table", "profile") and name.lower().startswith("claim-")
        if name.lower() in reserved or of_claims:
            message = f"the report has a {kind} '{name}' of its own: take another name"
            raise UserError(self.where.at((kind, i, "name"), message))

    def _average(self, what: str, by: Sequence[str], shown: Sequence[int], place: Loc) -> None:
        """Refuse to average over anything but seeds."""
        first: dict[tuple[Any, ...], Mapping[str, Scalar]] = {}
        for j in shown:
            label, mine = self.runs[j][0], self._settings[j]
            other = first.setdefault((label, *(value_of(mine, key) for key in by)), mine)
            names = dict.fromkeys([*other, *mine])
            differ = [k for k in names if k != "seed" and other.get(k) != mine.get(k)]
            if differ:
                top, *inner = differ[0].split(".")
                hint = "{" + top + "".join(f"[{part}]" for part in inner) + "}"
                message = (
                    f"{what} would average over {', '.join(differ)} for {label}: separate them by "
                    f"pivot, columns, rows, x, by or where, or by a label such as '{label}, {hint}'"
                )
                raise UserError(self.where.at(place, message))


def case_keys(
    item: ClaimSpec | ProfileSpec,
    labels: Sequence[str],
    settings: Sequence[Mapping[str, Scalar]],
) -> list[str]:
    """The settings in which the runs that are compared agree."""
    by = varying(labels, settings) if item.by is None else item.by
    match = item.match if isinstance(item, ClaimSpec) else []
    return list(dict.fromkeys([*by, *match]))
