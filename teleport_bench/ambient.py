"""What a session may have set for all of torch and NumPy, and what runs have instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

_ERRORS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
"""What NumPy does with floating-point errors unless it is told otherwise."""


@contextmanager
def plain() -> Iterator[None]:
    """In here torch and NumPy are as they come: float32 and the CPU where nothing else is said, no
    autocast, no inference mode, derivatives where they are asked for, overflow without an error.

    A run's numbers depend on its settings, and so not on `torch.set_default_dtype` and its like in
    the notebook or plugin that starts it.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if (dtype := torch.get_default_dtype()) != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        if (precision := torch.get_float32_matmul_precision()) != "highest":
            stack.callback(torch.set_float32_matmul_precision, precision)
            torch.set_float32_matmul_precision("highest")
        if np.geterr() != _ERRORS:
            stack.enter_context(np.errstate(**_ERRORS))  # type: ignore[arg-type]
        yield
