"""Normal noise by the library: NumPy's, several times as fast."""

from __future__ import annotations

import ctypes
import functools

import numpy as np
from numpy.typing import NDArray

from teleport_bench.native.calls import WORD
from teleport_bench.native.library import library


def normals(
    rng: np.random.Generator, shape: tuple[int, ...], scale: float, *, compiled: bool
) -> NDArray[np.float32]:
    """scale times standard normals, as NumPy draws them in float32. rng: nobody has drawn from it.

    compiled: by the library, several times as fast, where it draws the same bits. The generator
    then stays as it is.
    """
    found = _drawn(rng, shape, scale) if compiled and _as_numpy() else None
    if found is None:
        found = rng.standard_normal(shape, dtype=np.float32)
        found *= np.float32(scale)
    return found


def _drawn(
    rng: np.random.Generator, shape: tuple[int, ...], scale: float
) -> NDArray[np.float32] | None:
    """By the library; None without it, or from another generator, or one not at its start."""
    state, loaded = rng.bit_generator.state, library()
    if loaded is None or state["bit_generator"] != "Philox" or state["has_uint32"]:
        return None
    if state["state"]["counter"].any() or state["buffer_pos"] != len(state["buffer"]):
        return None
    key, out = state["state"]["key"], np.empty(shape, dtype=np.float32)
    there = loaded.teleport_normals(
        ctypes.c_void_p(key.ctypes.data),
        WORD(out.size),
        ctypes.c_float(scale),
        ctypes.c_void_p(out.ctypes.data),
    )
    return out if there else None


@functools.cache
def _as_numpy() -> bool:
    """Whether this NumPy draws as the library does, as far as 80,000 numbers tell: one of another
    version, or built otherwise, may not."""
    for key in range(4):
        theirs = np.random.Generator(np.random.Philox(key=key * (2**96 + 2**33) + 1))
        ours, wanted = _drawn(theirs, (20_000,), 1.0), theirs.standard_normal(20_000, np.float32)
        if ours is None or not np.array_equal(ours.view(np.uint32), wanted.view(np.uint32)):
            return False
    return True
