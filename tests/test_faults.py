"""What happens to long sweeps on shared machines, done to short ones: afterwards the same command
gives what an undisturbed one does.

The test with many kills is slow: `pytest -m slow -s tests/test_faults.py`; it prints its table.
"""

from __future__ import annotations

import datetime
import errno
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest

from teleport_bench import UserError, checkpoint, native
from teleport_bench.cli import main
from teleport_bench.data import cache
from teleport_bench.data.dataset import Split
from teleport_bench.record import Record, Store, store
from teleport_bench.record.store import UNSAVED_FILE
from teleport_bench.suite import Suite, built_in
from teleport_kernels.compiler import FAILURES, Library

# processes that are forked with everything imported: a kill at a random moment hits the sweep
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["teleport_bench.executor", "teleport_bench.progress", "teleport_bench.report.figures"]
)


def command(
    arguments: list[str], log: Path, before: Callable[..., None] | None, *given: object
) -> None:
    """The command line in a process of its own. before: called with what is given."""
    import torch

    torch.set_num_threads(1)
    with log.open("w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        if before:
            before(*given)
        code = main(arguments)
    os._exit(code)


class Sweep:
    """One command, run in processes that may not live long."""

    def __init__(self, folder: Path, suite: Path, *options: str) -> None:
        folder.mkdir(exist_ok=True)
        self.out, self.suite, self.options = folder / "out", suite, options
        self.folder = self.out / Suite.load(str(suite)).name
        self.log = folder / "log"

    def start(self, before: Callable[..., None] | None = None, *given: object) -> BaseProcess:
        arguments = ["run", str(self.suite), "--out", str(self.out), "--device", "cpu"]
        process = PROCESSES.Process(
            target=command, args=([*arguments, *self.options], self.log, before, *given)
        )
        process.start()
        return process

    def run(self, before: Callable[..., None] | None = None, *given: object) -> int | None:
        process = self.start(before, *given)
        process.join()
        return process.exitcode

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def records(self) -> list[Path]:
        return sorted((self.folder / "runs").glob("*.json"))

    def results(self) -> dict[str, object]:
        """What settings decide, of every run and every table."""
        found: dict[str, object] = {}
        for path in (self.folder / "runs").iterdir():
            found[path.name] = Record.model_validate_json(path.read_bytes()).result()
        for path in (self.folder / "tables").iterdir():
            found[path.name] = path.read_bytes()
        return found

    def files(self) -> set[str]:
        return {str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str]) -> Path:
    path = tmp_path_factory.mktemp("suite") / "swept.toml"
    path.write_text(texts["tuned"].replace("rounds = 8", "rounds = 200"))
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, suite: Path) -> Sweep:
    """Run once, by a process that nothing happens to."""
    sweep = Sweep(tmp_path_factory.mktemp("undisturbed"), suite, "--compile", "off")
    assert sweep.run() == 0, sweep.said
    return sweep


@pytest.fixture
def sweep(tmp_path: Path, suite: Path, undisturbed: Sweep) -> Iterator[Sweep]:
    """A sweep to disturb; the same command finishes it, to the same results and the same files."""
    sweep = Sweep(tmp_path, suite, "--compile", "off")
    yield sweep
    assert sweep.run() == 0, sweep.said
    assert sweep.results() == undisturbed.results()
    assert sweep.files() == undisturbed.files()


def wait_for(sweep: Sweep, records: int) -> None:
    """Until so many records are there."""
    deadline = time.monotonic() + 60
    while len(sweep.records) < records:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("records", [1, 25])
def test_a_killed_sweep_goes_on(sweep: Sweep, records: int) -> None:
    process = sweep.start()
    wait_for(sweep, records)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_sweep_killed_at_random_moments_goes_on(sweep: Sweep) -> None:
    for seed in range(4):
        process = sweep.start()
        process.join(random.Random(seed).uniform(0.1, 1.5))
        process.kill()
        process.join()


