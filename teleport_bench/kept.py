"""Values from a file that anything may have written, checked before they are used."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class UnfitError(ValueError):
    """What was kept is not what these runs would have kept; in words."""


def fields(value: Any, names: Collection[str], what: str) -> dict[str, Any]:
    """A dict of just these keys."""
    if type(value) is not dict or set(value) != set(names):
        raise UnfitError(f"{what} has not the parts {', '.join(names)}")
    return value


def whole(value: Any, least: int, most: int, what: str) -> int:
    """A whole number in that range."""
    if type(value) is not int or not least <= value <= most:
        raise UnfitError(f"{what} is no whole number from {least} to {most}")
    return value


def seconds(value: Any, what: str) -> float:
    """A time, finite and not negative."""
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise UnfitError(f"{what} is no number of seconds")
    return float(value)


def tensor(value: Any, dtype: torch.dtype, shape: tuple[int, ...], what: str) -> Tensor:
    """A copy of a tensor in memory of its own, which is dense and on the CPU."""
    if type(value) is not Tensor or value.layout != torch.strided or value.device.type != "cpu":
        raise UnfitError(f"{what} is no tensor in memory")
    if value.dtype != dtype or value.shape != shape:
        found = f"{value.dtype} of {tuple(value.shape)}"
        raise UnfitError(f"{what} is {found}, expected {dtype} of {shape}")
    if not value.is_contiguous() or value.is_neg() or value.requires_grad:
        raise UnfitError(f"{what} is a view of other numbers")
    return value.clone()


def array(value: Any, dtype: torch.dtype, shape: tuple[int, ...], what: str) -> NDArray[Any]:
    """The same as an array."""
    found: NDArray[Any] = tensor(value, dtype, shape, what).numpy()
    return found


def expect(holds: bool | np.bool_, message: str) -> None:
    """UnfitError with that message unless it holds."""
    if not holds:
        raise UnfitError(message)
