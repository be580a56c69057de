"""The compiled CPU path gives the reference's bits, whatever the threads, tiles and strides."""

from __future__ import annotations

import ctypes
import gc
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import teleport_kernels as tk
from teleport_bench import topology
from teleport_bench.record import provenance
from teleport_kernels import compiler, cpu, reference

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler on this machine"
)
SIZES = [(1, 1), (5, 63), (16, 64), (9, 65), (3, 5000), (70, 1300)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CXX", "")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    cpu._library.cache_clear()
    yield
    cpu._library.cache_clear()


def equal_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def inputs(k: int, width: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x, grad, m = (torch.randn(k, width, generator=rng).to(dtype) for _ in range(3))
    return x, grad, m


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("graph", ["ring", "exponential", "star", "complete"])
@pytest.mark.parametrize(("k", "width"), SIZES)
def test_mixing_and_steps_are_the_reference_s_bits(
    graph: str, k: int, width: int, dtype: torch.dtype
) -> None:
    mixing = topology(graph, k).mixing(0)
    x, grad, m = inputs(k, width, dtype)
    out = torch.full_like(x, float("nan"))
    cpu.mix(x, mixing, out)
    assert equal_bits(out, reference.gossip(x, mixing).to(dtype))
    lr = torch.rand(k, dtype=reference.accumulation_dtype(dtype))
    for settings in ({}, {"weight_decay": 0.1}, {"nesterov": True, "weight_decay": 0.1}):
        beta = 0.9 if "nesterov" in settings else 0.0
        full = {"beta": beta, "nesterov": False, "weight_decay": 0.0} | settings
        y, after = reference.descend(x, grad, lr[:, None], m if beta else None, **full)
        momentum = m.clone()
        cpu.mix(x, mixing, out, grad=grad, lr=lr, momentum=momentum if beta else None, **full)
        assert equal_bits(out, reference.gossip(y, mixing).to(dtype))
        if after is not None:
            assert equal_bits(momentum, after.to(dtype))


@needs_compiler
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_and_tiles_do_not_change_a_bit(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixing = topology("exponential", 12).mixing(0)
    x, grad, _ = inputs(12, 6001, torch.float32)
    one, many, lr = torch.empty_like(x), torch.empty_like(x), torch.full((12,), 0.1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        cpu.mix(x, mixing, one, grad=grad, lr=lr)
        torch.set_num_threads(threads)
        for run in (64, 512, 8192):
            monkeypatch.setattr(cpu, "RUN", run)
            monkeypatch.setattr(cpu, "TILE_BYTES", 1)
            cpu.mix(x, mixing, many, grad=grad, lr=lr)
            assert equal_bits(one, many)
    finally:
        torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [50, 1000])
@pytest.mark.parametrize("past", [0, 2**40])
def test_a_fleet_is_the_reference_s_bits_however_its_blocks_are_put_together(
    threads: int, dtype: torch.dtype, width: int, past: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = torch.Generator().manual_seed(0)
    blocks = [topology(graph, 5).mixing(0) for graph in ("ring", "star", "complete")]
    blocks.append(tk.Mixing.from_dense(torch.diag(torch.rand(29, generator=rng), 1)))
    for n in (1, 2, 7, 12):  # directed, in any order inside, and rows without entries
        W = torch.randn(n, n, generator=rng) * (torch.rand(n, n, generator=rng) < 0.4)
        blocks += [tk.Mixing.from_dense(W), tk.Mixing.from_dense(0 * W)]
    order = torch.randperm(3 * len(blocks), generator=rng) % len(blocks)
    mixing = tk.block_diag([blocks[b] for b in order])
    k = mixing.n_rows
    x, grad, m = inputs(k, width, dtype)
    lr = torch.rand(k, generator=rng)
    source, target = (torch.randperm(k, generator=rng) for _ in range(2))
    y, after = reference.descend(x[source], grad, lr[:, None], m, 0.9, False, 0.0)
    expected = reference.gossip(y, mixing).to(dtype)
    assert after is not None
    monkeypatch.setattr(cpu, "PAST_CACHE", past)
    monkeypatch.setattr(cpu, "PARALLEL", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for tile_bytes in (1, 8 * 1024, 128 * 1024):
            monkeypatch.setattr(cpu, "TILE_BYTES", tile_bytes)
            out, momentum = torch.full_like(x, float("nan")), m.clone()
            to = {"source": source, "target": target}
            cpu.mix(x, mixing, out, grad=grad, lr=lr, momentum=momentum, beta=0.9, **to)
            assert equal_bits(out[target], expected)
            assert equal_bits(momentum, after.to(dtype))
    finally:
        torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("graph", "k", "threads"), [("ring", 8, 2), ("ring", 17, 3), ("torus", 64, 2), ("ring", 21, 5)]
)
@pytest.mark.parametrize("width", [1, 511, 1300])
def test_the_pool_s_threads_give_the_reference_s_bits(
    graph: str, k: int, threads: int, width: int, dtype: torch.dtype, monkeypatch: Any
) -> None:
    mixing = topology(graph, k).mixing(0)
    monkeypatch.setattr(cpu, "POOLED", 0)
    x, grad, m = inputs(k, width, dtype)
    rng = torch.Generator().manual_seed(1)
    lr = torch.rand(k, dtype=reference.accumulation_dtype(dtype), generator=rng)
    source, target = (torch.randperm(k, generator=rng) for _ in range(2))
    full = {"beta": 0.9, "nesterov": True, "weight_decay": 0.1}
    y, after = reference.descend(x[source], grad, lr[:, None], m, **full)
    momentum, out = m.clone(), torch.full_like(x, float("nan"))
    full |= {"grad": grad, "lr": lr, "momentum": momentum, "source": source, "target": target}
    call = cpu.prepare(x, mixing, out, pool=threads, **full)
    for _ in range(20):
        out.fill_(float("nan"))
        momentum.copy_(m)
        assert cpu.function()(ctypes.byref(call)) == 0
        assert equal_bits(out[target], reference.gossip(y, mixing).to(dtype))
        assert after is not None
        assert equal_bits(momentum, after.to(dtype))
    plain = cpu.prepare(out, mixing, out, pool=threads)  # in place
    expected = reference.gossip(out, mixing).to(dtype)
    assert cpu.function()(ctypes.byref(plain)) == 0
    assert equal_bits(out, expected)


@needs_compiler
def test_a_prepared_call_is_the_same_mix_each_time_and_keeps_its_tensors() -> None:
    call = cpu.function()
    x, grad, m = inputs(4, 70, torch.float32)
    mixing, lr, momentum = topology("ring", 4).mixing(0), torch.full((4,), 0.1), m.clone()
    there, back = torch.empty_like(x), x.clone()
    rounds = [
        cpu.prepare(*rows, grad=grad, lr=lr.clone(), momentum=momentum, beta=0.9)
        for rows in ((back, mixing, there), (there, mixing, back))
    ]
    gc.collect()
    for _ in range(3):
        for arguments in rounds:
            assert call(ctypes.byref(arguments)) == 0
    for _ in range(6):
        x = tk.sgd_mix(x, grad, mixing, lr=0.1, momentum=m, beta=0.9)
    assert equal_bits(back, x)
    assert equal_bits(momentum, m)


@needs_compiler
@pytest.mark.parametrize(("k", "width"), [(0, 5), (5, 0)])
def test_nothing_to_mix_is_no_error(k: int, width: int) -> None:
    x = torch.empty(k, width)
    cpu.mix(x, tk.Mixing.identity(k), torch.empty_like(x))


@needs_compiler
def test_the_rows_of_a_tile_are_those_of_blocks_that_fill_the_cache_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "TILE_BYTES", 128 * 1024)
    monkeypatch.setattr(cpu, "RUN", 128)
    ring = topology("ring", 25).mixing(0)
    fleet = tk.block_diag([ring] * 1000)
    assert cpu._tile(fleet, 50, 4, threads=2) == (64, 500), "fifty parts"
    assert cpu._tile(fleet, 100_000, 4, threads=2) == (1344, 25)
    assert cpu._tile(ring, 100_000, 4, threads=2) == (1344, 25)
    assert cpu._tile(ring, 500, 4, threads=2) == (256, 25), "each thread has a tile"
    assert cpu._tile(tk.block_diag([ring] * 4), 50, 4, threads=2) == (64, 50), "and a part"
    assert cpu._tile(topology("ring", 4096).mixing(0), 5000, 4, threads=2) == (128, 4096)


@needs_compiler
def test_rows_may_lie_apart_and_be_named_in_any_order() -> None:
    mixing = topology("ring", 3).mixing(0)
    wide, _, _ = inputs(8, 100, torch.float32)
    x = wide[:, 5:90]
    nodes = torch.full((9, 97), float("nan"))
    out = nodes[:, 3:88]
    source, target = torch.tensor([6, 0, 3]), torch.tensor([8, 2, 4])
    cpu.mix(x, mixing, out, source=source, target=target)
    assert equal_bits(out[target].contiguous(), reference.gossip(x[source], mixing))
    assert int(torch.isfinite(nodes).sum()) == 3 * 85


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("graph", ["ring", "complete"])
@pytest.mark.parametrize("begin", [0, 1, 5])
def test_results_written_past_the_cache_are_the_same(
    graph: str, begin: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixing = topology(graph, 9).mixing(0)
    x, _, _ = inputs(9, 777, dtype)
    usual, past = (torch.full((9, 800), float("nan"), dtype=dtype) for _ in range(2))
    cut = slice(begin, begin + 777)
    cpu.mix(x, mixing, usual[:, cut])
    monkeypatch.setattr(cpu, "PAST_CACHE", 0)
    cpu.mix(x, mixing, past[:, cut])
    assert equal_bits(usual, past)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_results_are_the_same_and_a_warning_is_given_once() -> None:
    mixing = topology("star", 6).mixing(0)
    x, grad, m = inputs(6, 40, torch.float32)
    momentum = m.clone()
    with pytest.warns(RuntimeWarning, match="no C\\+\\+ compiler .* Install g\\+\\+"):
        found = tk.sgd_mix(x, grad, mixing, lr=0.1, momentum=momentum, beta=0.9)
    y, after = reference.descend(x, grad, 0.1, m, 0.9, False, 0.0)
    assert torch.equal(found, reference.gossip(y, mixing))
    assert after is not None
    assert torch.equal(momentum, after)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tk.gossip_mix(x, mixing)


def test_a_compiler_that_fails_is_a_warning_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def fail(command: list[str], **_: Any) -> Any:
        raise subprocess.CalledProcessError(1, command, stderr="it does not compile")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "")
    monkeypatch.setattr(compiler, "_version", lambda command: fail(command))
    cpu._library.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="it does not compile"):
            assert not cpu.available()
    finally:
        cpu._library.cache_clear()


@needs_compiler
def test_it_compiles_once_for_all_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not cpu.MIX.is_there()
    cpu.MIX.load()
    assert cpu.MIX.is_there()
    (built,) = (tmp_path / "teleport-kernels").iterdir()
    stamp = built.stat().st_mtime_ns
    cpu.MIX.load()
    assert [p.stat().st_mtime_ns for p in (tmp_path / "teleport-kernels").iterdir()] == [stamp]


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [[1], [3, 1, 4], [40, 2]])
@pytest.mark.parametrize("width", [1, 255, 256, 257, 5000])
def test_consensus_is_the_reference_s_bits(
    sizes: list[int], width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _, _ = inputs(sum(sizes), width, dtype)
    starts = torch.tensor([0, *sizes]).cumsum(0)
    expected = reference.consensus(x, starts)
    for tile_bytes in (1, 128 * 1024):
        monkeypatch.setattr(cpu, "TILE_BYTES", tile_bytes)
        found = cpu.consensus(x, starts)
        assert all(map(equal_bits, found, expected))


def test_rows_without_entries_become_zero() -> None:
    W = torch.zeros(4, 4)
    W[0, 1] = W[2, 1] = 1.0
    x = torch.randn(4, 200)
    out = tk.gossip_mix(x, tk.Mixing.from_dense(W))
    assert torch.equal(out[[0, 2]], x[[1, 1]])
    assert not out[[1, 3]].any()


@needs_compiler
def test_a_home_that_cannot_be_written_is_compiled_for_in_a_folder_of_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compiler._own.cache_clear()
    try:
        assert not cpu.MIX.is_there()
        cpu.MIX.load()
        assert cpu.MIX.is_there()
    finally:
        compiler._own().cleanup()
        compiler._own.cache_clear()


def test_the_processor_is_named_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr("pathlib.Path.read_text", fail)
    monkeypatch.setattr("platform.processor", lambda: "a processor")
    assert compiler._instruction_sets() == provenance._processor() == "a processor"
