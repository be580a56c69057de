"""Named random streams: what a stream gives depends on what it names, and on nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

BLOCK = 64
"""Rounds whose random choices are drawn at once, from a stream of their own."""


def seed_for(base: int, stream: str, **names: int | str) -> int:
    """A 128-bit seed for the stream of that name, from the base seed and whatever it may depend on.

    The order of the names does not matter; a name more or less gives another stream.
    """
    text = json.dumps([base, stream, names], sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


def generator(base: int, stream: str, **names: int | str) -> np.random.Generator:
    """A NumPy generator (Philox, counter-based) on the stream `seed_for` names."""
    key = _Key(seed_for(base, stream, **names))
    return np.random.Generator(np.random.Philox(key))  # type: ignore[arg-type]  # not in its stubs


class _Key(ISeedSequence):
    """A key as what Philox makes its key of. `Philox(key=..)` is the same, but asks the system for
    entropy first, to forget it: four times as slow."""

    def __init__(self, key: int) -> None:
        self._key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        """Both halves of the key, the low one first: two words of 64 bits are all that is asked."""
        assert (n_words, dtype) == (2, np.uint64)
        return np.array([self._key & 2**64 - 1, self._key >> 64], dtype)


def by_step(
    draw: Callable[[np.random.Generator], NDArray[Any]],
    steps: int,
    base: int,
    stream: str,
    **names: int | str,
) -> NDArray[Any]:
    """What each of the local steps of some rounds draws: round 0 step 0, round 0 step 1, ..

    draw: from a generator the (rounds, ...) choices of one step. The first step takes the stream of
    these names, so that it draws what a method with one step a round does; the others add theirs.
    """
    first = draw(generator(base, stream, **names))
    if steps == 1:
        return first
    others = [draw(generator(base, stream, step=step, **names)) for step in range(1, steps)]
    every = np.stack([first, *others], axis=1)
    return every.reshape(-1, *first.shape[1:])
