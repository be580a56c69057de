"""Ring."""

from teleport_bench.registry import TOPOLOGIES
from teleport_bench.topologies.schedule import Topology, circulant, static


@TOPOLOGIES.register("ring")
def ring(n_nodes: int) -> Topology:
    """Each node and its two neighbours, weights 1/3; one node is [1], two take 1/2 each."""
    return static(circulant(n_nodes, [-1, 1]))
