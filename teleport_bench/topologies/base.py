"""Graphs with exact consensus in finitely many rounds (Takezawa et al. 2023): hyper-hypercube,
simple base-(k+1) and base-(k+1) graph.

Nodes are numbered through in arrays of equal groups, (groups, nodes of a group), and what is built
is built on every group at once. A round is a list of entries of W, by parts that cover all nodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt

from teleport_bench.errors import UserError
from teleport_bench.registry import TOPOLOGIES
from teleport_bench.topologies.schedule import Topology, check_size
from teleport_kernels import Mixing

Nodes: TypeAlias = NDArray[np.int64]
Entries: TypeAlias = tuple[Nodes, Nodes, NDArray[np.float64]]
"""Rows, columns and weights."""


@TOPOLOGIES.register("hyper_hypercube")
def hyper_hypercube(n_nodes: int, *, degree: PositiveInt = 1) -> Topology:
    """Exact consensus after a period; only for n without a prime factor above degree + 1.

    n = n_1 .. n_L by factors of at most degree + 1: in round l the nodes whose numbers agree in
    every mixed-radix digit but the l-th average, n_l of them. With degree 1 it is the hypercube
    taken one dimension a round. Source: Takezawa et al. 2023, Algorithm 1.
    """
    factors, rest = _factors(n_nodes, degree)
    if rest > 1:
        prime = next(p for p in itertools.count(2) if rest % p == 0)
        raise UserError(
            f"a hyper-hypercube of degree {degree} needs a number of nodes without prime factors "
            f"above {degree + 1}, got {n_nodes}, a multiple of {prime}: take the topology "
            "'base', which exists for any number"
        )
    return _topology(_hypercube(np.arange(n_nodes)[None], factors))


@TOPOLOGIES.register("simple_base")
def simple_base(n_nodes: int, *, degree: PositiveInt = 1) -> Topology:
    """Exact consensus after a period, for every n; undirected, at most `degree` neighbours a round.

    n is cut into blocks by its digits in base degree + 1; each averages by itself, then hands its
    average on to the later ones. Source: Takezawa et al. 2023, Algorithm 2.
    """
    return _topology(_simple(np.arange(n_nodes)[None], degree))


@TOPOLOGIES.register("base")
def base(n_nodes: int, *, degree: PositiveInt = 1) -> Topology:
    """Exact consensus after a period, for every n, often sooner than `simple_base`.

    n = P Q with all prime factors of P at most degree + 1 and none of Q's: simple base graphs on P
    groups of Q nodes, then hyper-hypercubes across the groups; the simple base graph where that is
    shorter. Source: Takezawa et al. 2023, Algorithm 3.
    """
    factors, rest = _factors(n_nodes, degree)
    groups = np.arange(n_nodes).reshape(-1, rest)
    across = _simple(groups, degree) + _hypercube(groups.T, factors)
    return _topology(min(across, _simple(groups.reshape(1, -1), degree), key=len))


def _topology(rounds: Sequence[Sequence[Entries]]) -> Topology:
    """One matrix a round; one node has no rounds and keeps its value."""
    mixings = []
    for parts in rounds:
        row, col, weight = (torch.from_numpy(np.concatenate(p)) for p in zip(*parts, strict=True))
        mixings.append(Mixing.from_edges(int(row.max()) + 1, row, col, weight))
    return Topology(mixings or [Mixing.identity(1)])


def _factors(n: int, degree: int) -> tuple[list[int], int]:
    """n divided by degree + 1, degree, .., 2, each as often as it goes, smallest first; the rest
    has no prime factor up to degree + 1."""
    factors = []
    for m in range(min(degree + 1, n), 1, -1):
        while n % m == 0:
            factors.append(m)
            n //= m
    return factors[::-1], n


def _cliques(groups: Nodes) -> Entries:
    """Every group averages, a group of one keeps its value."""
    size = groups.shape[1]
    check_size(groups.size, groups.size * size)
    col = np.repeat(groups, size, axis=0).ravel()
    return np.repeat(groups, size), col, np.full(col.size, 1 / size)


def _hypercube(groups: Nodes, factors: Sequence[int]) -> list[list[Entries]]:
    """The rounds of the hyper-hypercube on every group of as many nodes as the factors multiply."""
    strides = itertools.accumulate(factors, lambda s, m: s * m, initial=1)
    digits = [groups.reshape(-1, m, s) for m, s in zip(factors, strides, strict=False)]
    return [[_cliques(d.swapaxes(1, 2).reshape(-1, d.shape[1]))] for d in digits]


def _simple(groups: Nodes, degree: int) -> list[list[Entries]]:
    """The rounds of the simple base graph on every group."""
    factors, rest = _factors(groups.shape[1], degree)
    if rest == 1:
        return _hypercube(groups, factors)
    blocks = _blocks(groups, degree + 1)
    last = len(blocks) - 1
    # Each block on its own, and each of its parts on its own once it has been a source; blocks of
    # parts of one node as a whole.
    whole = [_hypercube(b, _factors(b[0].size, degree)[0]) for b in blocks]
    finish = [_hypercube(b, _factors(max(b.shape[2], len(b[0])), degree)[0]) for b in blocks]
    rounds = []
    for t in range(len(whole[0]) + 1 + len(finish[0])):
        source = t - len(whole[0])
        parts: list[Entries] = []
        for i, block in enumerate(blocks):
            begin = min(i + 1, last)
            if source < 0:
                parts += _turn(whole[i], t, block)
            elif source >= begin:
                parts += _turn(finish[i], source - begin, block)
            elif source == i:
                later = [b.reshape(len(groups), -1) for b in reversed(blocks[i + 1 :])]
                parts += _hand_on(block, np.concatenate(later, axis=1), degree)
        rounds.append(parts)
    return rounds


def _blocks(groups: Nodes, radix: int) -> list[Nodes]:
    """Every group cut by the digits of its size, highest first: digit a of radix^p gives a block of
    a parts of radix^p nodes, (groups, a, radix^p)."""
    start, size, blocks = 0, groups.shape[1], []
    powers = itertools.takewhile(lambda p: p <= size, (radix**e for e in itertools.count()))
    for power in reversed(list(powers)):
        digit = (size - start) // power
        if digit:
            end = start + digit * power
            blocks.append(groups[:, start:end].reshape(-1, digit, power))
            start = end
    return blocks


def _turn(rounds: Sequence[Sequence[Entries]], i: int, block: Nodes) -> Sequence[Entries]:
    """Round i, over and over; a block of single nodes has none, and they keep their value."""
    return rounds[i % len(rounds)] if rounds else [_cliques(block.reshape(-1, 1))]


def _hand_on(block: Nodes, later: Nodes, degree: int) -> list[Entries]:
    """Every later node hears one node of each of the block's parts, and that node hears it, such
    that the average of the later nodes becomes the average of all; others of the block stay among
    themselves.

    block: (groups, a, m); later: (groups, r), fewer than m.
    """
    a, r = block.shape[1], later.shape[1]
    taken, free = block[:, :, ::-1][:, :, :r], block[:, :, :-r].reshape(len(block), -1)
    weight = a * block.shape[2] / (a * (a * block.shape[2] + r))
    hears = np.broadcast_to(later[:, None], taken.shape).ravel()
    heard = taken.ravel()
    home = np.concatenate([heard, later.ravel()])
    at_home = np.repeat([1 - weight, 1 - a * weight], [heard.size, later.size])
    pairs = np.full(heard.size, weight)
    full = free.shape[1] // (degree + 1) * (degree + 1)
    return [
        (hears, heard, pairs),
        (heard, hears, pairs),
        (home, home, at_home),
        _cliques(free[:, :full].reshape(-1, degree + 1)),
        *([_cliques(free[:, full:])] if full < free.shape[1] else []),
    ]
