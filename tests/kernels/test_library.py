"""The ops under torch.compile, torch.func and autograd, and the choice of a backend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import teleport_kernels as tk
from teleport_kernels import backends, cpu, library, reference


def graph(k: int = 6, seed: int = 0) -> tk.Mixing:
    """A directed graph with a row of no entries and a row of all."""
    rng = torch.Generator().manual_seed(seed)
    W = torch.randn(k, k, generator=rng) * (torch.rand(k, k, generator=rng) < 0.5)
    W[0], W[1] = 0, 1 / k
    return tk.Mixing.from_dense(W)


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


SOURCE = torch.tensor([3, 3, 0, 1, 7, 3])


@pytest.mark.parametrize("source", [None, SOURCE])
@pytest.mark.parametrize("grad", [False, True])
def test_torch_s_own_check_of_the_linear_op(source: Tensor | None, grad: bool) -> None:
    x = normal(6 if source is None else 8, 5).requires_grad_(grad)
    torch.library.opcheck(library.teleport_mix, (x, graph().tensors(), source, True, None))


def test_torch_s_own_check_of_the_op_that_writes() -> None:
    x, g, m, out = (normal(n, 5) for n in (8, 6, 6, 9))
    target = torch.tensor([8, 0, 2, 5, 1, 7])
    lr = torch.full((6,), 0.1, dtype=torch.float64)
    parts = graph().tensors()
    step = (g, lr, m, 0.9, True, 0.1)
    torch.library.opcheck(library.mix_into, (x, parts, out, SOURCE, target, True, None, *step))
    none = (None, None, None, 0.0, False, 0.0)
    torch.library.opcheck(library.mix_into, (x, parts, out, SOURCE, target, True, None, *none))


def test_torch_s_own_check_of_consensus() -> None:
    torch.library.opcheck(library.consensus, (normal(6, 300), torch.tensor([0, 2, 6]), None))


@pytest.mark.parametrize("source", [None, SOURCE])
def test_derivatives_are_those_of_finite_differences(source: Tensor | None) -> None:
    x = normal(6 if source is None else 8, 3).requires_grad_()

    def mixed(x: Tensor) -> Tensor:
        return tk.teleport_mix(x, graph(), source=source)

    assert torch.autograd.gradcheck(mixed, x)
    assert torch.autograd.gradgradcheck(mixed, x)


def test_the_gradient_is_the_transposed_matrix_times_what_comes_back() -> None:
    x, back = normal(6, 5).requires_grad_(), normal(6, 5)
    tk.gossip_mix(x, graph()).backward(back)
    torch.testing.assert_close(x.grad, graph().dense().T @ back)


@pytest.mark.parametrize("in_dim", [0, 1, 2])
@pytest.mark.parametrize("source", [None, SOURCE])
def test_vmap_is_the_loop_bit_by_bit(in_dim: int, source: Tensor | None) -> None:
    x, mixing = normal(4, 6 if source is None else 8, 5, dtype=torch.float32), graph()
    expected = torch.stack([tk.teleport_mix(row, mixing, source=source) for row in x])
    batched = x.movedim(0, in_dim)
    found = torch.vmap(lambda x: tk.teleport_mix(x, mixing, source=source), in_dims=in_dim)
    assert torch.equal(found(batched), expected)


def test_vmap_over_the_matrix_or_the_source_says_what_to_do() -> None:
    x, mixing, sources = normal(6, 5), graph(), torch.stack([SOURCE % 6, SOURCE % 5])
    with pytest.raises(ValueError, match="use block_diag"):
        torch.vmap(lambda s: tk.teleport_mix(x, mixing, source=s))(sources)


def test_gradients_through_vmap_are_those_of_the_loop() -> None:
    x, weight, mixing = normal(4, 6, 5), normal(6, 5), graph()

    def loss(x: Tensor) -> Tensor:
        return (weight * tk.gossip_mix(x, mixing) ** 2).sum()

    found = torch.vmap(torch.func.grad(loss))(x)
    torch.testing.assert_close(found, torch.stack([torch.func.grad(loss)(row) for row in x]))


def everything(x: Tensor, g: Tensor, m: Tensor, out: Tensor, mixing: tk.Mixing) -> list[Tensor]:
    target = torch.arange(6) + 1
    mixed = tk.sgd_mix(2 * x, g, mixing, lr=0.1, momentum=m, beta=0.9, target=target, out=out)
    mean, distance = tk.consensus(mixed)
    return [tk.gossip_mix(x, mixing) + 1, mean, distance, mixed, m]


def test_one_compiled_graph_gives_the_bits_of_eager_calls() -> None:
    torch.compiler.reset()
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for seed in (0, 3):  # another matrix takes the same graph
        x, g, m, out = (normal(n, 50, dtype=torch.float32) for n in (6, 6, 6, 9))
        again, out_again = m.clone(), out.clone()
        expected = everything(x, g, m, out, graph(seed=seed))
        found = compiled(x, g, again, out_again, graph(seed=seed))
        assert all(map(torch.equal, found, expected))
        assert torch.equal(out, out_again)


def test_compiled_derivatives_are_those_of_eager_calls() -> None:
    torch.compiler.reset()
    mixing = graph()

    def loss(x: Tensor) -> Tensor:
        return (tk.teleport_mix(x, mixing, source=SOURCE) ** 2).sum()

    x, y = normal(8, 5).requires_grad_(), normal(8, 5).requires_grad_()
    loss(x).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(y).backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_inductor_gives_the_bits_of_eager_calls() -> None:
    torch.compiler.reset()
    x, mixing = normal(6, 50, dtype=torch.float32), graph()
    compiled = torch.compile(lambda x: tk.gossip_mix(2 * x, mixing) + 1, fullgraph=True)
    assert torch.equal(compiled(x), tk.gossip_mix(2 * x, mixing) + 1)


def test_plain_eager_calls_go_past_the_library() -> None:
    x = normal(6, 5)
    assert not library.needed(x, None, torch.nn.Parameter(x, requires_grad=False))
    assert library.needed(None, x.clone().requires_grad_())
    with torch.no_grad():
        assert not library.needed(x.clone().requires_grad_())


def test_a_step_is_not_recorded() -> None:
    x = normal(6, 5).requires_grad_()
    assert not tk.sgd_mix(x, normal(6, 5), graph(), lr=0.1).requires_grad


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends that were used."""
    names: list[str] = []
    for name, module in (("cpu", cpu), ("reference", reference)):
        monkeypatch.setattr(module, "mix", lambda *_, name=name, **__: names.append(name))
    return names


