"""Complete graph."""

from teleport_bench.registry import TOPOLOGIES
from teleport_bench.topologies.schedule import Topology, circulant, static


@TOPOLOGIES.register("complete")
def complete(n_nodes: int) -> Topology:
    """Every node hears every node: W = J = 11^T/n, exact averaging in one round."""
    return static(circulant(n_nodes, range(n_nodes)))
