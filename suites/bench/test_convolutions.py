"""One convolution a row, forward and backward, in the ways that torch and this project offer.

    pytest suites/bench/test_convolutions.py --device cpu

models/layers.py goes row by row on the CPU, as wide layers and whole gradients are fastest (a small
convolution by itself is not: the layers after it pay for channels that come last), and takes rows
as groups on a GPU, where a call costs more than its arithmetic. The compiled round has its own.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytestmark = pytest.mark.filterwarnings("ignore")

SHAPES = {  # rows, batch, channels, filters, height, kernel
    "lenet-1": (25, 32, 1, 6, 28, 5),
    "lenet-2": (25, 32, 6, 16, 12, 5),
    "vgg-like": (4, 32, 64, 64, 16, 3),
    "vgg-wide": (4, 16, 256, 512, 4, 3),
}


def grouped(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    rows, batch, channels, *image = x.shape
    stacked = x.transpose(0, 1).reshape(batch, rows * channels, *image)
    y = F.conv2d(stacked, w.flatten(0, 1), b.flatten(), groups=rows)
    return y.unflatten(1, (rows, -1)).transpose(0, 1)


def grouped_channels_last(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    rows, batch, channels, *image = x.shape
    stacked = x.transpose(0, 1).reshape(batch, rows * channels, *image)
    stacked = stacked.contiguous(memory_format=torch.channels_last)
    y = F.conv2d(stacked, w.flatten(0, 1), b.flatten(), groups=rows)
    return y.unflatten(1, (rows, -1)).transpose(0, 1)


def unfolded(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    rows, batch, _, height, _ = x.shape
    columns = F.unfold(x.flatten(0, 1), w.shape[-1]).unflatten(0, (rows, batch))
    columns = columns.transpose(1, 2).flatten(2)
    y = torch.baddbmm(b.unsqueeze(2), w.flatten(2), columns)
    return y.view(rows, w.shape[1], batch, height - w.shape[-1] + 1, -1).transpose(1, 2)


def windows(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    size = w.shape[-1]
    seen = x.unfold(3, size, 1).unfold(4, size, 1).permute(0, 1, 3, 4, 2, 5, 6)
    y = torch.baddbmm(b.unsqueeze(1), seen.flatten(4).flatten(1, 3), w.flatten(2).mT)
    return y.view(*seen.shape[:4], -1).permute(0, 1, 4, 2, 3)


def row_by_row(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.stack([F.conv2d(*row) for row in zip(x, w, b, strict=True)])


@pytest.mark.parametrize("way", [grouped, grouped_channels_last, unfolded, windows, row_by_row])
@pytest.mark.parametrize("name", SHAPES)
def test_convolution(benchmark, name, way, device):
    rows, batch, channels, filters, height, kernel = SHAPES[name]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(device).requires_grad_()

    x = draw(rows, batch, channels, height, height)
    w, b = draw(rows, filters, channels, kernel, kernel), draw(rows, filters)
    torch.testing.assert_close(way(x, w, b), row_by_row(x, w, b), rtol=1e-4, atol=1e-3)

    def run():
        torch.autograd.grad(way(x, w, b).sum(), (x, w, b))
        if device.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
