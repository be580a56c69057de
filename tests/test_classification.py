"""Classification: each row's own gradient, batches from the holder's shard, honest metrics.

Statistical tests draw from fixed seeds; the probability that a right implementation fails them for
seeds drawn at random is below 1e-9 each, by the bound that stands beside the tolerance.
"""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

import teleport_bench as tb
from teleport_bench import RunSpec, native
from teleport_bench.activation import BLOCK, draw_holders
from teleport_bench.data import Dataset, load
from teleport_bench.data.dataset import Split
from teleport_bench.data.partition import deal
from teleport_bench.errors import UserError
from teleport_bench.fleet import Fleet
from teleport_bench.problems import Member, classification
from teleport_bench.problems.classification import Replacement, Shuffle, normalisation
from teleport_bench.registry import DATA, PROBLEMS

CPU = torch.device("cpu")
ERROR = 1e-9
U = 2.0**-24
DIGITS_SHA256 = "ff0aa4f9348e65fdb6981ae3818e76b9cd28f4a5887f68304fc55e3fa64e7516"


def problem_of(model="logistic", data="digits", **options):
    choice = {"name": "classification", "model": model, "data": data, **options}
    return PROBLEMS.build(PROBLEMS.resolve(choice))


def gamma(n):
    """Relative error of n float32 operations in a row (Higham 2002, section 3.1)."""
    return n * U / (1 - n * U)


def normalised(dataset, images):
    """float64, by the definition."""
    mean, std = (torch.from_numpy(v).double()[:, None, None] for v in dataset.mean_std)
    return (torch.from_numpy(images).double() / dataset.scale - mean) / std


def rows_near_the_start(fleet, rows, seed=0):
    rng = np.random.default_rng(seed)  # not a stream of the project's, which may change
    start = torch.from_numpy(fleet.problem.network.init(rng))
    return start + 0.1 * torch.from_numpy(rng.standard_normal((rows, len(start)))).float()


# Gradients

PLAIN = {
    "logistic": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)),
    "lenet": lambda: nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 6)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(4, 16)),
        *(nn.Flatten(), nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, 10),
    ),
}
LONGEST_SUM = {"logistic": 784 + 1, "mlp": 784 + 1, "lenet": 3 * 24 * 24}
"""Numbers in the longest dot product, forwards or backwards, for batches of up to 3."""


def plain_gradient(model, row, inputs, labels):
    """The gradient of the mean cross-entropy of one row by torch.nn and autograd, in float64."""
    net, at = PLAIN[model]().double(), 0
    for p in net.parameters():  # Linear keeps its weights transposed
        part = row[at : at + p.numel()]
        p.data = part.view(p.shape[::-1]).T if p.ndim == 2 else part.view(p.shape)
        at += p.numel()
    F.cross_entropy(net(inputs), labels).backward()
    return torch.cat([(p.grad.T if p.ndim == 2 else p.grad).flatten() for p in net.parameters()])


@pytest.mark.parametrize("model", sorted(PLAIN))
@pytest.mark.parametrize("batch", [1, 3])
def test_the_gradient_of_every_row_is_that_of_a_plain_loop_over_rows(model, batch):
    problem, rows = problem_of(model, "mnist5k"), 3
    fleet, train = problem.fleet([Member(0, 7, rows)], CPU), problem.dataset.train
    x = rows_near_the_start(fleet, rows)
    rng = np.random.default_rng(14)
    data = rng.integers(len(train), size=(rows, batch), dtype=np.int32)
    found = fleet.gradient(x, torch.arange(rows), torch.from_numpy(data))
    assert found.shape == x.shape
    assert found.dtype == torch.float32
    for a in range(rows):
        inputs = normalised(problem.dataset, train.images[data[a]])
        labels, row = torch.from_numpy(train.labels[data[a]]), x[a].double()
        expected = plain_gradient(model, row, inputs, labels)
        # A float32 dot product of m numbers is the exact one of weights that are off by gamma(m) at
        # most, relatively. What such weights do to the gradient, to first order, is what rounding
        # may do to it; a step of 1e-9 switches no ReLU and no maximum. Nor does rounding: with
        # these all are 7e-5 or further from where they switch, equal patches apart.
        signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=len(row)))
        step = plain_gradient(model, row * (1 + 1e-9 * signs), inputs, labels) - expected
        tolerance = gamma(LONGEST_SUM[model]) / 1e-9 * step.norm()
        assert tolerance < 1e-3 * expected.norm()
        assert (found[a].double() - expected).norm() <= tolerance


