"""How the training samples are dealt out: equal shards, one a node, disjoint but for "overlapping".

A partition is a registered function of (labels, n_nodes, shard_size, rng) that returns the sample
ids of every shard, (n_nodes, shard_size). One with an option `samples` says the shard size itself,
and may give a sample to several nodes.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from teleport_bench.data.dataset import Labels
from teleport_bench.errors import ComponentError, UserError
from teleport_bench.registry import PARTITIONS, Choice
from teleport_bench.seeds import generator

Shards = NDArray[np.integer]

MOST_DEALT = 2**30
"""Samples of all nodes together, of four bytes each."""


def deal(choice: Choice, labels: Labels, n_nodes: int, seed: int) -> Shards:
    """(n_nodes, shard_size) sample ids.

    Depends on the seed, the partition, the number of nodes and the labels, on nothing else.
    Raises UserError where the nodes outnumber the samples, and where a partition of a user's own
    returns anything else.
    """
    shard_size = check_split(choice, len(labels), n_nodes)
    rng = generator(seed, "partition", nodes=n_nodes)
    shards: Shards = PARTITIONS.build(choice, labels, n_nodes, shard_size, rng)
    _check_shards(shards, f"partition '{choice['name']}'", (n_nodes, shard_size), len(labels))
    return shards


def _check_shards(shards: Any, what: str, shape: tuple[int, int], n_samples: int) -> None:
    """ComponentError unless these are sample ids, so many a node: engines read what they name."""
    if not isinstance(shards, np.ndarray):
        got = "None" if shards is None else type(shards).__name__
        raise ComponentError(f"{what} gives {got}, expected an array of sample ids")
    if shards.shape != shape or not np.issubdtype(shards.dtype, np.integer):
        raise ComponentError(
            f"{what} gives {shards.dtype} of shape {shards.shape}, expected {shape} integers"
        )
    for extreme in (shards.min(initial=0), shards.max(initial=0)):
        if not 0 <= extreme < n_samples:
            raise ComponentError(f"{what} deals sample {extreme}, expected 0..{n_samples - 1}")


def check_split(choice: Choice, n_samples: int, n_nodes: int) -> int:
    """The shard size, at least 1, or a UserError: `samples`, or N // n_nodes."""
    if "samples" in choice:
        samples = int(choice["samples"])
        if samples * n_nodes > MOST_DEALT:
            raise UserError(
                f"{samples:,} samples for each of {n_nodes:,} nodes, expected at most "
                f"{MOST_DEALT:,} in all: take fewer samples or fewer nodes"
            )
        return samples
    if n_nodes > n_samples:
        raise UserError(
            f"{n_samples} training samples cannot be dealt out to {n_nodes} nodes: take at most "
            f'{n_samples} nodes, a larger data set, or partition = {{ name = "overlapping" }}'
        )
    return n_samples // n_nodes


def label_histogram(labels: Labels, shards: Shards, n_classes: int) -> NDArray[np.int64]:
    """(n_nodes, n_classes): how many samples of each class each node holds."""
    offsets = np.arange(len(shards))[:, None] * n_classes
    flat = np.bincount((labels[shards] + offsets).ravel(), minlength=len(shards) * n_classes)
    return flat.reshape(len(shards), n_classes)


@PARTITIONS.register("iid")
def iid(labels: Labels, n_nodes: int, shard_size: int, rng: np.random.Generator) -> Shards:
    """Shards drawn uniformly: every node sees the distribution of the whole."""
    return rng.permutation(len(labels))[: n_nodes * shard_size].reshape(n_nodes, shard_size)


