"""Named components that suites choose from: algorithms, topologies, problems, models, data.

A component is a function or class registered under a name. Its keyword-only parameters are its
options: their annotations say what is valid and their defaults what applies when a suite is silent,
so that one signature serves the Python API, the suite files and the record.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from teleport_bench.errors import FULL, ComponentError, UserError, nearest

C = TypeVar("C", bound=Callable[..., Any])


class _Rounds:
    """The mark of settings that count rounds."""


ROUNDS = _Rounds()
"""In the type of a setting or an option it says that its value is a number of rounds, as in
`Annotated[int, ROUNDS]`: equal epochs take n/(k H) times as many (`suite.SuiteSpec.equal`)."""
Choice = dict[str, Any]
"""A chosen component: its name under "name", beside its options, each with its value."""


MOST_UNKNOWN = 20
"""Unknown keys of one table that are told at a time."""


class StrictModel(BaseModel):
    """A model that refuses unknown keys, naming the nearest known one, infinite numbers, and texts
    and truth values in the place of numbers: pydantic would read "0.1" and true as numbers.

    Scalars of NumPy, torch and the like are the plain values that they hold.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = cls.model_fields
            unknown = [key for key in data if key not in known][:MOST_UNKNOWN]
            if unknown:
                raise error_at(
                    *((key, f"unknown key '{key}'{nearest(key, known)}") for key in unknown)
                )
        return data

    @field_validator("*", mode="wrap")
    @classmethod
    def _refuse_another_kind(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        value = python_scalar(value)
        valid = validate(value)
        both = isinstance(value, list) and isinstance(valid, list | tuple)
        pairs = zip(value, valid, strict=False) if both else ((value, valid),)
        for given, taken in pairs:
            if (was := _kind(given)) and (became := _kind(taken)) and was != became:
                raise UserError(f"expected {became}, got {given!r}")
        return valid


def python_scalar(value: Any) -> Any:
    """What scalars of array libraries, and arrays without dimensions, hold as a value of Python;
    those in a list or tuple, too. Anything else as it is."""
    if type(value) in (list, tuple):
        return type(value)(map(_held, value))
    return _held(value)


def _held(value: Any) -> Any:
    if isinstance(value, type) or getattr(value, "shape", None) != () or not hasattr(value, "item"):
        return value
    try:
        held = value.item()
    except (RuntimeError, TypeError, ValueError) as error:  # on the meta device, ..
        raise UserError(f"expected a value, got {value!r:.100}, which has none ({error})") from None
    # a long double is its own item
    return float(held) if type(held) is type(value) and hasattr(held, "__float__") else held


def _kind(value: Any) -> str | None:
    """What a scalar is, in words; None for anything else."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "a text" if isinstance(value, str) else None


def counts_rounds(model: type[BaseModel]) -> list[str]:
    """The fields of a model that are marked with ROUNDS, or are lists of what is."""

    def marked(annotation: Any) -> bool:
        of = get_args(annotation)
        return ROUNDS in getattr(annotation, "__metadata__", ()) or any(map(marked, of))

    return [
        name
        for name, field in model.model_fields.items()
        if ROUNDS in field.metadata or marked(field.annotation)
    ]


def error_at(*places: tuple[str, str]) -> ValidationError:
    """A validation error with one (key, message) a place, for use inside validators."""
    return ValidationError.from_exception_data(
        "input",
        [
            InitErrorDetails(
                type=PydanticCustomError("invalid", "{message}", {"message": message}),
                loc=(key,),
                input=None,
            )
            for key, message in places
        ],
    )


@dataclass(frozen=True)
class Entry(Generic[C]):
    """One registered component."""

    name: str
    component: C
    options: type[StrictModel]

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.component) or "").partition("\n")[0]


class Registry(Generic[C]):
    """The components of one kind; the modules of its package, and the plugins of installed ones,
    are imported on first use."""

    def __init__(self, kind: str, package: str, gives: str | None = None) -> None:
        self.kind = kind
        self._package: str | None = package
        self._gives = (package, gives) if gives else None
        self._entries: dict[str, Entry[C]] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Decorator: register a function or class under a name."""

        def decorate(component: C) -> C:
            text = name if isinstance(name, str) else ""
            if not text.strip() or not text.isprintable() or len(text) > 64:
                raise UserError(
                    f"each {self.kind} is registered under a name of 1 to 64 characters, got "
                    f"{name!r:.80}"
                )
            if name in self._entries:
                first = self._entries[name].component.__module__
                raise UserError(
                    f"{self.kind} '{name}' is registered twice: {first} has that name already; "
                    "take another"
                )
            if missing := getattr(component, "__abstractmethods__", ()):
                raise UserError(f"{self.kind} '{name}' lacks {', '.join(sorted(missing))}")
            self._entries[name] = Entry(name, component, _options_of(component))
            return component

        return decorate

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._discover()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[Entry[C]]:
        return (self._entries[name] for name in self.names())

    def __getitem__(self, name: str) -> Entry[C]:
        self._discover()
        if name not in self._entries:
            raise UserError(
                f"unknown {self.kind} '{name}'{nearest(name, self._entries)}; what is in a file of "
                "your own needs --plugin FILE"
            )
        return self._entries[name]

    def resolve(self, choice: str | Choice) -> Choice:
        """A name, or a table with a name and options, with every option checked and filled in."""
        if isinstance(choice, str):
            choice = {"name": choice}
        if not isinstance(choice, dict) or not isinstance(choice.get("name"), str):
            raise ValueError(f"expected a {self.kind} name, or a table with a name, got {choice!r}")
        options = {key: value for key, value in choice.items() if key != "name"}
        entry = self[choice["name"]]
        chosen = entry.options.model_validate(options).model_dump()
        try:
            json.dumps(chosen)  # a record has them
        except (TypeError, ValueError) as error:
            raise ComponentError(
                f"{self.kind} '{entry.name}': its options are to be texts, numbers, truth values, "
                f"or lists and tables of them ({error}): give them such types and defaults"
            ) from error
        return {"name": entry.name, **chosen}

    def build(self, choice: Choice, *args: Any) -> Any:
        """Call the chosen component with args and its options; the choice must be resolved.

        Raises ComponentError where one from outside of the package raises anything but a UserError
        or a ValueError, or gives something of another type than its kind has.
        """
        options = {key: value for key, value in choice.items() if key != "name"}
        component = self[choice["name"]].component
        own = component.__module__.startswith("teleport_bench.")
        what = f"{self.kind} '{choice['name']}'"
        try:
            built = component(*args, **options)
        except UserError:
            raise
        except ValueError as error:
            if own:
                raise
            raise UserError(f"{what}: {error}") from error
        except Exception as error:
            if own or (isinstance(error, OSError) and error.errno in FULL):
                raise
            *_, frame = traceback.extract_tb(error.__traceback__)
            inside = frame.filename != __file__  # or it cannot be called so
            place = f"{Path(frame.filename).name}, line {frame.lineno}: " if inside else ""
            raise ComponentError(f"{what}: {place}{type(error).__name__}: {error}") from error
        if self._gives:
            package, name = self._gives
            expected = getattr(importlib.import_module(package), name)
            if not isinstance(built, expected):
                got = "None" if built is None else f"a {type(built).__name__}"
                raise ComponentError(f"{what} gives {got}, expected a {name}")
        return built

    def field(self) -> Any:
        """The type of a pydantic field that holds a choice from this registry."""
        return Annotated[Choice, BeforeValidator(self.resolve)]

    def entries(self) -> dict[str, Entry[C]]:
        """What is registered so far, by name."""
        return dict(self._entries)

    def restore(self, entries: dict[str, Entry[C]]) -> None:
        """Drop what is not among these entries, which `entries` gave."""
        self._entries = dict(entries)

    def _discover(self) -> None:
        from teleport_bench import plugins

        self.import_own()
        plugins.load_installed()

    def import_own(self) -> None:
        """Import the modules of this package that register components of this kind."""
        if self._package:
            package, self._package = importlib.import_module(self._package), None
            for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
                importlib.import_module(f"{package.__name__}.{module.name}")


def _options_of(component: Callable[..., Any]) -> type[StrictModel]:
    signature = inspect.signature(component)
    function = component.__init__ if inspect.isclass(component) else component
    hints = get_type_hints(function, include_extras=True)
    options = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    for p in options:
        if p.name == "name":
            raise UserError(
                f"option 'name' of {component.__name__}: that key of a table is the component's "
                "own name; call the option something else"
            )
        if p.name.startswith("_"):
            raise UserError(f"option '{p.name}' of {component.__name__} is private: drop the '_'")
        if p.name not in hints:
            raise UserError(
                f"option '{p.name}' of {component.__name__} has no type, by which its values are "
                f"checked: write one, as in `{p.name}: float`"
            )
    fields: dict[str, Any] = {
        p.name: (hints[p.name], ... if p.default is p.empty else p.default) for p in options
    }
    return create_model(f"{component.__name__}Options", __base__=StrictModel, **fields)


ALGORITHMS: Registry[Any] = Registry("algorithm", "teleport_bench.algorithms", "Algorithm")
TOPOLOGIES: Registry[Any] = Registry("topology", "teleport_bench.topologies")
PROBLEMS: Registry[Any] = Registry("problem", "teleport_bench.problems", "Problem")
MODELS: Registry[Any] = Registry("model", "teleport_bench.models", "Network")
DATA: Registry[Any] = Registry("data set", "teleport_bench.data", "Dataset")
PARTITIONS: Registry[Any] = Registry("partition", "teleport_bench.data")
SCHEDULES: Registry[Any] = Registry("schedule", "teleport_bench.schedules")

KINDS = (ALGORITHMS, TOPOLOGIES, PROBLEMS, MODELS, DATA, PARTITIONS, SCHEDULES)