@pytest.mark.parametrize("model", sorted(PLAIN))
def test_the_gradient_of_a_row_does_not_feel_the_other_rows(model):
    fleet = problem_of(model, "mnist5k").fleet([Member(0, 7, 3)], CPU)
    x, node = rows_near_the_start(fleet, 3), torch.arange(3)
    data = torch.arange(12, dtype=torch.int32).view(3, 4)
    before = fleet.gradient(x, node, data)
    x[[0, 2]], data[[0, 2]] = -x[[0, 2]], data[[0, 2]] + 100
    after = fleet.gradient(x, node, data)
    assert torch.equal(after[1], before[1])
    assert (after[[0, 2]] != before[[0, 2]]).any(1).all()


def test_the_gradient_leaves_its_arguments_alone_and_carries_no_graph():
    fleet = problem_of("mlp").fleet([Member(0, 3, 3)], CPU)
    x = rows_near_the_start(fleet, 3)
    data = torch.arange(6, dtype=torch.int32).view(3, 2)
    x_before, data_before = x.clone(), data.clone()
    gradient = fleet.gradient(x, torch.arange(3), data)
    assert torch.equal(x, x_before)
    assert torch.equal(data, data_before)
    assert not gradient.requires_grad
    assert not x.requires_grad


def test_the_start_depends_on_the_seed_and_the_model_alone():
    wide, narrow = (
        problem_of({"name": "mlp", "hidden": [5]}, partition={"name": "dirichlet", "alpha": alpha})
        for alpha in (0.1, 10)
    )
    first = wide.fleet([Member(0, 7, 3)], CPU)
    x = first.initial(4)
    assert x.shape == (wide.n_params,)
    assert torch.equal(narrow.fleet([Member(4, 9, 9), Member(0, 5, 1)], CPU).initial(4), x)
    assert (first.initial(5) != x).any()
    # a stream of its own for each model, so that not even the shared first layer agrees
    other = problem_of({"name": "mlp", "hidden": [5, 5]}).fleet([Member(0, 7, 3)], CPU)
    assert (other.initial(4)[:320] != x[:320]).any()


# Batches with replacement


@settings(deadline=None, max_examples=30)
@given(
    n_nodes=st.integers(1, 60),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    block=st.integers(0, 1000),
    data=st.data(),
)
def test_replacement_draws_only_from_the_shard_of_the_holder(n_nodes, batch, seed, block, data):
    active = data.draw(st.integers(1, n_nodes))
    problem = problem_of(batch_size=batch, partition={"name": "dirichlet", "alpha": 0.1})
    fleet = problem.fleet([Member(seed, n_nodes, active)], CPU)
    holders = draw_holders("uniform", seed, n_nodes, active, block)
    drawn = fleet.draw(0, block, holders)
    assert drawn.shape == (BLOCK, active, batch)
    shards = problem.shards(seed, n_nodes)
    assert (drawn[..., None] == shards[holders][:, :, None, :]).any(-1).all()
    assert (fleet.draw(0, block, holders) == drawn).all()


