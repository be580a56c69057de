"""Who holds which token in which round.

Random choices are drawn in blocks of `BLOCK` rounds, each block from a stream of its own, on the
host: the same choices then reach every device, and any block can be drawn without those before it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from teleport_bench.algorithms.base import Activation
from teleport_bench.seeds import BLOCK as BLOCK
from teleport_bench.seeds import generator


def block_bytes(numbers: int, n_active: int) -> int:
    """Bytes of a block where each active node draws that many numbers of four bytes a round; who
    they are takes eight."""
    return 4 * BLOCK * (numbers + 2) * n_active


def drawn_ahead(size: int, threads: int) -> tuple[int, int]:
    """Threads that draw at a time, and the blocks that each draws. size: bytes of a block.

    Up to four threads, while their blocks have no more than 256 MiB; and up to four blocks in 256
    KiB, since waking a thread takes as long as drawing little.
    """
    at_once = min(4, max(1, 2**18 // size))
    return min(4, threads, max(1, 2**28 // (at_once * size))), at_once


def draw_holders(
    activation: Activation,
    seed: int,
    n_nodes: int,
    n_active: int,
    block: int,
    share: tuple[int, int] | None = None,
    absence: NDArray[np.int32] | None = None,
) -> NDArray[np.int64]:
    """(BLOCK, k): the node that holds token a in each round of the block.

    "all" is the identity; "uniform" draws k distinct nodes of n, every ordered choice equally
    likely, independently in each round, in O(k) a round. share: (first, among) takes the nodes
    first .. first + k - 1 of the draw of a run with `among` active nodes. absence: (period, n), in
    how many rounds each node is back; then those are drawn that are there, in O(n) a round.
    """
    if activation == "all":
        return np.broadcast_to(np.arange(n_active), (BLOCK, n_active))
    first, among = share or (0, n_active)
    rng = generator(seed, "active", nodes=n_nodes, active=among, block=block)
    if absence is None:
        drawn = sample_distinct(rng, n_nodes, among, BLOCK)
    else:
        rounds = np.arange(block * BLOCK, (block + 1) * BLOCK) % len(absence)
        drawn = np.stack([_sample_present(rng, absence[t], among) for t in rounds])
    return drawn[:, first : first + n_active]


def _sample_present(
    rng: np.random.Generator, absence: NDArray[np.int32], k: int
) -> NDArray[np.int64]:
    """(k,): distinct nodes that are there, and where they are too few those that are back first."""
    there: NDArray[np.int64] = np.flatnonzero(absence == 0)
    if len(there) < k:
        there = np.argsort(absence, kind="stable")[:k]
    drawn: NDArray[np.int64] = there[sample_distinct(rng, len(there), k, 1)[0]]
    return drawn


def sample_distinct(rng: np.random.Generator, n: int, k: int, rounds: int) -> NDArray[np.int64]:
    """(rounds, k): the first k entries of a random permutation of 0..n-1, independent by round.

    A permutation is made whole where n is at most 16 k, and else its start is drawn entry by entry,
    repetitions drawn again: both are O(k) a round.
    """
    if n <= 16 * k:
        return rng.permuted(np.tile(np.arange(n), (rounds, 1)), axis=1)[:, :k]
    drawn = rng.integers(n, size=(rounds, k))
    ordered = np.sort(drawn, axis=1)
    for t in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(1)):
        row = drawn[t]
        seen: set[int] = set()
        for a, node in enumerate(row.tolist()):
            while node in seen:
                node = int(rng.integers(n))
            seen.add(node)
            row[a] = node
    return drawn
