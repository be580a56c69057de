"""LeNet with group normalization."""

from teleport_bench.errors import UserError
from teleport_bench.models.layers import (
    Conv2d,
    Flatten,
    GroupNorm,
    Linear,
    MaxPool2d,
    Network,
    ReLU,
)
from teleport_bench.registry import MODELS


@MODELS.register("lenet")
def lenet(input_shape: tuple[int, ...], n_classes: int) -> Network:
    """LeNet-5 with ReLU, max pooling and GroupNorm: 44,470 parameters for 1x28x28 and 10 classes.

    Conv(6,5)-ReLU-Pool2-GroupNorm(2)-Conv(16,5)-ReLU-Pool2-GroupNorm(4)-FC120-ReLU-FC84-ReLU-FC.
    """
    channels, height, width = input_shape
    if height < 16 or width < 16:
        raise UserError(
            f"lenet needs images of at least 16x16, got {height}x{width}: take logistic or mlp"
        )
    flat = 16 * (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
    return Network(
        [
            *(Conv2d(channels, 6, 5), ReLU(), MaxPool2d(2), GroupNorm(2, 6)),
            *(Conv2d(6, 16, 5), ReLU(), MaxPool2d(2), GroupNorm(4, 16)),
            Flatten(),
            *(Linear(flat, 120), ReLU()),
            *(Linear(120, 84), ReLU()),
            Linear(84, n_classes),
        ]
    )
