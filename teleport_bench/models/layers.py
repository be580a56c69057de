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
    """Convolution with a square kernel: row by row, or rows as groups of one convolution."""

    channels: int
    filters: int
    kernel: int
    padding: int = 0
    stride: int = 1

    def __post_init__(self) -> None:
        self.shapes = ((self.filters, self.channels, self.kernel, self.kernel), (self.filters,))

    def init(self, rng: np.random.Generator) -> Iterator[NDArray[np.floating]]:
        return _uniform(rng, self.shapes, self.channels * self.kernel**2)

    def __call__(self, x: Tensor, *params: Tensor) -> Tensor:
        # the CPU's library is slow at wide groups: by them, gradients of four rows of VGG-11 take
        # 1.7 to 2.2 times as long, of ResNet-20 1.4 to 2 times, of LeNet as long or a third longer
        return (self.row_by_row if x.device.type == "cpu" else self.grouped)(x, *params)

    def row_by_row(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """One call a row."""
        rows = zip(x, weight, bias, strict=True)
        return torch.stack([F.conv2d(*row, self.stride, self.padding) for row in rows])

    def grouped(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """One call for all rows."""
        rows, batch = x.shape[:2]
        stacked = x.transpose(0, 1).reshape(batch, rows * self.channels, *x.shape[3:])
        weights = weight.flatten(0, 1), bias.flatten()
        y = F.conv2d(stacked, *weights, self.stride, self.padding, groups=rows)
        return y.reshape(batch, rows, self.filters, *y.shape[2:]).transpose(0, 1)

    def output(self, shape: Shape) -> Shape:
        height, width = (
            (side + 2 * self.padding - self.kernel) // self.stride + 1 for side in shape[1:]
        )
        return self.filters, height, width

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


class GlobalAvgPool2d(Layer):
    """Mean of each channel."""

    def __call__(self, x: Tensor, *params: Tensor) -> Tensor:
        return x.mean((3, 4))

    def output(self, shape: Shape) -> Shape:
        return shape[0], 1, 1


class Flatten(Layer):
    """Everything but rows and batch into one vector."""

    def __call__(self, x: Tensor, *params: Tensor) -> Tensor:
        return x.flatten(2)

    def output(self, shape: Shape) -> Shape:
        return math.prod(shape), 1, 1


def traced(layers: Sequence[Layer], shape: Shape) -> Iterator[tuple[Layer, Shape]]:
    """Every layer of a chain with the shape of a sample before it."""
    for layer in layers:
        yield layer, shape
        shape = layer.output(shape)


def _run(layers: Sequence[Layer], x: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Through a chain of layers, which take their parameters in order."""
    rest = iter(params)
    for layer in layers:
        x = layer(x, *(next(rest) for _ in layer.shapes))
    return x


@dataclass
class Residual(Layer):
    """y = body(x) + shortcut(x), with the shortcut A of He et al. (2016), which has no parameters.

    It takes every stride-th place of x, and zeros for the channels that the body has more: half of
    them before those of x, half after.
    """

    body: Sequence[Layer]
    stride: int = 1

    def __post_init__(self) -> None:
        self.shapes = [shape for layer in self.body for shape in layer.shapes]

    def init(self, rng: np.random.Generator) -> Iterator[NDArray[np.floating]]:
        return (values for layer in self.body for values in layer.init(rng))

    def __call__(self, x: Tensor, *params: Tensor) -> Tensor:
        y = _run(self.body, x, params)
        more = y.shape[2] - x.shape[2]
        shortcut = x[..., :: self.stride, :: self.stride]
        return y + F.pad(shortcut, (0, 0, 0, 0, more // 2, more - more // 2))

    def output(self, shape: Shape) -> Shape:
        for layer in self.body:
            shape = layer.output(shape)
        return shape

    def products(self, shape: Shape) -> int:
        return sum(layer.products(before) for layer, before in traced(self.body, shape))


def _outputs(layers: Sequence[Layer], shape: Shape) -> Iterator[int]:
    """Numbers of one sample after each layer, and each within a residual one."""
    for layer, before in traced(layers, shape):
        if isinstance(layer, Residual):
            yield from _outputs(layer.body, before)
        yield math.prod(layer.output(before))


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

    def operations(self, input_shape: Shape) -> int:
        """Floating-point operations of the gradient on one sample: two a product, each once
        forward, once for the weights and, but for the first layer, once for the input."""
        products = [layer.products(shape) for layer, shape in traced(self.layers, input_shape)]
        first = next((p for p in products if p), 0)
        return 2 * (3 * sum(products) - first)

    def activations(self, input_shape: Shape) -> list[int]:
        """Numbers of one sample before and after each layer."""
        return [math.prod(input_shape), *_outputs(self.layers, input_shape)]

    def views(self, x: Tensor) -> list[Tensor]:
        """(rows, P) -> one (rows, *shape) view a parameter."""
        return [
            part.view(x.shape[0], *shape)
            for part, shape in zip(torch.split(x, self.sizes, dim=1), self._shapes, strict=True)
        ]

    def logits(self, params: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """(rows, batch, channels, height, width) -> (rows, batch, classes)."""
        return _run(self.layers, inputs, params)
