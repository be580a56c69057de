"""Communication graphs: schedules of doubly stochastic mixing matrices, one file a family.

A topology is a registered function of the number of nodes that returns a `Topology`, or a
`RandomTopology` where every round has graphs of its own. An option `seed` that is None is the seed
of the run: every seed has another graph.
"""

from __future__ import annotations

import functools
import json
from numbers import Integral
from typing import Any

from teleport_bench.ambient import plain
from teleport_bench.errors import UserError
from teleport_bench.registry import TOPOLOGIES, Choice
from teleport_bench.topologies.drawn import AnyTopology, RandomTopology
from teleport_bench.topologies.schedule import (
    Topology,
    check_size,
    circulant,
    metropolis_hastings,
    static,
)
from teleport_bench.topologies.stochastic import checked


def topology(name: str | Choice, n_nodes: int, **options: Any) -> AnyTopology:
    """The topology of that name on n nodes: `topology("random_regular", 24, degree=4)`.

    Raises UserError for an unknown name or n < 1, ValidationError for an option that does not fit,
    UserError where no such graph exists, ComponentError where it is not doubly stochastic.
    """
    if isinstance(name, dict) and options:
        raise UserError(f"give options in the table {name!r} or as keywords, not both")
    choice = name if isinstance(name, dict) else {"name": name, **options}
    if not isinstance(n_nodes, Integral) or isinstance(n_nodes, bool) or n_nodes < 1:
        raise UserError(
            f"a topology needs at least 1 node, a whole number of them, got {n_nodes!r}"
        )
    check_size(n_nodes, n_nodes)
    return _build(json.dumps(TOPOLOGIES.resolve(choice), sort_keys=True), int(n_nodes))


@functools.lru_cache(maxsize=256)
@plain()
def _build(choice: str, n_nodes: int) -> AnyTopology:
    settings = json.loads(choice)
    built = TOPOLOGIES.build(settings, n_nodes)
    return checked(built, f"topology '{settings['name']}'", n_nodes)


def of_seed(choice: Choice, seed: int) -> Choice:
    """The topology of a run of that seed: its own where no seed is named."""
    return choice | {"seed": seed} if "seed" in choice and choice["seed"] is None else choice


__all__ = [
    "AnyTopology",
    "RandomTopology",
    "Topology",
    "circulant",
    "metropolis_hastings",
    "of_seed",
    "static",
    "topology",
]
