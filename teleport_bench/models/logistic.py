"""Logistic regression."""

import math

from teleport_bench.models.layers import Flatten, Linear, Network
from teleport_bench.registry import MODELS


@MODELS.register("logistic")
def logistic(input_shape: tuple[int, ...], n_classes: int) -> Network:
    """Multinomial logistic regression on the flat image: convex."""
    return Network([Flatten(), Linear(math.prod(input_shape), n_classes)])
