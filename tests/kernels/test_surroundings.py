"""What an op gives does not depend on where it is called: defaults, modes, forks, python -O."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import teleport_kernels as tk

W = [[0.1, 0.9, 0.0], [0.0, 0.7, 0.3], [0.25, 0.0, 0.75]]
EDGES = ([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 0, 2], [0.1, 0.9, 0.7, 0.3, 0.25, 0.75])


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def rows(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator("cpu").manual_seed(0)
    x, grad, m = (torch.randn(3, 65, generator=rng, dtype=dtype, device="cpu") for _ in range(3))
    return x, grad, m


def everything(dtype: torch.dtype, backend: str) -> list[Tensor]:
    x, grad, m = rows(dtype)
    mixing = tk.Mixing.from_dense(W)
    parts = mixing.indptr.tolist(), mixing.indices.tolist(), mixing.weights.tolist()
    matrices = [
        mixing,
        tk.Mixing.from_edges(3, *EDGES),
        tk.Mixing(*parts),  # type: ignore[arg-type]
        tk.Mixing.identity(3),
        tk.block_diag([tk.Mixing.identity(1), tk.Mixing.from_dense([[0.1, 0.9], [0.2, 0.8]])]),
    ]
    results = [tk.gossip_mix(x, matrix, backend=backend) for matrix in matrices]
    steps = {"momentum": m, "beta": 0.9, "nesterov": True, "weight_decay": 0.1}
    results.append(tk.sgd_mix(x, grad, mixing, lr=0.1, backend=backend, **steps))
    lr = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, device="cpu")
    results.append(tk.sgd_mix(x, grad, mixing, lr=lr, backend=backend))
    groups = torch.tensor([0, 0, 1], device="cpu")
    results += [m, *tk.consensus(x, backend=backend), *tk.consensus(x, groups, backend=backend)]
    return [result.detach().clone() for result in results]


PLACES: dict[str, Any] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "default float64": lambda: default_dtype(torch.float64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default meta": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_results_are_the_same_everywhere(place: str, dtype: torch.dtype) -> None:
    for backend in ("cpu", "reference"):
        expected = everything(dtype, backend)
        with PLACES[place]():
            found = everything(dtype, backend)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_a_matrix_made_in_inference_mode_has_derivatives() -> None:
    x, _, _ = rows(torch.float64)
    with torch.inference_mode():
        mixing = tk.Mixing.from_dense(W)
    x.requires_grad_()
    tk.gossip_mix(x, mixing).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, mixing.dense().sum(0)[:, None].expand_as(x))


def test_what_is_made_in_inference_mode_is_written_there_alone() -> None:
    x, _, _ = rows(torch.float32)
    mixing = tk.Mixing.from_dense(W)
    with torch.inference_mode():
        out = torch.empty_like(x)
        tk.gossip_mix(x, mixing, out=out)
    assert torch.equal(out, tk.gossip_mix(x, mixing))
    with pytest.raises(ValueError, match=r"out was made in torch\.inference_mode"):
        tk.gossip_mix(x, mixing, out=out)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_derivative_that_kept_out_or_momentum_learns_that_they_were_written(backend: str) -> None:
    x, grad, m = rows(torch.float32)
    out, w = torch.ones_like(x), torch.ones_like(x, requires_grad=True)
    for kept in (w * out, w * m):
        tk.sgd_mix(
            x, grad, tk.Mixing.identity(3), lr=0.1, momentum=m, beta=0.9, out=out, backend=backend
        )
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            kept.sum().backward()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # fork, from Python 3.12 on
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_mixes_as_its_parent_did() -> None:
    code = f"""
import ctypes, os, signal, sys, torch
import teleport_kernels as tk
from teleport_kernels import cpu

torch.set_num_threads(2)
x, mixing = torch.randn(8, 50_000), tk.block_diag([tk.Mixing.from_dense({W})] * 2
    + [tk.Mixing.identity(2)])
pooled = torch.empty_like(x)
call = cpu.prepare(x, mixing, pooled, pool=2) if cpu.available() else None

def mixed():
    out = torch.empty_like(x)
    step = tk.sgd_mix(x, x, mixing, lr=0.1, out=out)
    if call:
        pooled[0, 0] = 0
        cpu.function()(ctypes.byref(call))
    return [out, *tk.consensus(x), pooled]

before = [part.clone() for part in mixed()]
for depth in range(2):
    if child := os.fork():
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    signal.alarm(60)  # a loop that waits for threads that are not there ends
    for threads in (1, 2):  # those of our loops: torch's own operations have one
        torch.set_num_threads(threads)
        found = [mixed() for _ in range(10)][-1]
        torch.set_num_threads(1)
        if not all(bool((a == b).all()) for a, b in zip(found, before, strict=True)):
            os._exit(1)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "file", sorted(Path(tk.__file__).parent.glob("*.py")), ids=lambda p: p.name
)
def test_no_check_is_left_out_by_python_s_option_to_optimise(file: Path) -> None:
    assert not [
        n.lineno for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Assert)
    ]