def before_record(number: int, happens: Callable[[], None]) -> None:
    """Something happens whenever a process has written so many records less one."""
    write, written = store.write_atomically, itertools.count(1)

    def write_or_not(path: Path, content: bytes) -> None:
        if path.parent.name == "runs" and next(written) == number:
            happens()
        write(path, content)

    store.write_atomically = write_or_not


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    """As Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)


def fill() -> None:
    """The disk is full for whatever comes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1200, 1200))


def protect() -> None:
    """As where the kernel makes a file system read-only that has errors."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    tempfile.mkstemp = refuse


@pytest.mark.parametrize("number", [1, 5])
def test_a_fleet_s_records_appear_together(sweep: Sweep, number: int) -> None:
    assert sweep.run(before_record, number, die) == -signal.SIGKILL
    assert len(sweep.records) == number - 1
    with Store(sweep.folder) as opened:
        opened.prepare()
    fleet = Record.model_validate_json(sweep.records[0].read_bytes()).made.fleet["runs"]
    assert len(sweep.records) == fleet
    assert not (sweep.folder / UNSAVED_FILE).exists()


@pytest.mark.parametrize("content", [b"\xff\n", b'{"schema_version": 1'])
def test_what_is_no_record_among_the_unsaved_is_dropped(sweep: Sweep, content: bytes) -> None:
    sweep.folder.mkdir(parents=True)
    (sweep.folder / UNSAVED_FILE).write_bytes(content)


def test_ctrl_c_says_what_is_there_and_what_is_left(sweep: Sweep) -> None:
    assert sweep.run(before_record, 14, interrupt) == 130
    there = len(sweep.records)
    assert 13 <= there < 48
    expected = f"{there} of 48 runs are kept in {sweep.folder / 'runs'}, {48 - there} are left"
    assert expected in sweep.said
    assert "Traceback" not in sweep.said
    assert not list(sweep.folder.rglob(".*.part"))


@pytest.mark.parametrize(
    ("number", "happens", "words"),
    [(1, fill, ["File too large", "make room"]), (9, protect, ["Read-only", "--out"])],
)
def test_what_cannot_be_written_ends_a_sweep_with_a_remedy(
    sweep: Sweep, number: int, happens: Callable[[], None], words: list[str]
) -> None:
    assert sweep.run(before_record, number, happens) == 2
    last = sweep.said.splitlines()[-1]
    assert last.startswith(f"teleport-bench: cannot write results to {sweep.folder}: ")
    assert all(word in last for word in words)
    assert "Traceback" not in sweep.said
    assert len(sweep.records) == number - 1
    assert not list(sweep.folder.rglob(".*.part"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
@pytest.mark.parametrize("options", [["--profile", "/dev/full"], []])
def test_a_full_disk_under_a_log_or_a_trace_costs_no_run(
    sweep: Sweep, undisturbed: Sweep, options: list[str]
) -> None:
    shutil.copytree(undisturbed.out, sweep.out)
    arguments = [str(sweep.suite), "--out", str(sweep.out), "--compile", "off", *options]
    with Path(os.devnull if options else "/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "teleport_bench", "run", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode != 0
    assert "No space left on device; " in done.stderr
    assert "Traceback" not in done.stderr


FILE_SYSTEM = """
import json, shutil, subprocess, sys
from pathlib import Path
from teleport_bench.cli import main

suite, out, kept = sys.argv[1:]
def mount(*options):
    subprocess.run(["mount", *options, "tmpfs", out], check=True)
def run():
    return main(["run", suite, "--out", out, "--device", "cpu", "--compile", "off"])

