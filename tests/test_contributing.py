"""The recipes of CONTRIBUTING.md, followed literally in a copy of the project."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
FILES = {
    body.partition("\n")[0].removeprefix("# "): body.partition("\n")[2]
    for body in re.findall(r"```(?:python|toml)\n(.*?)```", PAGE, re.DOTALL)
}
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages and suites with what the recipes add."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("teleport_bench", "kernels", "suites"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name, content in FILES.items():
        assert not (folder / name).exists()
        assert (folder / name).parent.is_dir()
        (folder / name).write_text(content)
    return folder


def test_there_is_a_recipe_of_each_kind() -> None:
    assert [Path(name).parent.name for name in FILES] == [
        *("algorithms", "topologies", "data", "suites"),
    ]
    assert re.findall(r"^## An? (.*)", PAGE, re.MULTILINE) == [
        *("algorithm", "topology", "data set", "suite", "kernel"),
    ]


def test_the_commands_of_the_recipes_work_in_their_order(project: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{project}{os.pathsep}{project / 'kernels'}"}
    ours = [line.split(maxsplit=1)[1] for line in COMMANDS if line.startswith("teleport-bench")]
    assert len(ours) == 6
    # one process, as each would import torch anew; "recipes" is there once the suite's file is
    calls = [shlex.split(line.replace("recipes.toml", "recipes")) for line in ours]
    calls = [[*call, "--device", "cpu"] if call[0] == "run" else call for call in calls]
    # a report is checked against the last run of its suite
    program = (
        "import sys; from teleport_bench.cli import main\n"
        f"for call in {calls!r}:\n    code = main(call)\n    assert code == 0, (call, code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for word in ("two_gossips", "path", "half_digits", "recipes", "Two gossips", "graph = path"):
        assert word in done.stdout
    assert "byte for byte" in done.stdout


def test_the_files_that_are_named_are_there() -> None:
    for name in re.findall(r"[\w./]+\.(?:py|cpp|md)", PAGE):
        found = any((ROOT / place / name).is_file() for place in PLACES)
        assert found or name in FILES, name
    for line in COMMANDS:
        words = shlex.split(line, comments=True)
        program, *arguments = itertools.dropwhile(lambda word: "=" in word, words)
        assert program in ("make", "teleport-bench", "pytest")
        if program == "pytest":
            assert all((ROOT / path).exists() for path in arguments if "/" in path)


PLACES = (
    "",
    "teleport_bench/report",
    "kernels/teleport_kernels",
    "teleport_bench",
    "tests/kernels",
    "docs",
)