def test_the_argument_beats_the_context_beats_the_environment_beats_the_device(
    used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    x = normal(6, 5)
    tk.gossip_mix(x, graph())
    monkeypatch.setenv(backends.VARIABLE, "reference")
    tk.gossip_mix(x, graph())
    with tk.backend("cpu"):
        tk.gossip_mix(x, graph())
        with tk.backend("reference"):
            tk.gossip_mix(x, graph())
            tk.sgd_mix(x, x.clone(), graph(), lr=0.1, backend="cpu")
        tk.gossip_mix(x, graph())
    tk.gossip_mix(x, graph())
    assert used == ["cpu", "reference", "cpu", "reference", "cpu", "cpu", "reference"]


def test_a_backend_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match='unknown backend "gpu" in the context'), tk.backend("gpu"):
        pass
    monkeypatch.setenv(backends.VARIABLE, "numpy")
    with pytest.raises(ValueError, match=f'unknown backend "numpy" in {backends.VARIABLE}'):
        tk.gossip_mix(normal(6, 5), graph())
    with pytest.raises(ValueError, match='backend "cpu" is for CPU tensors, got tensors on meta'):
        backends.choose(torch.device("meta"), "cpu")
    monkeypatch.setattr(backends, "_has_triton", lambda: False)
    with pytest.raises(ValueError, match="pip install triton"):
        backends.choose(torch.device("cuda"), "triton")


def test_cuda_without_triton_is_a_warning_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    monkeypatch.setattr(backends, "_has_triton", lambda: False)
    backends._default.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="the package triton is missing"):
            assert backends.choose(torch.device("cuda")) == "reference"
        assert backends.choose(torch.device("cuda")) == "reference"
    finally:
        backends._default.cache_clear()
