"""Labelled images in memory, cut into training, validation and test sets."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

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

    Step sizes are tuned on `validation`; `test` is only ever reported. `origin` says where the
    images come from where they do not travel with a package.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    n_classes: int
    scale: float = 255.0
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.train.images.shape[1:]

    @functools.cached_property
    def mean_std(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation of the scaled training images: (channels,) each."""
        images = self.train.images
        counts = np.zeros((images.shape[1], 256), np.int64)
        for start in range(0, len(images), 1000):  # bincount makes int64 of all it is given
            for c, values in enumerate(images[start : start + 1000].swapaxes(0, 1)):
                counts[c] += np.bincount(values.ravel(), minlength=256)
        levels, shares = np.arange(256) / self.scale, counts / counts.sum(1, keepdims=True)
        mean = shares @ levels
        variance = (shares * (levels - mean[:, None]) ** 2).sum(1)
        return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)

    @functools.cached_property
    def checksum(self) -> str:
        """SHA-256 over the images and labels of the three sets, in order: 64 hex digits."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels, "<i8").data)
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
            **self.origin,
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


def stratified(labels: Labels, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`size` ids of labels (N,), ascending: a class with m samples gives m size / N of them.

    Where that is no whole number, it is rounded so that the sum is `size` (largest remainders).
    """
    counts, rest = np.divmod(np.bincount(labels) * size, len(labels))
    counts[np.argsort(-rest, kind="stable")[: size - counts.sum()]] += 1
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in enumerate(counts)
    ]
    return np.sort(np.concatenate(chosen))
