"""The compiled library."""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from teleport_kernels import compiler, cpu

SOURCE = Path(__file__).with_name("rounds.cpp")
INCLUDES = [SOURCE.with_name(name) for name in ("network.hpp", "vector.hpp")] + [cpu.POOL]
FLAGS = ("-fno-math-errno", "-Wno-ignored-attributes")


def compiled() -> bool:
    """Whether the library is there without compiling."""
    try:
        return compiler.is_there(SOURCE, FLAGS, includes=INCLUDES)
    except compiler.FAILURES:
        return False


def prepare() -> None:
    """Begin to compile what is missing, beside whatever follows."""
    _loading()


def available() -> bool:
    """Whether the library can be used; waits for the compiler, and warns where there is none."""
    return library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, or None where it cannot be compiled."""
    try:
        loaded = _loading().result()
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
    loaded.teleport_use(cpu.function("run"))
    return loaded


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


@functools.cache
def _loading() -> Future[ctypes.CDLL]:
    # two threads, so that both libraries compile at once
    pool = ThreadPoolExecutor(2)
    pool.submit(cpu.available)
    future = pool.submit(compiler.load, SOURCE, FLAGS, includes=INCLUDES)
    pool.shutdown(wait=False)
    return future
