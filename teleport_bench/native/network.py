"""Networks for the library: a table of their layers."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from teleport_bench.models import Network
from teleport_bench.models.layers import (
    Conv2d,
    Flatten,
    GroupNorm,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Shape,
    traced,
)
from teleport_bench.native.calls import POINTER, WORD, Call, Rows, RowsStruct, structure
from teleport_bench.native.library import library

_LayerStruct = structure(
    "Layer",
    **dict.fromkeys(("kind", "channels", "height", "width"), WORD),
    **dict.fromkeys(("filters", "out_height", "out_width"), WORD),
    **dict.fromkeys(("size", "padding", "offset"), WORD),
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

_KINDS = (Linear, Conv2d, ReLU, MaxPool2d, GroupNorm, Flatten)
"""By the numbers that network.hpp gives them."""


def _window(layer: Layer) -> tuple[int, int]:
    """`size` and `padding` of network.hpp's Layer."""
    match layer:
        case Conv2d():
            return layer.kernel, layer.padding
        case MaxPool2d():
            return layer.size, 0
        case GroupNorm():
            return layer.groups, 0
        case _:
            return 0, 0


class NativeNetwork:
    """A network on the images of a data set, for calls of the library.

    scale, shift: what models see is scale * byte + shift; they broadcast over an image.
    """

    def __init__(
        self, network: Network, input_shape: Shape, batch: int, scale: Tensor, shift: Tensor
    ) -> None:
        layers, offset = [], 0
        for layer, shape in traced(network.layers, input_shape):
            size, padding = _window(layer)
            inputs = (layer.inputs, 1, 1) if isinstance(layer, Linear) else shape
            kind, outputs = _KINDS.index(type(layer)), layer.output(shape)
            layers.append(_LayerStruct(kind, *inputs, *outputs, size, padding, offset))
            offset += sum(map(math.prod, layer.shapes))
        self._layers = (_LayerStruct * len(layers))(*layers)
        classes = math.prod(outputs)
        self._net = _NetworkStruct(len(layers), ctypes.addressof(self._layers), offset, classes)
        self._scale = scale.expand(input_shape).contiguous()
        self._shift = shift.expand(input_shape).contiguous()
        self.batch = batch
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
        return any(layer.shapes for layer in network.layers) and all(
            type(layer) in _KINDS
            and not (isinstance(layer, Conv2d) and layer.padding >= layer.kernel)
            for layer in network.layers
        )

    def images(self, images: Tensor, labels: Tensor) -> ctypes.Structure:
        """(N, ...) bytes and (N,) labels, for `gradient` and `score`; they must be kept."""
        assert images.is_contiguous()
        assert labels.is_contiguous()
        return _ImagesStruct(
            *images.shape[1:],
            images.data_ptr(),
            labels.data_ptr(),
            self._scale.data_ptr(),
            self._shift.data_ptr(),
        )

    def gradient(
        self, rows: Rows, x: Tensor, grad: Tensor, ids: Tensor, images: ctypes.Structure
    ) -> Call:
        """grad <- every row's gradient on its batch.

        ids: (members, batch) int32 samples, or (members, 2, batch) of them and of their views.
        """
        assert rows.threads <= self._threads
        arguments = _GradientStruct(
            rows.struct(x, grad),
            ctypes.addressof(self._net),
            ctypes.addressof(images),
            ids.data_ptr(),
            self.batch,
            ids.dim() == 3,
            self._memory.data_ptr(),
        )
        keep = (self, rows, x, grad, ids, images)
        return Call(self._library.teleport_gradient, arguments, "gradient", keep)

    def score(self, x: Tensor, images: ctypes.Structure, samples: int) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy and accuracy of each row on a whole set: (rows,) float64 each."""
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
