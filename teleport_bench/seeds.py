"""Named random streams: what a stream gives depends on what it names, and on nothing else."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_for(base: int, stream: str, **names: int | str) -> int:
    """A 128-bit seed for the stream of that name, from the base seed and whatever it may depend on.

    The order of the names does not matter; a name more or less gives another stream.
    """
    parts = [f"base={base}", f"stream={stream}", *(f"{k}={v}" for k, v in sorted(names.items()))]
    digest = hashlib.blake2b("\n".join(parts).encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


def generator(base: int, stream: str, **names: int | str) -> np.random.Generator:
    """A NumPy generator (Philox, counter-based) on the stream `seed_for` names."""
    return np.random.Generator(np.random.Philox(key=seed_for(base, stream, **names)))
