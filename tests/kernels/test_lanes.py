"""Every backend takes the same tests, each in a process of its own: what TRITON_INTERPRET changes,
and what a kernel that is wrong may do, stays there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="the package triton is missing")
TRITON = tuple(map(int, metadata.version("triton").split(".")[:2])) if HAS_TRITON else (0, 0)
needs_interpreter = pytest.mark.skipif(
    TRITON < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="the interpreter of Triton before 3.7 needs NumPy before 2.4",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

LANES = {
    "cpu without a compiler": {"TELEPORT_KERNELS_BACKEND": "cpu", "CXX": "", "PATH": ""},
    "reference": {"TELEPORT_KERNELS_BACKEND": "reference"},
    "interpreter": {"TELEPORT_KERNELS_BACKEND": "triton", "TRITON_INTERPRET": "1"},
    "cuda": {"TEST_DEVICE": "cuda"},
}


def in_a_process(
    *command: str | Path, lane: str = "", timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON", "TELEPORT_KERN"))}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        env=clean | LANES.get(lane, {}) | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.parametrize(
    "lane",
    [
        "cpu without a compiler",
        "reference",
        pytest.param("interpreter", marks=[needs_triton, needs_interpreter]),
        pytest.param("cuda", marks=[pytest.mark.gpu, needs_triton, needs_gpu]),
    ],
)
def test_every_property_holds_in_the_lane(lane: str) -> None:
    quiet = ("-W", "ignore::RuntimeWarning", "-p", "no:cacheprovider", "-p", "no:xdist")
    done = in_a_process("-m", "pytest", "-q", *quiet, HERE / "test_ops.py", lane=lane)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr


@pytest.mark.parametrize(
    ("lane", "backend"),
    [
        ("", "cpu"),
        ("cpu without a compiler", "cpu"),
        pytest.param("interpreter", "triton", marks=[needs_triton, needs_interpreter]),
    ],
)
def test_rows_lie_as_far_apart_as_64_bits_count(lane: str, backend: str) -> None:
    done = in_a_process("-W", "ignore", HERE / "far_apart.py", backend, lane=lane)
    assert done.returncode == 0, done.stderr


@needs_triton
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_kernel_compiles_to_what_the_design_asks_for(target: str) -> None:
    done = in_a_process(HERE / "compile_lane.py", target)
    assert done.returncode == 0, done.stderr
    facts: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["op"] for row in facts} == {"gossip_mix", "teleport_mix", "sgd_mix", "consensus"}
    for row in facts:
        assert row["wide"] >= row["row_accesses"], f"rows are not read 16 bytes at a time: {row}"
        if TRITON > (3, 5):  # whose older assembler spills two of them on A100, once
            assert row["spills"] == 0, f"registers spill to memory: {row}"
        assert row["registers"] <= 128, f"fewer than four programs fit: {row}"
        if row["op"] != "consensus" or target != "gfx942":  # AMD divides by multiply-adds
            assert row["fused"] == 0, f"a multiply-add rounds once: {row}"


@pytest.mark.slow
@needs_triton
@needs_interpreter
def test_every_planted_bug_is_found() -> None:
    done = in_a_process(HERE / "mutations.py")
    assert done.returncode == 0, done.stdout
