"""Mixing matrices by name, for the kernels alone: any doubly stochastic weights will do."""

from __future__ import annotations

import networkx as nx
import torch

from teleport_kernels import Mixing, block_diag


def graph(name: str, n: int) -> Mixing:
    """ring: degree 3 with itself; exponential: log2 n + 1; regular: random, 9; complete: n; base:
    components of four, three, two and one nodes in turn, as the phases of a base graph have; fleet:
    runs on rings of 25 nodes (else 16) each, one below the other."""
    i = torch.arange(n)
    if name == "fleet":
        nodes = min(16, n) if n % 25 else 25
        return block_diag([graph("ring", nodes)] * (n // nodes))
    if name == "complete":
        return _regular(i.expand(n, n))
    if name == "regular":
        d = min(8, n - 2)
        neighbours = nx.random_regular_graph(d, n, seed=0).adj
        return _regular(torch.tensor([[a, *neighbours[a]] for a in range(n)]))
    if name == "base":
        shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        row, column, weight, first = [], [], [], 0
        while first < n:
            part = shuffled[first : first + 4 - len(row) % 4]
            row.append(part.repeat_interleave(len(part)))
            column.append(part.repeat(len(part)))
            weight.append(torch.full((len(part) ** 2,), 1 / len(part)))
            first += len(part)
        return Mixing.from_edges(n, torch.cat(row), torch.cat(column), torch.cat(weight))
    hops = {"ring": [0, 1, n - 1], "exponential": [0, *(2**b for b in range(n.bit_length() - 1))]}
    return _regular(torch.stack([(i + hop) % n for hop in hops[name]], 1))


def _regular(columns: torch.Tensor) -> Mixing:
    """columns: (n, degree), the neighbours of each row."""
    n, degree = columns.shape
    row = torch.arange(n).repeat_interleave(degree)
    return Mixing.from_edges(n, row, columns.flatten(), torch.full((n * degree,), 1 / degree))
