"""ResNet-20 with group normalization."""

from itertools import pairwise

from teleport_bench.models.layers import (
    Conv2d,
    GlobalAvgPool2d,
    GroupNorm,
    Layer,
    Linear,
    Network,
    ReLU,
    Residual,
)
from teleport_bench.registry import MODELS

GROUPS = 8


@MODELS.register("resnet20")
def resnet20(input_shape: tuple[int, ...], n_classes: int) -> Network:
    """ResNet-20 with 8-group GroupNorm: 270,410 parameters for 3x32x32 and 10 classes.

    The CIFAR variant of He et al. (2016, section 4.2): Conv3x3-GroupNorm-ReLU, three stages of 16,
    32 and 64 filters with three basic blocks each, stride 2 and shortcut A (no parameters) between
    stages, the mean of each channel, one linear layer. Convolutions have biases: unlike BatchNorm,
    a norm over several channels does not undo them. Initialization is PyTorch's default.
    """
    layers: list[Layer] = [Conv2d(input_shape[0], 16, 3, padding=1), GroupNorm(GROUPS, 16), ReLU()]
    for channels, filters in pairwise((16, *(16,) * 3, *(32,) * 3, *(64,) * 3)):
        layers += [_block(channels, filters), ReLU()]
    return Network([*layers, GlobalAvgPool2d(), Linear(64, n_classes)])


def _block(channels: int, filters: int) -> Residual:
    stride = 1 if filters == channels else 2
    return Residual(
        [
            Conv2d(channels, filters, 3, padding=1, stride=stride),
            *(GroupNorm(GROUPS, filters), ReLU()),
            *(Conv2d(filters, filters, 3, padding=1), GroupNorm(GROUPS, filters)),
        ],
        stride,
    )
