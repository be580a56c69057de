"""The ops under torch.compile, torch.func and autograd, and the choice of a backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.masked
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad

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


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("source", [None, SOURCE])
def test_forward_mode_mixes_the_tangent(source: Tensor | None) -> None:
    n = 6 if source is None else 8
    x, tangent, mixing = normal(n, 5), normal(n, 5).flip(0), graph()

    def mixed(x: Tensor) -> Tensor:
        return tk.teleport_mix(x, mixing, source=source)

    value, derivative = torch.func.jvp(mixed, (x,), (tangent,))
    assert torch.equal(value, mixed(x))
    assert torch.equal(derivative, mixed(tangent))
    with forward_ad.dual_level():
        dual = mixed(forward_ad.make_dual(x, tangent))
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, mixed(tangent))
    torch.testing.assert_close(torch.func.jacfwd(mixed)(x), torch.func.jacrev(mixed)(x))
    batch = torch.stack([tangent, x])
    found = torch.vmap(lambda t: torch.func.jvp(mixed, (x,), (t,))[1])(batch)
    assert torch.equal(found, torch.stack([mixed(t) for t in batch]))
    check = {"check_forward_ad": True, "check_batched_forward_grad": False}
    assert torch.autograd.gradcheck(mixed, x.requires_grad_(), **check)


def transformed(transform: str, op: Callable[[Tensor], Any]) -> Any:
    x = normal(6, 5)
    if transform == "vmap":
        return torch.vmap(op)(torch.stack([x, x]))
    if transform == "jvp":
        return torch.func.jvp(op, (x,), (x,))
    if transform == "grad":
        return torch.func.grad(lambda x: torch.as_tensor(op(x)).sum())(x)
    if transform == "vmap of grad":
        return torch.vmap(torch.func.grad(lambda x: op(x).sum()))(torch.stack([x, x]))
    with forward_ad.dual_level():
        return op(forward_ad.make_dual(x, x.clone()))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("transform", ["vmap", "jvp", "grad", "vmap of grad", "dual"])
@pytest.mark.parametrize("argument", ["x", "grad", "lr", "momentum", "into", "consensus"])
def test_a_transform_of_what_has_none_says_what_to_do(transform: str, argument: str) -> None:
    if argument == "consensus" and transform == "vmap":
        return
    x, mixing = normal(6, 5), graph()

    def op(given: Tensor) -> Tensor:
        if argument == "into":
            return tk.gossip_mix(given, mixing, out=torch.empty_like(x))
        if argument == "consensus":
            return tk.consensus(given)[1]
        rows = {"x": x, "grad": x.clone(), "lr": 0.1}
        rows |= {argument: given[:, 0]} if argument == "lr" else {argument: given}
        return tk.sgd_mix(mixing=mixing, **rows)

    with pytest.raises(ValueError, match=r"has no (vmap|derivative): (give|take|leave)"):
        transformed(transform, op)


def test_a_derivative_of_consensus_says_what_to_do_when_it_is_asked_for() -> None:
    x = normal(6, 5).requires_grad_()
    _, distance = tk.consensus(x)
    with pytest.raises(ValueError, match="consensus has no derivative: take that of"):
        distance.backward()


@pytest.mark.parametrize("groups", [None, torch.tensor([0, 0, 0, 1, 1, 2])])
def test_vmap_of_consensus_is_the_loop(groups: Tensor | None) -> None:
    x = normal(4, 6, 5)
    expected = [tk.consensus(row, groups) for row in x]
    for in_dim in (0, 1):
        found = torch.vmap(lambda x: tk.consensus(x, groups), in_dims=in_dim)(x.movedim(0, in_dim))
        for part, parts in zip(found, zip(*expected, strict=True), strict=True):
            assert torch.equal(part, torch.stack(parts))


def test_on_meta_there_are_shapes_alone() -> None:
    x, mixing = torch.empty(6, 5, device="meta"), graph().to("meta")
    source = torch.empty(6, dtype=torch.int64, device="meta")
    results = [
        tk.gossip_mix(x, mixing),
        tk.teleport_mix(torch.empty(9, 5, device="meta"), mixing, source=source),
        tk.sgd_mix(x, x.clone(), mixing, lr=0.1, momentum=x.clone(), beta=0.9),
    ]
    assert {(r.device.type, r.shape) for r in results} == {("meta", (6, 5))}
    mean, distance = tk.consensus(x)
    assert (mean.shape, distance.shape) == ((5,), ())


def test_a_fake_tensor_is_mixed_as_one_or_refused() -> None:
    x, mixing = normal(6, 5), graph()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(tk.gossip_mix(x, mixing), FakeTensor)
        assert isinstance(tk.sgd_mix(x, x.clone(), mixing, lr=0.1), FakeTensor)
    with pytest.raises(ValueError, match="the ops do not know FakeTensor: give plain tensors"):
        tk.gossip_mix(FakeTensorMode().from_tensor(x), mixing)
    with FakeTensorMode(), pytest.raises(ValueError, match="the ops do not know this mode"):
        tk.gossip_mix(x, mixing)
    with FakeTensorMode(), pytest.raises(ValueError, match="W must be a plain tensor"):
        tk.Mixing.from_dense(torch.eye(3))


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors:UserWarning")
@pytest.mark.filterwarnings("ignore:.* is not implemented in __torch_dispatch__:UserWarning")
def test_tensors_that_know_no_other_ops_are_refused() -> None:
    x = torch.masked.masked_tensor(normal(6, 5), normal(6, 5) > 0)
    plain, mixing = normal(6, 5), graph()
    for call in (
        lambda: tk.gossip_mix(x, mixing),
        lambda: tk.gossip_mix(plain, mixing, out=x),
        lambda: tk.sgd_mix(x, plain, mixing, lr=0.1),
        lambda: tk.consensus(x),
    ):
        with pytest.raises(ValueError, match="the ops do not know MaskedTensor: give plain"):
            call()


def test_the_registered_ops_look_at_what_they_are_given_themselves() -> None:
    ops, x, parts = torch.ops.teleport_kernels, normal(6, 5), graph().tensors()
    none = (None, None, None, 0.0, False, 0.0)
    for call in (
        lambda: ops.teleport_mix(x, [part.int() for part in parts], None, True, None),
        lambda: ops.teleport_mix(x, parts[:3], None, True, None),
        lambda: ops.teleport_mix(x[:3], parts, None, True, None),
        lambda: ops.mix_into(x, parts, x[:3].clone(), None, None, True, None, *none),
        lambda: ops.mix_into(x, parts, x.clone(), None, None, True, None, x.clone(), *none[1:]),
        lambda: ops.consensus(x, torch.tensor([0, 9]), None),
        lambda: ops.consensus(x, torch.tensor([0.0, 6.0]), None),
    ):
        with pytest.raises(ValueError, match=r"must|needs"):
            call()


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
