"""Torus."""

import math

from teleport_bench.registry import TOPOLOGIES
from teleport_bench.topologies.schedule import Topology, metropolis_hastings, static


@TOPOLOGIES.register("torus")
def torus(n_nodes: int) -> Topology:
    """Two-dimensional grid that wraps around, a x b = n as square as n allows; weights 1/5.

    Rows of one or two nodes have fewer distinct neighbours (Metropolis-Hastings weights); for a
    prime n the torus is the ring.
    """
    a = next(d for d in range(math.isqrt(n_nodes), 0, -1) if n_nodes % d == 0)
    b = n_nodes // a
    edges = [
        (r * b + c, neighbour)
        for r in range(a)
        for c in range(b)
        for neighbour in ((r + 1) % a * b + c, r * b + (c + 1) % b)
    ]
    return static(metropolis_hastings(n_nodes, edges))
