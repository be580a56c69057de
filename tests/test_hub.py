"""Data sets in the hub's layout: found, decoded as they are, checked, and decoded once."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
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
