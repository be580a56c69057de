"""Labelled images in memory, cut into training, validation and test sets."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from teleport_bench.errors import UserError
from teleport_bench.registry import DATA, Choice

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

DESCRIBED = {"name", "train", "validation", "test", "classes", "shape", "sha256"}
"""What a record says of every data set."""
MAX_CLASSES = 2**16
MAX_LABEL = np.iinfo(np.int64).max
IMAGES = "uint8 (N, channels, height, width)"
LABELS = "whole numbers (N,)"


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, channels, height, width) of uint8 and their labels (N,) in 0..n_classes-1.

    Labels of another integer type are converted. Both arrays are copied, so that what the caller
    does to its own later changes no data set. What they are is checked where they become part of a
    `Dataset`, which has a name.
    """

    images: Images
    labels: Labels

    def __post_init__(self) -> None:
        if _is_array(self.images):
            object.__setattr__(self, "images", np.array(self.images, order="C"))
        if _is_array(self.labels):
            whole = self.labels.dtype.kind in "iu" and not (self.labels > MAX_LABEL).any()
            kind = np.int64 if whole else self.labels.dtype
            object.__setattr__(self, "labels", np.array(self.labels, kind, order="C"))

    @classmethod
    def of_own(cls, images: Images, labels: Labels) -> Split:
        """A split of arrays that nobody else holds, and so need not be copied."""
        split = object.__new__(cls)
        object.__setattr__(split, "images", images)
        object.__setattr__(split, "labels", labels)
        return split

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set cut into three. Models see (image / scale - mean) / std, channel by channel.

    Step sizes are tuned on `validation`; `test` is only ever reported. `origin` says where the
    images come from where they do not travel with a package.

    What does not fit raises UserError, which names the data set, the split and what to do.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    n_classes: int
    scale: float = 255.0
    origin: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise UserError(f"a data set has the name {self.name!r}, expected a text")
        if isinstance(self.n_classes, bool) or not isinstance(self.n_classes, int | np.integer):
            raise UserError(
                f"{self.name}: n_classes is {self.n_classes!r}, expected a whole number: give "
                "int(labels.max()) + 1"
            )
        n_classes = int(self.n_classes)
        if not 1 <= n_classes <= MAX_CLASSES:
            raise UserError(f"{self.name}: n_classes is {n_classes}, expected 1 to {MAX_CLASSES:,}")
        if not _is_number(self.scale) or not 0 < self.scale < float("inf"):
            raise UserError(
                f"{self.name}: scale is {self.scale!r}, expected a positive number: the white of "
                "the images, as in 255.0"
            )
        if not isinstance(self.origin, Mapping) or not all(
            isinstance(text, str) for pair in self.origin.items() for text in pair
        ):
            raise UserError(f"{self.name}: origin is {self.origin!r}, expected texts by name")
        checked: dict[str, object] = {"n_classes": n_classes, "scale": float(self.scale)}
        for part in ("train", "validation", "test"):
            split = getattr(self, part)
            where = f"{self.name}, {part}"
            if not isinstance(split, Split):
                raise UserError(
                    f"{where}: got {_kind(split)}, expected a Split: give Split(images, labels)"
                )
            _check_split(where, split)
            _check_labels(where, split.labels, n_classes)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        shapes = {part: getattr(self, part).images.shape[1:] for part in ("validation", "test")}
        for part, shape in shapes.items():
            if shape != self.input_shape:
                raise UserError(
                    f"{self.name}: the images of train have shape {self.input_shape}, those of "
                    f"{part} {shape} (channels, height, width), expected one shape: convert them"
                )
        if taken := self.origin.keys() & DESCRIBED:
            raise UserError(
                f"{self.name}: origin says {', '.join(sorted(taken))}, which a record says of the "
                "images themselves: take other names"
            )

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
    dataset = DATA.build(json.loads(choice))
    if not isinstance(dataset, Dataset):
        raise UserError(
            f"the data set '{json.loads(choice)['name']}' gave {_kind(dataset)}, expected a "
            "Dataset: return Dataset(name, train, validation, test, n_classes)"
        )
    return dataset


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float | np.integer | np.floating)
    return number and not isinstance(value, bool)


def _kind(value: object) -> str:
    """What was given in the place of something else: "int64 (60, 1, 8, 8)", "a list", "None"."""
    if isinstance(value, np.ma.MaskedArray):
        return f"a masked array of {value.dtype} {value.shape}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)


