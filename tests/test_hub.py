"""Data sets in the hub's layout: found, decoded as they are, checked, and decoded once."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from teleport_bench.data import Dataset, cache, hub, source
from teleport_bench.errors import UserError
from teleport_bench.registry import DATA

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TELEPORT_BENCH_DATA; caches are empty, and the hub is out of reach."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("TELEPORT_BENCH_DATA", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # of processes that a test starts
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


def pictures(n: int, shape: tuple[int, ...] = (4, 5), seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))


def columns(images: list[Any], labels: list[Any]) -> datasets.Dataset:
    kind = datasets.Image() if isinstance(images[0], np.ndarray) else None
    features = datasets.Features({"image": kind, "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict(
        {"image": images, "label": labels}, features if kind else None
    )


def save(table: datasets.Dataset, path: Path) -> None:
    datasets.disable_progress_bars()
    table.to_parquet(path)
    datasets.enable_progress_bars()


@pytest.fixture
def make(root: Path) -> Make:
    """Write a set in the hub's layout, 20 training and 6 test images unless told otherwise."""

    def make(
        name: str = "org/tiny",
        train: datasets.Dataset | None = None,
        test: datasets.Dataset | None = None,
        under: Path = root,
    ) -> Path:
        folder = under / name
        (folder / "data").mkdir(parents=True)
        train = train or columns(pictures(20), [i % 3 for i in range(20)])
        test = test or columns(pictures(6, seed=1), [0, 1, 2, 2, 1, 0])
        save(train, folder / "data" / "train-00000-of-00001.parquet")
        save(test, folder / "data" / "test-00000-of-00001.parquet")
        return folder

    return make


def tiny(**options: Any) -> Dataset:
    built: Dataset = DATA.build(
        DATA.resolve({"name": "hub", "source": "org/tiny", "validation": 5} | options)
    )
    return built


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were decoded."""
    folders: list[Path] = []
    decode = source._decode

    def counted(folder: Path, *rest: Any) -> cache.Splits:
        folders.append(folder)
        return decode(folder, *rest)

    monkeypatch.setattr(source, "_decode", counted)
    return folders


def cached_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "teleport-bench" / "data").iterdir())


# What is decoded


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_images_are_the_pixels_of_the_source_channels_first_in_its_order(
    make: Make, shape: tuple[int, ...]
) -> None:
    train, test = pictures(2500, shape), pictures(7, shape, seed=1)
    labels, test_labels = [i % 4 for i in range(2500)], [3, 3, 1, 0, 2, 0, 1]
    make(train=columns(train, labels), test=columns(test, test_labels))
    data = tiny()
    expected = np.stack(train).reshape(2500, 4, 5, -1).transpose(0, 3, 1, 2)
    place = {image.tobytes(): i for i, image in enumerate(expected)}
    ids = [[place[image.tobytes()] for image in s.images] for s in (data.train, data.validation)]
    assert sorted(ids[0] + ids[1]) == list(range(2500))
    for split, found in zip((data.train, data.validation), ids, strict=True):
        assert found == sorted(found)
        assert split.labels.tolist() == [labels[i] for i in found]
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
    assert (data.test.images == np.stack(test).reshape(7, 4, 5, -1).transpose(0, 3, 1, 2)).all()
    assert data.test.labels.tolist() == test_labels
    assert data.n_classes == 4
    assert data.input_shape == ((3, 4, 5) if len(shape) == 3 else (1, 4, 5))


def test_columns_splits_and_configurations_have_the_names_that_one_says(root: Path) -> None:
    folder = root / "org" / "tiny"
    for subset, seed in (("one", 0), ("two", 1)):
        (folder / subset).mkdir(parents=True)
        for split in ("fit", "held"):
            table = columns(pictures(9, seed=seed), [0, 1, 2] * 3)
            table = table.rename_columns({"image": "img", "label": "fine"})
            save(table, folder / subset / f"{split}-0.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(
            f"- config_name: {s}\n  data_files:\n"
            f"  - split: fit\n    path: {s}/fit-*\n  - split: held\n    path: {s}/held-*\n"
            for s in ("one", "two")
        )
        + "---\n"
    )
    names = {"image": "img", "label": "fine", "train": "fit", "test": "held"}
    for subset, seed in (("one", 0), ("two", 1)):
        data = tiny(**names, subset=subset)
        assert (data.test.images[:, 0] == np.stack(pictures(9, seed=seed))).all()
    with pytest.raises(UserError, match=r"three.*\[.*one.*two"):
        tiny(**names, subset="three")


def test_a_folder_of_image_files_is_a_data_set_too(root: Path) -> None:
    images = pictures(12)
    for split, (i, image) in itertools.product(("train", "test"), enumerate(images)):
        folder = root / "tiny" / split / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i:02}.png")
    data = tiny()
    found = {image.tobytes(): int(c) for image, c in zip(*vars(data.test).values(), strict=True)}
    assert found == {image.tobytes(): i % 2 for i, image in enumerate(images)}


# How it is cut


@pytest.mark.parametrize(("validation", "n"), [(5, 5), (1, 1), (0.25, 5), (19, 19)])
def test_validation_is_a_number_or_a_share_of_the_training_images(
    make: Make, validation: float, n: int
) -> None:
    make()
    data = tiny(validation=validation)
    assert (len(data.train), len(data.validation), len(data.test)) == (20 - n, n, 6)


def test_a_limit_takes_fewer_training_images_and_leaves_validation_and_test_alone(
    make: Make,
) -> None:
    make(train=columns(pictures(100), [i % 2 for i in range(80)] + [2] * 20))
    data, small = tiny(validation=10), tiny(validation=10, limit=20)
    assert np.bincount(data.validation.labels).tolist() == [4, 4, 2]
    assert np.bincount(small.train.labels).tolist() == [8, 8, 4]
    assert {i.tobytes() for i in small.train.images} < {i.tobytes() for i in data.train.images}
    assert (small.validation.images == data.validation.images).all()
    assert (small.test.images == data.test.images).all()
    assert tiny(validation=10, limit=90).checksum == data.checksum


@pytest.mark.parametrize(
    "options", [{"validation": 20}, {"validation": 0.99}, {"validation": 0.01}, {"limit": 16}]
)
def test_more_than_there_is_cannot_be_had(make: Make, options: dict[str, Any]) -> None:
    make()
    with pytest.raises(UserError, match=r"at most the 20 of the split 'train'"):
        tiny(**options)


# Where it is found


@pytest.mark.parametrize("name", ["org/tiny", "tiny"])
def test_a_folder_is_found_by_the_id_or_its_last_part(make: Make, name: str) -> None:
    folder = make(name)
    said = tiny().describe()
    assert said["source"] == "org/tiny"
    assert len(str(said["files"])) == 64
    assert str(folder) not in json.dumps(said)
    assert "revision" not in said


@pytest.fixture
def snapshot(make: Make, tmp_path: Path) -> Path:
    """The set as the hub's client caches it, and its revision."""
    copy, commit = tmp_path / "hub" / "datasets--org--tiny", "0123456789abcdef" * 2 + "01234567"
    stored = make(under=tmp_path / "blobs")
    folder = copy / "snapshots" / commit
    (copy / "refs").mkdir(parents=True)
    (copy / "refs" / "main").write_text(commit)
    (folder / "data").mkdir(parents=True)
    for blob in (stored / "data").iterdir():
        (folder / "data" / blob.name).symlink_to(blob)
    return folder


