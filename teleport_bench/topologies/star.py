"""Star."""

from teleport_bench.registry import TOPOLOGIES
from teleport_bench.topologies.schedule import Topology, metropolis_hastings, static


@TOPOLOGIES.register("star")
def star(n_nodes: int) -> Topology:
    """Node 0 is linked to all others; Metropolis-Hastings weights 1/n on the links."""
    return static(metropolis_hastings(n_nodes, ((0, i) for i in range(1, n_nodes))))
