"""Bugs that kernels of this kind have: each is planted, and the tests must find it.

`python tests/kernels/mutations.py` plants all of them, one after another (about two minutes), and
first none, which the tests must not find.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from test_lanes import HERE, in_a_process

import teleport_kernels

SOURCE = Path(teleport_kernels.__file__).parent


class Mutation(NamedTuple):
    """A bug: in the file, the one place where `right` stands says `wrong`."""

    name: str
    file: str
    right: str
    wrong: str
    test: str = "test_ops.py"


TRITON, CPU = "triton_mix.py", "cpu_mix.cpp"
FAR = "far_apart.py"
MUTATIONS = [
    Mutation(
        "neighbours in descending order",
        TRITON,
        "entry + tl.minimum(e + u, degree - 1)",
        "entry + tl.maximum(degree - 1 - e - u, 0)",
    ),
    Mutation(
        "32-bit offsets of rows",
        TRITON,
        "v = tl.load(x + first + (origin * x_stride)[:, None] + column, mask=here).to(ACC)\n"
        "                d",
        "low = origin.to(tl.int32) * x_stride.to(tl.int32)\n"
        "                v = tl.load(x + first + low[:, None] + column, mask=here).to(ACC)\n"
        "                d",
        FAR,
    ),
    Mutation(
        "no mask on the last columns",
        TRITON,
        "mask=writes[:, None] & inside)",
        "mask=writes[:, None] & (column >= 0))",
    ),
    Mutation(
        "source and target swapped",
        TRITON,
        "mixing.indices if source is None else source,\n"
        "                mixing.indices if target is None else target,",
        "mixing.indices if target is None else target,\n"
        "                mixing.indices if source is None else source,",
    ),
    Mutation(
        "the step takes the momentum of the round before",
        TRITON,
        "d = d + beta * m if NESTEROV else m",
        "d = d + beta * m if NESTEROV else tl.load(m_at, mask=here).to(ACC) * 0 + (m - d) / beta",
    ),
    Mutation(
        "momentum is not written",
        TRITON,
        "tl.store(m_at, m.to(momentum.dtype.element_ty), mask=here)",
        "pass",
    ),
    Mutation(
        "rows without entries keep the start of the sum",
        TRITON,
        "total = tl.where((degree == 0)[:, None], 0.0, total)",
        "total = tl.where((degree == 0)[:, None], 1.0, total)",
    ),
    Mutation(
        "a run of equal rows is written once",
        TRITON,
        "for i in range(0, tl.max(next_row - row, 0)):",
        "for i in range(0, 1):",
    ),
    Mutation(
        "the mean by another number of rows",
        TRITON,
        "(end - begin).to(ACC)",
        "(end - begin + 1).to(ACC)",
    ),
    Mutation(
        "neighbours in descending order",
        CPU,
        "indices[e] * pitch + c);\n                const A w = weights[e];",
        "indices[first + last - 1 - e] * pitch + c);\n"
        "                const A w = weights[first + last - 1 - e];",
    ),
    Mutation(
        "32-bit offsets of rows",
        CPU,
        "const T* xr = x + (source ? source[b] : b) * x_stride + from;",
        "const T* xr = x + int32_t((source ? source[b] : b) * x_stride) + from;",
        FAR,
    ),
    Mutation(
        "the last columns of a tile are left out",
        CPU,
        "copy(row(i) + c, line + c, n - c);",
        "copy(row(i) + c, line + c, (n - c) / 2);",
    ),
    Mutation(
        "source and target swapped",
        CPU,
        "return out + (target ? target[i] : i) * out_stride + from;",
        "return out + (source ? source[i] : i) * out_stride + from;",
    ),
    Mutation(
        "the step takes the momentum of the round before",
        CPU,
        "d = look_ahead ? d + keep * after : after;",
        "d = look_ahead ? after : (after - d) / keep;",
    ),
    Mutation(
        "columns of two registers take the step twice",
        CPU,
        "store(y + n - V, last, V);",
        "store(y + n - V, stepped(n - V, V, last_after), V);",
    ),
    Mutation(
        "the rows of a part are counted from the matrix's first",
        CPU,
        "gather(alone, line, y - begin * tile,",
        "gather(alone, line, y,",
        "test_cpu.py",
    ),
    Mutation(
        "a block ends where one entry leaves it",
        "mixing.py",
        "begins[1:] = crossing == 0",
        "begins[1:] = crossing <= 1",
        "test_cpu.py",
    ),
    Mutation(
        "products and sums rounded once", "cpu.py", '"-ffp-contract=off"', '"-ffp-contract=fast"'
    ),
    Mutation(
        "the last block of columns is not filled with zeros",
        CPU,
        "std::memset(s, 0, tile * sizeof(A));",
        "std::memset(s, 0, n * sizeof(A));",
        "test_cpu.py",
    ),
]


NOTHING = [
    Mutation("nothing", file, "", "", test)
    for file in (TRITON, CPU)
    for test in ("test_ops.py", FAR)
]


def caught(mutation: Mutation) -> bool:
    """Plant the bug in a copy of the library and run the tests of its lane on it."""
    lane = "interpreter" if mutation.file == TRITON else ""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / SOURCE.name
        shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        file = copy / mutation.file
        text = file.read_text()
        if mutation not in NOTHING:
            if text.count(mutation.right) != 1:
                raise ValueError(f"{mutation.right!r} stands {text.count(mutation.right)} times")
            file.write_text(text.replace(mutation.right, mutation.wrong))
        if mutation.test == FAR:
            command = ["-W", "ignore", HERE / FAR, "triton" if lane else "cpu"]
        else:
            # fail at the first example, without looking for a smaller one
            command = ["-m", "pytest", "-xq", "-W", "ignore", "-p", "no:cacheprovider"]
            command += ["-p", "no:xdist", "--hypothesis-profile=first", HERE / mutation.test]
        try:
            done = in_a_process(*command, lane=lane, timeout=120, PYTHONPATH=folder)
        except subprocess.TimeoutExpired:
            return True
    return done.returncode != 0


def main() -> int:
    wrong = 0
    for mutation in NOTHING + MUTATIONS:
        found = caught(mutation)
        wrong += found == (mutation in NOTHING)
        print("caught" if found else "missed", mutation.file, mutation.name, flush=True)
    print("all as they should be" if not wrong else f"{wrong} not as they should be")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