def test_the_cache_of_the_hub_is_used_without_the_hub(snapshot: Path) -> None:
    said = tiny().describe()
    assert (said["source"], said["revision"]) == ("org/tiny", snapshot.name)
    assert "files" not in said


@pytest.mark.usefixtures("snapshot")
def test_the_folder_that_one_names_is_preferred_to_the_cache_of_the_hub(
    make: Make, decodes: list[Path]
) -> None:
    folder = make()
    tiny()
    assert decodes == [folder]


def test_the_hub_is_asked_last_and_quietly(
    make: Make, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a set that the named folder lacks, with its revision, and no bar is shown meanwhile."""
    (root / "tiny").mkdir()  # without data files
    stored = make("0" * 40, under=tmp_path / "downloaded")
    asked: list[tuple[Any, ...]] = []

    def download(name: str, *, repo_type: str, revision: str | None, local_files_only: bool) -> str:
        quiet = huggingface_hub.utils.are_progress_bars_disabled()
        asked.append((name, repo_type, revision, local_files_only, quiet))
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("none")
        return str(stored)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    shown = not huggingface_hub.utils.are_progress_bars_disabled()
    assert tiny(revision="v2").describe()["revision"] == "0" * 40
    assert asked == [("org/tiny", "dataset", "v2", local, True) for local in (True, False)]
    assert shown == (not huggingface_hub.utils.are_progress_bars_disabled())


@pytest.mark.parametrize("given", ["nothing", "no such folder", "a folder without it"])
def test_without_a_copy_the_error_names_both_remedies(
    given: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given == "nothing":
        monkeypatch.delenv("TELEPORT_BENCH_DATA")
    elif given == "no such folder":
        root.rmdir()
    else:
        (root / "tiny").mkdir()
    with pytest.raises(UserError) as raised:
        tiny()
    said = str(raised.value)
    for part in ("--data", "TELEPORT_BENCH_DATA", "DIR/tiny", "DIR/org/tiny", "HF_HUB_OFFLINE"):
        assert part in said
    assert "https://huggingface.co/datasets/org/tiny" in said
    assert ("holds no data files" in said) == (given == "a folder without it")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("why", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_the_command_line_says_so_at_once_where_the_hub_cannot_be_reached(
    why: dict[str, str], write: Callable[..., Path], texts: dict[str, str], tmp_path: Path
) -> None:
    suite = write(texts["digits"].replace('"digits"', '"fashion_mnist"'), "offline")
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= why | {"HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "teleport_bench", "run", str(suite), "--device", "cpu"]
    done = subprocess.run(
        [*command, "--out", tmp_path / "out"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "zalando-datasets/fashion_mnist" in line
    assert "--data" in line


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr(source, "PATIENCE", 0.2)
        with pytest.raises(UserError, match=r"the hub gave none .*time"):
            tiny()


def test_listing_reads_no_data() -> None:
    code = (
        "import sys; from teleport_bench.cli import main; main(['list'])\n"
        "print(sorted({'datasets', 'huggingface_hub', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for name in ("mnist", "fashion_mnist", "cifar10", "hub", "dirichlet_groups"):
        assert f"\n  {name} " in done.stdout


def test_a_suite_runs_on_the_folder_that_the_command_line_names(
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Any],
    write: Callable[..., Path],
    texts: dict[str, str],
) -> None:
    monkeypatch.setenv("TELEPORT_BENCH_DATA", "elsewhere")
    make("tiny", under=tmp_path / "mine")
    choice = '{ name = "hub", source = "org/tiny", validation = 5 }'
    suite = write(texts["digits"].replace('"digits"', choice), "mine")
    done = run(suite, "--data", tmp_path / "mine", "--set", "problem.batch_size=2")
    assert done.code == 0, done.err
    record = json.loads(next((tmp_path / "out" / "mine" / "runs").glob("*.json")).read_text())
    text = json.dumps(record)
    assert '"source": "org/tiny"' in text
    assert str(tmp_path) not in text


# What is refused


def png(mode: str, size: tuple[int, int]) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def stored(cells: list[Any]) -> datasets.Dataset:
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.Value("int64")}
    )
    labels = [i % 2 for i in range(len(cells))]
    return datasets.Dataset.from_dict({"image": cells, "label": labels}, features)


GREY = png("L", (4, 4))
BROKEN = {"bytes": GREY["bytes"][:-30], "path": None}


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (png("L", (4, 5)), r"train: the image of row 1200 is L 4x5, that of row 0 L 4x4"),
        (png("RGB", (4, 4)), r"train: the image of row 1200 is RGB 4x4, that of row 0 L 4x4"),
        (png("P", (4, 4)), r"train, row 1200: the image has mode 'P'; expected L .* or RGB"),
        (png("I;16", (4, 4)), r"train, row 1200: the image has mode 'I;16'"),
        (BROKEN, r"train, row 1200: the image cannot be decoded"),
        ({"bytes": b"not an image", "path": None}, r"row 1200: the image cannot be decoded"),
        (None, r"train, row 1200 has no image"),
    ],
)
def test_an_image_that_is_not_like_the_others_is_named(
    make: Make, tmp_path: Path, cell: Any, message: str
) -> None:
    make(train=stored([GREY] * 1200 + [cell] + [GREY] * 10))
    with pytest.raises(UserError, match=message):
        tiny()
    assert not (tmp_path / "cache").exists()


def test_training_and_test_images_have_one_shape(make: Make) -> None:
    make(test=columns(pictures(6, (5, 4)), [0, 1, 2] * 2))
    with pytest.raises(UserError, match=r"\(1, 4, 5\) in 'train' and \(1, 5, 4\) in 'test'"):
        tiny()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2] * 10, r"the labels of 'train' are 0, 2, expected 0 to 2 and none missing"),
        ([1, 2] * 10, r"the labels of 'train' are 1, 2, expected 0 to 2"),
        ([-1, 0] * 10, r"the labels of 'train' are -1, 0, expected 0 to 0"),
        ([0, 1] * 10, r"'test' has labels 2 that 'train' has not, expected 0 to 1"),
        (list(range(0, 40, 2)), r"0, 2, 4, .*22, \.\., expected 0 to 38"),
    ],
)
def test_labels_are_all_of_0_to_c_minus_1(make: Make, labels: list[int], message: str) -> None:
    make(train=columns(pictures(20), labels))
    with pytest.raises(UserError, match=message):
        tiny()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.0, 1.0] * 10, r"'label' are double with 0 missing; expected a whole number"),
        (["cat", "dog"] * 10, r"'label' are string with 0 missing; expected a whole number"),
        ([0, None] * 10, r"'label' are int64 with 10 missing; expected a whole number"),
    ],
)
def test_labels_are_whole_numbers(make: Make, labels: list[Any], message: str) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Value(
                datasets.Dataset.from_dict({"label": labels}).features["label"].dtype
            ),
        }
    )
    make(train=datasets.Dataset.from_dict({"image": pictures(20), "label": labels}, features))
    with pytest.raises(UserError, match=message):
        tiny()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "img"}, r"no column 'img'.*Known: image, label; .* option 'image'"),
        ({"label": "labels"}, r"no column 'labels'; did you mean 'label'\?.* option 'label'"),
        ({"train": "training"}, r"no split 'training'; did you mean 'train'\? Known: test, train"),
        ({"image": "label"}, r"cannot be read as a data set"),
    ],
)
def test_a_name_that_the_set_has_not_is_met_with_those_it_has(
    make: Make, options: dict[str, str], message: str
) -> None:
    make()
    with pytest.raises(UserError, match=message):
        tiny(**options)


def test_a_file_that_is_no_data_is_an_error_that_names_the_folder(make: Make) -> None:
    folder = make()
    (folder / "data" / "train-00000-of-00001.parquet").write_bytes(b"not what it says")
    with pytest.raises(UserError, match=rf"{folder} cannot be read as a data set"):
        tiny()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_the_named_sets_know_how_large_they_are(
    make: Make, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = columns(pictures(20, (28, 28)), [i % 10 for i in range(20)])
    if name == "cifar10":
        table = columns(pictures(20, (32, 32, 3)), [i % 10 for i in range(20)])
        table = table.rename_column("image", "img")
    make(name, table, table)
    expected = "50000 and 10000" if name == "cifar10" else "60000 and 10000"
    with pytest.raises(UserError, match=f"got 20 training and 20 test .* expected {expected}"):
        DATA.build(DATA.resolve(name))
    shape = (3, 32, 32) if name == "cifar10" else (1, 28, 28)
    monkeypatch.setattr(hub, "CIFAR10" if name == "cifar10" else "MNIST", (20, 20, shape))
    data = DATA.build(DATA.resolve({"name": name, "validation": 10}))
    assert (data.name, data.n_classes, data.input_shape) == (name, 10, shape)


@pytest.mark.parametrize(
    "options",
    [
        {"source": "../up"},
        {"source": "/a/path"},
        {"source": "a/b/c"},
        {"validation": 0},
        {"validation": 1.5},
        {"validation": -0.1},
        {"limit": 0},
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_read(
    options: dict[str, Any],
) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        DATA.resolve({"name": "hub", "source": "org/tiny"} | options)


# Decoded once


def test_the_second_read_is_from_the_cache(make: Make, decodes: list[Path]) -> None:
    folder = make()
    first = tiny()
    again = tiny(limit=7)
    assert decodes == [folder]
    assert (again.test.images == first.test.images).all()
    assert tiny().checksum == first.checksum


def test_a_copy_elsewhere_is_the_same_and_a_changed_file_is_not(
    make: Make, tmp_path: Path, decodes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make()
    (folder / ".git").mkdir()
    first = tiny()
    shutil.copytree(folder, tmp_path / "other" / "tiny")
    (tmp_path / "other" / "tiny" / ".git" / "index").write_text("changes")
    monkeypatch.setenv("TELEPORT_BENCH_DATA", str(tmp_path / "other"))
    assert tiny().describe() == first.describe()
    assert len(decodes) == 1
    table = columns(pictures(20, seed=9), [i % 3 for i in range(20)])
    save(table, tmp_path / "other" / "tiny" / "data" / "train-00000-of-00001.parquet")
    assert tiny().checksum != first.checksum
    assert len(decodes) == 2


def test_other_columns_are_another_entry(make: Make, decodes: list[Path]) -> None:
    def table(n: int) -> datasets.Dataset:
        both = columns(pictures(n), [i % 3 for i in range(n)])
        return both.add_column("coarse", [i % 2 for i in range(n)])

    make(train=table(20), test=table(6))
    assert tiny().n_classes == 3
    assert tiny(label="coarse").n_classes == 2
    assert len(decodes) == 2


@pytest.mark.parametrize("harm", ["pixel", "digest", "short", "long", "empty", "folder"])
def test_a_cache_that_is_not_what_was_written_is_decoded_again(
    make: Make, tmp_path: Path, decodes: list[Path], harm: str
) -> None:
    make()
    first = tiny()
    (path,) = cached_files(tmp_path)
    held = path.read_bytes()
    harmed = {
        "pixel": held[:300] + bytes([held[300] ^ 1]) + held[301:],
        "digest": bytes([held[0] ^ 1]) + held[1:],
        "short": held[:-1],
        "long": held + b"\0",
        "empty": b"",
    }
    path.unlink()
    if harm == "folder":
        path.mkdir()
    else:
        path.write_bytes(harmed[harm])
    assert tiny().checksum == first.checksum
    assert len(decodes) == 2
    if harm != "folder":
        assert path.read_bytes() == held
        tiny()
        assert len(decodes) == 2


def test_without_a_folder_to_write_to_it_works_from_the_source(
    make: Make, tmp_path: Path, decodes: list[Path]
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    make()
    assert tiny().checksum == tiny().checksum
    assert len(decodes) == 2


READ = """
import sys
from teleport_bench.registry import DATA
print(DATA.build(DATA.resolve({"name": "hub", "source": "org/tiny", "validation": 5})).checksum)
"""


def test_two_processes_may_decode_the_same_set_at_once(make: Make, tmp_path: Path) -> None:
    make()
    # both wait inside the decoder until the other is there
    meet = f"""
import pathlib, time
from teleport_bench.data import source
decode = source._decode
def wait(*arguments):
    here = pathlib.Path({str(tmp_path)!r})
    (here / sys.argv[1]).touch()
    while len(list(here.glob("process-*"))) < 2:
        time.sleep(0.01)
    return decode(*arguments)
source._decode = wait
"""
    code = READ.replace("import sys\n", "import sys\n" + meet)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"process-{i}"], stdout=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    printed = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(cached_files(tmp_path)) == 1
    assert printed == [tiny().checksum] * 2


@pytest.mark.parametrize("at", ["decoding", "writing"])
def test_what_a_killed_process_leaves_is_neither_read_nor_kept(
    make: Make, tmp_path: Path, decodes: list[Path], at: str
) -> None:
    make()
    # one array is in the file, or one batch is decoded, when the process stops
    where = "np, 'save'" if at == "writing" else "source, '_pixels'"
    stop = f"""
import time
import numpy as np
from teleport_bench.data import source
whole = getattr({where})
calls = []
def stop(*arguments):
    calls.append(1)
    if len(calls) == 2:
        print("there", flush=True)
        time.sleep(60)
    return whole(*arguments)
setattr({where}, stop)
"""
    code = READ.replace("import sys\n", "import sys\n" + stop)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"there\n"
        process.send_signal(signal.SIGKILL)
    left = cached_files(tmp_path) if at == "writing" else []
    assert len(left) == (at == "writing")
    expected = tiny().checksum
    assert len(decodes) == 1
    if left:
        assert left[0].exists()  # it might be that of a process that still writes
        long_ago = time.time() - 2 * cache.DEAD
        os.utime(left[0], (long_ago, long_ago))
    (sound,) = set(cached_files(tmp_path)) - set(left)
    sound.unlink()
    assert tiny().checksum == expected
    assert cached_files(tmp_path) == [sound]


@pytest.fixture(autouse=True)
def _nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """No bar, no warning of a library."""
    yield
    assert capfd.readouterr().err == ""


def test_a_split_without_rows_is_named(make: Make) -> None:
    folder = make()
    path = folder / "data" / "train-00000-of-00001.parquet"
    save(columns(pictures(1), [0]).select([]), path)
    with pytest.raises(UserError, match="has no rows"):
        tiny()


# Exactly the files of the folder


ODD_NAMES = [
    *("run?", "run*", "run[s]", "[!x]uns", "a::b", "zip:::x", "two words", "%72un", "~", "-x"),
    *("{a,b}", "#1", "été", "a\\b", "$HOME", "a\nb"),
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_of_any_name_is_read_and_not_its_neighbour(
    make: Make, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("tiny", under=tmp_path / "written")  # by `datasets`, which has the same trouble
    (tmp_path / "roots").mkdir()
    (tmp_path / "written").rename(tmp_path / "roots" / name)
    other = columns(pictures(30, (7, 7)), [0, 1, 2] * 10)
    make("tiny", train=other, test=other, under=tmp_path / "roots" / "runs")
    for neighbour in ("run", "a", "b", "x"):
        shutil.copytree(tmp_path / "roots" / "runs", tmp_path / "roots" / neighbour)
    monkeypatch.setenv("TELEPORT_BENCH_DATA", str(tmp_path / "roots" / name))
    data = tiny()
    assert (data.test.images[:, 0] == np.stack(pictures(6, seed=1))).all()
    assert len(data.train) == 15
    monkeypatch.chdir(tmp_path / "roots")
    monkeypatch.setenv("TELEPORT_BENCH_DATA", f"./{name}")
    assert tiny().checksum == data.checksum
    (entry,) = cached_files(tmp_path)  # under the fingerprint of what was read
    monkeypatch.setenv("TELEPORT_BENCH_DATA", str(tmp_path / "roots" / "runs"))
    assert tiny().input_shape == (1, 7, 7)
    assert entry in cached_files(tmp_path)


@pytest.mark.parametrize("name", ["d[a]ta", "da?a", "d*", "two words", "%64ata", "~", "-x", "été"])
def test_files_and_folders_inside_may_have_any_name(make: Make, name: str) -> None:
    folder = make()
    expected = tiny().checksum
    (folder / "data").rename(folder / name)
    (folder / name / "train-00000-of-00001.parquet").rename(
        folder / name / f"{name}-train-0.parquet"
    )
    assert tiny().checksum == expected


@pytest.mark.parametrize("name", ["a::train.parquet", "a\ntrain.parquet"])
def test_a_name_that_would_be_read_otherwise_is_refused(make: Make, name: str) -> None:
    folder = make()
    shutil.copy(folder / "data" / "train-00000-of-00001.parquet", folder / name)
    with pytest.raises(UserError, match=r"a name with .* is not read as that of a file: rename"):
        tiny()


def test_a_folder_for_temporary_files_that_would_be_a_pattern_is_named(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp[1]").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp[1]"))
    make()
    with pytest.raises(UserError, match=r"has '\[', which is read as a pattern: set TMPDIR"):
        tiny()


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: {}
  - split: test
    path: data/test-*
---
"""


@pytest.mark.parametrize(
    "path",
    [
        *("../other/data/train-00000-of-00001.parquet", "data/../../other/data/train-*"),
        *("'{root}/other/data/train-*'", "[data/train-*, ../other/data/train-*]"),
        *("https://127.0.0.1:9/train.parquet", "hf://datasets/org/other/train.parquet"),
        *("zip://*.parquet::data.zip", "file:///etc/train.parquet"),
    ],
)
@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
def test_a_card_that_names_data_elsewhere_is_refused(
    make: Make, root: Path, path: str, name: str
) -> None:
    make("other")
    text = CARD.format(path.format(root=root))
    (make("tiny") / name).write_text(text if name == "README.md" else text.replace("---\n", ""))
    with pytest.raises(UserError, match=r"names the data '.*'; expected files of its own folder"):
        tiny()


@pytest.mark.parametrize("kind", ["absolute", "relative", "address", "text"])
def test_a_cell_that_names_a_file_is_refused(
    root: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    path = {"relative": "a.png", "address": "https://127.0.0.1:9/a.png"}.get(kind)
    path = path or str(tmp_path / "a.png")
    cell = {"bytes": None, "path": path}
    images = pa.array([path] * 4) if kind == "text" else pa.array([cell] * 4, CELL)
    write_parquet(root / "tiny", images)
    with pytest.raises(UserError, match=r"names the file '.*' in the place of an image"):
        tiny(validation=1)


def test_the_names_of_a_metadata_file_are_those_of_its_folder(root: Path) -> None:
    for split in ("train", "test"):
        folder = root / "tiny" / split
        folder.mkdir(parents=True)
        for i, image in enumerate(pictures(6)):
            Image.fromarray(image).save(folder / f"{i}.png")
        lines = "".join(f"{i}.png,{i % 2}\n" for i in range(6))
        (folder / "metadata.csv").write_text("file_name,label\n" + lines)
    assert (tiny(validation=1).test.images[:, 0] == np.stack(pictures(6))).all()
    Image.fromarray(pictures(1)[0]).save(root / "x.png")
    (root / "tiny" / "train" / "metadata.csv").write_text(
        f"file_name,label\n../../x.png,0\n{lines}"
    )
    with pytest.raises(UserError, match=r"tiny cannot be read|in the place of an image"):
        tiny(validation=1)


def test_what_a_link_leads_to_is_in_the_fingerprint(
    make: Make, tmp_path: Path, decodes: list[Path]
) -> None:
    folder = make()
    first = tiny()
    (folder / "data").rename(tmp_path / "elsewhere")
    (folder / "data").symlink_to(tmp_path / "elsewhere")
    assert tiny().describe() == first.describe()
    assert len(decodes) == 1
    table = columns(pictures(20, seed=9), [i % 3 for i in range(20)])
    save(table, tmp_path / "elsewhere" / "train-00000-of-00001.parquet")
    assert tiny().checksum != first.checksum


def test_links_to_nowhere_and_in_circles_are_named(make: Make) -> None:
    folder = make()
    link = folder / "train-1.parquet"
    link.symlink_to("/nowhere")
    with pytest.raises(UserError, match=r"train-1.parquet is a link to /nowhere, which is not"):
        tiny()
    link.unlink()
    link.symlink_to(folder)
    with pytest.raises(UserError, match=rf"{link} is the same folder as {folder}: remove"):
        tiny()


def test_a_folder_that_changes_while_it_is_read_is_not_kept(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make()
    decode = source._decode

    def changed(*arguments: Any) -> cache.Splits:
        splits = decode(*arguments)
        (folder / "new.txt").touch()
        return splits

    monkeypatch.setattr(source, "_decode", changed)
    with pytest.raises(UserError, match="was changed while it was read: run again"):
        tiny()
    assert not (tmp_path / "cache").exists()


def test_a_home_of_nobody_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELEPORT_BENCH_DATA", "~nosuchuser/x")
    with pytest.raises(UserError, match=r"'~nosuchuser/x', but there is no home of that user"):
        tiny()


# Anything may be in a folder


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_images_are_turned_as_their_orientation_says(make: Make, tag: int, kind: str) -> None:
    exif = Image.Exif()
    exif[274] = tag
    image = Image.fromarray(np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3))
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    cell = {"bytes": file.getvalue(), "path": None}
    make(train=stored([cell] * 4), test=stored([cell] * 4))
    expected = np.array(datasets.Image().decode_example(cell)).transpose(2, 0, 1)
    data = tiny(validation=1)
    assert data.input_shape == ((3, 12, 8) if tag > 4 else (3, 8, 12))
    assert all((image == expected).all() for image in data.test.images)


CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(folder: Path, images: pa.Array | None = None, **changes: pa.Array) -> Path:
    """Training and test files of 4 rows, by pyarrow."""
    if images is None:
        images = pa.array([GREY] * 4, CELL)
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        table = pa.table({"image": images, "label": pa.array([0, 1] * 2)} | changes)
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A PNG that says it is that large."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def encoded(kind: str, mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (4, 4)).save(file, kind)
    return file.getvalue()


IMAGES = {
    "lists": (pa.array([[GREY]] * 4), r"the column 'image' holds List"),
    "numbers": (pa.array(range(4)), r"the column 'image' holds Value\('int64'\), expected images"),
    "truth": (pa.array([True] * 4), r"the column 'image' holds Value\('bool'\)"),
    "empty": (pa.array([{"bytes": b"", "path": None}] * 4, CELL), r"train, row 0 has no image"),
    "null": (pa.array([None] * 4, CELL), r"train, row 0 has no image"),
    "no type": (pa.array([None] * 4), r"row 0 has no image|cannot be read"),
    "bytes": (pa.array([b"no image"] * 4), r"row 0: the image cannot be decoded; expected one of"),
    "gif": (pa.array([encoded("GIF")] * 4), r"cannot be decoded; expected one of PNG, JPEG, WEBP"),
    "bomb": (pa.array([bomb(30_000)] * 4), r"cannot be decoded .*exceeds limit"),
    "large": (pa.array([bomb(11_000)] * 4), r"cannot be decoded|may be decoded"),
    "no pixels": (pa.array([bomb(0)] * 4), r"row 0: the image cannot be decoded"),
    "grey with alpha": (pa.array([encoded("PNG", "LA")] * 4), r"has mode 'LA'; expected L"),
    "print": (pa.array([encoded("TIFF", "CMYK")] * 4), r"has mode 'CMYK'"),
    "bits": (pa.array([encoded("PNG", "1")] * 4), r"has mode '1'"),
    "floats": (pa.array([encoded("TIFF", "F")] * 4), r"has mode 'F'"),
}


@pytest.mark.parametrize(("images", "message"), IMAGES.values(), ids=IMAGES)
def test_a_column_without_images_is_named(root: Path, images: pa.Array, message: str) -> None:
    folder = write_parquet(root / "tiny", images)
    with pytest.raises(UserError, match=rf"(?s)^{folder}.*{message}") as raised:
        tiny(validation=1)
    assert "0x" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


LABELS = {
    "truth": (pa.array([True, False] * 2), r"are bool with 0 missing"),
    "lists": (pa.array([[0]] * 4), r"are list<element: int64>"),
    "times": (pa.array([0, 1] * 2, pa.timestamp("s")), r"are timestamp"),
    "null": (pa.array([None] * 4), r"are null with 4 missing"),
    "huge": (pa.array([0, 0, 0, 2**40]), r"are 0, 1099511627776, expected 0 to 1099511627776"),
    "1e9": (pa.array([0, 0, 1, 10**9]), r"are 0, 1, 1000000000, expected"),
    "largest": (pa.array([0, 0, 0, 2**63 - 1]), r"are 0, 9223372036854775807, expected"),
    "unsigned": (pa.array([0, 0, 0, 2**64 - 1], pa.uint64()), r"the label 18446744073709551615"),
}


@pytest.mark.parametrize(("labels", "message"), LABELS.values(), ids=LABELS)
def test_labels_that_number_no_classes_are_named(
    root: Path, labels: pa.Array, message: str
) -> None:
    write_parquet(root / "tiny", label=labels)
    with pytest.raises(UserError, match=message):
        tiny(validation=1)


ALIASES = "a0: &a0 [1, 1]\n" + "".join(
    f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 50)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 50)
)
CARDS = {
    "unfinished": "configs: [\n",
    "exponential": ALIASES,
    "exponential merges": MERGES,
    "its own part": "configs: &a [*a]\n",
    "deep": "configs: " + "[" * 300 + "]" * 300 + "\n",
    "long": f"a: {'x' * 2**20}\n",
    "a long number": f"a: {'9' * 5000}\n",
    "code": "a: !!python/object/apply:os.getcwd []\n",
    "configs": "configs: 5\n",
    "features": "dataset_info:\n  features: 5\n",
    "other features": "dataset_info:\n  features:\n  - name: image\n    dtype: string\n"
    "  - name: label\n    dtype: string\n",
    "duplicate splits": CARD.format("data/train-*").replace("split: test", "split: train")[4:-4],
}


