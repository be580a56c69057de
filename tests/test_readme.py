"""The README's code and commands do what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from teleport_bench.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_example_runs_and_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    exec(compile(example, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["dsgd", "teleportation"]
    assert all(0.3 < float(line.split()[1]) < 1 for line in lines[:2])
    gaps = [float(gap) for gap in lines[2].split()]
    assert gaps[0] < gaps[1]


def test_every_command_of_the_command_line_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run as written, but for a small suite in the place of the large ones."""
    suite = """
        title = "small"
        [run]
        rounds = 5
        lr = 0.1
        problem = { name = "quadratic", dim = 3 }
        [grid]
        nodes = [4]
        [[method]]
        algorithm = "dsgd"
    """
    (tmp_path / "my-suite.toml").write_text(suite)
    (tmp_path / "my-tuned.toml").write_text(
        suite.replace("lr = 0.1", "")
        + """
        [[method]]
        algorithm = "teleportation"
        active = "search"
        [tune]
        lr = [0.1, 0.2]
        seeds = [100]
        metric = "objective_gap"
        [small.run]
        rounds = 4
        """
    )
    monkeypatch.chdir(tmp_path)
    commands = [
        shlex.split(line, comments=True)
        for block in blocks("sh")
        for line in block.splitlines()
        if line.startswith("teleport-bench")
    ]
    assert len(commands) == 11
    for _, *arguments in commands:
        words = [re.sub("^(demo|scale/million)$", "my-suite.toml", word) for word in arguments]
        words = [re.sub("^paper/fig2$", "my-tuned.toml", word) for word in words]
        if words[0] == "report":
            words += ["--out", "out"]
        assert main(words) == 0, words
    assert "byte for byte" in capsys.readouterr().out


def test_make_help_lists_the_commands_of_the_first_screen() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for command in re.findall(r"^make ([a-z-]+)", README, re.MULTILINE):
        assert re.search(rf"^{command}:.*##", makefile, re.MULTILINE)