mount("-t", "tmpfs", "-o", "size=SIZEk")
codes = [run()]
mount("-o", "remount,ro")
codes.append(run())
mount("-o", "remount,rw,size=16m")
shutil.copytree(out, kept)
print(json.dumps(codes))
"""
MOUNT = (
    shutil.which("unshare")
    and not subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode
)


@pytest.mark.skipif(not MOUNT, reason="a file system of one's own may not be mounted here")
@pytest.mark.parametrize("size", [200])
def test_a_file_system_that_is_full_and_one_that_is_read_only(
    sweep: Sweep, tmp_path: Path, size: int
) -> None:
    (tmp_path / "mounted").mkdir()
    program = FILE_SYSTEM.replace("SIZE", str(size))
    places = [str(sweep.suite), str(tmp_path / "mounted"), str(sweep.out)]
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", program, *places],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [2, 2]
    full, read_only = (x for x in done.stderr.splitlines() if x.startswith("teleport-bench"))
    assert "No space left on device; make room" in full
    assert "Read-only file system; name another folder with --out" in read_only
    assert not list(sweep.folder.rglob(".*.part"))


def test_records_that_are_cut_or_garbage_are_made_again(sweep: Sweep, undisturbed: Sweep) -> None:
    shutil.copytree(undisturbed.out, sweep.out)
    rng = random.Random(0)
    for path in sweep.records:
        content = path.read_bytes()
        cut = rng.randrange(len(content) - 1)
        garbage = rng.randbytes(rng.randrange(100))
        path.write_bytes(content[:cut] + rng.choice([b"", garbage, garbage + content[cut:]]))
    with Store(sweep.folder) as opened:
        for run in Suite.load(str(sweep.suite)).tuning:
            assert opened.load(run.spec) is None


def test_two_processes_on_one_folder_are_one_and_a_message(sweep: Sweep) -> None:
    first = sweep.start()
    wait_for(sweep, 1)
    second = Sweep(sweep.out.parent, sweep.suite, *sweep.options)
    second.log = sweep.log.with_name("second")
    assert second.run() == 2
    assert f"another process is running into {sweep.folder}: wait" in second.said
    first.join()
    assert first.exitcode == 0
    assert "48 runs, 48 of them now" in sweep.said


def test_of_many_processes_that_start_at_once_one_runs(sweep: Sweep) -> None:
    processes = [sweep.start() for _ in range(4)]
    for process in processes:
        process.join()
    assert sorted(p.exitcode or 0 for p in processes) in ([0, 2, 2, 2], [0, 0, 2, 2])


def test_a_folder_is_free_again_however_its_process_ended(sweep: Sweep) -> None:
    process = sweep.start()
    wait_for(sweep, 1)
    process.kill()
    process.join()
    with Store(sweep.folder) as opened:
        opened.prepare()
        with Store(sweep.folder) as another, pytest.raises(UserError, match="another process"):
            another.prepare()
    with Store(sweep.folder) as another:
        another.prepare()


def test_what_was_being_written_is_removed_by_its_process_alone(tmp_path: Path) -> None:
    with Store(tmp_path) as opened:
        opened.prepare()
        left = opened.runs / ".record.json.abcdefgh.part"
        left.write_bytes(b"half")
        with Store(tmp_path) as another, pytest.raises(UserError, match="another process"):
            another.prepare()
        assert left.exists()
    assert not left.exists()


@pytest.mark.parametrize("name", [".lock", UNSAVED_FILE, "checkpoints"])
def test_a_link_to_another_place_is_not_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    with Store(tmp_path / "out") as opened, pytest.raises(UserError, match="out"):
        opened.prepare()
    assert not (tmp_path / "elsewhere").exists()


def set_clock_back() -> None:
    """Each look at the clock is a day before the last."""
    now, looks = time.time(), itertools.count()

    def earlier() -> float:
        return now - 86400 * next(looks)

    class Earlier(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Earlier:
            return cls.fromtimestamp(earlier(), tz)

    time.time = earlier
    datetime.datetime = Earlier  # type: ignore[misc]


def test_a_clock_that_is_set_back_changes_nothing(sweep: Sweep) -> None:
    assert sweep.run(set_clock_back) == 0, sweep.said
    made = [Record.model_validate_json(path.read_bytes()).made for path in sweep.records]
    assert len({each.date for each in made}) == len({each.date[:10] for each in made}) > 1
    assert all(each.seconds > 0 for each in made)


def die_at_checkpoint(number: int) -> None:
    """Take a checkpoint after every block, and be killed after so many of them."""
    save, saved = checkpoint.Checkpoint.save, itertools.count(1)

    def save_and_die(self: checkpoint.Checkpoint, state: dict[str, object]) -> None:
        save(self, state)
        if next(saved) == number:
            die()

    checkpoint.EVERY = 0
    checkpoint.Checkpoint.save = save_and_die  # type: ignore[method-assign]


@pytest.mark.parametrize("number", [1, 5])
def test_a_fleet_goes_on_from_its_checkpoint(sweep: Sweep, number: int) -> None:
    assert sweep.run(die_at_checkpoint, number) == -signal.SIGKILL
    (path,) = (sweep.folder / "checkpoints").iterdir()
    assert sweep.run(die_at_checkpoint, 1) == -signal.SIGKILL
    assert [path] == list((sweep.folder / "checkpoints").iterdir())  # of the same fleet


def test_a_checkpoint_of_a_sweep_that_nobody_finished_is_removed(sweep: Sweep) -> None:
    (sweep.folder / "checkpoints").mkdir(parents=True)
    (sweep.folder / "checkpoints" / "left.pt").write_bytes(b"of other settings")


def often() -> None:
    """A checkpoint after every block."""
    checkpoint.EVERY = 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "longest"),
    [
        ("swept", ("--compile", "off"), 1.5),
        ("demo", ("--compile", "on", "--set", "rounds=130"), 8.0),
    ],
)
def test_fifty_kills(
    tmp_path: Path, suite: Path, name: str, options: tuple[str, ...], longest: float
) -> None:
    """Sweeps, each killed at random moments until it is done; at least fifty kills."""
    path = suite if name == "swept" else built_in()[name]
    undisturbed = Sweep(tmp_path / "undisturbed", path, *options)
    assert undisturbed.run() == 0, undisturbed.said
    rng = random.Random(0)
    kills = sweeps = within = 0
    while kills < 50:
        sweep = Sweep(tmp_path / str(sweeps), path, *options)
        sweeps += 1
        code: int | None = None
        while code is None:
            process = sweep.start(often)
            process.join(rng.uniform(0, longest))
            process.kill()
            process.join()
            if process.exitcode != -signal.SIGKILL:
                code = process.exitcode
                continue
            kills += 1
            within += bool(list(sweep.folder.glob("checkpoints/*.pt")))
        assert code == 0, sweep.said
        assert sweep.results() == undisturbed.results()
        assert sweep.files() == undisturbed.files()
    print(f"\n{name}: {kills} kills, {within} of them with a checkpoint, in {sweeps} sweeps: equal")


# caches


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.cpp"
    path.write_text('extern "C" int answer() { return 42; }\n')
    return path


def gone() -> None:
    shutil.rmtree(cache.folder().parents[1])


needs_compiler = pytest.mark.skipif(not native.available(), reason="no C++ compiler")


@needs_compiler
def test_a_library_whose_cache_is_removed_is_compiled_again(caches: Path, source: Path) -> None:
    assert Library(source).load().answer() == 42
    assert caches.exists()
    gone()
    assert Library(source).load().answer() == 42
    assert Library(source).is_there()


@needs_compiler
def test_a_cache_that_is_removed_while_a_library_is_compiled(
    caches: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, calls = subprocess.Popen, []

    def start_without_cache(call: list[str], **options: object) -> object:
        if "-o" in call:
            calls.append(call)
            if len(calls) == 1:
                gone()
        return start(call, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", start_without_cache)
    assert Library(source).load().answer() == 42
    assert len(calls) == 2
    assert [path.suffix for path in (caches / "teleport-kernels").iterdir()] == [".so"]


@needs_compiler
@pytest.mark.parametrize("left", [0, 4000])
def test_a_library_that_is_not_whole_is_compiled_again(
    caches: Path, source: Path, left: int
) -> None:
    Library(source).load()
    (path,) = (caches / "teleport-kernels").iterdir()
    code = path.read_bytes()
    path.unlink()  # this process has it loaded
    path.write_bytes(code[:left])
    assert Library(source).load().answer() == 42
    assert path.stat().st_size == len(code)


@needs_compiler
@pytest.mark.parametrize("age", [2, -2])
def test_what_a_killed_compiler_left_is_removed(caches: Path, source: Path, age: int) -> None:
    for name, hours in (("build-old", age), ("build-now", 0)):
        build = caches / "teleport-kernels" / name
        build.mkdir(parents=True)
        (build / "half.so").write_bytes(b"x")
        os.utime(build, times=(time.time() - 3600 * hours,) * 2)
    Library(source).load()
    assert {path.name.partition("-")[0] for path in build.parent.iterdir()} == {"build", "answer"}
    assert not (build.parent / "build-old").exists()


SLOW = """#!/bin/sh
[ "$1" = --version ] && exec echo slow
sleep 120 & echo $! > {log}.part && mv {log}.part {log}
wait
"""


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file to which a compiler that takes two minutes writes the process that it waits for."""
    log, path = tmp_path / "slow", tmp_path / "compiler"
    path.write_text(SLOW.format(log=log))
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return log


