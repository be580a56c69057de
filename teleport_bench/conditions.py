"""What goes wrong in a run at random: messages are lost, and nodes are away.

Both are drawn of the run's seed, so that runs that differ in nothing but their step size meet the
same misfortunes: losses afresh in every round, a block of rounds at a time; who is away in advance
for a period of rounds, which then comes again.
"""

from __future__ import annotations

import functools
import math
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from teleport_bench.activation import BLOCK
from teleport_bench.problems.base import Member
from teleport_bench.registry import ROUNDS, StrictModel, error_at
from teleport_bench.seeds import generator
from teleport_bench.topologies import AnyTopology, RandomTopology, Topology
from teleport_bench.topologies.drawn import Block, changed, packed
from teleport_kernels import Mixing

Ints = NDArray[np.int64]

SPELLS = 8
"""Mean spells in a period at least: its end is then felt by less than e^-8 at its beginning."""


class Away(StrictModel):
    """Every node is away for spells, independently: a stationary Markov chain of two states.

    share: of the rounds, in the mean. spell: mean length of a spell in rounds; its length is
    geometric. A node that is there leaves with probability share / (1 - share) / spell, which must
    be at most 1.

    A node that is away neither computes nor communicates. Where all nodes are active, its row of W
    is e_i and its step size is 0, and the others keep the weight of its messages; a symmetric W
    stays doubly stochastic. Where nodes are drawn, they are drawn among those that are there; if
    there are too few, those that come back first are there early. A node that leaves hands its
    token on before it goes.
    """

    share: float = Field(ge=0, lt=1)
    spell: Annotated[float, Field(ge=1, le=10_000), ROUNDS]

    @model_validator(mode="after")
    def _possible(self) -> Away:
        if self.share > (most := self.spell / (1 + self.spell)):
            message = (
                f"share = {self.share:g} is more than spell / (1 + spell) = {most:.3g}, where "
                "nodes are there for a single round between spells: take longer spells"
            )
            raise error_at(("share", message))
        return self

    @property
    def period(self) -> int:
        """Rounds that are drawn."""
        return BLOCK * math.ceil(SPELLS * self.spell / BLOCK)


@functools.lru_cache(maxsize=32)
def absence(away: Away, seed: int, n_nodes: int) -> NDArray[np.int32]:
    """(period, n): in how many rounds each node is back; 0 where it is there.

    The chain closes: it is drawn under the condition that the round after the last is the first.
    With l = 1 - 1/spell - share/(1-share)/spell, its second eigenvalue, and pi its distribution,
    (A^m)_ij = pi_j + (1_ij - pi_j) l^m. O(period n) time and memory, for all runs of a seed.
    """
    share, back = away.share, 1 / away.spell
    leave = share / (1 - share) * back
    ahead = (1 - leave - back) ** np.arange(away.period + 1.0)
    random = generator(seed, "away", nodes=n_nodes)
    gone = np.empty((away.period, n_nodes), dtype=bool)
    gone[0] = random.random(n_nodes) < (share + (1 - share) * ahead[-1]) / (1 + ahead[-1])
    for t in range(1, away.period):
        power = ahead[away.period - t]  # from here to the first round again
        from_away = np.where(gone[0], share + (1 - share) * power, (1 - share) * (1 - power))
        from_there = np.where(gone[0], share * (1 - power), 1 - share + share * power)
        stays_away = np.where(gone[t - 1], 1 - back, leave)
        likely, unlikely = stays_away * from_away, (1 - stays_away) * from_there
        gone[t] = random.random(n_nodes) * (likely + unlikely) < likely
    left = np.zeros_like(gone, dtype=np.int32)
    for t in reversed(range(-away.period, away.period)):
        following = left[(t + 1) % away.period]
        left[t] = np.where(gone[t], np.minimum(following + 1, away.period), 0)
    return left