def test_replacement_draws_uniformly_and_every_sample_of_a_batch_by_itself():
    n_nodes, shard_size, batch, blocks = 5, 10, 4, 60
    shards = np.arange(n_nodes * shard_size).reshape(n_nodes, shard_size)
    sampler = Replacement(shards, 0, batch)
    holders = np.tile(np.arange(n_nodes), (BLOCK, 1))
    drawn = np.stack([sampler.block(block, holders) for block in range(blocks)])
    counts = np.bincount(drawn.ravel(), minlength=shards.size)
    mean = blocks * BLOCK * batch / shard_size
    # Chernoff: P(|count - mean| >= d mean) <= 2 exp(-d^2 mean / 3) for d < 1, over 50 samples
    d = math.sqrt(3 * math.log(2 * shards.size / ERROR) / mean)
    assert d < 0.25
    assert np.abs(counts - mean).max() <= d * mean
    pairs = {
        "samples of a batch": (drawn[..., ::2], drawn[..., 1::2]),
        "rounds": (drawn[:, ::2], drawn[:, 1::2]),
        "blocks": (drawn[::2], drawn[1::2]),
        "nodes": (drawn[:, :, 0], drawn[:, :, 1] - shard_size),
    }
    for name, (a, b) in pairs.items():
        # two independent draws agree with probability 1/10
        agree, expected = int((a == b).sum()), a.size / shard_size
        d = math.sqrt(3 * math.log(2 * len(pairs) / ERROR) / expected)
        assert abs(agree - expected) <= d * expected, name


def test_the_batches_of_a_run_are_the_same_alone_and_in_any_fleet():
    members = [Member(0, 10, 4), Member(1, 10, 4), Member(0, 12, 12), Member(0, 10, 10)]
    for batches in ("replacement", "shuffle"):
        problem = problem_of(batch_size=7, batches=batches)
        fleet = problem.fleet(members, CPU)
        alone = [problem.fleet([m], CPU) for m in members]
        for block in range(2):
            for i, m in enumerate(members):
                holders = draw_holders("uniform", m.seed, m.nodes, m.active, block)
                expected = alone[i].draw(0, block, holders)
                assert (fleet.draw(i, block, holders) == expected).all()


def test_d_sgd_and_teleportation_of_one_seed_share_the_shards_and_the_start():
    problem = problem_of()
    fleet = problem.fleet([Member(3, 10, 10), Member(3, 10, 4)], CPU)
    d_sgd, teleportation = fleet.samplers
    assert (d_sgd.shards == teleportation.shards).all()
    expected = deal({"name": "iid"}, problem.dataset.train.labels, 10, 3)
    assert (d_sgd.shards == expected).all()


# Batches from shuffled epochs


@st.composite
def visits(draw):
    """Shards, a batch size that may not divide them, and who is active in each round."""
    n_nodes, shard_size = draw(st.integers(1, 6)), draw(st.integers(1, 10))
    batch, active = draw(st.integers(1, shard_size)), draw(st.integers(1, n_nodes))
    rounds, seed = draw(st.integers(1, 40)), draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    ids = rng.permutation(n_nodes * shard_size + 3)[: n_nodes * shard_size]
    everyone = np.tile(np.arange(n_nodes), (rounds, 1))
    holders = rng.permuted(everyone, axis=1)[:, :active]
    return ids.reshape(n_nodes, shard_size), batch, holders, seed


def streams(holders, drawn, n_nodes):
    """What each node has read, in order."""
    return [drawn[holders == node].ravel().tolist() for node in range(n_nodes)]


@settings(deadline=None, max_examples=80)
@given(visits())
def test_shuffle_takes_every_node_through_its_shard_exactly_once_an_epoch(case):
    shards, batch, holders, seed = case
    drawn = Shuffle(shards, seed, batch).block(0, holders)
    assert drawn.shape == (*holders.shape, batch)
    for shard, stream in zip(shards, streams(holders, drawn, len(shards)), strict=True):
        for start in range(0, len(stream), len(shard)):
            epoch = stream[start : start + len(shard)]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= set(shard.tolist())


