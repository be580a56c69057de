"""How a method looks, decided by its names alone, so that it looks the same in every figure."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from teleport_bench.algorithms import Algorithm
from teleport_bench.registry import ALGORITHMS

# Okabe and Ito's colours, distinguishable with any common form of colour blindness.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"

# And four of Tol's muted ones, for what Okabe and Ito have no more.
WINE, INDIGO, OLIVE, GREY = "#882255", "#332288", "#999933", "#777777"

COLOURS = {
    "dsgd": VERMILION,
    "teleportation": BLUE,
    "allreduce": BLACK,
    "d2": PURPLE,
    "decentlam": OLIVE,
    "epidemic": GREY,
    "exact_diffusion": WINE,
    "fedavg": ORANGE,
    "gradient_tracking": GREEN,
    "local_sgd": SKY,
    "qg_dsgdm": INDIGO,
}
# More of Tol's, for algorithms that are added.
OTHERS = ("#44AA99", "#DDCC77", "#AA4499", "#88CCEE", "#117733", "#CC6677")

# Shades of TELEPORTATION and its kin by k: 1, 2, 4, .. from light to dark.
SHADES = (0.62, 0.42, 0.18, -0.12, -0.4, -0.6, -0.75)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
CHOSEN = {"search": ">", "best": "<"}
DASHES: dict[str, tuple[float, ...] | str] = {
    "ring": "",
    "torus": (4, 1.5),
    "exponential": (2, 1),
    "one_peer_exponential": (1, 1),
    "complete": (6, 1, 1, 1),
    "star": (3, 1, 1, 1, 1, 1),
    "random_regular": (5, 2, 2, 2),
    "erdos_renyi": (5, 2, 2, 2, 2, 2),
    "base": (8, 1.5),
    "simple_base": (8, 1.5, 2, 1.5),
    "hyper_hypercube": (8, 1.5, 2, 1.5, 2, 1.5),
    "equi_static": (2, 3),
    "equi_dyn": (1, 2.5),
}


class Style(NamedTuple):
    colour: str
    marker: str
    dashes: Any


def style_of(algorithm: str, active: int | str, topology: str) -> Style:
    """Colour by algorithm, shade and marker by k for algorithms that choose it, dashes by graph.

    active: k, or how it is chosen ("search", "best"), which is a look of its own.
    """
    colour = COLOURS.get(algorithm) or OTHERS[_hash(algorithm) % len(OTHERS)]
    component = ALGORITHMS[algorithm].component
    marker = MARKERS[-1 - _hash(algorithm) % 2]
    if isinstance(active, str):
        marker = CHOSEN.get(active, "h")
    elif isinstance(component, type) and issubclass(component, Algorithm) and component.partial:
        step = round(math.log2(active))
        colour = _shade(colour, SHADES[min(step, len(SHADES) - 1)])
        marker = MARKERS[step % 6]
    dashes = DASHES.get(topology, (10, 1 + _hash(topology) % 5, 1 + _hash(topology) % 3, 1))
    return Style(colour, marker, dashes)


def alternatives(style: Style) -> Iterator[Style]:
    """The look itself, then others of its colour without end: other markers, then other dashes."""
    more = ((4 + i, 2, 1, 2) for i in itertools.count())
    for dashes in itertools.chain((style.dashes,), DASHES.values(), more):
        for marker in (style.marker, *MARKERS):
            yield style._replace(marker=marker, dashes=dashes)


def _hash(name: str) -> int:
    return hashlib.blake2b(name.encode(), digest_size=4).digest()[0]


def _shade(colour: str, towards_white: float) -> str:
    """Mixed with white by a positive share, with black by a negative one."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    end = 255 if towards_white > 0 else 0
    mixed = (round(c + (end - c) * abs(towards_white)) for c in rgb)
    return "#" + "".join(f"{c:02x}" for c in mixed)
