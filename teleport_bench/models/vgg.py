"""VGG-11 with group normalization."""

from typing import Annotated

from pydantic import Field

from teleport_bench.errors import UserError
from teleport_bench.models.layers import (
    Conv2d,
    Flatten,
    GroupNorm,
    Layer,
    Linear,
    MaxPool2d,
    Network,
    ReLU,
)
from teleport_bench.registry import MODELS

GROUPS = 8


@MODELS.register("vgg11")
def vgg11(
    input_shape: tuple[int, ...],
    n_classes: int,
    *,
    width: Annotated[int, Field(ge=GROUPS, multiple_of=GROUPS)] = 64,
) -> Network:
    """VGG-11 with 8-group GroupNorm: 9,231,114 parameters for 3x32x32 and 10 classes.

    w, M, 2w, M, 4w, 4w, M, 8w, 8w, M, 8w, 8w, M and one linear layer, where a number is the filters
    of Conv3x3-GroupNorm(8 groups)-ReLU, M a maximum over 2x2, and w the width. Configuration A of
    Simonyan and Zisserman (2015) as it is used on CIFAR, with one linear layer instead of three.
    """
    channels, height, width_of_image = input_shape
    if height < 32 or width_of_image < 32:
        raise UserError(
            f"vgg11 halves images five times and needs at least 32x32, got "
            f"{height}x{width_of_image}: take resnet20 or mlp, or lenet from 16x16 on"
        )
    layers: list[Layer] = []
    for stage in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
        for multiple in stage:
            filters = multiple * width
            layers += [Conv2d(channels, filters, 3, padding=1), GroupNorm(GROUPS, filters), ReLU()]
            channels = filters
        layers.append(MaxPool2d(2))
    flat = channels * (height // 32) * (width_of_image // 32)
    return Network([*layers, Flatten(), Linear(flat, n_classes)])
