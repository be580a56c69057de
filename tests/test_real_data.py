"""The full data sets, where TELEPORT_BENCH_DATA names a folder that has them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from teleport_bench.data import source
from teleport_bench.data.dataset import Split
from teleport_bench.data.source import Source
from teleport_bench.registry import DATA

ROOT = os.environ.get("TELEPORT_BENCH_DATA")


class Known(NamedTuple):
    """The first labels, and the SHA-256 of the pixels, channels last, of training and test set.

    Those of the two MNIST sets are of the authors' IDX files without their headers.
    """

    place: Source
    sizes: tuple[int, int]
    labels: tuple[list[int], list[int]]
    pixels: tuple[str, str]


KNOWN = {
    "mnist": Known(
        Source("ylecun/mnist"),
        (60_000, 10_000),
        ([5, 0, 4, 1, 9, 2, 1, 3, 1, 4], [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]),
        (
            "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        ),
    ),
    "fashion_mnist": Known(
        Source("zalando-datasets/fashion_mnist"),
        (60_000, 10_000),
        ([9, 0, 0, 3, 0, 2, 7, 2, 5, 5], [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]),
        (
            "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
            "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        ),
    ),
    "cifar10": Known(
        Source("uoft-cs/cifar10", image="img"),
        (50_000, 10_000),
        ([0, 6, 0, 2, 7, 2, 1, 2, 4, 1], [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]),
        (
            "c5b8e1d062f7373a5bc758689b1b9c2a7caf093109b95ceb98cecaf2bd266807",
            "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        ),
    ),
}


@pytest.fixture(params=sorted(KNOWN))
def name(request: pytest.FixtureRequest) -> str:
    if not ROOT or not (Path(ROOT) / request.param).is_dir():
        pytest.skip(f"TELEPORT_BENCH_DATA names no folder with {request.param}")
    return str(request.param)


def test_all_images_and_labels_are_those_that_the_authors_published(name: str) -> None:
    known = KNOWN[name]
    splits, _ = source.read(known.place)
    for split, size, first, pixels in zip(
        splits, known.sizes, known.labels, known.pixels, strict=True
    ):
        assert len(split) == size
        assert split.labels[:10].tolist() == first
        last = np.ascontiguousarray(split.images.transpose(0, 2, 3, 1))
        assert hashlib.sha256(last.data).hexdigest() == pixels


def test_a_second_read_decodes_nothing_and_cuts_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = DATA.build(DATA.resolve(name))
    monkeypatch.setattr(source, "_decode", lambda *_: pytest.fail("decoded again"))
    again = DATA.build(DATA.resolve(name))
    assert again.describe() == first.describe()
    known = KNOWN[name]
    assert [len(s) for s in (first.train, first.validation, first.test)] == [
        known.sizes[0] - 5000,
        5000,
        known.sizes[1],
    ]
    whole: Split = source.read(known.place)[0][0]
    share = np.bincount(first.validation.labels) / np.bincount(whole.labels)
    assert np.abs(share * known.sizes[0] / 5000 - 1).max() < 0.01