@settings(deadline=None, max_examples=80)
@given(visits(), st.data())
def test_shuffle_block_by_block_equals_all_rounds_at_once(case, data):
    shards, batch, holders, seed = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(holders)), max_size=4)))
    whole = Shuffle(shards, seed, batch).block(0, holders)
    sampler = Shuffle(shards, seed, batch)
    parts = [sampler.block(i, part) for i, part in enumerate(np.split(holders, cuts))]
    assert (np.concatenate(parts) == whole).all()


@settings(deadline=None, max_examples=80)
@given(visits())
def test_shuffle_goes_on_where_the_node_stopped_whoever_was_active_in_between(case):
    """A node reads the same stream when it is alone and takes one sample at a time."""
    shards, batch, holders, seed = case
    drawn = Shuffle(shards, seed, batch).block(0, holders)
    for node, stream in enumerate(streams(holders, drawn, len(shards))):
        alone = Shuffle(shards, seed, 1).block(0, np.full((len(stream), 1), node))
        assert alone.ravel().tolist() == stream


def test_shuffle_leaves_the_shards_that_it_was_given_alone():
    shards = np.arange(12).reshape(3, 4)
    Shuffle(shards, 0, 4).block(0, np.tile(np.arange(3), (5, 1)))
    assert (shards == np.arange(12).reshape(3, 4)).all()


def test_shuffle_makes_every_order_equally_likely_for_every_node_and_epoch():
    n_nodes, epochs = 1000, 12
    shards = np.tile(np.arange(4), (n_nodes, 1))
    drawn = Shuffle(shards, 0, 4).block(0, np.tile(np.arange(n_nodes), (epochs, 1)))
    code = (drawn * [64, 16, 4, 1]).sum(-1)  # (epochs, nodes)
    # Chernoff, over the 24 orders and what follows
    log = math.log(2 * 30 / ERROR)
    orders = Counter(code.ravel().tolist())
    mean = code.size / 24
    assert len(orders) == 24
    assert max(abs(c - mean) for c in orders.values()) <= math.sqrt(3 * log * mean)
    # neither the next epoch nor the next node repeats an order more often than by chance
    for a, b in ((code[::2], code[1::2]), (code[:, ::2], code[:, 1::2])):
        mean = a.size / 24
        assert abs(int((a == b).sum()) - mean) <= math.sqrt(3 * log * mean)


def test_shuffled_batches_of_a_run_count_its_epochs():
    n_nodes, batch, blocks = 100, 3, 3  # shards of 10: three does not divide them
    problem = problem_of(batches="shuffle", batch_size=batch)
    fleet = problem.fleet([Member(0, n_nodes, n_nodes)], CPU)
    holders = draw_holders("all", 0, n_nodes, n_nodes, 0)
    drawn = np.concatenate([fleet.draw(0, block, holders) for block in range(blocks)])
    shards = problem.shards(0, n_nodes)
    counts = np.bincount(drawn.ravel(), minlength=len(problem.dataset.train))
    epochs = problem.epochs(n_nodes, blocks * BLOCK * n_nodes)
    assert epochs == pytest.approx(57.6, rel=1e-15)
    assert set(counts[shards.ravel()].tolist()) == {57, 58}
    assert counts.sum() == counts[shards.ravel()].sum() == drawn.size


def test_a_shuffled_batch_larger_than_the_shard_is_an_error_that_names_both():
    problem = problem_of(batches="shuffle", batch_size=11)
    problem.check(98)  # shards of 11
    with pytest.raises(UserError, match=r"batch_size 11 is more than the 10 samples"):
        problem.check(99)
    problem_of(batches="replacement", batch_size=11).check(1079)


# Metrics