def _check_split(where: str, split: Split) -> None:
    """UserError where these are not so many images and so many labels."""
    images, labels = split.images, split.labels
    if remedy := _no_images(images):
        raise UserError(f"{where}: images are {_kind(images)}, expected {IMAGES}: {remedy}")
    if remedy := _no_labels(labels):
        raise UserError(f"{where}: labels are {_kind(labels)}, expected {LABELS}: {remedy}")
    if len(images) != len(labels):
        raise UserError(
            f"{where}: got {len(images)} images and {len(labels)} labels, expected a label for "
            "each image"
        )


def _check_labels(where: str, labels: Labels, n_classes: int) -> None:
    """UserError where there are none, or others than 0..n_classes-1."""
    if not len(labels):
        raise UserError(f"{where}: got no images, expected at least one: give it a share")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= n_classes:
        remedy = "give labels - 1" if (low, high) == (1, n_classes) else "number them anew"
        raise UserError(
            f"{where}: labels are {low}..{high}, expected 0..{n_classes - 1} for "
            f"n_classes = {n_classes}: {remedy}, or give another n_classes"
        )


def _no_images(images: object) -> str:
    """What to do where these are no images; empty where they are."""
    if not isinstance(images, np.ndarray):
        tensor = hasattr(images, "numpy")
        return "give images.cpu().numpy()" if tensor else "give an array, np.array(images)"
    if isinstance(images, np.ma.MaskedArray):
        return "give images.filled(0)"
    if images.dtype != np.uint8:
        whole = images.dtype.kind in "iub"
        if whole and (not images.size or (images.min() >= 0 and images.max() <= 255)):
            return "give images.astype(np.uint8)"
        if images.dtype.kind == "f" and images.size:
            if (np.rint(images) == images).all() and images.min() >= 0 and images.max() <= 255:
                return "give images.astype(np.uint8)"
            if images.min() >= 0 and images.max() <= 1:
                return "give (255 * images).round().astype(np.uint8)"
        return "scale them to whole numbers in 0..255 and give images.astype(np.uint8)"
    if images.ndim == 3:
        return "give images[:, None] where they are grey"
    if images.ndim != 4:
        return "reshape them"
    _, channels, height, width = images.shape
    if not channels * height * width:
        return "give images that have pixels"
    if channels > 4 and width <= 4 and (channels == height or width >= 3):
        return "give images.transpose(0, 3, 1, 2), since channels seem to be last"
    return ""


def _no_labels(labels: object) -> str:
    """What to do where these are no labels; empty where they are."""
    if not isinstance(labels, np.ndarray):
        tensor = hasattr(labels, "numpy")
        return "give labels.cpu().numpy()" if tensor else "give an array, np.array(labels)"
    if isinstance(labels, np.ma.MaskedArray):
        return "leave out the images without a label, and give labels.compressed()"
    if labels.ndim == 2 and 1 in labels.shape:
        return "give labels.ravel()"
    if labels.ndim == 2:
        return "give labels.argmax(1) where they are one-hot"
    if labels.ndim != 1:
        return "give one label for each image"
    if labels.dtype.kind in "iu" and labels.dtype != np.int64:
        return f"number the classes anew, since {labels.max()} is too large"
    if labels.dtype != np.int64:
        return "give np.unique(labels, return_inverse=True)[1], the number of each one's class"
    return ""


def split_by_class(
    images: Images, labels: Labels, validation: float, test: float, seed: int
) -> tuple[Split, Split, Split]:
    """Training, validation and test sets with each class in the same shares; fixed by the seed.

    Of a class with m images, round(m * test) go to test and round(m * validation) to validation.
    """
    if not (_is_number(validation) and _is_number(test)) or not (
        0 <= validation <= 1 and 0 <= test <= 1 and validation + test <= 1
    ):
        raise UserError(
            f"split_by_class: got the shares validation = {validation!r} and test = {test!r}, "
            "expected numbers of at least 0, and at most 1 together"
        )
    whole = Split(images, labels)
    _check_split("split_by_class", whole)
    images, labels = whole.images, whole.labels
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
        Split.of_own(images[train], labels[train]),
        Split.of_own(images[val], labels[val]),
        Split.of_own(images[tst], labels[tst]),
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
