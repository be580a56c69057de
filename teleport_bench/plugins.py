"""Components from outside of the package: a user's own Python files, and installed packages.

A plugin is Python that registers components, as the package's own files do; `docs/extend.md` has
one of each kind. `load_plugin` and the entry points of installed packages execute one; no suite
file and no record does.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from teleport_bench import registry
from teleport_bench.errors import UserError

if TYPE_CHECKING:
    from teleport_bench.record import Record

GROUP = "teleport_bench.plugins"
"""Entry points of this group name modules of installed packages; they are imported when a component
is first asked for."""


MOST_BYTES = 2**24
"""Of a plugin's file."""


@dataclass(frozen=True)
class Plugin:
    """What was loaded. version: the file's SHA-256, or the version of the installed package."""

    version: str
    components: frozenset[str]
    """The names that it registered."""


LOADED: dict[str, Plugin] = {}
"""By the name of the file or of the installed package."""


def load_plugin(path: str | Path) -> None:
    """Execute a Python file, so that suites and specs can choose what it registers.

    The same file is executed once. Raises UserError where it cannot be read, is not Python, raises,
    registers a name that is taken, or registers nothing; nothing of it is registered then.
    """
    path = Path(path)
    if path.suffix != ".py":
        raise UserError(f"a plugin is a Python file (.py), got {str(path)!r}")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"cannot read plugin {path}: no regular file; give the path of one")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"plugin {path} has more than {MOST_BYTES:,} bytes: is it Python?")
    except OSError as error:
        raise UserError(
            f"cannot read plugin {path}: {error.strerror or error}; give the path of a Python file"
        ) from error
    version = hashlib.sha256(content).hexdigest()
    if loaded := LOADED.get(path.name):
        if loaded.version == version:
            return
        raise UserError(
            f"plugin {path}: a file of the same name and other content is loaded already; give "
            "each a name of its own, and start again where one was changed"
        )
    _import_own()
    load_installed()
    module = ModuleType(f"plugin {path.name}")
    module.__file__ = str(path)
    try:
        with _registering() as names:
            source = compile(content, str(path), "exec", dont_inherit=True)
            sys.modules[module.__name__] = module  # dataclasses and type hints look there
            exec(source, module.__dict__)
    except (Exception, SystemExit) as error:
        sys.modules.pop(module.__name__, None)
        raise UserError(f"plugin {_where(path, error)}") from error
    if not names:
        del sys.modules[module.__name__]
        raise UserError(
            f"plugin {path} registers nothing: put a decorator such as "
            '@teleport_bench.ALGORITHMS.register("name") above what a suite is to choose'
        )
    LOADED[path.name] = Plugin(version, frozenset(names))


def load_installed() -> None:
    """Import what installed packages offer under `GROUP`, once; UserError naming a broken one."""
    global _installed
    if _installed:
        return
    _installed = True  # before: a plugin may ask for components itself
    try:
        for entry in entry_points(group=GROUP):
            _import_own()
            _import(entry)
    except BaseException:
        _installed = False
        raise


_installed = False


def _import(entry: EntryPoint) -> None:
    package = entry.dist.name if entry.dist else entry.module
    version = entry.dist.version if entry.dist else "unknown"
    try:
        with _registering() as names:
            entry.load()
    except (Exception, SystemExit) as error:
        raise UserError(
            f"the installed package {package} {version} offers a plugin that cannot be loaded "
            f"({entry.value}): {_brief(error)}; repair or uninstall it"
        ) from error
    if loaded := LOADED.get(package):  # by another of its entry points
        names |= loaded.components
    LOADED[package] = Plugin(version, frozenset(names))


def _import_own() -> None:
    """The names of the package's own components are theirs."""
    for kind in registry.KINDS:
        kind.import_own()


@contextmanager
def _registering() -> Iterator[set[str]]:
    """Collects the names that are registered in here; drops them where something raises."""
    before = [(kind, kind.entries()) for kind in registry.KINDS]
    names: set[str] = set()
    try:
        yield names
    except BaseException:
        for kind, entries in before:
            kind.restore(entries)
        raise
    names |= {name for kind, entries in before for name in kind.entries().keys() - entries.keys()}


def used(settings: Any) -> dict[str, str]:
    """The version of every plugin of which the settings (of a run, or of a suite) name a component,
    by the plugin's name."""
    names = set(_strings(settings))
    return {name: p.version for name, p in sorted(LOADED.items()) if names & p.components}


def outdated(records: Iterable[Record]) -> dict[str, int]:
    """How many of the records another version of a loaded plugin made, by the plugin's name."""
    found: dict[str, int] = {}
    for record in records:
        for name, version in record.made.code.get("plugins", {}).items():
            if name in LOADED and LOADED[name].version != version:
                found[name] = found.get(name, 0) + 1
    return found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _where(path: Path, error: BaseException) -> str:
    """`my.py, line 3: NameError: name 'x' is not defined`: the last line of the file involved."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path} is not Python, line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    if not lines:  # bytes that are no text
        return f"{path} is not Python: {_brief(error)}"
    return f"{path}, line {lines[-1]}: {_brief(error)}"


def _brief(error: BaseException) -> str:
    """The first line of an error, behind its type unless it is meant for users."""
    first = next(iter(str(error).splitlines()), "")
    if isinstance(error, UserError):
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