@pytest.mark.parametrize("text", CARDS.values(), ids=CARDS)
def test_a_hostile_card_is_a_sentence(make: Make, text: str) -> None:
    folder = make()
    (folder / "README.md").write_text(f"---\n{text}---\n# A set\n")
    began = time.process_time()
    with pytest.raises(UserError, match=rf"^{folder}[ /:]") as raised:
        tiny()
    assert time.process_time() - began < 20
    assert "\n" not in str(raised.value)


def test_a_card_that_is_no_text_and_infos_that_are_no_json_are_sentences(make: Make) -> None:
    folder = make()
    (folder / "dataset_infos.json").write_text("[" * 50_000)
    with pytest.raises(UserError, match=rf"{folder} cannot be read as a data set: RecursionError"):
        tiny()
    (folder / "README.md").write_bytes(b"---\n\xff\n---\n")
    with pytest.raises(UserError, match=r"README.md: the card is no YAML .*can't decode"):
        tiny()


def test_a_configuration_that_is_missing_or_unknown_is_met_with_the_option(make: Make) -> None:
    entry = "- config_name: {0}\n  data_files:\n  - split: train\n    path: data/train-*\n"
    text = "".join(entry.format(name) for name in ("one", "two"))
    (make() / "README.md").write_text(f"---\nconfigs:\n{text}---\n")
    known = r"\['one', 'two'\] is meant with the option 'subset'"
    with pytest.raises(UserError, match=rf"the set has several configurations; .*{known}"):
        tiny()
    with pytest.raises(UserError, match=rf"no configuration 'three'; .*{known}"):
        tiny(subset="three")