def affine_layers(problem, row):
    """[(A, b)] of a logistic regression or MLP in float64, by hand from the flat row."""
    widths, at, found = [64, *problem.model.get("hidden", ()), 10], 0, []
    for m, n in zip(widths, widths[1:], strict=False):  # noqa: RUF007
        found.append((row[at : at + m * n].reshape(m, n), row[at + m * n : at + m * n + n]))
        at += m * n + n
    assert at == len(row)
    return found


def naive_score(problem, row, split):
    """(loss, its error in float32, certainly right, undecided in float32), image by image."""
    dataset, row = problem.dataset, row.double().numpy()
    y = normalised(dataset, split.images).flatten(1).numpy()
    mean, std = (float(v[0]) for v in dataset.mean_std)
    # the scaled image less the mean, with a rounded factor and a rounded shift
    error = gamma(5) * (split.images.reshape(len(y), -1) / (dataset.scale * std) + mean / std)
    for i, (A, b) in enumerate(affine_layers(problem, row)):
        if i:
            y = np.maximum(y, 0)  # 1-Lipschitz
        size = (np.abs(y) + error) @ np.abs(A) + np.abs(b)
        error = error @ np.abs(A) + gamma(len(A) + 1) * size
        y = y @ A + b
    worst = error.max(1)
    top = y.max(1)
    losses = top + np.log(np.exp(y - top[:, None]).sum(1)) - y[np.arange(len(y)), split.labels]
    # log-sum-exp is 1-Lipschitz, and ten terms with logarithm and differences are rounded
    lost = 2 * worst + gamma(20) * (np.abs(y).max(1) + losses + 1)
    rivals = np.sort(y, axis=1)
    undecided = rivals[:, -1] - rivals[:, -2] <= 2 * worst
    right = (y.argmax(1) == split.labels) & ~undecided
    return losses.mean(), lost.mean(), right.sum(), undecided.sum()


def assert_accuracy(found, scores, n):
    """The mean over rows of the accuracy, which an undecided image may lower or raise."""
    rows = len(scores)
    low = sum(int(right) for _, _, right, _ in scores) / n / rows
    undecided = sum(int(u) for _, _, _, u in scores) / n / rows
    assert undecided < 0.01
    assert low - 1e-12 <= found <= low + undecided + 1e-12


@pytest.mark.parametrize("model", ["logistic", {"name": "mlp", "hidden": [12]}])
@pytest.mark.parametrize("chunk", [classification.CHUNK, 2 * 256 * 64, 1])
def test_the_metrics_are_those_of_a_naive_computation(model, chunk, monkeypatch):
    """However many rows are evaluated at once: all, two, or one."""
    monkeypatch.setattr(classification, "CHUNK", chunk)
    problem = problem_of(model)
    fleet, data = problem.fleet([Member(0, 5, 3), Member(1, 5, 2)], CPU), problem.dataset
    x, mean = rows_near_the_start(fleet, 5), rows_near_the_start(fleet, 2, seed=1)
    run, world = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1])
    found = fleet.evaluate(x, mean, run, world)
    assert set(found) == set(problem.metrics)
    for r in range(2):
        loss, lost, _, _ = naive_score(problem, mean[r], data.train)
        assert lost < 1e-3
        assert abs(found["train_loss"][r].item() - loss) <= lost
        for name in ("validation", "test"):
            split = getattr(data, name)
            score = naive_score(problem, mean[r], split)
            assert_accuracy(found[f"{name}_accuracy"][r].item(), [score], len(split))
        rows = [naive_score(problem, x[a], data.test) for a in range(5) if run[a] == r]
        assert_accuracy(found["test_accuracy_rows"][r].item(), rows, len(data.test))


def naive_gradient_norm2(problem, row, decay):
    """||grad f + decay x||^2 of one model on the whole training set, in float64 at once."""
    data = problem.dataset
    x = row[None].double().requires_grad_()
    inputs = normalised(data, data.train.images)[None]
    logits = problem.network.logits(problem.network.views(x), inputs)[0]
    loss = F.cross_entropy(logits, torch.from_numpy(data.train.labels))
    (gradient,) = torch.autograd.grad(loss + decay / 2 * (x**2).sum(), x)
    return float((gradient**2).sum())


