"""What a round sends over the network, and how long it takes there.

A message is one parameter vector, float32, or several: where an algorithm mixes more than one, and
where a token takes its momentum along. The time model is an assumption (see `Network`).
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat

from teleport_bench.registry import TOPOLOGIES, StrictModel
from teleport_bench.seeds import BLOCK, generator
from teleport_bench.topologies import AnyTopology, RandomTopology, Topology, topology
from teleport_bench.topologies.drawn import Block, block_of
from teleport_kernels import Mixing

if TYPE_CHECKING:  # settings of a suite name networks, and a run's settings come first
    from teleport_bench.spec import RunSpec

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Communication = Literal["gossip", "all_reduce", "server"]
MESSAGE_ITEM = 4
"""Bytes of a parameter in a message."""


def messages(
    topology: AnyTopology,
    holders: Ints,
    before: Ints,
    start: int,
    *,
    vectors: int = 1,
    carried: int = 1,
    tries: Ints | int = 1,
) -> Ints:
    """(rounds,): parameter vectors sent between distinct nodes in rounds start, start + 1, ..

    holders: (rounds, k); before: (k,), the holders of round start - 1. A round sends a message of
    `carried` vectors for each token that moves to another node (the teleport), and one of `vectors`
    for each entry W[a, b], a != b (the gossip). In round 0 nothing is fetched: all nodes start from
    the same parameters. tries: (rounds, k), how often a token is sent until it arrives.
    """
    previous = np.concatenate([before[None], holders[:-1]])
    teleport: Ints = (tries * (holders != previous)).sum(1)
    if start == 0:
        teleport[0] = 0
    rounds = np.arange(start, start + len(holders))
    if isinstance(topology, RandomTopology):
        blocks = range(start // BLOCK, (start + len(holders) - 1) // BLOCK + 1)
        counts = np.concatenate([_entries_of(topology, block) for block in blocks])
        gossip: Ints = counts[start % BLOCK :][: len(holders)]
    else:
        gossip = _entries(topology)[rounds % topology.period]
    return carried * teleport + vectors * gossip


@functools.lru_cache(maxsize=64)
def _entries(topology: Topology) -> Ints:
    """(period,): entries W[a, b], a != b, of each round."""
    mixings = (topology.mixing(t) for t in range(topology.period))
    return np.array([int((m.rows != m.indices).sum()) for m in mixings])


def _entries_of(topology: RandomTopology, number: int) -> Ints:
    """(BLOCK,): those of a block."""
    block = block_of(topology, number)
    count: Ints = (block.there & (block.rows != block.indices)).sum(1)
    return count


def sent(
    communication: Communication,
    topology: AnyTopology,
    holders: Ints,
    before: Ints,
    start: int,
    *,
    vectors: int,
    carried: int,
    tries: Ints | int = 1,
) -> Ints:
    """(rounds,): parameter vectors sent in rounds start, start + 1, ..; arguments of `messages`.

    "gossip": `messages`, between holders and along the entries of W.
    "all_reduce": of n tokens, by a ring: n - 1 steps in which every node sends 1/n of its vector to
    the next one and adds what it gets to its own, and n - 1 in which the sums go round. That is
    2 (n-1)/n a node, the least that any all-reduce sends (Patarasuk and Yuan 2009).
    "server": k down to the holders, but in round 0, whose start all know, and k up. The server is a
    machine of its own.
    """
    k = topology.n_nodes
    if communication == "all_reduce":
        return np.full(len(holders), 2 * (k - 1))
    if communication == "server":
        return np.where(np.arange(start, start + len(holders)) > 0, 2 * k, k)
    return messages(topology, holders, before, start, vectors=vectors, carried=carried, tries=tries)


class Stragglers(StrictModel):
    """Slow gradients: an active node takes `factor` times as long for its gradients of a round with
    probability `share`, independently of other nodes and of other rounds."""

    share: float = Field(ge=0, le=1)
    factor: float = Field(ge=1)


class Network(StrictModel):
    """A network in which some links are faster than others, and how its nodes wait for each other.

    preferred: the physical graph on the n nodes, with options as in a suite. A message between two
    of its neighbours takes 1 for each parameter vector in it, in either direction: the unit of
    time; between any others tau; to the node itself, nothing. Messages do not delay each other.
    compute: time of a gradient; none passes at a node that is away (`conditions.Away`).
    stragglers: active nodes that take longer; drawn of the run's seed, nodes and active nodes.

    mode: "synchronous": a phase starts when the last one has ended everywhere, and costs its
    slowest link. "barrier_free": token a starts as soon as its own messages are there; a node whose
    tokens overlap in time serves them at once. Where messages are lost (`RunSpec.loss`), a teleport
    is sent again as soon as it would have arrived, and a phase lasts until the last one is there.

    form, of what happens when token a moves from one holder to the next (D-SGD: no difference):
    "simple": gossip between the last holders, then the next holder of token a fetches x_a: two
    phases of messages. "fused": the next holder fetches y_b from the last holders of all b with
    W[a, b] != 0 and sums them itself: one phase. Token a's momentum comes from its own last holder,
    with y_a, sent again where it is lost; of others' y the weight stays with y_a. After the
    last round the holders gossip in place, in both forms, so that costs after r rounds are those of
    a run that ends there.

    All-reduce takes 2 (n-1) times 1/n of the slowest link of the ring 0, 1, .., n - 1; links to a
    server cost tau, and it counts where the busiest node is asked for. All nodes wait for the
    slowest in both, whatever the mode.

    Derived: the fused form never sends more, and is never slower while tau <= 2.
    Above, two preferred links in a row can be faster than the one that leads straight there.
    """

    preferred: TOPOLOGIES.field() = "ring"  # type: ignore[valid-type]
    tau: float = Field(default=1.0, ge=1)
    compute: NonNegativeFloat = 1.0
    stragglers: Stragglers | None = None
    mode: Literal["synchronous", "barrier_free"] = "synchronous"
    form: Literal["simple", "fused"] = "simple"


@dataclass(frozen=True, eq=False)
class Costs:
    """What a run has cost after each of some numbers of rounds; all arrays are (points,)."""

    rounds: Ints
    time: Floats
    """Until the last token has the parameters that it ends with."""
    total_bytes: Ints
    """Sent by all nodes."""
    busiest_bytes: Ints
    """Sent by the node that sent most until then."""


def simulate(
    spec: RunSpec, network: Network, at: Sequence[int] | None = None, n_params: int | None = None
) -> Costs:
    """Time and bytes of a run on a network after each number of rounds in `at`.

    A function of the settings alone, no gradient is computed: O(messages) a round. For holders that
    stay where they are, all there and none slow, rounds that repeat the last period are not gone
    through one by one.
    at: default, the run's evaluations. n_params: P where it is known, as from a record; else the
    problem is asked, which may read its data. Raises UserError where the preferred graph does not
    exist on n nodes, ValueError for a negative number of rounds.
    """
    rounds = np.array(spec.evaluations() if at is None else at, dtype=np.int64)
    if rounds.size and rounds.min() < 0:
        raise ValueError(f"costs are of 0 rounds or more, got {rounds.min()}")
    size = MESSAGE_ITEM * (spec.build_problem().n_params if n_params is None else n_params)
    method = spec.build_algorithm()
    by_round = functools.partial(_by_round, spec, network.stragglers)
    links = spec.build_links() if method.communication == "gossip" else None
    carried = method.carried(momentum=spec.momentum > 0)
    clock = _Clock(links, network, spec.nodes, method.vectors, carried, method.local_steps)
    late = clock.late(rounds, by_round()) if network.stragglers else 0.0
    if method.communication == "all_reduce":
        time, total = clock.all_reduced(rounds)
        return Costs(rounds, time + late, total * size, -(-total * size // spec.nodes))
    if method.communication == "server":
        time, total, busiest = clock.served(rounds, by_round())
        time = time + late
    elif (
        method.activation == "all"
        and not network.stragglers
        and spec.there() is None
        and not isinstance(links, RandomTopology)
    ):
        time, total, busiest = clock.fixed(rounds)
    else:
        time, total, busiest = clock.moving(rounds, by_round())
    return Costs(rounds, time, total * size, busiest * size)


ByRound = Iterator[tuple[Ints, Floats, Ints]]
"""(k,) each: the holders of round 0, 1, .. without end, how many times the usual time each of them
takes for its gradients, and how often its token was sent to it."""


def _by_round(spec: RunSpec, slow: Stragglers | None) -> ByRound:
    """Of a run, with those stragglers."""
    names, there = {"nodes": spec.nodes, "active": spec.n_active}, spec.there()
    for block in itertools.count():
        holders = spec.holders(block)
        pace = np.ones(holders.shape)
        if slow:
            drawn = generator(spec.seed, "stragglers", block=block, **names).random(pace.shape)
            pace[drawn < slow.share] = slow.factor
        if there is not None:
            start = block * len(pace) % len(there)
            pace *= there[start : start + len(pace)]
        tries = spec.tries(block)
        yield from zip(
            holders, pace, np.ones_like(holders) if tries is None else tries, strict=True
        )


class _Graph(NamedTuple):
    """The entries of a mixing matrix: row and column of each, where each row starts, and how many
    vectors are sent for each."""

    rows: Ints
    cols: Ints
    first: Ints
    vectors: Ints


def _graph(mixing: Mixing, vectors: int = 1) -> _Graph:
    rows, cols = mixing.rows.numpy(), mixing.indices.numpy()
    return _Graph(rows, cols, mixing.indptr[:-1].numpy(), np.full_like(rows, vectors))


def _carrying(graph: _Graph, more: int) -> _Graph:
    """The same with so many more vectors from every column to the row of its number."""
    if not more:
        return graph
    n = len(graph.first)
    every = np.arange(n)
    entries, place = np.unique(
        np.concatenate([graph.rows * n + graph.cols, every * (n + 1)]), return_inverse=True
    )
    vectors = np.zeros_like(entries)
    np.add.at(vectors, place, np.concatenate([graph.vectors, np.full(n, more)]))
    rows, cols = np.divmod(entries, n)
    return _Graph(rows, cols, np.searchsorted(rows, every), vectors)


@functools.lru_cache(maxsize=4)
def _links(preferred: str, n_nodes: int) -> Ints:
    """source * n + target of the edges of a graph in both directions, ascending; n * n ends it."""
    graph = topology(json.loads(preferred), n_nodes)
    # of graphs that are drawn afresh, those of a block
    pairs = [_graph(graph.mixing(t))[:2] for t in range(graph.period or BLOCK)]
    keys = [i * n_nodes + j for u, v in pairs for i, j in ((u, v), (v, u))]
    return np.unique(np.concatenate([*keys, [n_nodes * n_nodes]]))


class _Tally:
    """Vectors that each node has sent."""

    def __init__(self, n_nodes: int) -> None:
        self.sent = np.zeros(n_nodes, dtype=np.int64)
        self.total = self.busiest = 0

    def add(self, senders: Ints, vectors: Ints) -> None:
        np.add.at(self.sent, senders, vectors)
        self.total += int(vectors.sum())
        self.busiest = max(self.busiest, int(self.sent[senders].max(initial=0)))

    def take_back(self, busiest: int, senders: Ints, vectors: Ints) -> None:
        np.subtract.at(self.sent, senders, vectors)
        self.total -= int(vectors.sum())
        self.busiest = busiest


class _Clock:
    """How long rounds on graphs of tokens take on a network, and who sends in them."""

    def __init__(
        self,
        links: AnyTopology | None,
        network: Network,
        n_nodes: int,
        vectors: int,
        carried: int,
        local_steps: int,
    ) -> None:
        self.tokens, self.vectors = links, vectors
        self.graphs = [_graph(mixing, vectors) for mixing in getattr(links, "mixings", ())]
        """Of a period, where there is one."""
        self._blocks: dict[int, tuple[Block, Ints]] = {}
        """The last block of graphs that are drawn, and its rows."""
        self.network, self.n_nodes, self.carried = network, n_nodes, carried
        self.n_tokens = links.n_nodes if links else 0
        self.compute = local_steps * network.compute
        self.links = _links(json.dumps(network.preferred), n_nodes) if network.tau > 1 else None

    def all_reduced(self, at: Ints) -> tuple[Floats, Ints]:
        """Time and vectors sent after each number of rounds of ring all-reduce."""
        every, n = np.arange(self.n_nodes), self.n_nodes
        slowest = float(self._cost(every, (every + 1) % n).max())
        time: Floats = at.astype(float) * (self.compute + 2 * (n - 1) / n * slowest)
        return time, at * 2 * (n - 1)

    def late(self, at: Ints, by_round: ByRound) -> Floats:
        """What stragglers add to the time after each number of rounds in which all wait for all."""
        slowest = (
            pace.max() - 1 for _, pace, _ in itertools.islice(by_round, int(at.max(initial=0)))
        )
        added: Floats = self.compute * np.cumsum([0.0, *slowest])[at]
        return added

    def served(self, at: Ints, by_round: ByRound) -> tuple[Floats, Ints, Ints]:
        """As `moving`, for holders that a server sends to and hears from."""
        tally, busiest, k = _Tally(self.n_nodes), [0], 0
        for holder, *_ in itertools.islice(by_round, int(at.max(initial=0))):
            k = len(holder)
            tally.add(holder, np.ones_like(holder))
            busiest.append(tally.busiest)
        down = np.maximum(at - 1, 0)
        time: Floats = at * self.compute + (at + down) * self.network.tau
        return time, k * (at + down), np.maximum(k * down, np.array(busiest)[at])

    def fixed(self, at: Ints) -> tuple[Floats, Ints, Ints]:
        """Time, vectors sent, and those of the busiest node after each number of rounds; token a
        stays at node a."""
        nodes, period = np.arange(self.n_tokens), len(self.graphs)
        x, times, step = np.zeros(self.n_tokens), [0.0], 0.0
        while len(times) <= at.max(initial=0):
            begin = x
            for graph in self.graphs:
                x, *_ = self._send(x + self.compute, graph, nodes, nodes)
                times.append(x.max())
            step = (x - begin).max()
            if step - (x - begin).min() <= 1e-12 * x.max():
                break  # equally late everywhere: every later period is the last one again
        again = -(-np.maximum(at + 1 - len(times), 0) // period)
        time = np.array(times)[at - again * period] + again * step

        total, busiest = np.zeros_like(at), np.zeros_like(at)
        sent = [
            np.bincount(g.cols, g.vectors * (g.cols != g.rows), len(nodes)).astype(np.int64)
            for g in self.graphs
        ]
        whole, begun = np.sum(sent, axis=0), np.zeros_like(nodes)
        for phase in range(period):
            for i in np.flatnonzero(at % period == phase):
                until = at[i] // period * whole + begun
                total[i], busiest[i] = until.sum(), until.max()
            begun = begun + sent[phase]
        return time, total, busiest

    def moving(self, at: Ints, by_round: ByRound) -> tuple[Floats, Ints, Ints]:
        """As `fixed`, for tokens that move."""
        fused, compute = self.network.form == "fused", self.compute
        last = int(at.max(initial=0))
        time, total, busiest = np.zeros(last + 1), *np.zeros((2, last + 1), dtype=np.int64)
        due, tally, every = set(at.tolist()), _Tally(self.n_nodes), np.arange(self.n_tokens)
        alone = _Graph(every, every, every, np.full_like(every, self.carried))
        fetched = [_carrying(g, self.carried - 1) for g in self.graphs] if fused else []
        x = y = np.zeros(self.n_tokens)
        before, graph = every, alone
        for t, (holder, pace, tries) in enumerate(itertools.islice(by_round, last)):
            if t:
                done, needed = (x, alone)
                if fused:
                    done = y
                    needed = (
                        fetched[(t - 1) % len(fetched)]
                        if fetched
                        else _carrying(graph, self.carried - 1)
                    )
                x, *sent = self._send(done, needed, before, holder, tries)
                tally.add(*sent)
            y, before, graph = x + compute * pace, holder, self._graph(t)
            if fused and t + 1 not in due:
                continue
            gossiped, *sent = self._send(y, graph, holder, holder)
            most = tally.busiest
            tally.add(*sent)
            time[t + 1], total[t + 1], busiest[t + 1] = gossiped.max(), tally.total, tally.busiest
            if fused:
                tally.take_back(most, *sent)  # that was for a run that ends here
            else:
                x = gossiped
        return time[at], total[at], busiest[at]

    def _graph(self, t: int) -> _Graph:
        """That of round t."""
        if isinstance(self.tokens, RandomTopology):
            if t // BLOCK not in self._blocks:
                block = block_of(self.tokens, t // BLOCK)
                self._blocks = {t // BLOCK: (block, block.rows)}
            (block, rows), i = self._blocks[t // BLOCK], t % BLOCK
            entries = slice(block.indptr[i, -1])
            vectors = np.full(block.indptr[i, -1], self.vectors)
            return _Graph(
                rows[i, entries], block.indices[i, entries], block.indptr[i, :-1], vectors
            )
        return self.graphs[t % len(self.graphs)]

    def _send(
        self, done: Floats, graph: _Graph, source: Ints, target: Ints, tries: Ints | None = None
    ) -> tuple[Floats, Ints, Ints]:
        """Bring what is done at source[b] to target[a] for every entry (a, b) of the graph: the
        time at which each target has all of its own, (k,), and the sender and size of each
        message. tries: (k,), how often what goes from source[a] to target[a] is sent."""
        senders, receivers, vectors = source[graph.cols], target[graph.rows], graph.vectors
        if tries is not None:
            vectors = vectors * np.where(graph.rows == graph.cols, tries[graph.rows], 1)
        cost = vectors * self._cost(senders, receivers)
        if self.network.mode == "synchronous":
            arrival = np.full_like(done, done.max() + cost.max())
        else:
            arrival = np.maximum.reduceat(done[graph.cols] + cost, graph.first)
        moved = senders != receivers
        return arrival, senders[moved], vectors[moved]

    def _cost(self, senders: Ints, receivers: Ints) -> Floats:
        """How long a parameter vector takes on each of these ways."""
        moved = senders != receivers
        cost: Floats = moved.astype(float)
        if self.links is not None:
            key = senders * self.n_nodes + receivers
            cost[moved & (self.links[np.searchsorted(self.links, key)] != key)] = self.network.tau
        return cost
