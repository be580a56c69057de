"""The C++ of the compiled round, known without torch: it can be compiled beside torch's import."""

from pathlib import Path

from teleport_kernels.compiler import LENT, Library

NATIVE = Path(__file__).with_name("native")
ROUNDS = Library(
    NATIVE / "rounds.cpp",
    ("-fno-math-errno", "-Wno-ignored-attributes"),
    # GCC multiplies and adds apart in a chain of sums alone, for some processors, and at once in
    # several: a row would then have other bits alone than in company
    optional=("--param=avoid-fma-max-bits=0",),
    includes=(*(NATIVE / f"{n}.hpp" for n in ("network", "normals", "stages", "vector")), *LENT),
)