def ended(log: Path) -> bool:
    state = ["ps", "-o", "stat=", "-p", log.read_text().strip()]
    for _ in range(50):
        if subprocess.run(state, capture_output=True, text=True, check=False).stdout[:1] in "Z":
            return True
        time.sleep(0.1)
    return False


BEGIN = """
import sys, time
from pathlib import Path
from teleport_kernels import compiler

source, log = map(Path, sys.argv[1:])
library = compiler.Library(source)
library.begin()
assert not library.is_there()
if log.name == "slow":
    while not log.exists():
        time.sleep(0.01)
else:
    compiler._begun[library].process.wait()
assert "torch" not in sys.modules
"""


def begin(source: Path, log: Path) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", BEGIN, source, log], check=True)


@needs_compiler
def test_what_was_compiled_and_not_used_is_there_for_the_next_process(
    caches: Path, source: Path
) -> None:
    begin(source, source)
    assert [path.suffix for path in (caches / "teleport-kernels").iterdir()] == [".so"]
    assert Library(source).is_there()


def test_a_compiler_that_nobody_waits_for_ends_with_the_process(
    caches: Path, source: Path, slow: Path
) -> None:
    began = time.monotonic()
    begin(source, slow)
    assert time.monotonic() - began < 60
    assert ended(slow)
    assert not list((caches / "teleport-kernels").iterdir())


