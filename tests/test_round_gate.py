"""What a step, a problem or a session may hand to a round: the same numbers in torch and in C++, or
the same sentence; never other numbers, and never a crash."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from teleport_bench import conditions, native, registry, topologies
from teleport_bench.activation import BLOCK
from teleport_bench.algorithms import Algorithm, Rate
from teleport_bench.errors import UserError
from teleport_bench.executor import run_fleet
from teleport_bench.fleet import Fleet, FleetRound, Place
from teleport_bench.graphs import Graphs
from teleport_bench.models import Flatten, Linear, Network
from teleport_bench.problems.quadratic import FleetQuadratic, Quadratic
from teleport_bench.record import Record
from teleport_bench.registry import ALGORITHMS, PARTITIONS, PROBLEMS, SCHEDULES, TOPOLOGIES
from teleport_bench.spec import RunSpec, build_problem
from teleport_bench.topologies import Topology
from teleport_kernels import Mixing

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")

ENGINES = ("on", "off")
ROWS, WIDTH = 4, 6
QUADRATIC = {"name": "quadratic", "dim": WIDTH}


@pytest.fixture(autouse=True)
def _registries_as_they_were() -> Iterator[None]:
    before = [(kind, kind.names() and kind.entries()) for kind in registry.KINDS]
    _forget()
    yield
    for kind, entries in before:
        kind.restore(entries)


def spec(**settings: Any) -> RunSpec:
    defaults = {"algorithm": "dsgd", "nodes": ROWS, "problem": QUADRATIC, "lr": 0.1, "rounds": 5}
    return RunSpec.model_validate(defaults | settings)


def in_both(run: RunSpec) -> list[Record]:
    """Its records, in C++ and in torch."""
    return [run_fleet([run], "cpu", compile=engine)[0] for engine in ENGINES]


def curves(record: Record) -> dict[str, list[float]]:
    assert record.status == "finished", record.error
    assert record.curves
    return record.curves


def agree(compiled: Record, in_torch: Record) -> None:
    """As exactly as fp32 in another order does."""
    theirs = curves(in_torch)
    for name, values in curves(compiled).items():
        np.testing.assert_allclose(values, theirs[name], rtol=2e-4, atol=1e-7, err_msg=name)


def refused(run: RunSpec, *words: str) -> None:
    """In both engines by the same sentence, which has these words."""
    errors = [record.error or record.status for record in in_both(run)]
    assert errors[0].rsplit("(", 1)[0] == errors[1].rsplit("(", 1)[0]
    for word in ("Error", *words):
        assert word in errors[0]


# A round and a tensor.


class Named(Tensor):
    """A subclass that computes as torch does."""


def _dead(x: Tensor, left: int = 0) -> Tensor:
    x = x[:]
    x.untyped_storage().resize_(left)
    return x


def _wide(x: Tensor) -> Tensor:
    return torch.cat([x, x, x], 1)[:, WIDTH : 2 * WIDTH]


def _nested(x: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a prototype
        return torch.nested.nested_tensor(list(x))


def _fake(x: Tensor) -> Any:
    return FakeTensorMode().from_tensor(x)


def _sparse_rows(x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a beta
        return x.to_sparse_csr()


DTYPES = (
    *(torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.int64, torch.int32),
    *(torch.uint8, torch.bool),
)
HANDED: dict[str, Callable[[Tensor], Any]] = {
    "as it is": lambda x: x,
    "rows apart": _wide,
    "a row again and again": lambda x: x[:1].expand_as(x),
    "rows that overlap": lambda x: torch.cat([x.flatten(), x[0]]).as_strided(x.shape, (1, 1)),
    "with history": lambda x: (x.clone().requires_grad_() * 1).clone(),
    "a leaf": lambda x: x.clone().requires_grad_(),
    "a parameter": lambda x: torch.nn.Parameter(x.clone()),
    "a subclass": lambda x: x.clone().as_subclass(Named),
    "transposed": lambda x: x.T.contiguous().T,
    "every other column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "columns of one number": lambda x: x[:, :1].expand_as(x),
    "upside down": lambda x: x.flip(0),
    "too few rows": lambda x: x[:-1],
    "too many rows": lambda x: torch.cat([x, x]),
    "too few columns": lambda x: x[:, :-1],
    "too many columns": lambda x: torch.cat([x, x], 1),
    "a single row": lambda x: x[0],
    "one more dimension": lambda x: x[None],
    "one number": lambda x: x[0, 0],
    "nothing in it": lambda x: x[:0],
    "negated": torch._neg_view,
    "imaginary": lambda x: torch.complex(x, -x).conj().imag,
    "dead": _dead,
    "half dead": lambda x: _dead(x, 4 * ROWS * WIDTH - 1),
    "a slice of what is dead": lambda x: _dead(torch.cat([x, x])[ROWS:], 4 * ROWS * WIDTH),
    "nowhere": lambda x: x.to("meta"),
    "fake": _fake,
    "sparse": Tensor.to_sparse,
    "sparse by rows": _sparse_rows,
    "nested": _nested,
    "an array": Tensor.numpy,
    "a list": Tensor.tolist,
    "None": lambda _: None,
    "a number": lambda _: 1.5,
    "a text": lambda _: "x",
    **{str(dtype): (lambda x, dtype=dtype: x.to(dtype)) for dtype in DTYPES},
}
TAKEN = (
    *("as it is", "rows apart", "a row again and again", "rows that overlap", "with history"),
    *("a leaf", "a parameter", "a subclass", "upside down"),
)
CALLS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "fetch": (1, lambda r, x: r.fetch(x)),
    "gradient": (1, lambda r, x: r.gradient(x)),
    "sgd_step": (2, lambda r, x, g: r.sgd_step(x, g, None)),
    "sgd_step with momentum": (3, lambda r, x, g, m: r.sgd_step(x, g, m)),
    "sgd_mix": (2, lambda r, x, g: r.sgd_mix(x, g, None)),
    "sgd_mix with momentum": (3, lambda r, x, g, m: r.sgd_mix(x, g, m)),
    "mix": (1, lambda r, x: r.mix(x)),
    "mix with direction": (2, lambda r, x, d: r.mix(x, d)),
    "decayed": (2, lambda r, g, x: r.decayed(g, x)),
    "combine": (3, lambda r, x, y, z: r.combine((2, x), (-r.lr, y), (0.1 / r.lr, z))),
}


@pytest.fixture(scope="module")
def rounds() -> list[FleetRound]:
    """The first of a run in C++ and in torch."""
    found = []
    for compiled in (True, False):
        run = spec(momentum=0.5, weight_decay=0.1, nesterov=True)
        fleet = Fleet([run], compiled=compiled)
        with fleet.choices.drawing():
            fleet.choices.take(0)
        found.append(FleetRound(fleet, 0, 0, Place(None)))
    assert [r.fleet.compiled for r in found] == [True, False]
    return found


def outcome(call: Callable[..., Tensor], r: FleetRound, given: list[Any]) -> tuple[Any, Any]:
    """What the call gives, with what it leaves of tensors that it was given; or its sentence."""
    try:
        found = call(r, *given)
    except ValueError as error:
        return None, str(error)
    assert type(found) is Tensor
    assert found.dtype == torch.float32
    left = [x.detach().as_subclass(Tensor) for x in given]  # of which momentum is written to
    return [found, *left], ""


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(sorted(CALLS)),
    st.data(),
    st.integers(0, 2**16),
    st.sampled_from(sorted(HANDED)),
)
def test_a_round_takes_the_same_tensors_in_cpp_and_in_torch(
    rounds: list[FleetRound], name: str, data: st.DataObject, seed: int, one: str
) -> None:
    count, call = CALLS[name]
    place = data.draw(st.integers(0, count - 1))
    others = st.sampled_from(sorted(HANDED))
    what = [one if i == place else data.draw(others) for i in range(count)]
    if data.draw(st.booleans()):
        what = [one if i == place else "as it is" for i in range(count)]
    assume(what[-1] != "None" or not ("direction" in name or "momentum" in name))  # there it may be
    found = []
    for r in rounds:
        rng = torch.Generator().manual_seed(seed)
        rows = [torch.randn(ROWS, WIDTH, generator=rng) for _ in what]
        rows = [HANDED[w](x) for w, x in zip(what, rows, strict=True)]
        found.append(outcome(call, r, rows))
    (compiled, sentence), (in_torch, other) = found
    assert sentence == other
    overlaps = "momentum" in name and what[-1] in ("a row again and again", "rows that overlap")
    assert (compiled is None) == (not set(what) <= set(TAKEN) or overlaps), sentence
    if compiled is None:
        assert len(sentence) > 30
        return
    for a, b in zip(compiled, in_torch, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_momentum_has_memory_of_its_own(rounds: list[FleetRound]) -> None:
    sentences = set()
    for r in rounds:
        x, g = torch.ones(ROWS, WIDTH), torch.ones(ROWS, WIDTH)
        for three in ((x, g, x), (x, g, g), (x, g, x.detach())):
            with pytest.raises(ValueError, match="momentum shares memory with") as error:
                r.sgd_mix(*three)
            sentences.add(str(error.value))
    assert len(sentences) == 2


def test_what_torch_func_wraps_is_refused(rounds: list[FleetRound]) -> None:
    for r in rounds:
        with pytest.raises(UserError, match="none of its own"):
            torch.func.grad(lambda x, r=r: r.mix(x).sum())(torch.ones(ROWS, WIDTH))
        with pytest.raises(UserError, match="none of its own"):
            torch.func.vmap(r.mix)(torch.ones(2, ROWS, WIDTH))


@pytest.mark.parametrize(
    ("coefficient", "same"),
    [
        (1, 1.0),
        (True, 1.0),
        (np.float64(0.5), 0.5),
        (np.int32(3), 3.0),
        (torch.tensor(2.5), 2.5),
        (torch.tensor(2, dtype=torch.int64), 2.0),
        (1e300, np.inf),
        (np.nan, np.nan),
        (Rate(2.0, 0), 2.0),
        (Rate(np.float32(2.0), 1), Rate(2.0, 1)),
        (1e-46, 0.0),
        (10**400, None),
        (None, None),
        ("2", None),
        (1j, None),
        (torch.ones(ROWS, 1), None),
        (np.ones(2), None),
        (Rate(1.0, 2), None),
        (Rate("a", 1), None),  # type: ignore[arg-type]
        (Rate(torch.ones(ROWS, 1)), None),  # type: ignore[arg-type]
        (torch.tensor(1j), None),
    ],
)
def test_coefficients(rounds: list[FleetRound], coefficient: Any, same: Any) -> None:
    x = torch.randn(ROWS, WIDTH)
    found = []
    for r in rounds:
        if same is None:
            with pytest.raises(UserError, match="a coefficient is a number"):
                r.combine((1, x), (coefficient, x))
            continue
        found += [r.combine((1, x), (c, x)) for c in (coefficient, same)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "terms", [(), (1.0,), (torch.ones(2, ROWS, WIDTH),), ((1, 2, 3),), (None,)]
)
def test_terms(rounds: list[FleetRound], terms: Any) -> None:
    for r in rounds:
        with pytest.raises(UserError, match=r"pairs? \(coefficient, tensor\), got"):
            r.combine(*terms)


@pytest.mark.parametrize("step", [None, 0.0, "0", 1, -1, torch.ones(2), 2**70])
def test_local_steps(rounds: list[FleetRound], step: Any) -> None:
    for r in rounds:
        with pytest.raises(UserError, match=r"local step"):
            r.gradient(torch.ones(ROWS, WIDTH), step)
        r.gradient(torch.ones(ROWS, WIDTH), np.int64(0))  # type: ignore[arg-type]


# A step and what it depends on.


def register(step: Callable[..., Any], **members: Any) -> type[Algorithm]:
    """An algorithm of that step, as "mine"."""
    kind = type("Mine", (Algorithm,), {"label": "Mine", "step": step, **members})
    ALGORITHMS.register("mine")(kind)
    return kind


def _plain(state: Any, r: Any, factor: float = 1.0, x: Any = None) -> Any:
    x = state["x"] if x is None else x
    return {"x": r.mix(r.combine((1, x), (-factor * r.lr, r.gradient(x))))}


def by_round(_: Any, state: Any, r: Any) -> Any:
    return _plain(state, r, 1 / (1 + r.t))


def on_some_rounds(_: Any, state: Any, r: Any) -> Any:
    x = r.combine((1, state["x"]), (-r.lr, r.gradient(state["x"])))
    return {"x": x if r.t % 3 else r.mix(x)}


def late(_: Any, state: Any, r: Any) -> Any:
    """Asks only where the state has what the first rounds lack."""
    return _plain(state, r, 1.0 if "old" not in state or r.t < 70 else 0.1) | {"old": state["x"]}


def counting(self: Any, state: Any, r: Any) -> Any:
    self.n += 1
    return _plain(state, r, 1 / self.n)


def counting_for_all(self: Any, state: Any, r: Any) -> Any:
    type(self).n += 1
    return _plain(state, r, 1 / type(self).n)


AROUND = {"n": 0}


def counting_in_its_module(_: Any, state: Any, r: Any) -> Any:
    AROUND["n"] += 1
    return _plain(state, r, 1 / AROUND["n"])


def _enclosed() -> Callable[..., Any]:
    counted = AROUND

    def counting_around(_: Any, state: Any, r: Any) -> Any:
        counted["n"] += 1
        return _plain(state, r, 1 / counted["n"])

    return counting_around


def listing(self: Any, state: Any, r: Any) -> Any:
    self.seen.append(1)
    return _plain(state, r, 1 / len(self.seen))


def drawing(self: Any, state: Any, r: Any) -> Any:
    return _plain(state, r, self.rng.random())


def of_numpy(_: Any, state: Any, r: Any) -> Any:
    return _plain(state, r, np.random.random())  # noqa: NPY002


def of_python(_: Any, state: Any, r: Any) -> Any:
    return _plain(state, r, random.random())


def of_torch(_: Any, state: Any, r: Any) -> Any:
    return _plain(state, r, float(torch.rand(())))


def remembering(self: Any, state: Any, r: Any) -> Any:
    old, self.old = self.old, state["x"]
    return _plain(
        state, r, x=state["x"] if old is None else r.combine((0.5, state["x"]), (0.5, old))
    )


def detached(_: Any, state: Any, r: Any) -> Any:
    """Drops what it was lent, but not its memory."""
    x = state["x"]
    g, h = r.gradient(x).detach(), torch.nn.Parameter(r.gradient(x)).data
    y = r.combine((1, x), (-1, x))
    return {"x": r.mix(r.combine((1, x), (-r.lr, g), (-r.lr, h), (1, y)))}


def as_array(_: Any, state: Any, r: Any) -> Any:
    g = r.gradient(state["x"]).numpy()
    r.combine((0, state["x"]))
    return {"x": r.sgd_mix(state["x"], torch.from_numpy(g), None)}


STATEFUL = {
    counting: {"n": 0},
    counting_for_all: {"n": 0},
    listing: {"seen": []},
    drawing: {"rng": None},
    remembering: {"old": None},
}
STEPS = (
    *(by_round, on_some_rounds, late, counting, counting_for_all, listing, drawing, of_numpy),
    *(of_python, of_torch, remembering, detached, as_array, counting_in_its_module, _enclosed()),
)


def start_over(kind: type[Algorithm]) -> None:
    AROUND["n"] = 0
    for name in vars(kind):
        if name in ("n", "seen", "rng", "old"):
            new = {"n": 0, "seen": [], "rng": np.random.default_rng(1), "old": None}[name]
            setattr(kind, name, new)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    torch.manual_seed(3)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_may_depend_on_more_than_tensors(step: Callable[..., Any]) -> None:
    kind = register(step, **STATEFUL.get(step, {}))
    run, found = spec(algorithm="mine", rounds=2 * BLOCK + 9, eval_every=30), []
    for compiled in (True, False):
        start_over(kind)
        fleet = Fleet([run], compiled=compiled)
        if compiled:
            assert fleet.tapes is not None
        found.append(fleet.advance()[0].curves)
        assert fleet.tapes is None
    for name, values in found[0].items():
        np.testing.assert_allclose(values, found[1][name], rtol=2e-3, atol=1e-6, err_msg=name)
    start_over(kind)
    fleet = Fleet([run])
    fleet.graphs = Graphs(fleet)
    assert fleet.advance()[0].curves == found[1]
    assert fleet.graphs._steady == (step in (of_torch, detached, as_array))


def test_what_depends_on_tensors_alone_is_still_replayed() -> None:
    register(lambda _, state, r: _plain(state, r), options=[1, {"a": 2}], old=torch.ones(3))
    fleet = Fleet([spec(algorithm="mine", rounds=3 * BLOCK)], compiled=True)
    fleet.advance()
    assert fleet.tapes


def _returned(change: Callable[[Any, Any], Any]) -> None:
    register(lambda _, state, r: change(state, _plain(state, r)["x"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda *_: None, 'a state is a dict of tensors with an "x", got None from step'),
        (lambda _, x: x, "a state is a dict"),
        (lambda _, x: [("x", x)], "a state is a dict"),
        (lambda _, x: {"y": x}, "got \"one with ['y']\""),
        (lambda _, x: {"x": x.double()}, 'state["x"] from step must be torch.float32'),
        (lambda _, x: {"x": x[:-1]}, "of shape (3, 6)"),
        (lambda _, x: {"x": x.T}, "of shape (6, 4)"),
        (lambda _, x: {"x": x.T.contiguous().T}, "must be contiguous"),
        (lambda _, x: {"x": x.numpy()}, "must be a tensor, got ndarray"),
        (lambda *_: {"x": None}, "must be a tensor, got NoneType"),
        (lambda _, x: {"x": x.to("meta")}, "must be on cpu, got meta"),
        (lambda _, x: {"x": _dead(x.clone())}, "has no memory"),
        (lambda _, x: {"x": x, "count": 1}, 'state["count"] from step must be a tensor, got int'),
        (lambda _, x: {"x": x, "old": x.to_sparse()}, 'state["old"] from step must be dense'),
    ],
)
def test_what_a_step_returns_is_a_state(change: Any, words: str) -> None:
    _returned(change)
    refused(spec(algorithm="mine"), words)


@pytest.mark.parametrize(
    "change",
    [
        lambda _, x: {"x": x, "extra": torch.zeros(2, dtype=torch.int64)},
        lambda s, x: {"x": x, "momentum": s["x"], "again": x},
        lambda _, x: {"x": x.clone().requires_grad_()},
        lambda _, x: {"x": _wide(x)},
        lambda _, x: {"x": torch.nn.Parameter(x)},
    ],
)
def test_a_state_may_hold_what_it_likes_besides(change: Any) -> None:
    _returned(change)
    agree(*in_both(spec(algorithm="mine", rounds=2 * BLOCK + 3)))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (lambda *_, **__: None, 'with an "x", got None from start'),
        (lambda _, x, **__: {"x": x.half()}, 'state["x"] from start must be torch.float32'),
        (lambda _, x, **__: {"x": x, "m": None}, 'state["m"] from start must be a tensor'),
    ],
)
def test_what_an_algorithm_starts_with_is_a_state(start: Any, words: str) -> None:
    register(lambda _, state, r: _plain(state, r), start=start)
    refused(spec(algorithm="mine"), words)


def test_two_names_of_one_tensor_stay_one() -> None:
    """Torch refuses a momentum that is x; so does C++, where states are moved to other memory."""
    register(
        lambda _, state, r: {"x": r.sgd_mix(state["x"], r.gradient(state["x"]), state["m"])},
        start=lambda _, x, **__: {"x": x, "m": x.detach()},
    )
    errors = {record.error for record in in_both(spec(algorithm="mine", momentum=0.5))}
    assert all("momentum shares memory with x" in str(error) for error in errors)


def test_tokens_at_nodes_have_a_step_that_ends_with_sgd_mix() -> None:
    register(lambda _, state, r: _plain(state, r, x=r.fetch(state["x"])))
    run = spec(algorithm="mine", storage="nodes")
    refused(run, 'storage = "nodes"', "at_nodes = False")
    ALGORITHMS.restore({k: v for k, v in ALGORITHMS.entries().items() if k != "mine"})
    register(
        lambda _, state, r: {
            "x": r.sgd_mix(
                r.fetch(r.combine((0.5, state["x"]))), r.gradient(r.fetch(state["x"])), None
            )
        }
    )
    refused(spec(algorithm="mine", storage="nodes"), "state")


# A problem of one's own.


class FleetOwn(FleetQuadratic):
    """A quadratic in torch alone, of which a test replaces a part."""

    def compile(self, rows: native.Rows) -> bool:
        return False


def own(**parts: Callable[..., Any]) -> RunSpec:
    class Own(Quadratic):
        def fleet(self, members: Any, device: Any) -> Any:
            kind = type("FleetOwn", (FleetOwn,), {k: v for k, v in parts.items() if k in FLEET})
            return kind(self, members, device)

    for name in set(parts) - FLEET:
        setattr(Own, name, parts[name])
    PROBLEMS.register("own")(Own)
    return spec(problem={"name": "own", "dim": WIDTH})


FLEET = {"initial", "gradient", "evaluate", "draw"}
X = torch.ones(WIDTH)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"initial": lambda *_: X.double()}, "initial(0) of the problem must be torch.float32"),
        ({"initial": lambda *_: X[:-1]}, "of shape (5,)"),
        ({"initial": lambda *_: X[None]}, "of shape (1, 6)"),
        ({"initial": lambda *_: None}, "must be a tensor, got NoneType"),
        ({"initial": lambda *_: X.numpy()}, "must be a tensor, got ndarray"),
        ({"initial": lambda *_: X * torch.nan}, "initial(0) of the problem must be finite"),
        ({"gradient": lambda _, x, *__: x.double()}, "what the problem's gradient gives must be"),
        ({"gradient": lambda _, x, *__: x[:1]}, "of shape (1, 6)"),
        ({"gradient": lambda _, x, *__: x.sum()}, "of shape ()"),
        ({"gradient": lambda *_: None}, "must be a tensor, got NoneType"),
        ({"draw": lambda *_: None}, "draw of the problem must give a NumPy array, got NoneType"),
        ({"draw": lambda *_: torch.zeros(BLOCK, ROWS, WIDTH)}, "NumPy array, got Tensor"),
        ({"draw": lambda *_: np.zeros((BLOCK, 1, WIDTH), np.float32)}, "of shape (64, 1, 6)"),
        ({"draw": lambda *_: np.zeros((1, ROWS, WIDTH), np.float32)}, "of shape (1, 4, 6)"),
        ({"draw": lambda *_: np.zeros((BLOCK, ROWS, WIDTH), object)}, "got object"),
        ({"draw": lambda *_: np.zeros((BLOCK, ROWS, WIDTH), ">f4")}, "got >f4"),
        (
            {"draw": lambda *_: np.zeros((BLOCK, ROWS, WIDTH))},
            "gradient gives must be torch.float32",
        ),
        ({"evaluate": lambda *_: None}, "evaluate of the problem must give the metrics"),
        (
            {"evaluate": lambda *_: {}},
            "must give the metrics objective_gap, gradient_norm2, got []",
        ),
        (
            {"evaluate": lambda *_: {"objective_gap": torch.ones(1), "gradient_norm2": 1.0}},
            "gradient_norm2, which evaluate of the problem gives, must be a tensor, got float",
        ),
        (
            {"evaluate": lambda *_: dict.fromkeys(Quadratic.metrics.fget(None), torch.ones(2))},  # type: ignore[attr-defined]
            "must be real numbers of shape (1,)",
        ),
        ({"fleet": lambda *_: None}, "must give a FleetProblem, got NoneType"),
        ({"metrics": ()}, "metrics of a problem are two names or more"),
        ({"metrics": ("objective_gap",)}, "two names or more"),
        ({"metrics": "objective_gap"}, "two names or more"),
        ({"metrics": ("objective_gap", "gradient_norm")}, "did you mean 'gradient_norm2'?"),
    ],
)
def test_what_a_problem_gives_is_what_it_promises(parts: Any, words: str) -> None:
    refused(own(**parts), words)


def test_a_problem_s_draws_are_alike_from_block_to_block() -> None:
    def draw(_: Any, member: int, block: int, holders: Any) -> Any:  # noqa: ARG001
        shape = (*holders.shape, WIDTH if block < 2 else 1)
        return np.zeros(shape, np.float32)

    refused(own(draw=draw).varied(rounds=3 * BLOCK), "of shape (64, 4, 1)")


def test_noise_by_columns_is_noise() -> None:
    """NumPy's arrays in Fortran's order keep it when they are put together."""

    orders = ["C", "F"]

    def draw(_: Any, member: int, block: int, holders: Any) -> Any:  # noqa: ARG001
        rng = np.random.default_rng(block)
        noise = rng.normal(size=(*holders.shape, WIDTH)).astype(np.float32, order=orders[0])
        return np.asarray(noise, order=orders[0])

    run, found = own(draw=draw), []
    while orders:
        found += [curves(record) for record in in_both(run)]
        orders.pop(0)
    assert all(other == found[0] for other in found)


@pytest.mark.parametrize("part", ["gradient", "draw"])
def test_a_subclass_of_a_problem_in_cpp_has_its_own_gradient_and_draws(part: str) -> None:
    class FleetShrunk(FleetQuadratic):
        pass

    def gradient(self: Any, x: Tensor, node: Tensor, data: Tensor) -> Tensor:
        return FleetQuadratic.gradient(self, x, node, data) + x.sign()

    def draw(self: Any, member: int, block: int, holders: Any) -> Any:
        return FleetQuadratic.draw(self, member, block, holders) * np.float32(3)

    class Shrunk(Quadratic):
        def fleet(self, members: Any, device: Any) -> Any:
            return FleetShrunk(self, members, device)

    setattr(FleetShrunk, part, {"gradient": gradient, "draw": draw}[part])
    PROBLEMS.register("shrunk")(Shrunk)
    agree(*in_both(spec(problem={"name": "shrunk", "dim": WIDTH}, rounds=40)))


def test_a_world_has_a_function_a_node() -> None:
    class Short(Quadratic):
        def world(self, seed: int, n_nodes: int) -> Any:
            return super().world(seed, n_nodes - 1)

    PROBLEMS.register("short")(Short)
    refused(spec(problem={"name": "short", "dim": WIDTH}), "a function a node, 4 of them, got 3")


@pytest.mark.parametrize("factor", [np.nan, np.inf, -1.0])
def test_a_schedule_has_factors_that_are_steps(factor: float) -> None:
    SCHEDULES.register("odd")(lambda _: lambda t: factor if t == 3 else 1.0)
    refused(spec(schedule="odd"), "factors are finite and not negative, got")


@pytest.mark.parametrize("n", [1, 3, 5, 8])
def test_a_topology_of_another_size(n: int) -> None:
    def odd(n_nodes: int) -> Topology:
        """A matrix of another size, in the second round."""
        return Topology([Mixing.identity(n_nodes), Mixing.from_dense(torch.full((n, n), 1 / n))])

    TOPOLOGIES.register("odd")(odd)
    with pytest.raises(ValueError, match=f"topology 'odd' on 4 nodes, round 1: W is {n} x {n}"):
        spec(topology="odd")


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        (lambda n, size: np.full((n, size), 10**6), "deals sample 1000000"),
        (lambda n, size: np.full((n, size), -1), "deals sample -1"),
        (lambda n, size: np.zeros((n, size)), "gives float64"),
        (lambda n, size: np.zeros((n - 1, size), int), "of shape (3, "),
        (lambda *_: None, "gives None"),
    ],
)
def test_shards_are_of_samples_that_are_there(shards: Any, words: str) -> None:
    PARTITIONS.register("odd")(lambda _, n, size, __: shards(n, size))
    problem = {"name": "classification", "model": "logistic", "data": "digits", "partition": "odd"}
    refused(spec(problem=problem), "partition 'odd'", words)


@pytest.fixture(scope="module")
def logistic() -> native.NativeNetwork:
    one = torch.ones(1, 1, 1)
    return native.NativeNetwork(Network([Flatten(), Linear(6, 4)]), (1, 2, 3), 5, one, one)


IMAGES = torch.arange(48, dtype=torch.uint8).reshape(8, 1, 2, 3)
LABELS = torch.arange(8) % 4


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (IMAGES.long(), LABELS, "images must be torch.uint8"),
        (IMAGES.float(), LABELS, "images must be torch.uint8"),
        (IMAGES.flip(2).transpose(2, 3), LABELS, "of shape (8, 1, 3, 2)"),
        (IMAGES.transpose(2, 3).contiguous().transpose(2, 3), LABELS, "images must be contiguous"),
        (IMAGES[:5], LABELS, "of shape (5, 1, 2, 3)"),
        (IMAGES[:, 0], LABELS, "of shape (8, 2, 3)"),
        (IMAGES.to("meta"), LABELS, "images must be on cpu"),
        (IMAGES, LABELS.int(), "labels must be torch.int64"),
        (IMAGES, LABELS.double(), "labels must be torch.int64"),
        (IMAGES[:4], LABELS[::2], "labels must be contiguous"),
        (IMAGES, LABELS + 1, "labels must be 0 .. 3, of one image or more, got 1 .. 4"),
        (IMAGES, LABELS - 1, "got -1 .. 2"),
        (IMAGES[:0], LABELS[:0], "got none"),
        (IMAGES, LABELS.numpy(), "labels must be a tensor, got ndarray"),
    ],
)
def test_images_are_bytes_with_labels(
    logistic: native.NativeNetwork, images: Any, labels: Any, words: str
) -> None:
    with pytest.raises(UserError) as error:
        logistic.images(images, labels)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": torch.zeros(1, 5)}, "sample ids must be torch.int32"),
        ({"ids": torch.zeros(1, 4, dtype=torch.int32)}, "of shape (1, 4)"),
        ({"ids": torch.zeros(1, 10, dtype=torch.int32)[:, ::2]}, "sample ids must be contiguous"),
        ({"x": torch.zeros(2, 27)}, "x must be torch.float32 of shape (2, 28)"),
        ({"x": torch.zeros(2, 28).double()}, "x must be torch.float32"),
        ({"grad": torch.zeros(3, 28)}, "grad must be torch.float32 of shape (2, 28)"),
    ],
)
def test_a_network_s_call_is_of_rows_and_samples(
    logistic: native.NativeNetwork, changes: dict[str, Tensor], words: str
) -> None:
    ids = torch.zeros(1, 5, dtype=torch.int32)
    given = {"x": torch.zeros(2, 28), "grad": torch.zeros(2, 28), "ids": ids} | changes
    rows, images = native.Rows(torch.zeros(2, dtype=torch.int64)), logistic.images(IMAGES, LABELS)
    with pytest.raises(UserError) as error:
        logistic.gradient(rows, given["x"], given["grad"], given["ids"], images)
    assert words in str(error.value)
    with pytest.raises(UserError, match=r"a score of 1 \.\. 8 samples, got 9"):
        logistic.score(torch.zeros(2, 28), logistic.images(IMAGES, LABELS), 9)


# A session and what it has set.


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


SESSIONS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device": lambda: default_device("meta"),
    "device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast for CUDA": lambda: torch.autocast("cuda", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "deterministic": deterministic,
    "one thread": lambda: threads(1),
    "three threads": lambda: threads(3),
    "anomalies": torch.autograd.detect_anomaly,
    "precision": lambda: precision("medium"),
    "NumPy raises": lambda: np.errstate(all="raise"),
}


def _runs() -> list[dict[str, Any]]:
    digits = {"name": "classification", "model": "logistic", "data": "digits"}
    return [
        {"algorithm": "d2", "topology": "torus", "weight_decay": 0.01},
        {"momentum": 0.9, "loss": 0.2, "topology": "one_peer_exponential"},
        {"problem": digits, "algorithm": {"name": "local_sgd", "local_steps": 2}},
        {"lr": 1e30, "rounds": 40},
    ]


def _forget() -> None:
    """What is built is kept by its name, which a test may have given to something else."""
    topologies._build.cache_clear()
    conditions.conditioned.cache_clear()
    build_problem.cache_clear()


def _made(engine: str) -> list[Any]:
    _forget()
    specs = [spec(**changes) for changes in _runs()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # detect_anomaly's own
        records = run_fleet(specs, "cpu", compile=engine)
    return [(record.id, record.status, record.curves, record.problem) for record in records]


@pytest.fixture(scope="module")
def usual() -> dict[str, list[Any]]:
    return {engine: _made(engine) for engine in ENGINES}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("session", SESSIONS)
def test_a_session_s_settings_are_not_a_run_s(
    usual: dict[str, list[Any]], session: str, engine: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with SESSIONS[session]():
            found = _made(engine)
    assert found == usual[engine]
    assert [status for _, status, *_ in found] == ["finished"] * 3 + ["diverged"]
    _forget()


def test_a_session_has_its_settings_again() -> None:
    with default_dtype(torch.float64), default_device("meta"), torch.inference_mode():
        run_fleet([spec()], "cpu")
        assert torch.get_default_dtype() == torch.float64
        assert torch.ones(1).device.type == "meta"
        assert torch.is_inference_mode_enabled()
    _forget()


def test_a_step_size_times_a_tensor_names_what_takes_both() -> None:
    for product in (lambda: Rate() * torch.ones(2, 3), lambda: torch.ones(2, 3) * Rate()):
        with pytest.raises(UserError, match=r"give both to r\.combine"):
            product()
    assert 2 * Rate() == Rate() * 2 == Rate(2.0)
    assert -Rate() == Rate(-1.0)
