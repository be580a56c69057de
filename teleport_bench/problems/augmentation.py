"""Views of images: the crops and reflections that training batches see."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MARGIN = 4
"""Black pixels around an image before it is cropped, as is usual for CIFAR (He et al. 2016)."""

SIDE = 2 * MARGIN + 1
"""Places of a crop along one axis."""

VIEWS = {"crop": SIDE**2, "crop_flip": 2 * SIDE**2}
"""How many views of an image there are. View (flip SIDE + top) SIDE + left is the window at (top,
left) of the image with its margin, mirrored left to right where flip is 1."""


def seen(images: Tensor, views: Tensor) -> Tensor:
    """The given view of each image, in its own size and dtype.

    images: (rows, batch, channels, height, width); views: (rows, batch).
    """
    height, width = images.shape[-2:]
    views = views.long()[..., None]
    top, left, flip = views // SIDE % SIDE, views % SIDE, views // SIDE**2
    across = torch.arange(width, device=images.device)
    across = torch.where(flip == 1, across.flip(0), across) + left
    down = torch.arange(height, device=images.device) + top
    padded = F.pad(images, (MARGIN,) * 4)
    lines = torch.take_along_dim(padded, down[:, :, None, :, None], dim=3)
    return torch.take_along_dim(lines, across[:, :, None, None, :], dim=4)