RUN = """
import sys
import teleport_bench.executor  # what Ctrl-C would find being imported
from teleport_bench.cli import main

sys.exit(main())
"""


def test_ctrl_c_ends_the_compiler_too(caches: Path, slow: Path, tmp_path: Path) -> None:
    arguments = ["run", "demo", "--out", tmp_path, "--compile", "on"]
    with subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        while not slow.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130, said
    assert "stopped; the same command goes on where it was" in said
    assert "Traceback" not in said
    assert ended(slow)
    assert not list((caches / "teleport-kernels").iterdir())


@needs_compiler
@pytest.mark.usefixtures("caches")
def test_what_was_begun_is_compiled_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, calls = subprocess.Popen, []

    def count(call: list[str], **options: object) -> object:
        calls.extend([call] * ("-o" in call))
        return start(call, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", count)
    library = Library(source)
    library.begin()
    library.begin()
    assert not library.is_there()
    assert library.load().answer() == 42
    assert library.is_there()
    library.begin()
    assert library.load().answer() == 42
    assert len(calls) == 1


def test_without_a_compiler_only_loading_fails(
    caches: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(caches / "none"))
    monkeypatch.setenv("PATH", "")
    Library(source).begin()
    with pytest.raises(FAILURES):
        Library(source).load()


def splits(seed: int) -> cache.Splits:
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(6, 1, 2, 2), dtype=np.uint8)
    return Split(images, np.arange(6)), Split(images[:2], np.arange(2))


def test_a_data_cache_that_is_removed_is_filled_again(caches: Path) -> None:
    def decode() -> cache.Splits:
        if caches.exists():
            gone()
        return splits(0)

    for _ in range(3):
        found = cache.cached("key", decode)
        assert all(
            np.array_equal(a.images, b.images) for a, b in zip(found, splits(0), strict=True)
        )
        assert [path.name for path in cache.folder().iterdir()] == ["key"]
        (cache.folder() / "key").write_bytes(b"cut")
