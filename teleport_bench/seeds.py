"""Named random streams: what a stream gives depends on what it names, and on nothing else."""

from __future__ import annotations

import hashlib
import json

import numpy as np


def seed_for(base: int, stream: str, **names: int | str) -> int:
    """A 128-bit seed for the stream of that name, from the base seed and whatever it may depend on.

    The order of the names does not matter; a name more or less gives another stream.
    """
    text = json.dumps([base, stream, names], sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


def generator(base: int, stream: str, **names: int | str) -> np.random.Generator:
    """A NumPy generator (Philox, counter-based) on the stream `seed_for` names."""
    return np.random.Generator(np.random.Philox(key=seed_for(base, stream, **names)))
