"""Layers over rows: every layer works on (rows, batch, ...) activations, one set of weights a row.

A network's parameters are one flat row of P numbers; a layer sees views of it. Layers keep no
state, so a network is a function of its parameters and nothing leaks between samples or rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, ...]


class Layer:
    """A function of its parameters and activations."""

    shapes: Sequence[Shape] = ()
    """Shape of each parameter, in the order in which they lie in the row."""

    def init(self, rng: np.random.Generator) -> Iterator[NDArray[np.floating]]:
        """Initial values, one array a parameter."""
        return iter(())

    def __call__(self, x: Tensor, *params: Tensor) -> Tensor:
        """x: (rows, batch, ...); each parameter (rows, *shape)."""
        raise NotImplementedError

    def output(self, shape: Shape) -> Shape:
        """Shape of one sample after the layer, (channels, height, width) as before it."""
        return shape

    def products(self, shape: Shape) -> int:
        """Multiplications of one sample by weights."""
        return 0


def _uniform(
    rng: np.random.Generator, shapes: Sequence[Shape], fan_in: int
) -> Iterator[NDArray[np.floating]]:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases: PyTorch's default."""
    bound = 1 / math.sqrt(fan_in)
    return (rng.uniform(-bound, bound, shape) for shape in shapes)


@dataclass
class Linear(Layer):
    """y = x A + b with A (inputs, outputs)."""

    inputs: int
    outputs: int

    def __post_init__(self) -> None:
        self.shapes = ((self.inputs, self.outputs), (self.outputs,))

    def init(self, rng: np.random.Generator) -> Iterator[NDArray[np.floating]]:
        return _uniform(rng, self.shapes, self.inputs)

    def __call__(self, x: Tensor, *params: Tensor) -> Tensor:
        weight, bias = params
        return torch.baddbmm(bias.unsqueeze(1), x, weight)

    def output(self, shape: Shape) -> Shape:
        return self.outputs, 1, 1

    def products(self, shape: Shape) -> int:
        return self.inputs * self.outputs


@dataclass
class Conv2d(Layer):
    """Convolution, stride 1, square kernel; rows become groups of one grouped convolution."""

    channels: int
    filters: int
    kernel: int
    padding: int = 0

    def __post_init__(self) -> None:
        self.shapes = ((self.filters, self.channels, self.kernel, self.kernel), (self.filters,))

    def init(self, rng: np.random.Generator) -> Iterator[NDArray[np.floating]]:
        return _uniform(rng, self.shapes, self.channels * self.kernel**2)

    def __call__(self, x: Tensor, *params: Tensor) -> Tensor:
        weight, bias = params
        rows, batch = x.shape[:2]
        stacked = x.transpose(0, 1).reshape(batch, rows * self.channels, *x.shape[3:])
        if x.device.type == "cpu":  # twice as fast there: suites/bench/test_convolutions.py
            stacked = stacked.contiguous(memory_format=torch.channels_last)
        y = F.conv2d(
            stacked, weight.flatten(0, 1), bias.flatten(), padding=self.padding, groups=rows
        )
        return y.reshape(batch, rows, self.filters, *y.shape[2:]).transpose(0, 1)

    def output(self, shape: Shape) -> Shape:
        grow = 2 * self.padding + 1 - self.kernel
        return self.filters, shape[1] + grow, shape[2] + grow

    def products(self, shape: Shape) -> int:
        return math.prod(self.output(shape)) * self.channels * self.kernel**2


@dataclass
class GroupNorm(Layer):
    """Group normalization (Wu and He 2018): each sample normalized over groups of its channels."""

    groups: int
    channels: int

    def __post_init__(self) -> None:
        self.shapes = ((self.channels,), (self.channels,))

    def init(self, rng: np.random.Generator) -> Iterator[NDArray[np.floating]]:
        return iter((np.ones(self.channels), np.zeros(self.channels)))

    def __call__(self, x: Tensor, *params: Tensor) -> Tensor:
        scale, shift = (p[:, None, :, None, None] for p in params)
        normal = F.group_norm(x.flatten(0, 1), self.groups).view(x.shape)
        return normal * scale + shift


class ReLU(Layer):
    """max(x, 0)."""

    def __call__(self, x: Tensor, *params: Tensor) -> Tensor:
        return x.relu()


@dataclass
class MaxPool2d(Layer):
    """Maximum over squares."""

    size: int

    def __call__(self, x: Tensor, *params: Tensor) -> Tensor:
        y = F.max_pool2d(x.flatten(0, 1), self.size)
        return y.view(*x.shape[:2], *y.shape[1:])

    def output(self, shape: Shape) -> Shape:
        return shape[0], shape[1] // self.size, shape[2] // self.size


class Flatten(Layer):
    """Everything but rows and batch into one vector."""

    def __call__(self, x: Tensor, *params: Tensor) -> Tensor:
        return x.flatten(2)

    def output(self, shape: Shape) -> Shape:
        return math.prod(shape), 1, 1


@dataclass
class Network:
    """A chain of layers over one flat parameter row."""

    layers: Sequence[Layer]
    sizes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._shapes = [shape for layer in self.layers for shape in layer.shapes]
        self.sizes = [math.prod(shape) for shape in self._shapes]

    @property
    def n_params(self) -> int:
        return sum(self.sizes)

    def init(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """(P,) initial parameters, flat."""
        values = [v.ravel() for layer in self.layers for v in layer.init(rng)]
        return np.concatenate(values).astype(np.float32)

    def traced(self, input_shape: Shape) -> Iterator[tuple[Layer, Shape]]:
        """Every layer with the shape of a sample before it."""
        shape = input_shape
        for layer in self.layers:
            yield layer, shape
            shape = layer.output(shape)

    def operations(self, input_shape: Shape) -> int:
        """Floating-point operations of the gradient on one sample: two a product, each once
        forward, once for the weights and, but for the first layer, once for the input."""
        products = [layer.products(shape) for layer, shape in self.traced(input_shape)]
        first = next((p for p in products if p), 0)
        return 2 * (3 * sum(products) - first)

    def views(self, x: Tensor) -> list[Tensor]:
        """(rows, P) -> one (rows, *shape) view a parameter."""
        return [
            part.view(x.shape[0], *shape)
            for part, shape in zip(torch.split(x, self.sizes, dim=1), self._shapes, strict=True)
        ]

    def logits(self, params: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """(rows, batch, channels, height, width) -> (rows, batch, classes)."""
        rest = iter(params)
        y = inputs
        for layer in self.layers:
            y = layer(y, *(next(rest) for _ in layer.shapes))
        return y
