"""Components outside of the package: the documented examples work, and mistakes are explained."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import teleport_bench as tb
from teleport_bench import plugins, registry
from teleport_bench.metrics import METRICS, Metric
from teleport_bench.problems import Member
from teleport_bench.problems.base import described
from teleport_bench.problems.quadratic import Quadratic
from teleport_bench.record import Record

PAGE = (Path(__file__).parents[1] / "docs" / "extend.md").read_text()
FILES = {
    match[1]: block
    for block in re.findall(r"```\w+\n(.*?)```", PAGE, re.DOTALL)
    if (match := re.match(r"# (\w+\.(?:py|toml))\n", block))
}
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]
Bench = Callable[..., Any]
"""The fixture: arguments -> code, out, err."""
ALGORITHM = """\
from teleport_bench import ALGORITHMS, Algorithm

@ALGORITHMS.register("mine")
class Mine(Algorithm):
    \"\"\"Mine.\"\"\"
    label = "Mine"

    def step(self, state, r):
        return state | {"x": r.sgd_mix(state["x"], r.gradient(state["x"]), None)}
"""


@pytest.fixture(autouse=True)
def _registries_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that a test registers is there for the next one."""
    before = [(kind, kind.names() and kind.entries()) for kind in registry.KINDS]
    monkeypatch.setattr(plugins, "LOADED", {})
    monkeypatch.setattr(plugins, "_installed", True)
    yield
    for kind, entries in before:
        kind.restore(entries)
    for name in [name for name in sys.modules if name.startswith("plugin ")]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the files of the page."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def made(folder: Path, suite: str) -> list[Record]:
    paths = (folder / "results" / suite / "runs").iterdir()
    return [Record.model_validate_json(path.read_bytes()) for path in paths]


# The page


def test_the_page_has_one_example_of_each_kind() -> None:
    assert sorted(FILES) == [
        "clipping.toml",
        *(f"my_{kind}.py" for kind in ("algorithm", "data", "model", "problem", "topology")),
    ]
    for name in FILES:
        assert any(name in command for command in COMMANDS)


def test_an_algorithm_takes_less_than_30_lines() -> None:
    assert len(FILES["my_algorithm.py"].splitlines()) < 30


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_works(folder: Path, bench: Bench, command: str) -> None:
    program, *arguments = shlex.split(command)
    assert program == "teleport-bench"
    if arguments[0] == "report":
        assert bench("run", *(a for a in arguments[1:] if a != "--check")).code == 0
    if arguments[0] == "run":
        arguments += ["--device", "cpu", "--set", "rounds=20"]
    done = bench(*arguments)
    assert done.code == 0, done.err
    files = [word for word in arguments if word.endswith(".py")]
    for file in files:  # each is used
        (name,) = re.findall(r'\.register\("(\w+)"\)', FILES[file])
        if arguments[0] != "run":
            assert arguments[0] == "report" or name in done.out
            continue
        records = made(folder, "clipping")
        assert {record.status for record in records} == {"finished"}
        mine = [record for record in records if file in record.made.code.get("plugins", {})]
        assert len(mine) == (4 if file == "my_algorithm.py" else 6)
        assert all(f'"{name}"' in json.dumps(record.spec) for record in mine)


def test_the_readme_links_the_page() -> None:
    assert "(docs/extend.md)" in (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.usefixtures("folder")
def test_the_algorithm_of_the_page_with_a_large_clip_is_d_sgd_and_its_steps_are_clipped() -> None:
    tb.load_plugin("my_algorithm.py")
    settings = {"nodes": 4, "problem": "quadratic", "lr": 0.1, "rounds": 10}
    d_sgd, same, clipped = tb.run_fleet(
        [
            tb.RunSpec(algorithm=algorithm, **settings)
            for algorithm in (
                "dsgd",
                {"name": "clipped", "clip": 1e6},
                {"name": "clipped", "clip": 1e-6},
            )
        ]
    )
    assert same.curves == d_sgd.curves
    gap = clipped.curves["objective_gap"]
    assert gap[-1] == pytest.approx(gap[0], rel=1e-4)


@pytest.mark.usefixtures("folder")
def test_the_gradients_of_the_problem_of_the_page_are_those_of_its_objective() -> None:
    tb.load_plugin("my_problem.py")
    problem = registry.PROBLEMS.build({"name": "robust_mean", "dim": 3, "sigma2": 0.0})
    fleet = problem.fleet([Member(0, 4, 4), Member(1, 2, 2)], torch.device("cpu"))
    points = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, 0.1]], requires_grad=True)
    found = fleet.evaluate(points, points, torch.arange(2), torch.arange(2))
    (expected,) = torch.autograd.grad(found["train_loss"].sum(), points)
    x = points.detach()[torch.tensor([0, 0, 0, 0, 1, 1])]
    exact = fleet.gradient(x, torch.arange(6), torch.zeros(1))
    mean = torch.stack([exact[:4].mean(0), exact[4:].mean(0)])
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(found["gradient_norm2"], (expected**2).sum(1))