@functools.lru_cache(maxsize=64)
def conditioned(
    graphs: AnyTopology, loss: float, away: Away | None, seed: int, n_nodes: int
) -> AnyTopology:
    """The graphs as a run meets them: what a row does not receive, it keeps of its own.

    loss = q: every message W[i, j], j != i, is lost with probability q, independently and in every
    round afresh. Then
      x_i <- sum_j W'_ij x_j,  W'_ij = 0 and W'_ii = W_ii + sum of W_ij over the j that are lost,
    so that rows sum to 1, and E[W'] = (1 - q) W + q diag(W 1). Columns sum to 1 only in
    expectation: the mean over the rows wanders, and methods whose theory needs a doubly stochastic
    W (gradient tracking, D^2, exact diffusion) do not come to rest at the minimum. Of larger q the
    losses contain those of a smaller one. An entry that is lost stays in the matrix, with weight 0.

    away: as in `Away`, for row a at node a; the messages of a node that is away are no entries.
    Without losses the result has a period where the graphs have one.

    Alternatives that were not taken: weights divided by what arrived (E[W'] is no longer in W's
    family); both directions of a link lost at once (W' stays doubly stochastic, but a sender would
    have to know); push-sum, which is another algorithm. O(period x entries) time and memory.
    """
    if not loss and not away:
        return graphs
    gone = absence(away, seed, n_nodes)[:, : graphs.n_nodes] > 0 if away else None
    if loss or isinstance(graphs, RandomTopology):
        return changed(graphs, functools.partial(_block, loss=loss, gone=gone, seed=seed))
    assert away is not None
    assert gone is not None
    apart = torch.from_numpy(gone)
    rounds = range(math.lcm(graphs.period, away.period))
    return Topology([_without(graphs.mixing(t), apart[t % len(gone)]) for t in rounds])


def _block(
    block: Block, number: int, *, loss: float, gone: NDArray[np.bool_] | None, seed: int
) -> Block:
    """A block of rounds with these losses, in which the nodes `gone`, (period, n), are away."""
    rows, there, n = block.rows, block.there, block.indptr.shape[1] - 1
    home, off = there & (rows == block.indices), there & (rows != block.indices)
    lost = np.zeros_like(there)
    if loss:
        random = generator(seed, "loss", nodes=n, block=number)
        lost[there] = random.random(int(there.sum())) < loss
        lost &= off
    unsent = np.zeros_like(there)
    if gone is not None:
        apart = gone[np.arange(number * BLOCK, (number + 1) * BLOCK) % len(gone)]
        either = [np.take_along_axis(apart, np.where(off, x, 0), 1) for x in (rows, block.indices)]
        unsent = off & (either[0] | either[1])
    kept = lost | unsent
    flat = np.arange(BLOCK)[:, None] * n + rows
    weights = np.where(kept, 0.0, block.weights)
    weights[home] += np.bincount(flat[kept], block.weights[kept], minlength=BLOCK * n)
    if gone is None:
        return block._replace(weights=weights)
    sent = there & ~unsent
    degrees = np.bincount(flat[sent], minlength=BLOCK * n).reshape(BLOCK, n)
    return packed(sent, degrees, block.indices, weights)


def _without(W: Mixing, gone: Tensor) -> Mixing:
    """W with the weights of messages from and to these nodes, (n,) bool, kept at home."""
    off, apart = W.rows != W.indices, gone[W.rows] | gone[W.indices]
    kept = ~off | apart
    home = torch.zeros(W.n_rows, dtype=torch.float64)
    home.index_add_(0, W.rows[kept], W.weights[kept])
    own = (home != 0).nonzero().squeeze(1)
    sent = off & ~apart
    return Mixing.from_edges(
        W.n_rows,
        torch.cat([W.rows[sent], own]),
        torch.cat([W.indices[sent], own]),
        torch.cat([W.weights[sent], home[own]]),
    )


def tries(loss: float, member: Member, block: int) -> Ints:
    """(BLOCK, k): how often token a is sent in each round of a block until it arrives, where it is
    teleported: geometric, 1 / (1 - loss) in the mean. Of a larger loss it is no less."""
    first, among = member.share or (0, member.active)
    names = {"nodes": member.nodes, "active": among, "block": block}
    uniform = generator(member.seed, "tries", **names).random((BLOCK, among))
    # 1 - u is in (0, 1]
    count: Ints = 1 + np.floor(np.log1p(-uniform) / np.log(loss)).astype(np.int64)
    return count[:, first : first + member.active]
