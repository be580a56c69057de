"""The C++ libraries of the compiled round, which can be compiled before torch is imported."""

from pathlib import Path

from teleport_kernels.compiler import Library
from teleport_kernels.cpu_library import MIX, POOL

NATIVE = Path(__file__).with_name("native")
ROUNDS = Library(
    NATIVE / "rounds.cpp",
    ("-fno-math-errno", "-Wno-ignored-attributes"),
    includes=(NATIVE / "network.hpp", NATIVE / "vector.hpp", POOL),
)


def begin() -> None:
    """Begin to compile what is missing, beside whatever follows."""
    for library in (ROUNDS, MIX):  # the one that takes longer first
        library.begin()
