"""Labelled images in memory, cut into training, validation and test sets."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teleport_bench.registry import DATA, Choice

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, channels, height, width) of uint8 and their labels (N,) in 0..n_classes-1."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set cut into three. Models see (image / scale - mean) / std, channel by channel.

    Step sizes are tuned on `validation`; `test` is only ever reported.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    n_classes: int
    scale: float = 255.0

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.train.images.shape[1:]

    @functools.cached_property
    def mean_std(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation of the scaled training images: (channels,) each."""
        x = self.train.images / self.scale
        return x.mean((0, 2, 3)).astype(np.float32), x.std((0, 2, 3)).astype(np.float32)

    @functools.cached_property
    def checksum(self) -> str:
        """SHA-256 over the images and labels of the three sets, in order: 64 hex digits."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            digest.update(np.ascontiguousarray(split.images).tobytes())
            digest.update(split.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        """What a record says of its data."""
        return {
            "name": self.name,
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            "classes": self.n_classes,
            "shape": list(self.input_shape),
            "sha256": self.checksum,
        }


def load(choice: Choice) -> Dataset:
    """The data set that a resolved choice names; read once a process."""
    return _load(json.dumps(choice, sort_keys=True))


@functools.lru_cache(maxsize=4)
def _load(choice: str) -> Dataset:
    dataset: Dataset = DATA.build(json.loads(choice))
    return dataset


def split_by_class(
    images: Images, labels: Labels, validation: float, test: float, seed: int
) -> tuple[Split, Split, Split]:
    """Training, validation and test sets with each class in the same shares; fixed by the seed.

    Of a class with m images, round(m * test) go to test and round(m * validation) to validation.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    parts: tuple[list[NDArray[np.int64]], ...] = ([], [], [])
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        n_test, n_validation = round(len(members) * test), round(len(members) * validation)
        parts[2].append(members[:n_test])
        parts[1].append(members[n_test : n_test + n_validation])
        parts[0].append(members[n_test + n_validation :])
    train, val, tst = (np.sort(np.concatenate(part)) for part in parts)
    return (
        Split(images[train], labels[train]),
        Split(images[val], labels[val]),
        Split(images[tst], labels[tst]),
    )