def test_an_algorithm_without_a_label_is_called_by_its_name_and_one_that_raises_is_a_failed_run(
    folder: Path, bench: Bench
) -> None:
    path = folder / "mine.py"
    path.write_text(ALGORITHM.replace('    label = "Mine"\n', "").replace("r.sgd_mix", "r.sgd_max"))
    run = ["run", "clipping.toml", "--device", "cpu", "--plugin", path]
    (folder / "clipping.toml").write_text(
        FILES["clipping.toml"].split("[[method]]")[0]
        + '[[method]]\nalgorithm = "mine"\n[[table]]\nname = "loss"\nvalues = ["train_loss"]\n'
    )
    done = bench(*run)
    assert done.code == 1
    assert "\nmine " in done.out
    for record in made(folder, "clipping"):
        assert record.error.startswith("AttributeError: ")
        assert record.error.endswith("(mine.py:8)")


# What a plugin leaves in records, suites and pages


def test_a_record_says_which_plugins_its_run_used(folder: Path, bench: Bench) -> None:
    run = ["run", "clipping.toml", "--set", "rounds=2", "--device", "cpu"]
    assert bench(*run, "--plugin", "my_algorithm.py", "--plugin", "my_topology.py").code == 0
    digest = hashlib.sha256((folder / "my_algorithm.py").read_bytes()).hexdigest()
    for record in made(folder, "clipping"):
        mine = record.spec["algorithm"]["name"] == "clipped"
        assert record.made.code.get("plugins") == ({"my_algorithm.py": digest} if mine else None)
    results = folder / "results" / "clipping"
    assert json.loads((results / "suite.json").read_text())["plugins"] == {
        "my_algorithm.py": digest
    }
    page = (results / "index.html").read_text()
    assert f"plugin my_algorithm.py {digest[:12]} (4 runs)" in page
    assert "different versions" not in page


@pytest.mark.usefixtures("folder")
def test_a_report_without_the_plugin_says_that_it_needs_it(bench: Bench) -> None:
    run = ["run", "clipping.toml", "--set", "rounds=2", "--device", "cpu"]
    assert bench(*run, "--plugin", "my_algorithm.py").code == 0
    forget()
    done = bench("report", "clipping.toml")
    assert done.code == 2
    assert "unknown algorithm 'clipped'" in done.err
    assert "it was run with my_algorithm.py: give files with --plugin here too" in done.err
    assert "run the suite again" not in done.err
    path = Path("results/clipping/suite.json")
    content = json.loads(path.read_text())
    for damaged in (3, None, ["my_algorithm.py"]):
        path.write_text(json.dumps(content | {"plugins": damaged}))
        done = bench("report", "clipping.toml")
        assert done.code == 2
        assert "run the suite again" in done.err
    path.write_text(json.dumps(content))
    assert bench("report", "clipping.toml", "--plugin", "my_algorithm.py").code == 0


def forget() -> None:
    """As in a new process."""
    registry.ALGORITHMS.restore(
        {k: v for k, v in registry.ALGORITHMS.entries().items() if k not in ("clipped", "mine")}
    )
    plugins.LOADED.clear()


def test_runs_that_another_version_made_are_named_and_kept_and_rerun_makes_them_again(
    folder: Path, bench: Bench
) -> None:
    run = ["run", "clipping.toml", "--set", "rounds=2", "--device", "cpu"]
    run += ["--plugin", "my_algorithm.py"]
    assert "another version" not in bench(*run).err
    forget()
    path = folder / "my_algorithm.py"
    path.write_text(path.read_text() + "# edited\n")
    done = bench(*run)
    assert "6 runs, 0 of them now" in done.err
    assert "another version of my_algorithm.py made 4 of the runs; --rerun" in done.err

    one = next(p for p in (folder / "results/clipping/runs").iterdir() if "clipped" in p.name)
    one.unlink()
    bench(*run)
    page = (folder / "results" / "clipping" / "index.html").read_text()
    assert "These runs were made by different versions of my_algorithm.py." in page

    assert "another version" not in bench(*run, "--rerun").err
    page = (folder / "results" / "clipping" / "index.html").read_text()
    assert "different versions" not in page


