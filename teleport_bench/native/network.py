"""Networks for the library: a table of their layers."""

from __future__ import annotations

import ctypes
import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from teleport_bench.errors import UserError
from teleport_bench.models import Network
from teleport_bench.models.layers import (
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    GroupNorm,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Residual,
    Shape,
    traced,
)
from teleport_bench.native.calls import POINTER, WORD, Call, Rows, RowsStruct, checked, structure
from teleport_bench.native.library import library

_LayerStruct = structure(
    "Layer",
    **dict.fromkeys(("kind", "channels", "height", "width"), WORD),
    **dict.fromkeys(("filters", "out_height", "out_width"), WORD),
    **dict.fromkeys(("size", "padding", "other", "offset"), WORD),
)
_NetworkStruct = structure("Network", n_layers=WORD, layers=POINTER, n_params=WORD, classes=WORD)
_ImagesStruct = structure(
    "Images",
    **dict.fromkeys(("channels", "height", "width"), WORD),
    **dict.fromkeys(("pixels", "labels", "scale", "shift"), POINTER),
)
_GradientStruct = structure(
    "Gradient",
    rows=RowsStruct,
    net=POINTER,
    set=POINTER,
    ids=POINTER,
    batch=WORD,
    views=WORD,
    memory=POINTER,
)
_ScoreStruct = structure(
    "Score",
    rows=WORD,
    x=POINTER,
    x_stride=WORD,
    net=POINTER,
    set=POINTER,
    samples=WORD,
    loss=POINTER,
    right=POINTER,
    threads=WORD,
    memory=POINTER,
)

_LINEAR, _CONV, _RELU, _POOL, _NORM, _FLATTEN, _PICK, _MEAN, _ADD = range(9)
"""The numbers that network.hpp gives to kinds of layers."""

_SIMPLE = (Linear, Conv2d, ReLU, MaxPool2d, GroupNorm, Flatten, GlobalAvgPool2d)


def _has(layer: Layer) -> bool:
    """Whether the library has the layer."""
    if type(layer) is Residual:
        # what is added must be there until then: a convolution does not overwrite its input
        return type(layer.body[0]) is Conv2d and all(
            type(inner) in (Conv2d, GroupNorm, ReLU) and _has(inner) for inner in layer.body
        )
    return type(layer) in _SIMPLE and not (
        isinstance(layer, Conv2d) and layer.padding >= layer.kernel
    )


class _Table:
    """A chain of layers as rows of network.hpp's table."""

    def __init__(self, chain: Sequence[Layer], shape: Shape) -> None:
        self.rows: list[ctypes.Structure] = []
        self.n_params = 0
        self._extend(chain, shape)

    def _extend(self, chain: Sequence[Layer], shape: Shape) -> None:
        for layer, before in traced(chain, shape):
            after = layer.output(before)
            match layer:
                case Linear():
                    self._put(_LINEAR, (layer.inputs, 1, 1), after)
                case Conv2d():
                    # a stride is left to what follows: four times the work in two of ResNet-20's
                    # nineteen convolutions, and no other loops for the rest
                    whole = dataclasses.replace(layer, stride=1).output(before)
                    self._put(_CONV, before, whole, layer.kernel, layer.padding)
                    if layer.stride > 1:
                        self._put(_PICK, whole, after, layer.stride)
                case ReLU():
                    self._put(_RELU, before, after)
                case MaxPool2d():
                    self._put(_POOL, before, after, layer.size)
                case GroupNorm():
                    self._put(_NORM, before, after, layer.groups)
                case Flatten():
                    self._put(_FLATTEN, before, after)
                case GlobalAvgPool2d():
                    self._put(_MEAN, before, after)
                case Residual():
                    first = len(self.rows)
                    self._extend(layer.body, before)
                    self._put(_ADD, before, after, layer.stride, other=first)
                    continue  # its parameters are those of its body
            self.n_params += sum(map(math.prod, layer.shapes))

    def _put(
        self,
        kind: int,
        inputs: Shape,
        outputs: Shape,
        size: int = 0,
        padding: int = 0,
        other: int = 0,
    ) -> None:
        row = _LayerStruct(kind, *inputs, *outputs, size, padding, other, self.n_params)
        self.rows.append(row)


