"""The wheel holds all it needs and works outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from teleport_bench import libraries
from teleport_kernels import cpu

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "kernels"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_both_packages_and_the_suites_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"teleport_bench", "teleport_kernels"}
    suites = {p.relative_to(ROOT / "suites").as_posix() for p in (ROOT / "suites").rglob("*.toml")}
    shipped = {name.removeprefix("teleport_bench/suites/") for name in names if "/suites/" in name}
    assert shipped == suites
    sources = {
        file.relative_to(KERNELS if file.is_relative_to(KERNELS) else ROOT).as_posix()
        for library in (cpu.MIX, libraries.ROUNDS)
        for file in (library.source, *library.includes)
    }
    assert {"teleport_bench/report/page.html.j2", *sources} <= set(names)


def test_the_installed_wheel_runs_a_built_in_suite(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    away = tmp_path / "away"
    away.mkdir()
    small = ["--set", "rounds=2", "--set", "grid.nodes=[4]", "--set", "grid.seed=[0]"]
    small += ["--set", "nodes=8", "--set", "lr=0.1"]
    done = subprocess.run(
        [sys.executable, "-m", "teleport_bench", "run", "demo", *small],
        cwd=away,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (away / "results" / "demo" / "index.html").is_file()
    where = (
        "import teleport_bench, teleport_kernels as k; print(teleport_bench.__file__, k.__file__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=away,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.count(str(site)) == 2