# Mistakes


@pytest.mark.usefixtures("folder")
def test_an_unknown_name_says_how_a_file_of_ones_own_is_given(bench: Bench) -> None:
    done = bench("run", "clipping.toml")
    assert done.code == 2
    assert "clipping.toml, line 23: algorithm: unknown algorithm 'clipped'" in done.err
    assert "what is in a file of your own needs --plugin FILE" in done.err


def test_a_suite_file_executes_nothing(folder: Path, bench: Bench) -> None:
    (folder / "hostile.py").write_text("from pathlib import Path\nPath('touched').touch()\n")
    suite = FILES["clipping.toml"]
    (folder / "clipping.toml").write_text('plugins = ["hostile.py"]\n' + suite)
    done = bench("run", "clipping.toml", "--plugin", "my_algorithm.py")
    assert done.code == 2
    assert "unknown key 'plugins'" in done.err
    (folder / "clipping.toml").write_text(suite)
    assert bench("run", "clipping.toml", "--plugin", "my_algorithm.py").code == 0
    path = folder / "results" / "clipping" / "suite.json"
    content = json.loads(path.read_text())
    content["plugins"] |= {"hostile.py": "0" * 64}
    path.write_text(json.dumps(content))
    assert bench("report", "clipping.toml", "--plugin", "my_algorithm.py").code == 0
    assert not (folder / "touched").exists()