@pytest.mark.parametrize("model", ["logistic", {"name": "mlp", "hidden": [12]}])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_norm_of_the_gradient_is_that_of_the_whole_regularised_objective(
    model, decay, compiled
):
    """Of the mean model, and of no batch or crop, in both engines."""
    if compiled and not native.available():
        pytest.skip("no C++ compiler on this machine")
    problem = problem_of(model, augment="crop_flip", batch_size=7)
    fleet = problem.fleet([Member(0, 5, 3)], CPU)
    if compiled:
        assert fleet.compile(native.Rows(torch.arange(3)))
    mean = rows_near_the_start(fleet, 3, seed=1)
    found = fleet.gradient_norm2(mean, decay)
    assert found.dtype == torch.float64
    expected = [naive_gradient_norm2(problem, row, decay) for row in mean]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    alone = fleet.gradient_norm2(mean[1:2], decay).item()
    assert alone == (found[1].item() if compiled else pytest.approx(found[1].item(), rel=1e-5))


@pytest.mark.parametrize("model", ["logistic", {"name": "mlp", "hidden": [16]}])
def test_a_run_stops_where_its_gradient_is_small_enough(model):
    """The metric is there for runs that ask for it, the same alone and in a fleet."""
    asked = {"metric": "gradient_norm2", "value": 0.1, "window": 2, "every": 2}
    shared = {
        **{"algorithm": "dsgd", "nodes": 4, "lr": 0.2, "rounds": 120, "eval_every": 40},
        **{"weight_decay": 0.01, "topology": "ring"},
        "problem": {"name": "classification", "model": model, "data": "digits"},
    }
    silent = RunSpec.model_validate(shared)
    assert "gradient_norm2" not in silent.known_metrics()
    specs = [RunSpec.model_validate(shared | {"stop": asked, "seed": s}) for s in (0, 1)]
    assert "gradient_norm2" in specs[0].known_metrics()
    together = Fleet(specs, compiled=native.available()).advance()
    (alone,) = Fleet(specs[1:], compiled=native.available()).advance()
    assert alone.curves["gradient_norm2"] == pytest.approx(
        together[1].curves["gradient_norm2"], rel=1e-4
    )
    for outcome in together:
        curve = outcome.curves["gradient_norm2"]
        assert outcome.reached_at is not None
        assert 0 < outcome.reached_at < 120
        assert curve[-1] < 2 * 0.1 < curve[0]
    short = specs[0].varied(rounds=2, eval_every=1)
    in_torch, other = (
        Fleet([short], compiled=c).advance()[0].curves["gradient_norm2"] for c in (False, True)
    )
    assert in_torch == pytest.approx(other, rel=1e-4)
    (plain,) = Fleet([silent], compiled=native.available()).advance()
    assert "gradient_norm2" not in plain.curves
    bad = asked | {"metric": "gradient_norm"}
    with pytest.raises(ValidationError, match="unknown metric 'gradient_norm'"):
        RunSpec.model_validate(shared | {"stop": bad})


@pytest.mark.parametrize("model", ["logistic", "mlp", "lenet"])
def test_a_constant_classifier_is_right_on_one_class_and_loses_log_ten(model):
    """Parameters of zero but for one output bias: logits (0, .., c, .., 0) for every image."""
    fleet = problem_of(model, "mnist5k").fleet([Member(0, 5, 2)], CPU)
    x = torch.zeros(2, fleet.problem.n_params)
    x[1, -3] = 1.0
    run = torch.tensor([0, 1])
    found = fleet.evaluate(x, x, run, torch.tensor([0, 0]))
    one = math.log(9 + math.e) - 0.1
    for loss, expected in zip(found["train_loss"].tolist(), (math.log(10), one), strict=True):
        # log-sum-exp of ten terms in float32, added up in float64
        assert abs(loss - expected) <= gamma(20) * (expected + 1)
    for name in ("validation_accuracy", "test_accuracy", "test_accuracy_rows"):
        # ties go to one class or another, and each has a tenth of the images
        assert found[name].tolist() == pytest.approx([0.1, 0.1], rel=1e-15)


