"""What a round sends over the network: messages of one parameter vector each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from teleport_bench.topologies import Topology


def messages(
    topology: Topology, holders: NDArray[np.int64], before: NDArray[np.int64], start: int
) -> NDArray[np.int64]:
    """(rounds,): messages between distinct nodes in rounds start, start + 1, ..

    holders: (rounds, k); before: (k,), the holders of round start - 1. A round sends one message
    for each token that moves to another node (the teleport), and one for each entry W[a, b], a != b
    (the gossip). In round 0 nothing is fetched: all nodes start from the same parameters.
    """
    previous = np.concatenate([before[None], holders[:-1]])
    teleport: NDArray[np.int64] = (holders != previous).sum(1)
    if start == 0:
        teleport[0] = 0
    per_period = []
    for t in range(topology.period):
        mixing = topology.mixing(t)
        per_period.append(int((mixing.rows != mixing.indices).sum()))
    rounds = np.arange(start, start + len(holders))
    gossip: NDArray[np.int64] = np.array(per_period)[rounds % topology.period]
    return teleport + gossip
