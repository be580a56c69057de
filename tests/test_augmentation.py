"""Augmentation: what it does to an image, that its choices are the run's own, and who sees it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from teleport_bench import native
from teleport_bench.activation import BLOCK, draw_holders
from teleport_bench.models import Network
from teleport_bench.models.layers import Flatten, Linear
from teleport_bench.problems import Member
from teleport_bench.problems.augmentation import VIEWS, seen
from teleport_bench.problems.classification import Classification, FleetClassification
from teleport_bench.registry import PROBLEMS

CPU = torch.device("cpu")
DIGITS = {"name": "classification", "model": "logistic", "data": "digits", "batch_size": 5}
MEMBERS = [Member(0, 10, 4), Member(1, 10, 4), Member(0, 12, 12), Member(0, 10, 10)]


def fleet_of(augment: str, members: list[Member] = MEMBERS, **options: Any) -> FleetClassification:
    choice = PROBLEMS.resolve(DIGITS | options | {"augment": augment})
    problem: Classification = PROBLEMS.build(choice)
    return problem.fleet(members, CPU)


def naive(image: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """A view of one image (channels, height, width): pad with black, crop, mirror."""
    flip, place = divmod(number, 81)
    top, left = divmod(place, 9)
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
    window = padded[:, top : top + height, left : left + width]
    return window[:, :, ::-1] if flip else window


def images_of(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


# Views


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 3),
    batch=st.integers(1, 4),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**32),
)
def test_a_view_is_the_image_padded_cropped_and_mirrored(
    rows: int, batch: int, shape: tuple[int, int, int], seed: int
) -> None:
    images = images_of(rows, batch, *shape, seed=seed)
    views = np.random.default_rng(seed).integers(VIEWS["crop_flip"], size=(rows, batch))
    found = seen(torch.from_numpy(images), torch.from_numpy(views).int())
    assert found.dtype == torch.uint8
    for a in range(rows):
        for b in range(batch):
            assert (found[a, b].numpy() == naive(images[a, b], int(views[a, b]))).all()


def test_all_views_of_an_image_differ_and_one_of_each_kind_is_whole() -> None:
    image = images_of(3, 9, 10)
    n = VIEWS["crop_flip"]
    repeated = torch.from_numpy(image).expand(1, n, *image.shape)
    found = seen(repeated, torch.arange(n)[None])[0].numpy()
    assert len({view.tobytes() for view in found}) == n
    whole = 4 * 9 + 4
    assert (found[whole] == image).all()
    assert (found[81 + whole] == image[:, :, ::-1]).all()
    assert VIEWS == {"crop": 81, "crop_flip": 162}  # so that "crop" never mirrors


@pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (2, 3, 1)])
def test_the_compiled_round_sees_the_same_views(shape: tuple[int, int, int]) -> None:
    """Bit by bit, for every view there is: only where images are read differs."""
    n = VIEWS["crop_flip"]
    network = Network([Flatten(), Linear(math.prod(shape), 3)])
    images, labels = images_of(n, *shape), torch.arange(n) % 3
    scale, shift = torch.full((1, 1, 1), 1 / 100), torch.full((1, 1, 1), -0.7)
    compiled = native.NativeNetwork(network, shape, n, scale, shift)
    x = torch.from_numpy(network.init(np.random.default_rng(0)))[None]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).int()
    cropped = np.stack([naive(images[i], v) for v, i in enumerate(order.tolist())])
    views = torch.arange(n, dtype=torch.int32)
    gradients = []
    for pixels, of, data in (
        (torch.from_numpy(images), labels, torch.stack([order, views])),
        (torch.from_numpy(cropped), labels[order.long()], views),
    ):
        grad = torch.full_like(x, torch.nan)
        read = compiled.images(pixels, of)
        compiled.gradient(native.Rows(torch.tensor([0])), x, grad, data[None], read)()
        gradients.append(grad)
    assert torch.equal(*gradients)


# Choices


@pytest.mark.parametrize("batches", ["replacement", "shuffle"])
@pytest.mark.parametrize("augment", ["crop", "crop_flip"])
def test_a_run_draws_the_same_alone_and_in_any_fleet_and_the_samples_that_it_always_drew(
    augment: str, batches: str
) -> None:
    fleet, plain = (fleet_of(a, batches=batches) for a in (augment, "none"))
    alone = [fleet_of(augment, [m], batches=batches) for m in MEMBERS]
    views = []
    for block in range(2):
        for i, m in enumerate(MEMBERS):
            holders = draw_holders("uniform", m.seed, m.nodes, m.active, block)
            drawn = fleet.draw(i, block, holders)
            assert drawn.dtype == np.int32
            assert drawn.shape == (BLOCK, m.active, 2, 5)
            assert (alone[i].draw(0, block, holders) == drawn).all()
            assert (plain.draw(i, block, holders) == drawn[:, :, 0]).all()
            views.append(drawn[:, :, 1])
    # no stream is used twice: members and blocks differ
    assert len({v.tobytes() for v in views}) == len(views)


@pytest.mark.parametrize("augment", ["crop", "crop_flip"])
def test_all_views_are_equally_likely_and_every_sample_has_its_own(augment: str) -> None:
    fleet, n = fleet_of(augment, [Member(0, 10, 10)]), VIEWS[augment]
    holders = draw_holders("all", 0, 10, 10, 0)
    views = np.stack([fleet.draw(0, block, holders)[:, :, 1] for block in range(20)])
    assert set(views.ravel().tolist()) == set(range(n))
    # Chernoff: P(|count - mean| >= d mean) <= 2 exp(-d^2 mean / 3); all bounds together fail with a
    # probability below 1e-9 for seeds drawn at random
    log = math.log(2 * (n + 4) / 1e-9)
    counts, mean = np.bincount(views.ravel(), minlength=n), views.size / n
    assert np.abs(counts - mean).max() <= math.sqrt(3 * log * mean)
    for a, b in (
        (views[..., 0], views[..., 1]),
        (views[:, :, 0], views[:, :, 1]),
        (views[:, ::2], views[:, 1::2]),
        (views[::2], views[1::2]),
    ):
        mean = a.size / n
        assert abs(int((a == b).sum()) - mean) <= math.sqrt(3 * log * mean)


# Who sees it


def test_the_gradient_is_that_of_images_that_were_cropped_before() -> None:
    fleet, plain = (fleet_of(augment, [Member(0, 3, 3)]) for augment in ("crop_flip", "none"))
    drawn = fleet.draw(0, 0, draw_holders("all", 0, 3, 3, 0))[0]
    images, labels = fleet.sets["train"]
    ids = drawn[:, 0].ravel()
    cropped = [
        naive(images[i].numpy(), int(v)) for i, v in zip(ids, drawn[:, 1].ravel(), strict=True)
    ]
    plain.sets["train"] = torch.from_numpy(np.stack(cropped)), labels[ids]
    x, node = torch.stack([fleet.initial(seed) for seed in range(3)]), torch.arange(3)
    found = fleet.gradient(x, node, torch.from_numpy(drawn))
    assert torch.equal(found, plain.gradient(x, node, torch.arange(15).view(3, 5)))


@pytest.mark.parametrize(
    "compiled",
    [
        False,
        pytest.param(True, marks=pytest.mark.skipif(not native.available(), reason="no compiler")),
    ],
)
def test_no_metric_sees_it(compiled: bool) -> None:
    members = [Member(0, 3, 3)]
    fleets = [fleet_of(augment, members) for augment in ("none", "crop_flip")]
    x = torch.stack([fleets[0].initial(seed) for seed in range(3)])
    run, world = torch.zeros(3, dtype=torch.int64), torch.tensor([0])
    if compiled:
        assert all(fleet.compile(native.Rows(torch.arange(3))) for fleet in fleets)
    plain, augmented = (fleet.evaluate(x, x[:1], run, world) for fleet in fleets)
    for name, values in plain.items():
        assert torch.equal(augmented[name], values), name