def test_the_accuracy_of_rows_is_averaged_within_each_run():
    problem = problem_of()
    fleet, test = problem.fleet([Member(0, 5, 3), Member(1, 5, 1)], CPU), problem.dataset.test
    x = torch.zeros(4, problem.n_params)
    classes = [3, 5, 8, 1]  # each row always answers this class
    for a, c in enumerate(classes):
        x[a, -10 + c] = 1.0
    found = fleet.evaluate(x, x[:2], torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1]))
    share = [int((test.labels == c).sum()) / len(test) for c in classes]
    expected = [sum(share[:3]) / 3, share[3]]
    assert found["test_accuracy_rows"].tolist() == pytest.approx(expected, rel=1e-15)
    assert found["test_accuracy"].tolist() == pytest.approx(share[:2], rel=1e-15)


def test_rows_that_are_their_mean_are_scored_once(monkeypatch):
    fleet = problem_of().fleet([Member(0, 5, 3), Member(1, 5, 2)], CPU)
    x, run = rows_near_the_start(fleet, 5), torch.tensor([0, 0, 0, 1, 1])
    x[1:3] = x[0]
    mean = torch.stack([x[0], x[3:].mean(0)])
    scored, score = [], fleet._score
    monkeypatch.setattr(fleet, "_score", lambda x, n: scored.append((n, len(x))) or score(x, n))
    found = fleet.evaluate(x, mean, run, torch.tensor([0, 1]))
    assert [n for name, n in scored if name == "test"] == [2, 2]  # the means, and the second run's
    assert found["test_accuracy_rows"][0] == found["test_accuracy"][0]
    own = score(x[3:], "test")[1]
    assert found["test_accuracy_rows"][1].item() == pytest.approx(own.mean().item(), rel=1e-15)


# What a record and a user are told


@pytest.mark.parametrize("n_nodes", [1, 7, 100])
def test_an_epoch_is_one_look_at_every_sample_that_was_dealt_out(n_nodes):
    problem = problem_of(batch_size=5)
    used = 1079 // n_nodes * n_nodes
    # batches of 5 until `used` samples were drawn, five times over
    assert problem.epochs(n_nodes, used) == 5
    assert problem.epochs(n_nodes, 0) == 0
    assert problem.epochs(n_nodes, 3 * used) == 15


def test_the_description_has_the_label_histogram_and_the_checksum_of_the_data():
    problem = problem_of(partition={"name": "dirichlet", "alpha": 0.1})
    said = problem.describe(3, 10)
    assert json.loads(json.dumps(said)) == said
    assert said["data"]["sha256"] == DIGITS_SHA256
    assert said["parameters"] == 650
    assert said["shard_size"] == 107
    labels = load({"name": "digits"}).train.labels
    shards = deal({"name": "dirichlet", "alpha": 0.1}, labels, 10, 3)
    naive = [[Counter(labels[s].tolist())[c] for c in range(10)] for s in shards]
    assert said["label_histogram"] == naive


def test_a_model_that_does_not_fit_the_images_says_so():
    with pytest.raises(UserError, match="16x16, got 8x8"):
        problem_of("lenet").check(2)


def test_more_nodes_than_training_samples_is_an_error_that_names_both_numbers():
    problem_of().check(1079)
    with pytest.raises(UserError, match=r"1079 .* 1080 nodes"):
        problem_of().check(1080)