@PARTITIONS.register("dirichlet")
def dirichlet(
    labels: Labels,
    n_nodes: int,
    shard_size: int,
    rng: np.random.Generator,
    *,
    alpha: Annotated[float, Field(gt=0)],
) -> Shards:
    """Each node draws its class shares q ~ Dirichlet(alpha, .., alpha) and fills its shard by them.

    Labels are drawn from q, restricted to the classes that still have samples, as in Hsu et al.
    2019 (whose concentration is alpha times the number of classes here). alpha -> 0: one class a
    node; alpha -> infinity: iid for balanced classes. Nodes choose in a random order, so that no
    node is always left with the remainder.
    """
    n_classes = int(labels.max()) + 1
    pools = [rng.permutation(np.flatnonzero(labels == c)) for c in range(n_classes)]
    left = np.array([len(pool) for pool in pools])
    shards = np.empty((n_nodes, shard_size), dtype=np.int64)
    for node in rng.permutation(n_nodes):
        log_q, unit = _log_dirichlet(rng, alpha, n_classes)
        filled = 0
        while filled < shard_size:
            shares = _shares(np.where(left > 0, log_q, -np.inf), unit)
            wanted = rng.multinomial(shard_size - filled, shares)
            for c in np.flatnonzero(wanted):
                take = min(int(wanted[c]), int(left[c]))
                pool = pools[c]
                shards[node, filled : filled + take] = pool[left[c] - take : left[c]]
                left[c] -= take
                filled += take
    return shards


GROUP = 10
"""Nodes that share a part of the data in "dirichlet_groups"."""
REDRAWS = 100


@PARTITIONS.register("dirichlet_groups")
def dirichlet_groups(
    labels: Labels,
    n_nodes: int,
    shard_size: int,
    rng: np.random.Generator,
    *,
    alpha: Annotated[float, Field(gt=0)],
) -> Shards:
    """Groups of 10 nodes share a random part; each class is dealt out by q ~ Dirichlet(alpha, ..).

    The last group has the nodes that remain, and every part shard_size samples a node. Within a
    group, q has a share for each node, is drawn for each class in turn, and is restricted to nodes
    that hold less than shard_size; all is drawn anew until every node holds shard_size / 2, at
    most 100 times, after which the draw whose poorest node holds most is taken. Then the group's
    nodes in a row, sorted by class each, are cut into equal shards. This is the protocol of the
    code of Lin et al. 2021 ("Quasi-Global Momentum") and of later work, where the drawing goes on
    until it succeeds, which for a small alpha it may never do; here the order of the classes is
    drawn, too, so that none is always first.
    """
    order = rng.permutation(len(labels))[: n_nodes * shard_size]
    whole = n_nodes // GROUP * GROUP
    shards = [
        _deal_groups(labels, part.reshape(-1, nodes * shard_size), nodes, alpha, rng)
        for part, nodes in (
            (order[: whole * shard_size], GROUP),
            (order[whole * shard_size :], n_nodes - whole),
        )
        if len(part)
    ]
    return np.concatenate(shards).reshape(n_nodes, shard_size)


