"""Small networks without batch statistics, evaluated for many rows of parameters at once."""

from teleport_bench.models.layers import (
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    GroupNorm,
    Layer,
    Linear,
    MaxPool2d,
    Network,
    ReLU,
    Residual,
)

__all__ = [
    "Conv2d",
    "Flatten",
    "GlobalAvgPool2d",
    "GroupNorm",
    "Layer",
    "Linear",
    "MaxPool2d",
    "Network",
    "ReLU",
    "Residual",
]
