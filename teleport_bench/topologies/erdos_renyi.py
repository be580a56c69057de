"""Erdos-Renyi random graph."""

import math
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveFloat

from teleport_bench.errors import UserError
from teleport_bench.registry import TOPOLOGIES
from teleport_bench.topologies.schedule import Topology, check_size, metropolis_hastings, static

TRIES = 100

HOPELESS = 50
"""Nodes without a neighbour on average, from which on no graph is drawn, which may take minutes: by
the law of rare events none is there with a probability of exp(-50)."""


@TOPOLOGIES.register("erdos_renyi")
def erdos_renyi(
    n_nodes: int,
    *,
    p: Annotated[float, Field(gt=0, le=1)] | None = None,
    degree: PositiveFloat | None = None,
    seed: NonNegativeInt | None = None,
) -> Topology:
    """A connected graph G(n, p): every pair is linked with probability p; or give its mean degree.

    degree: the mean number of neighbours, p = degree / (n-1), at most 1. Without p and degree it is
    2 ln n, twice what a random graph needs to be connected. Metropolis-Hastings weights. seed: None
    is that of the run.
    """
    import networkx as nx  # takes half a second, and only random graphs need it

    if p is not None and degree is not None:
        raise UserError(f"give p or the mean degree, not both, got p = {p} and degree = {degree}")
    n = n_nodes
    if p is None:
        p = min(1.0, (degree or 2 * math.log(n)) / max(n - 1, 1))
    check_size(n, n * (1 + p * (n - 1)))
    lonely = n * (1 - p) ** (n - 1) if n > 1 else 0.0
    for attempt in range(TRIES if lonely < HOPELESS else 0):
        if 1.0 - p == 1.0:  # networkx would divide by log(1 - p)
            graph = nx.empty_graph(n)
        else:
            graph = nx.fast_gnp_random_graph(n, p, seed=(seed or 0) * TRIES + attempt)
        if nx.is_connected(graph):
            return static(metropolis_hastings(n, graph.edges))
    enough = math.ceil(math.log(n)) + 3  # connected with a probability of 1 - exp(-3)
    raise UserError(
        f"none of {TRIES} random graphs with p = {p:.3g} on {n} nodes was connected, where a node "
        f"has {p * (n - 1):.3g} neighbours on average: take degree {enough} or more"
    )
