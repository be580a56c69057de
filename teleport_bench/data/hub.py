"""Data sets of the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from teleport_bench.data.cache import Splits
from teleport_bench.data.dataset import Dataset, Split, stratified
from teleport_bench.data.source import Source, read
from teleport_bench.errors import UserError
from teleport_bench.registry import DATA

Held = PositiveInt | Annotated[float, Field(gt=0, lt=1)]
"""A number of training images, or their share."""
Id = Annotated[str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")]

MNIST = (60_000, 10_000, (1, 28, 28))
CIFAR10 = (50_000, 10_000, (3, 32, 32))
"""Training images, test images, shape."""


@DATA.register("mnist")
def mnist(*, validation: Held = 5000, limit: PositiveInt | None = None) -> Dataset:
    """70,000 grey 28x28 images of handwritten digits, 10,000 for test (hub: ylecun/mnist).

    Options: see `hub`. Source: LeCun et al. 1998.
    """
    return _cut("mnist", Source("ylecun/mnist"), validation, limit, MNIST)


@DATA.register("fashion_mnist")
def fashion_mnist(*, validation: Held = 5000, limit: PositiveInt | None = None) -> Dataset:
    """70,000 grey 28x28 images of clothes, 10,000 for test (hub: zalando-datasets/fashion_mnist).

    Options: see `hub`. Source: Xiao et al. 2017.
    """
    source = Source("zalando-datasets/fashion_mnist")
    return _cut("fashion_mnist", source, validation, limit, MNIST)


@DATA.register("cifar10")
def cifar10(*, validation: Held = 5000, limit: PositiveInt | None = None) -> Dataset:
    """60,000 RGB 32x32 images of 10 classes, 10,000 for test (hub: uoft-cs/cifar10).

    Options: see `hub`. Source: Krizhevsky 2009.
    """
    return _cut("cifar10", Source("uoft-cs/cifar10", image="img"), validation, limit, CIFAR10)


@DATA.register("hub")
def hub(
    *,
    source: Id,
    subset: str | None = None,
    image: str = "image",
    label: str = "label",
    train: str = "train",
    test: str = "test",
    revision: str | None = None,
    validation: Held = 5000,
    limit: PositiveInt | None = None,
) -> Dataset:
    """Any image classification set of the Hugging Face hub, all images of one size and mode.

    source: its id, as in "uoft-cs/cifar100". subset: its configuration, where it has several.
    image, label: the columns; labels are 0..C-1. train, test: the splits. revision: a commit, tag
    or branch of the hub's repository, where its main branch is not meant. validation: how many of
    the training images, or which share, are kept for validation; limit: how many of the rest are
    trained on, all without it. Both are drawn once and for all (seed 0), with each class's share
    kept to within one image.
    """
    place = Source(source, subset, image, label, train, test, revision)
    return _cut(source, place, validation, limit)


def _cut(
    name: str,
    source: Source,
    validation: Held,
    limit: int | None,
    expected: tuple[int, int, tuple[int, ...]] | None = None,
) -> Dataset:
    splits, origin = read(source)
    n_classes = _check(source, splits, expected)
    train, test = splits
    labels, everything = train.labels, len(train)
    n_held = validation if isinstance(validation, int) else round(validation * everything)
    if n_held < 1 or n_held + (limit or 1) > everything:
        raise UserError(
            f"{name}: {n_held} images for validation and {limit or 'at least 1'} for training, "
            f"expected at least one and together at most the {everything} of the split "
            f"'{source.train}': change 'validation' or 'limit'"
        )
    rng = np.random.Generator(np.random.Philox(0))
    held = stratified(labels, n_held, rng)
    used = np.delete(np.arange(everything), held)
    if limit:
        used = used[stratified(labels[used], limit, rng)]
    return Dataset(
        name,
        Split.of_own(train.images[used], labels[used]),
        Split.of_own(train.images[held], labels[held]),
        test,
        n_classes,
        origin=origin,
    )


def _check(
    source: Source, splits: Splits, expected: tuple[int, int, tuple[int, ...]] | None
) -> int:
    """The number of classes, or a UserError where the splits are not what they should be."""
    train, test = splits
    shapes = [split.images.shape[1:] for split in splits]
    got = (len(train), len(test), *shapes)
    if expected and got != (*expected, expected[2]):
        raise UserError(
            f"{source.id}: got {got[0]} training and {got[1]} test images of shape {got[2]} and "
            f"{got[3]}, expected {expected[0]} and {expected[1]} of {expected[2]}: the copy is not "
            "complete, or is another set; get it again"
        )
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{source.id}: the images have shape {shapes[0]} in '{source.train}' and {shapes[1]} "
            f"in '{source.test}' (channels, height, width), expected one shape: convert them"
        )
    found = np.unique(train.labels)
    n_classes = 10 if expected else int(found[-1]) + 1
    if not np.array_equal(found, np.arange(len(found))) or len(found) != n_classes:
        raise UserError(
            f"{source.id}: the labels of '{source.train}' are {_some(found)}, expected 0 to "
            f"{max(n_classes - 1, 0)} and none missing: number the classes anew, or choose another "
            "column with 'label'"
        )
    strange = np.setdiff1d(test.labels, found)
    if len(strange):
        raise UserError(
            f"{source.id}: '{source.test}' has labels {_some(strange)} that '{source.train}' has "
            f"not, expected 0 to {n_classes - 1}: choose other splits with 'train' and 'test'"
        )
    return n_classes


def _some(labels: np.ndarray[tuple[int], np.dtype[np.int64]]) -> str:
    first = ", ".join(map(str, labels[:12]))
    return f"{first}, .." if len(labels) > 12 else first