MISTAKES = {
    # name of the file, its content (None: not there), the message; {path} is the file
    "not there": ("x.py", None, "cannot read plugin {path}: No such file or directory; give"),
    "no Python file": ("x.toml", "title = 1", "a plugin is a Python file (.py), got '{path}'"),
    "not Python": (
        "x.py",
        "\ntitle == = 1\n",
        "plugin {path} is not Python, line 2: invalid syntax",
    ),
    "not text": ("x.py", b"\xff\xfe\x00\x01", "plugin {path} is not Python"),
    "raises": (
        "x.py",
        "import os\n\nos.nothing\n",
        "plugin {path}, line 3: AttributeError: module",
    ),
    "raises elsewhere": ("x.py", "import json\njson.loads('{')\n", "plugin {path}, line 2: JSON"),
    "leaves": ("x.py", "raise SystemExit\n", "plugin {path}, line 1: SystemExit"),
    "imports what is not there": (
        "x.py",
        "import no_such_package_as_this\n",
        "plugin {path}, line 1: ModuleNotFoundError: No module named 'no_such_package_as_this'",
    ),
    "takes a name of the package's": (
        "x.py",
        ALGORITHM.replace('"mine"', '"dsgd"'),
        "plugin {path}, line 3: algorithm 'dsgd' is registered twice: "
        "teleport_bench.algorithms.dsgd has that name already; take another",
    ),
    "takes a name of its own": (
        "x.py",
        ALGORITHM * 2,
        "plugin {path}, line 12: algorithm 'mine' is registered twice: plugin x.py has that name",
    ),
    "registers nothing": (
        "x.py",
        ALGORITHM.replace('.register("mine")', ".register"),
        "plugin {path} registers nothing: put a decorator such as @teleport_bench.ALGORITHMS",
    ),
    "lacks a method": (
        "x.py",
        ALGORITHM.replace("step", "stepp"),
        "plugin {path}, line 3: algorithm 'mine' lacks step",
    ),
    "has an option without a type": (
        "x.py",
        ALGORITHM + "\n    def __init__(self, *, beta=0.5):\n        self.beta = beta\n",
        "plugin {path}, line 3: option 'beta' of Mine has no type, by which its values are checked",
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_explained_in_one_line_and_leaves_nothing_registered(
    tmp_path: Path,
    bench: Bench,
    name: str,
    content: str | bytes | None,
    message: str,
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for _ in range(2):
        done = bench("list", "--plugin", path)
        assert done.code == 2
        assert done.out == ""
        assert message.format(path=path) in done.err
        assert len(done.err.splitlines()) == 1
    assert not plugins.LOADED
    assert "mine" not in registry.ALGORITHMS.names()
    assert not any(module.startswith("plugin ") for module in sys.modules)
    if content is not None and path.suffix == ".py":
        path.write_text(ALGORITHM)
        assert bench("list", "--plugin", path).code == 0


def test_the_names_of_the_package_are_taken_before_anything_asked_for_them(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(ALGORITHM.replace('"mine"', '"dsgd"'))
    done = subprocess.run(
        [sys.executable, "-m", "teleport_bench", "list", "--plugin", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"plugin {path}, line 3: algorithm 'dsgd' is registered twice" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_file_registers_before_it_raises_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(ALGORITHM + "\n1 / 0\n")
    with pytest.raises(tb.UserError, match="line 11: ZeroDivisionError: division by zero"):
        tb.load_plugin(path)
    assert "mine" not in registry.ALGORITHMS.names()


def test_a_file_that_is_given_twice_is_executed_once(tmp_path: Path) -> None:
    path, log = tmp_path / "x.py", tmp_path / "log"
    path.write_text(ALGORITHM + f"\nwith open({str(log)!r}, 'a') as file:\n    file.write('.')\n")
    tb.load_plugin(path)
    tb.load_plugin(str(tmp_path / "." / "x.py"))
    assert log.read_text() == "."


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for folder, name in ((tmp_path, "mine"), (tmp_path / "other", "yours")):
        (folder / "x.py").write_text(ALGORITHM.replace('"mine"', f'"{name}"'))
    tb.load_plugin(tmp_path / "x.py")
    with pytest.raises(tb.UserError, match="same name and other content is loaded already"):
        tb.load_plugin(tmp_path / "other" / "x.py")
    assert "yours" not in registry.ALGORITHMS.names()


def test_a_plugin_may_have_data_classes_and_annotations_that_are_strings(tmp_path: Path) -> None:
    """Both look their module up by its name."""
    (tmp_path / "x.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from pydantic import PositiveInt\n"
        "from teleport_bench import SCHEDULES\n"
        "@dataclass\n"
        "class Half:\n"
        "    after: PositiveInt\n"
        "    def __call__(self, t: int) -> float:\n"
        "        return 1.0 if t < self.after else 0.5\n"
        "@SCHEDULES.register('half')\n"
        "def half(rounds: int, *, after: PositiveInt = 3) -> Half:\n"
        "    return Half(after)\n"
    )
    tb.load_plugin(tmp_path / "x.py")
    spec = tb.RunSpec(
        algorithm="dsgd", nodes=2, problem="quadratic", lr=0.1, rounds=5, schedule="half"
    )
    assert [spec.build_schedule()(t) for t in range(5)] == [1, 1, 1, 0.5, 0.5]


# Installed packages


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A package "my-package" 1.2 with that content and an entry point, on the import path."""

    def install(content: str) -> None:
        site = tmp_path / "site"
        info = site / "my_package-1.2.dist-info"
        info.mkdir(parents=True)
        (site / "my_package_of_a_test.py").write_text(content)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(
            f"[{plugins.GROUP}]\ncomponents = my_package_of_a_test\n"
        )
        monkeypatch.syspath_prepend(site)
        monkeypatch.setattr(plugins, "_installed", False)

    yield install
    sys.modules.pop("my_package_of_a_test", None)


def test_an_installed_package_brings_its_components_along(
    install: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(ALGORITHM)
    settings = {"nodes": 2, "problem": "quadratic", "lr": 0.1, "rounds": 1}
    mine, other = tb.run_fleet(
        [tb.RunSpec(algorithm=algorithm, **settings) for algorithm in ("mine", "dsgd")]
    )
    assert mine.made.code["plugins"] == {"my-package": "1.2"}
    assert "plugins" not in other.made.code

    def again(*_: object, **__: object) -> list[EntryPoint]:
        pytest.fail("entry points are looked for once")

    monkeypatch.setattr(plugins, "entry_points", again)
    assert "mine" in registry.ALGORITHMS.names()


def test_a_name_that_an_installed_package_has_is_taken(
    install: Callable[[str], None], tmp_path: Path
) -> None:
    install(ALGORITHM)
    (tmp_path / "x.py").write_text(ALGORITHM)
    with pytest.raises(tb.UserError, match="registered twice: my_package_of_a_test has that name"):
        tb.load_plugin(tmp_path / "x.py")
    assert list(plugins.LOADED) == ["my-package"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import no_such_package_as_this\n", "No module named 'no_such_package_as_this'"),
        (ALGORITHM.replace('"mine"', '"dsgd"'), "algorithm 'dsgd' is registered twice"),
    ],
)
def test_a_broken_installed_package_is_named(
    install: Callable[[str], None],
    bench: Bench,
    content: str,
    reason: str,
) -> None:
    install(content)
    for _ in range(2):
        done = bench("list")
        assert done.code == 2
        assert "the installed package my-package 1.2 offers a plugin that cannot be" in done.err
        assert reason in done.err
        assert "repair or uninstall it" in done.err
        assert "Traceback" not in done.err


def test_what_two_entry_points_of_a_package_bring_is_all_its_own(
    install: Callable[[str], None], tmp_path: Path
) -> None:
    install(ALGORITHM)
    site = tmp_path / "site"
    (site / "another_of_a_test.py").write_text(ALGORITHM.replace('"mine"', '"yours"'))
    with (site / "my_package-1.2.dist-info" / "entry_points.txt").open("a") as points:
        points.write("others = another_of_a_test\n")
    assert {"mine", "yours"} <= set(registry.ALGORITHMS.names())
    assert plugins.LOADED["my-package"].components == {"mine", "yours"}
    sys.modules.pop("another_of_a_test", None)


# What a problem and a metric of one's own say


DESCRIPTIONS = {
    "raises": ("1 / 0", "describe raises ZeroDivisionError: division by zero"),
    "gives nothing": ("None", "describe gives a NoneType, expected a dict"),
    "gives a number of NumPy": (
        "{'a': {'b': [np.int64(3)]}}",
        "describe gives int64 np.int64(3) as a.b",
    ),
    "gives an array": ("{'x': np.zeros(2)}", "describe gives ndarray array([0., 0.]) as x"),
    "gives no finite number": ("{'x': [1.0, float('nan')]}", "describe gives nan as x"),
    "has a key that is no text": ("{1: 2}", "describe gives the key 1"),
    "gives parts of a parameter": (
        "{'parameters': 2.5}",
        "describe gives 2.5 as parameters, expected: int",
    ),
    "gives data by name": ("{'data': 'x'}", "describe gives 'x' as data, expected: dict"),
    "gives no histogram": (
        "{'label_histogram': [['x']]}",
        "describe gives ['x'] in label_histogram",
    ),
}


@pytest.mark.parametrize(("said", "words"), DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_a_problem_that_cannot_be_described_is_a_failed_run(said: str, words: str) -> None:
    name = f"undescribed {said}"  # problems are built once a name

    @tb.PROBLEMS.register(name)
    class Undescribed(Quadratic):
        def describe(self, seed: int, n_nodes: int) -> dict[str, Any]:
            return eval(said, {"np": np})  # type: ignore[no-any-return]

    spec = tb.RunSpec(algorithm="dsgd", nodes=2, problem=name, lr=0.1, rounds=2)
    record = tb.run(spec, device="cpu")
    assert record.status == "failed"
    assert f"problem 'Undescribed': {words}" in str(record.error)
    assert Record.model_validate_json(record.to_line()) == record


def test_what_a_problem_says_may_be_nested_and_of_subclasses() -> None:
    said = {"parameters": 3, "a": [{"b": (1, None, True, np.float64(2.0))}], "label_histogram": []}

    class Described(Quadratic):
        def describe(self, seed: int, n_nodes: int) -> dict[str, Any]:
            return said

    assert described(Described(), 0, 2) == said
    held: list[Any] = []
    held.append(held)
    said["a"] = held
    with pytest.raises(tb.UserError, match="describe gives list"):
        described(Described(), 0, 2)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (("regret", "smaller", "{:.3f}"), "which way is better is to be 'higher' or 'lower', got"),
        (("regret", None, "{:.3f}"), "got None"),
        (("regret", "lower", "%.3f"), "cannot write numbers by the format '%.3f', which shows no"),
        (("regret", "lower", "{:d}"), "cannot write numbers by the format '{:d}' (Unknown format"),
        (("regret", "lower", "{x}"), "cannot write numbers by the format '{x}' ('x')"),
        (("regret", "lower", 3), "cannot write numbers by the format 3"),
    ],
)
def test_a_metric_that_reports_would_misread_is_refused(metric: Any, words: str) -> None:
    with pytest.raises(tb.UserError) as error:
        Metric(*metric)
    assert words in str(error.value)


def test_a_metric_is_registered_once_and_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = METRICS["train_loss"]
    METRICS["train_loss"] = loss
    with pytest.raises(tb.UserError, match="'train_loss' is there already, as Metric"):
        METRICS["train_loss"] = Metric("loss", "higher", "{:.3f}")
    with pytest.raises(tb.UserError, match="'train_loss' is there already"):
        METRICS.update(train_loss=Metric("loss", "higher", "{:.3f}"))
    with pytest.raises(tb.UserError, match=r"is to be a teleport_bench\.metrics\.Metric, got"):
        METRICS["regret"] = ("regret", "lower", "{:.3f}")  # type: ignore[assignment]
    assert METRICS["train_loss"] == loss
    assert "regret" not in METRICS
    monkeypatch.setitem(METRICS, "regret", Metric("regret", "higher", "{:.3f}"))
    assert METRICS["regret"].sign == 1
