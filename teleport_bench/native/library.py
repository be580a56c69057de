"""The compiled library."""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from teleport_bench.libraries import ROUNDS
from teleport_kernels import compiler, cpu


def compiled() -> bool:
    """Whether the library, and the one that it mixes with, are there without compiling."""
    try:
        return ROUNDS.is_there() and cpu.MIX.is_there()
    except compiler.FAILURES:
        return False


def prepare() -> None:
    """Begin to compile what is missing, beside whatever follows."""
    ROUNDS.begin()
    cpu.MIX.begin()


def available() -> bool:
    """Whether the library can be used; waits for the compiler, and warns where there is none."""
    return library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, or None where it cannot be compiled."""
    try:
        prepare()
        loaded = ROUNDS.load()
    except compiler.FAILURES as error:
        detail = getattr(error, "stderr", None) or error
        warnings.warn(
            f"teleport_bench: no C++ compiler for the compiled round ({detail}); rounds run in "
            "torch, several times slower. Install g++ to change that.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    if not cpu.available():  # which has warned; rounds mix with it
        return None
    loaded.teleport_space.restype = ctypes.c_int64
    loaded.teleport_tape.restype = ctypes.c_void_p
    loaded.teleport_normals.restype = ctypes.c_bool
    lent = cpu.function("lent")
    lent.restype = ctypes.c_void_p
    loaded.teleport_use(ctypes.c_void_p(lent()))
    return loaded


def identity() -> list[str]:
    """What the two libraries are: hashes of sources, flags, compiler and processor."""
    return [ROUNDS.identity(), cpu.MIX.identity()]


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def pool_alone() -> Iterator[None]:
    """In here torch works on one thread. Its others would look for work for milliseconds after each
    of its operations, on the cores that the pool's threads need: rounds took up to twice as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