@pytest.mark.parametrize(
    "option",
    [
        {"batch_size": 0},
        {"batches": "shuffled"},
        {"augment": "flip"},
        {"batch": 3},
        {"partition": {"name": "iid", "a": 1}},
    ],
    ids=str,
)
def test_an_option_outside_its_range_is_refused_by_name(option):
    (name,) = option
    with pytest.raises(ValidationError, match=name):
        problem_of(**option)


# A channel that is the same everywhere


@given(
    levels=st.lists(st.integers(0, 255), min_size=1, max_size=3),
    scale=st.sampled_from([255.0, 16.0, 100.3]),
    varied=st.booleans(),
)
def test_a_constant_channel_is_zero_and_the_others_are_as_ever(levels, scale, varied):
    shape = (20, len(levels), 3, 3)
    images = np.broadcast_to(np.array(levels, np.uint8)[:, None, None], shape).copy()
    if varied:
        images[:, -1] = np.random.default_rng(0).integers(256, size=images[:, -1].shape)
    split = Split(images, np.arange(20) % 2)
    data = Dataset("constant", split, split, split, n_classes=2, scale=scale)
    factors, shifts = (torch.from_numpy(v)[:, None, None] for v in normalisation(data))
    assert factors.dtype == shifts.dtype == torch.float32
    seen = torch.from_numpy(images).float().mul_(factors).add_(shifts)
    n_constant = len(levels) - varied
    assert (seen[:, :n_constant] == 0).all()
    # a test image that differs there is still seen, in units of the scale
    assert torch.allclose(factors[:n_constant], torch.tensor(1 / scale))
    if varied:
        mean, std = (v[-1] for v in data.mean_std)
        assert factors[-1].item() == np.float32(1 / (scale * std))
        assert shifts[-1].item() == -mean / std


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("n_constant", [1, 2])
def test_runs_on_constant_channels_finish(compiled, n_constant, monkeypatch):
    if compiled and not native.available():
        pytest.skip("no C++ compiler on this machine")
    images = np.random.default_rng(0).integers(256, size=(40, 2, 4, 4), dtype=np.uint8)
    images[:, :n_constant] = 77
    split = Split(images, np.arange(40) % 2)
    DATA.names()
    monkeypatch.setattr(DATA, "_entries", DATA._entries.copy())
    name = f"constant_{n_constant}"
    DATA.register(name)(lambda: Dataset(name, split, split, split, n_classes=2))
    problem = {"name": "classification", "model": "logistic", "data": name, "batch_size": 4}
    spec = tb.RunSpec(algorithm="dsgd", nodes=2, problem=problem, lr=0.1, rounds=3)
    record = tb.run(spec, "cpu", compile="on" if compiled else "off")
    assert record.status == "finished"
    assert record.final("train_loss") < 2


@pytest.mark.parametrize("compiled", [False, True])
def test_a_look_at_the_mean_is_to_the_bit_what_an_evaluation_finds(compiled: bool) -> None:
    if compiled and not native.available():
        pytest.skip("no C++ compiler on this machine")
    problem = PROBLEMS.build(PROBLEMS.resolve(SETTINGS_OF_A_LOOK))
    members = [Member(seed, 5, 5) for seed in range(3)]
    fleet = problem.fleet(members, CPU)
    if compiled:
        assert fleet.compile(native.Rows(torch.arange(15)))
    x = torch.stack([fleet.initial(seed) for seed in range(15)])
    run = torch.arange(3).repeat_interleave(5)
    mean = torch.stack([x[run == i].mean(0) for i in range(3)])
    found = fleet.evaluate(x, mean, run, torch.arange(3))
    for name in ("train_loss", "validation_accuracy", "test_accuracy"):
        looked = fleet.at_mean(name, mean)
        assert looked is not None
        assert torch.equal(looked, found[name])
    assert fleet.at_mean("test_accuracy_rows", mean) is None


SETTINGS_OF_A_LOOK = {"name": "classification", "model": "logistic", "data": "digits"}