def _deal_groups(
    labels: Labels, parts: Shards, n_nodes: int, alpha: float, rng: np.random.Generator
) -> Shards:
    """Parts (groups, samples) of `n_nodes` nodes each, dealt out: the nodes' samples in a row."""
    n_groups, size = parts.shape
    target, n_classes = size // n_nodes, int(labels.max()) + 1
    sizes = label_histogram(labels, parts, n_classes)
    # (groups, classes) and (groups, classes in that order, nodes)
    ranks = np.empty((n_groups, n_classes), dtype=np.int64)
    dealt = np.zeros((n_groups, n_classes, n_nodes), dtype=np.int64)
    poorest = np.full(n_groups, -1)
    poor = np.arange(n_groups)
    for _ in range(REDRAWS):
        rank = rng.permuted(np.tile(np.arange(n_classes), (len(poor), 1)), axis=1)
        in_order = np.take_along_axis(sizes[poor], np.argsort(rank, axis=1), axis=1)
        drawn = _deal_classes(in_order, n_nodes, target, alpha, rng)
        least = drawn.sum(1).min(1)
        better = least > poorest[poor]
        at = poor[better]
        ranks[at], dealt[at], poorest[at] = rank[better], drawn[better], least[better]
        poor = poor[poorest[poor] < target // 2]
        if not len(poor):
            break
    by_class = np.argsort(np.take_along_axis(ranks, labels[parts], axis=1), axis=1, kind="stable")
    nodes = np.repeat(np.tile(np.arange(n_nodes), n_groups * n_classes), dealt.ravel())
    by_node = np.argsort(nodes.reshape(n_groups, size), axis=1, kind="stable")
    return np.take_along_axis(np.take_along_axis(parts, by_class, 1), by_node, 1).ravel()


def _deal_classes(
    sizes: NDArray[np.int64], n_nodes: int, target: int, alpha: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """How many of the (groups, classes) samples each node gets: (groups, classes, nodes)."""
    dealt = np.zeros((*sizes.shape, n_nodes), dtype=np.int64)
    held = np.zeros((len(sizes), n_nodes), dtype=np.int64)
    for c, m in enumerate(sizes.T):
        log_q, unit = _log_dirichlet(rng, alpha, held.shape)
        log_q[(held >= target) & (m[:, None] > 0)] = -np.inf  # some node holds less: m are left
        cuts = np.rint(np.cumsum(_shares(log_q, unit), axis=1) * m[:, None]).astype(np.int64)
        dealt[:, c] = np.diff(cuts, axis=1, prepend=0)
        held += dealt[:, c]
    return dealt


SAMPLES_AT_ONCE = 2**22


@PARTITIONS.register("overlapping")
def overlapping(
    labels: Labels,
    n_nodes: int,
    shard_size: int,
    rng: np.random.Generator,
    *,
    samples: PositiveInt = 16,  # noqa: ARG001 - the shard size
    alpha: Annotated[float, Field(gt=0)] | None = None,
) -> NDArray[np.int32]:
    """Each node draws `samples` images from all, with replacement: nodes may outnumber images.

    Labels come from the node's own class shares q ~ Dirichlet(alpha, .., alpha), or without alpha
    from those of the whole set, and images uniformly from their class. It stands for networks of
    more devices than any data set has images; what it keeps is 4 n samples bytes.
    """
    order = np.argsort(labels, kind="stable").astype(np.int32)
    sizes = np.bincount(labels)
    first = np.cumsum(sizes) - sizes
    shards = np.empty((n_nodes, shard_size), dtype=np.int32)
    step = max(1, SAMPLES_AT_ONCE // max(shard_size, len(sizes)))
    for start in range(0, n_nodes, step):
        part = shards[start : start + step]
        if alpha is None:
            part[:] = rng.integers(len(labels), size=part.shape)
            continue
        log_q, unit = _log_dirichlet(rng, alpha, (len(part), len(sizes)))
        log_q[:, sizes == 0] = -np.inf
        counts = rng.multinomial(shard_size, _shares(log_q, unit))
        classes = np.repeat(np.tile(np.arange(len(sizes)), len(part)), counts.ravel())
        place = (rng.random(len(classes)) * sizes[classes]).astype(np.int64)
        part[:] = order[first[classes] + place].reshape(part.shape)
    return shards


def _log_dirichlet(
    rng: np.random.Generator, alpha: float, n: int | tuple[int, int]
) -> tuple[NDArray[np.float64], float]:
    """An unnormalised Dirichlet draw q as (unit * log q, unit), finite for any alpha.

    Gamma(a) = Gamma(a + 1) U^(1/a): for a small alpha log q is too large for a float, alpha log q
    is not.
    """
    unit = min(alpha, 1.0)
    log_gamma, log_u = np.log(rng.standard_gamma(alpha + 1, n)), np.log(rng.random(n))
    return unit * log_gamma + unit / alpha * log_u, unit


def _shares(log_q: NDArray[np.float64], unit: float) -> NDArray[np.float64]:
    """A Dirichlet draw, or several, as `_log_dirichlet` gives it, normalised."""
    with np.errstate(over="ignore"):  # to -inf, a share of zero
        shares = np.exp((log_q - log_q.max(-1, keepdims=True)) / unit)
    normalised: NDArray[np.float64] = shares / shares.sum(-1, keepdims=True)
    return normalised
