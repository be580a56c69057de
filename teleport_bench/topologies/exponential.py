"""Exponential graphs, static and one-peer (Assran et al. 2019; Ying et al. 2021)."""

from teleport_bench.registry import TOPOLOGIES
from teleport_bench.topologies.schedule import Topology, circulant, static


def _hops(n: int) -> list[int]:
    """2^0 .. 2^(ceil(log2 n) - 1)."""
    return [2**j for j in range((n - 1).bit_length())]


@TOPOLOGIES.register("exponential")
def exponential(n_nodes: int) -> Topology:
    """Directed: node i hears i + 1, i + 2, i + 4, ..; weights 1/(ceil(log2 n) + 1)."""
    return static(circulant(n_nodes, _hops(n_nodes)))


@TOPOLOGIES.register("one_peer_exponential")
def one_peer_exponential(n_nodes: int) -> Topology:
    """Directed, one peer a round: in round t node i hears i + 2^(t mod ceil(log2 n)), weight 1/2.

    Exact consensus after one period where n is a power of two.
    """
    return Topology([circulant(n_nodes, [hop]) for hop in _hops(n_nodes) or [0]])