def test_other_kinds_of_files_and_scripts_are_neither_read_nor_executed(root: Path) -> None:
    kinds = {
        "csv": ("image,label\n/etc/hostname,0\n", "the column 'image' holds texts or numbers"),
        "json": ('[{"image": [1], "label": 0}]', "the column 'image' holds (List|texts)"),
        "txt": ("nothing", "has no column 'image'"),
        "h5": ("nothing", "holds files of the kind 'hdf5'; expected images in one of parquet"),
    }
    for end, (text, message) in kinds.items():
        (root / end).mkdir()
        for split in ("train", "test"):
            (root / end / f"{split}.{end}").write_text(text)
        with pytest.raises(UserError, match=rf"{end}.* {message}"):
            tiny(source=end)
    (root / "tiny").mkdir()
    (root / "tiny" / "tiny.py").write_text("raise SystemExit(3)")
    with pytest.raises(UserError, match=r"is read by its script tiny.py, which is not executed"):
        tiny()


def test_folders_of_images_without_classes_are_named(root: Path) -> None:
    for split, image in itertools.product(("train", "test"), enumerate(pictures(4))):
        (root / "tiny" / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[1]).save(root / "tiny" / split / f"{image[0]}.png")
    with pytest.raises(UserError, match=r"the column 'label'; expected one folder for each class"):
        tiny()


