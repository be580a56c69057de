"""Which compiler is taken, and which libraries are loaded: only those that are one's own."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from teleport_kernels import compiler
from teleport_kernels.compiler import FAILURES, Library

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="no g++ on this machine")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CXX", raising=False)
    compiler._own.cache_clear()
    yield
    compiler._own().cleanup()
    compiler._own.cache_clear()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "teleport-kernels"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path, 42)


def write(folder: Path, answer: int) -> Path:
    path = folder / "answer.cpp"
    path.write_text(
        f"#ifdef MORE\n#define A {answer + 1}\n#else\n#define A {answer}\n#endif\n"
        "#include <string>\nstd::string text(int n) { return std::string(n, 60); }\n"
        'extern "C" int answer() { return A + int(text(1).size()) - 1; }\n'
    )
    return path


def answer(library: Library) -> int:
    return int(library.load().answer())


# the compiler


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("command", ["g++   '-D' MORE", "env g++ -DMORE"])
def test_cxx_may_have_arguments(
    command: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(Library(source)) == 42
    monkeypatch.setenv("CXX", command)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not Library(source).is_there()  # another command, another library
        assert answer(Library(source)) == 43


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "command", ["/no/compiler", "no-such-compiler -O1", "'", "/etc/passwd", "false"]
)
def test_a_cxx_that_does_not_run_is_named_and_gxx_taken(
    command: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", command)
    with pytest.warns(RuntimeWarning, match="CXX=.* does not run .* is taken. Set CXX to"):
        assert answer(Library(source)) == 42


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("command", ["true", "cat", "g++ -Z"])
def test_a_cxx_that_does_not_compile_is_named_and_gxx_taken(
    command: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which(command.split()[0]):
        pytest.skip(f"no {command} on this machine")
    monkeypatch.setenv("CXX", command)
    with pytest.warns(RuntimeWarning, match=f"{re.escape(command)} cannot compile .* is taken"):
        assert answer(Library(source)) == 42


@pytest.mark.usefixtures("cache")
def test_optional_flags_that_failed_are_tried_again(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(source, optional=("-DMORE",))
    start = subprocess.Popen

    def once_full(call: list[str], **options: object) -> object:
        if "-DMORE" in call:
            raise OSError(28, "No space left on device")
        return start(call, **options)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", once_full)
        assert answer(library) == 42
    assert library.is_there()
    assert answer(library) == 43
    assert answer(Library(source, optional=("--no-such-flag",))) == 42


# the cache


def test_the_cache_is_of_its_user_alone_whatever_the_umask(cache: Path, source: Path) -> None:
    before = os.umask(0)
    try:
        Library(source).load()
    finally:
        os.umask(before)
    for path in (cache.parent, cache, *cache.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


def planted(cache: Path, tmp_path: Path, source: Path) -> Path:
    """A library under the name that `source` has, with another answer, and its own checksum."""
    own = Library(source)
    own.load()
    (path,) = cache.glob("answer-*.so")
    other = tmp_path / "other"
    other.mkdir()
    built = other / "built.so"
    subprocess.run(["g++", "-shared", "-fPIC", write(other, 7), "-o", built], check=True)
    name = path.stem.rpartition("-")[0]
    path.unlink()
    to = cache / f"{name}-{compiler._checksum(built)}.so"
    shutil.copy(built, to)
    to.chmod(0o700)
    assert answer(own) == 7  # as long as it is ours
    return to


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_nothing_is_loaded_from_a_folder_that_others_can_write(
    mode: int, cache: Path, tmp_path: Path, source: Path
) -> None:
    path = planted(cache, tmp_path, source)
    cache.chmod(mode)
    with pytest.warns(
        RuntimeWarning, match=r"others can write .*teleport-kernels.* XDG_CACHE_HOME"
    ):
        assert answer(Library(source)) == 42
    assert path.exists()


def test_nothing_is_loaded_where_others_can_exchange_the_folder(
    cache: Path, tmp_path: Path, source: Path
) -> None:
    planted(cache, tmp_path, source)
    cache.parent.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="others can write .*, above "):
        assert answer(Library(source)) == 42
    cache.parent.chmod(0o1777)  # like /tmp: what lies there is moved by its owner alone
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answer(Library(source)) == 7


@pytest.mark.parametrize("mode", [0o720])
def test_a_library_that_others_can_write_is_compiled_again(
    mode: int, cache: Path, tmp_path: Path, source: Path
) -> None:
    planted(cache, tmp_path, source).chmod(mode)
    assert answer(Library(source)) == 42


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives away")
@pytest.mark.parametrize("what", ["file", "folder", "link to a folder", "link to a file"])
def test_what_belongs_to_somebody_else_is_not_loaded(
    what: str, cache: Path, tmp_path: Path, source: Path
) -> None:
    path = planted(cache, tmp_path, source)
    if what.startswith("link"):
        theirs = cache if "folder" in what else path
        moved = tmp_path / "theirs"
        theirs.rename(moved)
        theirs.symlink_to(moved)
        os.chown(moved, 12345, 12345)
    else:
        os.chown(path if what == "file" else cache, 12345, 12345)
    if "file" in what:
        assert answer(Library(source)) == 42
    else:
        with pytest.warns(RuntimeWarning, match="belongs to user 12345.* set XDG_CACHE_HOME"):
            assert answer(Library(source)) == 42


@pytest.mark.parametrize("kind", ["file", "a link to nowhere"])
def test_what_is_no_folder_is_done_without(kind: str, cache: Path, source: Path) -> None:
    cache.parent.mkdir()
    cache.touch() if kind == "file" else cache.symlink_to("nowhere")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert answer(Library(source)) == 42


def test_a_cache_that_is_named_relative_to_the_folder_is_ignored(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Library(source).load()
    assert not (tmp_path / "relative").exists()
    assert list((tmp_path / "home/.cache/teleport-kernels").glob("answer-*.so"))


ALONE = """
import sys
from pathlib import Path
from teleport_kernels.compiler import Library
print(Library(Path(sys.argv[1])).load().answer())
"""


def test_a_user_without_a_home_compiles_for_the_process() -> None:
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv, to be a user that no file knows")
    clean = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    user = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
    with tempfile.TemporaryDirectory() as shared:
        Path(shared).chmod(0o755)
        command = [*user, sys.executable, "-W", "error", "-c", ALONE, write(Path(shared), 42)]
        if subprocess.run([*command[:5], "-V"], capture_output=True, check=False).returncode:
            pytest.skip("other users cannot run this environment")
        done = subprocess.run(
            command, env=clean, cwd="/", capture_output=True, text=True, check=False
        )
    assert (done.returncode, done.stdout.strip()) == (0, "42"), done.stderr


def test_a_home_that_is_not_known_is_no_failure(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    assert answer(Library(source)) == 42
    assert Library(source).is_there()


def test_no_compiler_at_all_says_what_was_asked_for(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "mine")
    with pytest.raises(FAILURES, match=r"no g\+\+ or clang\+\+ on the path, and CXX=mine does not"):
        Library(source).load()
