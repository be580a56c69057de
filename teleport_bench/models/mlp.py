"""Multi-layer perceptron."""

import math
from itertools import pairwise

from pydantic import PositiveInt

from teleport_bench.models.layers import Flatten, Layer, Linear, Network, ReLU
from teleport_bench.registry import MODELS


@MODELS.register("mlp")
def mlp(
    input_shape: tuple[int, ...], n_classes: int, *, hidden: tuple[PositiveInt, ...] = (64,)
) -> Network:
    """Fully connected layers of the given widths with ReLU between them."""
    layers: list[Layer] = [Flatten()]
    for inputs, outputs in pairwise((math.prod(input_shape), *hidden)):
        layers += [Linear(inputs, outputs), ReLU()]
    return Network([*layers, Linear((math.prod(input_shape), *hidden)[-1], n_classes)])