def test_shards_of_tar_are_read(root: Path) -> None:
    (root / "tiny").mkdir()
    for split in ("train", "test"):
        with tarfile.open(root / "tiny" / f"{split}-0.tar", "w") as file:
            for i, (end, data) in itertools.product(range(6), (("png", None), ("cls", "1"))):
                held = GREY["bytes"] if data is None else str(i % 2).encode()
                entry = tarfile.TarInfo(f"{i}.{end}")
                entry.size = len(held)
                file.addfile(entry, io.BytesIO(held))
    assert tiny(image="png", label="cls", validation=1).test.labels.tolist() == [0, 1] * 3
    (root / "tiny" / "train-0.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match="tiny cannot be read as a data set"):
        tiny(image="png", label="cls")


@pytest.mark.parametrize("harm", ["nothing", "half", "middle", "pointer"])
def test_a_damaged_file_is_a_sentence(root: Path, harm: str) -> None:
    folder = write_parquet(root / "tiny")
    path = folder / "train.parquet"
    held = path.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    middle = held[:8] + bytes(i ^ 0x5A for i in held[8:120]) + held[120:]
    path.write_bytes({"nothing": b"", "half": held[:200], "middle": middle}.get(harm, pointer))
    with pytest.raises(UserError, match=rf"{folder} cannot be read as a data set: [^\n]*$"):
        tiny(validation=1)


@pytest.mark.parametrize("name", ["a-train.parquet", "train-1.parquet"])
def test_a_shard_without_rows_does_no_harm(root: Path, name: str) -> None:
    folder = write_parquet(root / "tiny")
    expected = tiny(validation=1).checksum
    pq.write_table(pq.read_table(folder / "train.parquet").slice(0, 0), folder / name)
    assert tiny(validation=1).checksum == expected


def test_no_more_is_decoded_than_fits(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    monkeypatch.setattr(source, "_most", lambda: 20 * 4 * 5)
    tiny()
    make("other", train=columns(pictures(21), [i % 3 for i in range(21)]))
    with pytest.raises(UserError, match=r"train, row 20: with this image of 5x4 pixels the split"):
        tiny(source="other")


def test_no_memory_is_a_sentence(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise MemoryError

    folder = make()
    monkeypatch.setattr(source, "_labels", none)
    with pytest.raises(UserError, match=rf"{folder} cannot be read as a data set: MemoryError"):
        tiny()


def test_the_command_line_shows_one_line_for_a_bad_folder(
    root: Path, run: Callable[..., Any], write: Callable[..., Path], texts: dict[str, str]
) -> None:
    write_parquet(root / "tiny", pa.array([encoded("GIF")] * 4))
    choice = '{ name = "hub", source = "org/tiny", validation = 1 }'
    done = run(write(texts["digits"].replace('"digits"', choice)))
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "tiny, train, row 0: the image cannot be decoded" in done.err


# A cache of one's own


def test_a_cache_is_writable_for_nobody_else(make: Make, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make()
        tiny()
    finally:
        os.umask(before)
    (path,) = cached_files(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    for folder in (path.parent, path.parent.parent, tmp_path / "cache"):
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("rights", [0o620, 0o602])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_others_can_write_is_not_read(
    make: Make, tmp_path: Path, decodes: list[Path], rights: int, what: str
) -> None:
    make()
    expected = tiny().checksum
    (path,) = cached_files(tmp_path)
    (path if what == "file" else path.parent).chmod(rights | 0o100)
    assert tiny().checksum == expected
    assert len(decodes) == 2
    assert not (path.stat().st_mode | path.parent.stat().st_mode) & 0o022  # written anew
    tiny()
    assert len(decodes) == 2


def test_a_cache_of_another_user_is_neither_read_nor_written(
    make: Make, tmp_path: Path, decodes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    expected = tiny().checksum
    (path,) = cached_files(tmp_path)
    held = path.stat()
    monkeypatch.setattr(os, "geteuid", lambda: held.st_uid + 1)
    assert tiny().checksum == expected
    assert len(decodes) == 2
    assert path.stat().st_mtime_ns == held.st_mtime_ns
    assert cached_files(tmp_path) == [path]


def test_a_cache_at_a_relative_place_is_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("relative", "./x", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache.folder() == tmp_path / "home" / ".cache" / "teleport-bench" / "data"


def test_without_a_home_it_works_from_the_source(
    make: Make, decodes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    make()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert tiny().checksum == tiny().checksum
    assert len(decodes) == 2


@pytest.mark.parametrize("given", ["", " ", "..", "/etc", "../toy", "toy/..", "a//b", 5, None])
def test_a_source_that_is_no_id_is_refused_before_anything_is_looked_for(given: object) -> None:
    with pytest.raises(UserError, match="the id of a data set is a name, or two with a slash, got"):
        source.read(source.Source(given))  # type: ignore[arg-type]
