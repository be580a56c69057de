"""The round in C++: as exact as torch, the same bits in any company, tapes that replay truly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from teleport_bench import RunSpec, libraries, native
from teleport_bench.activation import BLOCK
from teleport_bench.algorithms import State
from teleport_bench.algorithms.dsgd import DSGD
from teleport_bench.fleet import Fleet
from teleport_bench.graphs import Graphs
from teleport_bench.models import Network
from teleport_bench.models.layers import (
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    GroupNorm,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Residual,
)
from teleport_bench.models.lenet import lenet
from teleport_bench.models.resnet import resnet20
from teleport_bench.models.vgg import vgg11
from teleport_bench.registry import ALGORITHMS
from teleport_kernels import compiler, cpu

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")

NETWORKS: dict[str, tuple[Network, tuple[int, int, int]]] = {
    "logistic": (Network([Flatten(), Linear(63, 10)]), (1, 7, 9)),
    "deep": (
        Network([Flatten(), Linear(48, 33), ReLU(), Linear(33, 17), ReLU(), ReLU(), Linear(17, 3)]),
        (3, 4, 4),
    ),
    "relu first": (Network([ReLU(), Flatten(), ReLU(), Linear(20, 2)]), (1, 4, 5)),
    "pool first": (Network([MaxPool2d(2), ReLU(), Flatten(), Linear(12, 4)]), (2, 5, 7)),
    "lenet": (lenet((1, 17, 19), 10), (1, 17, 19)),
    "padded": (
        Network(
            [
                *(Conv2d(2, 8, 3, padding=1), GroupNorm(4, 8), ReLU(), MaxPool2d(2)),
                *(Conv2d(8, 5, 1), ReLU(), Conv2d(5, 7, 4, padding=2), MaxPool2d(3)),
                *(Flatten(), Linear(7, 6)),
            ]
        ),
        (2, 9, 6),
    ),
    "wide kernel": (
        Network([GroupNorm(1, 1), Conv2d(1, 3, 7, padding=3), Flatten(), Linear(3 * 64, 5)]),
        (1, 8, 8),
    ),
    "many channels": (
        Network(
            [
                *(Conv2d(3, 64, 3, padding=1), GroupNorm(8, 64), ReLU(), MaxPool2d(2)),
                *(Conv2d(64, 72, 3, padding=1), GroupNorm(8, 72), ReLU(), MaxPool2d(2)),
                *(Flatten(), Linear(72, 10)),
            ]
        ),
        (3, 4, 4),
    ),
    "residual": (
        Network(
            [
                *(Conv2d(2, 8, 3, padding=1), GroupNorm(2, 8), ReLU()),
                Residual(
                    [
                        *(Conv2d(8, 8, 3, padding=1), GroupNorm(2, 8), ReLU()),
                        *(Conv2d(8, 8, 3, padding=1), GroupNorm(4, 8)),
                    ]
                ),
                ReLU(),
                Residual([Conv2d(8, 11, 3, padding=1, stride=2), GroupNorm(1, 11), ReLU()], 2),
                *(Residual([Conv2d(11, 11, 1)]), ReLU()),
                *(Conv2d(11, 5, 2, stride=3), ReLU(), GlobalAvgPool2d(), Linear(5, 4)),
            ]
        ),
        (2, 9, 11),
    ),
    "residual first": (
        Network([Residual([Conv2d(1, 4, 3, 1, 2)], 2), GlobalAvgPool2d(), Linear(4, 3)]),
        (1, 6, 5),
    ),
}


class Case:
    """A network on random images, and rows of parameters, of which some share their batch."""

    def __init__(self, name: str, batch: int, members: list[int], seed: int = 0) -> None:
        self.network, shape = NETWORKS[name]
        rng = np.random.default_rng(seed)
        classes = self.network.layers[-1].outputs  # type: ignore[attr-defined]
        self.images = torch.from_numpy(rng.integers(0, 256, (50, *shape), dtype=np.uint8))
        self.labels = torch.from_numpy(rng.integers(0, classes, 50))
        self.scale = torch.from_numpy(rng.uniform(1 / 200, 1 / 80, (shape[0], 1, 1))).float()
        self.shift = torch.from_numpy(rng.normal(size=(shape[0], 1, 1))).float()
        self.ids = torch.from_numpy(rng.integers(0, 50, (max(members) + 1, batch))).int()
        self.member = torch.tensor(members)
        self.x = torch.stack([torch.from_numpy(self.network.init(rng)) for _ in members])
        self.native = native.NativeNetwork(self.network, shape, batch, self.scale, self.shift)
        self.set = self.native.images(self.images, self.labels)

    def gradient(self, rows: list[int] | None = None) -> Tensor:
        """Of these rows alone (or all), in C++."""
        rows = list(range(len(self.x))) if rows is None else rows
        x = self.x[rows].contiguous()
        grad = torch.full_like(x, torch.nan)
        self.native.gradient(native.Rows(self.member[rows]), x, grad, self.ids, self.set)()
        return grad

    def by_torch(self, dtype: torch.dtype) -> Tensor:
        inputs = self.images.to(dtype) * self.scale.to(dtype) + self.shift.to(dtype)
        x = self.x.to(dtype).requires_grad_()
        ids = self.ids[self.member].long()
        logits = self.network.logits(self.network.views(x), inputs[ids])
        loss = F.cross_entropy(logits.flatten(0, 1), self.labels[ids].flatten(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss / ids.shape[1], x)
        return gradient


@pytest.fixture(autouse=True, params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", [1, 7, 16, 33])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_as_exact_as_torch_s(name: str, batch: int) -> None:
    case = Case(name, batch, [0, 1, 0, 2, 1, 1])
    exact = case.by_torch(torch.float64)
    loses = (case.by_torch(torch.float32) - exact).norm()
    # sums over an image are chains of up to 300 additions here, and torch adds by halves: twice
    # as much is lost in the networks that have such sums, and nowhere more than five times (LeNet
    # without AVX-512, where torch's own convolutions lose the least)
    floor = exact.norm() * 2**-24 * 4
    assert (case.gradient() - exact).norm() <= 5 * loses + floor


@pytest.mark.parametrize("name", ["deep", "lenet", "padded", "residual"])
def test_a_row_has_the_same_bits_alone_and_in_company(name: str) -> None:
    case = Case(name, 19, [0, 1, 0, 2, 1])
    together = case.gradient()
    for rows in ([0], [3], [4, 2], [2, 1, 0]):
        assert torch.equal(case.gradient(rows), together[rows])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_not_finite_stays_so_and_stays_in_its_row(name: str, poison: float) -> None:
    case = Case(name, 5, [0, 0, 0])
    sound = case.gradient()
    place = case.network.sizes[0] // 2  # a weight of the first layer that has any
    case.x[1, place] = poison
    hit = case.gradient()
    assert torch.equal(hit[[0, 2]], sound[[0, 2]])
    wanted = case.by_torch(torch.float32)
    if not wanted[1].isfinite().all():
        assert not hit[1].isfinite().all()
    loss, _ = case.native.score(case.x, case.set, 50)
    assert loss[[0, 2]].isfinite().all()
    inputs = case.images * case.scale + case.shift
    logits = case.network.logits(case.network.views(case.x), inputs.expand(3, *inputs.shape))
    expected = F.cross_entropy(logits.flatten(0, 1), case.labels.repeat(3), reduction="none")
    assert torch.equal(loss.isfinite(), expected.view(3, -1).sum(1).isfinite())


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 50])
@pytest.mark.parametrize("name", ["logistic", "deep", "lenet", "padded", "residual"])
def test_scores_are_torch_s(name: str, samples: int) -> None:
    case = Case(name, 4, [0, 0, 0])
    loss, accuracy = case.native.score(case.x, case.set, samples)
    inputs = (case.images * case.scale + case.shift)[:samples].double().expand(3, -1, -1, -1, -1)
    logits = case.network.logits(case.network.views(case.x.double()), inputs)
    labels = case.labels[:samples].expand(3, -1)
    expected = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(1)
    torch.testing.assert_close(loss, expected, rtol=2e-5, atol=0)
    # classes that fp32 cannot tell apart may change places
    top = logits.topk(2, dim=2).values
    close = (top[..., 0] - top[..., 1] < 1e-5).double().mean(1)
    assert ((accuracy - (logits.argmax(2) == labels).double().mean(1)).abs() <= close).all()


def test_of_equal_logits_the_first_is_the_answer() -> None:
    case = Case("logistic", 1, [0])
    case.x.zero_()
    _, accuracy = case.native.score(case.x, case.set, 50)
    assert accuracy.item() == (case.labels == 0).double().mean().item()


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("dim", [1, 7, 16, 17, 50, 130])
def test_quadratics_are_as_exact_as_torch_s(dim: int, dense: bool) -> None:
    rng = np.random.default_rng(dim)
    hessian = rng.normal(size=(4, dim, dim) if dense else (4, 1))
    if dense:
        hessian = hessian + hessian.transpose(0, 2, 1)
    linear, x, noise = (
        rng.normal(size=(4, dim)),
        rng.normal(size=(5, dim)),
        rng.normal(size=(3, dim)),
    )
    node, member = torch.tensor([3, 0, 2]), torch.tensor([1, 0, 1, 2, 0])
    H, b, at, noisy = (torch.from_numpy(a).float() for a in (hessian, linear, x, noise))
    grad = torch.full_like(at, torch.nan)
    native.NativeQuadratic(H, b).gradient(native.Rows(member), at, grad, node, noisy)()
    of = node[member]
    product = (
        (H[of].double() @ at.double()[..., None]).squeeze(-1) if dense else H[of] * at.double()
    )
    expected = product - b[of] + noisy[member]
    size = (H[of].abs() @ at.abs()[..., None]).squeeze(-1) if dense else (H[of] * at).abs()
    bound = (size + b[of].abs() + noisy[member].abs()) * (dim if dense else 1) * 2**-23
    assert ((grad - expected).abs() <= bound).all()


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("dim", [1, 6, 17, 50, 130])
def test_a_quadratic_s_row_has_the_same_bits_alone_and_in_company(dim: int, dense: bool) -> None:
    rng = np.random.default_rng(dim)
    hessian = rng.normal(size=(3, dim, dim) if dense else (3, 1))
    if dense:
        hessian = hessian + hessian.transpose(0, 2, 1)
    of = [0] * 7 + [1] * 5 + [2]
    x, b, noise = (rng.normal(size=(n, dim)) for n in (len(of), 3, 3))
    H, linear, at, noisy = (torch.from_numpy(a).float() for a in (hessian, b, x, noise))
    quadratic, node = native.NativeQuadratic(H, linear), torch.tensor([0, 1, 2])

    def gradient(rows: list[int]) -> Tensor:
        grad = torch.full((len(rows), dim), torch.nan)
        members = native.Rows(torch.tensor([of[row] for row in rows]))
        quadratic.gradient(members, at[rows].clone(), grad, node, noisy)()
        return grad

    together = gradient(list(range(len(of))))
    exact = (H[of].double() @ at.double()[..., None]).squeeze(-1) if dense else H[of] * at.double()
    size = (H[of].abs() @ at.abs()[..., None]).squeeze(-1) if dense else (H[of] * at).abs()
    bound = (size + linear[of].abs() + noisy[of].abs()) * (dim if dense else 1) * 2**-23
    assert ((together - (exact - linear[of] + noisy[of])).abs() <= bound).all()
    for rows in ([0], [3, 2], [1, 2, 3], [12, 6, 0, 11], [0, 1, 2, 3, 4], list(range(5, 13))):
        assert torch.equal(gradient(rows), together[rows])


QUADRATIC = {"name": "quadratic", "dim": 7}
ROUNDS = 3 * BLOCK + 9


def spec(**settings: Any) -> RunSpec:
    defaults = {"algorithm": "dsgd", "nodes": 6, "problem": QUADRATIC, "lr": 0.1, "rounds": ROUNDS}
    return RunSpec.model_validate(defaults | {"eval_every": 25} | settings)


def by_replay(*specs: RunSpec) -> tuple[Any, Any, Fleet]:
    """Curves from rounds replayed and from rounds made one by one, and the fleet that replayed."""
    fleet = Fleet(specs, compiled=True)
    stepped = Fleet(specs, compiled=True, replay=False).advance()
    return [o.curves for o in fleet.advance()], [o.curves for o in stepped], fleet


@pytest.mark.parametrize("graph", ["ring", "one_peer_exponential"])
@pytest.mark.parametrize("optimiser", [{}, {"momentum": 0.9, "nesterov": True}])
@pytest.mark.parametrize("nodes", [1, 5, 6])
def test_a_replay_is_the_rounds_bit_for_bit(graph: str, optimiser: Any, nodes: int) -> None:
    cosine = {"name": "cosine", "warmup": 5}
    specs = [
        spec(nodes=nodes, topology=graph, schedule=cosine, lr=lr, **optimiser) for lr in (0.1, 0.2)
    ]
    replayed, stepped, fleet = by_replay(*specs)
    assert fleet.tapes
    assert replayed == stepped


def test_more_places_in_the_period_than_tapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teleport_bench.fleet.TAPES", 1)
    replayed, stepped, fleet = by_replay(spec(topology="one_peer_exponential"))
    assert fleet.tapes is not None
    assert len(fleet.tapes) == 1
    assert replayed == stepped


class Plain(DSGD):
    """For methods that keep what they like: no momentum."""

    def start(self, x: Tensor, *, momentum: bool) -> State:
        return {"x": x}


class Remembers(Plain):
    """x <- W (x - eta (g + g_old)), with the gradient of the last round, all in recorded calls."""

    def step(self, state: State, r: Any) -> State:
        x = state["x"]
        g = r.gradient(x)
        old = state.get("old", g)
        return {"x": r.sgd_mix(r.sgd_mix(x, g, None), old, None), "old": g}


class InTorch(Plain):
    def step(self, state: State, r: Any) -> State:
        return {"x": r.sgd_mix(state["x"], r.gradient(state["x"]) * 0.5, None)}


class InPlace(Plain):
    def step(self, state: State, r: Any) -> State:
        g = r.gradient(state["x"])
        g.mul_(0.5)
        return {"x": r.sgd_mix(state["x"], g, None)}


class Peeks(Plain):
    def step(self, state: State, r: Any) -> State:
        g = r.gradient(state["x"])
        return {"x": r.sgd_mix(state["x"], g, None) if float(g.sum()) > 0 else state["x"]}


class Counts(Plain):
    """Keeps what is no row of parameters."""

    def start(self, x: Tensor, *, momentum: bool) -> State:
        return {"x": x, "rounds": torch.zeros(1)}

    def step(self, state: State, r: Any) -> State:
        x = state["x"]
        return {"x": r.sgd_mix(x, r.gradient(x), None), "rounds": state["rounds"] + 1}


@pytest.mark.parametrize("method", [Remembers, InTorch, InPlace, Peeks, Counts])
def test_algorithms_that_do_more_than_recorded_calls(
    method: type[DSGD], monkeypatch: pytest.MonkeyPatch
) -> None:
    ALGORITHMS.names()  # the built-in ones are there before the copy is made
    monkeypatch.setattr(ALGORITHMS, "_entries", ALGORITHMS._entries.copy())
    ALGORITHMS.register("mine")(method)
    replayed, stepped, fleet = by_replay(spec(algorithm="mine", lr=0.02))
    assert replayed == stepped
    graphed = Fleet([spec(algorithm="mine", lr=0.02)])
    graphed.graphs = Graphs(graphed)
    assert (fleet.tapes is None) == (method is not Remembers)
    in_torch = Fleet([spec(algorithm="mine", lr=0.02)]).advance()[0].curves
    if method is not Peeks:  # no graph can ask a tensor for its value
        assert graphed.advance()[0].curves == in_torch
    np.testing.assert_allclose(
        replayed[0]["objective_gap"], in_torch["objective_gap"], rtol=1e-3, atol=1e-6
    )


def test_buffers_are_used_again_when_nobody_holds_them() -> None:
    buffers = native.Buffers(2, 3)
    first, second = buffers.take(), buffers.take()
    place = first.data_ptr()
    assert place != second.data_ptr()
    kept = first
    del first
    third = buffers.take()
    assert third.data_ptr() not in (place, second.data_ptr())
    del kept
    assert buffers.take().data_ptr() == place


def test_threads_share_a_pool_without_losing_a_piece() -> None:
    """Thousands of short loops, on more threads than cores: every row is written every time."""
    case = Case("logistic", 3, [0, 1, 2, 0, 1, 2, 0])
    rows, grad = native.Rows(case.member), torch.empty_like(case.x)
    call = case.native.gradient(rows, case.x, grad, case.ids, case.set)
    expected = case.gradient()
    for _ in range(3000):
        grad.fill_(torch.nan)
        call()
        assert torch.equal(grad, expected)


@pytest.mark.parametrize("name", ["vgg11", "resnet20"])
def test_gradients_of_whole_deep_networks(
    name: str, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    if threads > 1:
        pytest.skip("one row has one thread")
    shape = (3, 32, 32)
    network = vgg11(shape, 10, width=8) if name == "vgg11" else resnet20(shape, 10)
    monkeypatch.setitem(NETWORKS, name, (network, shape))
    samples = 9
    case = Case(name, 1, [0])
    found, exact = [], []
    for case.ids in torch.arange(samples, dtype=torch.int32).view(-1, 1, 1):
        found.append(case.gradient())
        exact.append(case.by_torch(torch.float64))
    errors = torch.tensor(
        [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
    )
    # one in thousands of ReLUs or maxima may switch by rounding, in a few of the samples: then the
    # gradient is another one by far more than rounding
    assert errors.median() < 1e-5
    assert errors.max() < 0.1


def test_networks_that_the_library_does_not_have_run_in_torch() -> None:
    class Squash(ReLU):
        def __call__(self, x: Tensor, *params: Tensor) -> Tensor:
            return x.tanh()

    assert native.NativeNetwork.supports(NETWORKS["lenet"][0])
    assert not native.NativeNetwork.supports(Network([Flatten(), Squash(), Linear(4, 2)]))
    assert not native.NativeNetwork.supports(Network([Flatten()]))
    last = Flatten(), Linear(4, 2)
    bodies: list[list[Layer]] = [[ReLU()], [Conv2d(1, 1, 1), Squash()], [Conv2d(1, 1, 1, 1)]]
    for body in bodies:
        assert not native.NativeNetwork.supports(Network([Residual(body), *last]))
    assert native.NativeNetwork.supports(Network([Residual([Conv2d(1, 1, 1), ReLU()]), *last]))


def test_the_library_is_compiled_once_for_all_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, threads: int
) -> None:
    if threads > 1:
        pytest.skip("compiling once is enough")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "_begun", {})  # what another test began, in a cache of its own
    assert not native.compiled()
    libraries.ROUNDS.load()
    assert not native.compiled()
    cpu.MIX.load()
    assert native.compiled()


def test_a_sum_is_of_rows_of_one_shape() -> None:
    with pytest.raises(ValueError, match=r"a term must be torch\.float32 of shape"):
        native.combine([(1.0, 0, torch.zeros(2, 4))], torch.ones(2), torch.zeros(2, 3), 1)


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    assert not native.compiled()
