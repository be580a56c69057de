"""Random regular graph."""

from pydantic import NonNegativeInt, PositiveInt

from teleport_bench.errors import UserError
from teleport_bench.registry import TOPOLOGIES
from teleport_bench.topologies.schedule import Topology, check_size, metropolis_hastings, static

TRIES = 100


@TOPOLOGIES.register("random_regular")
def random_regular(
    n_nodes: int, *, degree: PositiveInt = 3, seed: NonNegativeInt | None = None
) -> Topology:
    """A connected graph drawn from those in which every node has `degree` neighbours.

    Up to degree + 1 nodes it is the complete graph, the only one that comes close. seed: None is
    that of the run.
    """
    check_size(n_nodes, n_nodes * (1.0 + min(degree, n_nodes - 1)))
    import networkx as nx  # takes half a second, and only this graph needs it

    if n_nodes <= degree + 1:
        graph = nx.complete_graph(n_nodes)
        return static(metropolis_hastings(n_nodes, graph.edges))
    if degree == 1:
        raise UserError(f"a graph of degree 1 on {n_nodes} nodes is not connected: take degree 2")
    if n_nodes * degree % 2:
        raise UserError(
            f"no graph on {n_nodes} nodes has degree {degree} everywhere: nodes x degree must be "
            f"even; take degree {degree - 1} or {degree + 1}, or one node more"
        )
    for attempt in range(TRIES):
        graph = nx.random_regular_graph(degree, n_nodes, seed=(seed or 0) * TRIES + attempt)
        if nx.is_connected(graph):
            return static(metropolis_hastings(n_nodes, graph.edges))
    raise UserError(
        f"none of {TRIES} random graphs of degree {degree} on {n_nodes} nodes was connected: "
        "take a larger degree"
    )
