"""What only a device can show; the properties run there too, in test_lanes.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import teleport_kernels as tk
from teleport_kernels import reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def graph(name: str, k: int) -> tk.Mixing:
    i = torch.arange(k)
    if name == "complete":
        return tk.Mixing.from_dense(torch.full((k, k), 1 / k))
    if name == "star":
        return tk.Mixing.from_edges(
            k, torch.cat([i * 0, i[1:]]), torch.cat([i, i[1:] * 0]), torch.full((2 * k - 1,), 0.3)
        )
    hops = [0, 1, k - 1] if name == "ring" else [0, *(2**b for b in range((k - 1).bit_length()))]
    columns = torch.stack([(i + hop) % k for hop in dict.fromkeys(hop % k for hop in hops)], 1)
    weight = torch.full((columns.numel(),), 1 / columns.shape[1])
    return tk.Mixing.from_edges(k, i.repeat_interleave(columns.shape[1]), columns.flatten(), weight)


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.cpu().view(torch.uint8), b.cpu().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["ring", "exponential", "star", "complete"])
@pytest.mark.parametrize(("k", "width", "gap"), [(8, 100_003, 1), (64, 20_000, 0), (1024, 700, 4)])
def test_a_device_gives_the_bits_of_the_cpu(
    name: str, k: int, width: int, gap: int, dtype: torch.dtype
) -> None:
    mixing = graph(name, k)
    x, grad, momentum = (
        normal(k, width + gap, dtype=dtype, seed=seed)[:, :width] for seed in range(3)
    )
    there = [t.to("cuda") for t in (x, grad, momentum)]
    on_device = mixing.to("cuda")
    assert same(tk.gossip_mix(there[0], on_device), tk.gossip_mix(x, mixing))
    how = {"lr": 0.1, "beta": 0.9, "weight_decay": 1e-4}
    found = tk.sgd_mix(*there[:2], on_device, momentum=there[2], **how)
    momentum = momentum.clone()
    assert same(found, tk.sgd_mix(x, grad, mixing, momentum=momentum, **how))
    assert same(there[2], momentum)
    assert all(map(same, tk.consensus(there[0]), tk.consensus(x)))


def test_more_elements_than_32_bits_count() -> None:
    k, width = 5, 2**29 + 1000
    x = torch.empty(k, width, dtype=torch.bfloat16, device="cuda").normal_()
    mixing = graph("ring", k).to("cuda")
    out = torch.full_like(x, float("nan"))
    tk.gossip_mix(x, mixing, out=out)
    for first in range(0, width, 2**27):
        cut = slice(first, first + 2**27)
        assert torch.equal(out[:, cut], reference.gossip(x[:, cut], mixing).bfloat16())


def test_a_graph_of_launches_replays_the_bits_of_eager_calls() -> None:
    k, width = 8, 10_000
    x, grad, momentum = (normal(k, width, dtype=torch.float32, seed=s).cuda() for s in range(3))
    mixing, lr = graph("exponential", k).to("cuda"), torch.full((k,), 0.1, device="cuda")
    source = torch.randperm(k).cuda()
    out, m = torch.empty_like(x), momentum.clone()

    def step() -> None:
        tk.sgd_mix(x, grad, mixing, lr=lr, momentum=m, beta=0.9, source=source, out=out)

    step()  # compiles
    m.copy_(momentum)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        step()
    for _ in range(3):
        x.add_(1.0)
        captured.replay()
    expected_momentum = momentum.clone()
    for back in (2.0, 1.0, 0.0):
        expected = tk.sgd_mix(
            x - back, grad, mixing, lr=lr, momentum=expected_momentum, beta=0.9, source=source
        )
    assert same(out, expected)
    assert same(m, expected_momentum)


def test_switching_matrices_neither_waits_for_the_device_nor_compiles_again() -> None:
    from teleport_kernels import triton_mix

    x = normal(16, 5000, dtype=torch.float32).cuda()
    mixings = [graph("exponential", 16).to("cuda"), graph("ring", 16).to("cuda")]
    source = torch.randperm(16).cuda()
    tk.teleport_mix(x, mixings[0], source=source)
    (cache, *_), *_ = triton_mix.mix_kernel.device_caches.values()
    before = len(cache)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for mixing in mixings:
            tk.teleport_mix(x, mixing, source=source, validate=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(cache) == before