class NativeNetwork:
    """A network on the images of a data set, for calls of the library.

    With batches that fill a register's lanes (16 with AVX-512) this is as fast as torch or faster,
    whatever the network: on one core VGG-11 runs at about 85 GFLOP/s and in torch at 68 to 88,
    ResNet-20 at 76 and 60, LeNet at 72 and 13. Lanes that stay empty cost as much: with 8 samples
    torch is 1.5 times as fast on the first two.

    scale, shift: what models see is scale * byte + shift; they broadcast over an image.
    """

    def __init__(
        self, network: Network, input_shape: Shape, batch: int, scale: Tensor, shift: Tensor
    ) -> None:
        table = _Table(network.layers, input_shape)
        self._layers = (_LayerStruct * len(table.rows))(*table.rows)
        *_, (last, shape) = traced(network.layers, input_shape)
        classes, *other = last.output(shape)
        if math.prod(other) != 1:
            raise UserError(
                f"a model gives one number a class, got outputs of shape {(classes, *other)}: end "
                "it with Flatten() or GlobalAvgPool2d()"
            )
        self._net = _NetworkStruct(
            len(table.rows), ctypes.addressof(self._layers), table.n_params, classes
        )
        self._scale = checked("scale", scale.expand(input_shape).contiguous(), input_shape)
        self._shift = checked("shift", shift.expand(input_shape).contiguous(), input_shape)
        self.batch, self._shape, self._classes = batch, input_shape, classes
        self._n_params = table.n_params
        loaded = library()
        assert loaded is not None
        self._library = loaded
        space = loaded.teleport_space(
            ctypes.byref(self._net), WORD(math.prod(input_shape)), WORD(batch)
        )
        self._threads = torch.get_num_threads()
        self._memory = torch.empty(self._threads * space, dtype=torch.uint8)

    @staticmethod
    def supports(network: Network) -> bool:
        """Whether the library has all of the network's layers."""
        own = type(network) is not Network  # which may compute what it likes
        layers = network.layers
        return not own and any(layer.shapes for layer in layers) and all(map(_has, layers))

    def gradients(self, x: Tensor, ids: Tensor, images: ctypes.Structure) -> Tensor:
        """(rows, P): every row's gradient on the same batch of samples, (batch,) int32."""
        grad = torch.empty_like(x)
        rows = Rows(torch.zeros(len(x), dtype=torch.int64))
        self.gradient(rows, x, grad, ids, images)()
        return grad

    def images(self, images: Tensor, labels: Tensor) -> ctypes.Structure:
        """(N, ...) bytes and (N,) labels, for `gradient` and `score`; they must be kept."""
        n = len(labels)
        images = checked("images", images, (n, *self._shape), torch.uint8)
        labels = checked("labels", labels, (n,), torch.int64)
        low, high = (int(labels.min()), int(labels.max())) if n else (0, 0)
        if not n or low < 0 or high >= self._classes:
            got = f"{low} .. {high}" if n else "none"
            raise UserError(
                f"labels must be 0 .. {self._classes - 1}, of one image or more, got {got}: count "
                "classes from 0, and give the model as many outputs"
            )
        struct = _ImagesStruct(
            *images.shape[1:],
            images.data_ptr(),
            labels.data_ptr(),
            self._scale.data_ptr(),
            self._shift.data_ptr(),
        )
        struct.n = n
        return struct

    def gradient(
        self, rows: Rows, x: Tensor, grad: Tensor, ids: Tensor, images: ctypes.Structure
    ) -> Call:
        """grad <- every row's gradient on its batch.

        ids: (members, batch) int32 samples, or (members, 2, batch) of them and of their views.
        """
        if rows.threads > self._threads:
            raise UserError(
                f"{rows.threads} threads, where there is memory for {self._threads}: set the "
                "number of threads before the fleet is made"
            )
        views = 2 if ids.dim() == 3 else 0
        members = max(rows.members, len(ids))
        shape = (members, views, self.batch) if views else (members, self.batch)
        ids = checked("sample ids", ids, shape, torch.int32)
        arguments = _GradientStruct(
            rows.struct(x, grad, self._n_params),
            ctypes.addressof(self._net),
            ctypes.addressof(images),
            ids.data_ptr(),
            self.batch,
            views,
            self._memory.data_ptr(),
        )
        keep = (self, rows, x, grad, ids, images)
        return Call(self._library.teleport_gradient, arguments, "gradient", keep)

    def score(self, x: Tensor, images: ctypes.Structure, samples: int) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and accuracy of each row on a whole set: (rows,) float64 each."""
        if not 0 < samples <= images.n:
            raise UserError(f"a score of 1 .. {images.n} samples, got {samples}")
        x = checked("x", x, (x.shape[0], self._n_params), rows=True)
        loss = torch.empty(x.shape[0], dtype=torch.float64)
        right = torch.empty_like(loss)
        arguments = _ScoreStruct(
            x.shape[0],
            x.data_ptr(),
            x.stride(0),
            ctypes.addressof(self._net),
            ctypes.addressof(images),
            samples,
            loss.data_ptr(),
            right.data_ptr(),
            self._threads,
            self._memory.data_ptr(),
        )
        self._library.teleport_score(ctypes.byref(arguments))
        return loss / samples, right / samples
