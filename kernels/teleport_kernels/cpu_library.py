"""The C++ of the CPU path, which can be compiled before torch is imported."""

from pathlib import Path

from teleport_kernels.compiler import Library

POOL = Path(__file__).with_name("parallel.hpp")
MIX = Library(
    Path(__file__).with_name("cpu_mix.cpp"),
    ("-fopenmp", "-ffp-contract=off"),
    includes=(POOL,),
    optional=("-DTK_HALF",),  # not every compiler has _Float16
)
