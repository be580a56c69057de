"""Whatever tensors an op is given, its result is the reference's or a sentence says what is wrong.

Also under AddressSanitizer: test_sanitizer.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import teleport_kernels as tk
from teleport_kernels import Mixing, cpu, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class Own(Tensor):
    """A subclass of a user's."""


def resized(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(t.nbytes // 2)
    return t


def apart(t: Tensor) -> Tensor:
    """The same rows in a wider tensor."""
    wide = torch.full((len(t), t.shape[1] + 3), 9, dtype=t.dtype)
    wide[:, 2:-1] = t
    return wide[:, 2:-1]


ROWS: dict[str, Callable[[Tensor], Any]] = {
    "plain": lambda t: t.clone(),
    "rows apart": apart,
    "every second row": lambda t: t.repeat_interleave(2, 0)[::2],
    "one row, expanded": lambda t: t[:1].expand_as(t),
    "in a subclass": lambda t: t.clone().as_subclass(Own),
    "a parameter": lambda t: torch.nn.Parameter(t.clone(), requires_grad=False),
    "transposed": lambda t: t.T.contiguous().T,
    "every second column": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "negative view": lambda t: torch._neg_view(-t),
    "a row less": lambda t: t[:-1].clone(),
    "a row more": lambda t: torch.cat([t, t[:1]]),
    "a column less": lambda t: t[:, :-1].clone(),
    "a vector": lambda t: t[0].clone(),
    "float64": lambda t: t.double(),
    "bfloat16": lambda t: t.bfloat16(),
    "int32": lambda t: t.int(),
    "complex64": lambda t: t.to(torch.complex64),
    "on meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "half of its memory": resized,
    "a list": lambda t: t.tolist(),
    "an array": lambda t: t.double().numpy(),
}
PROPER = ["plain", "rows apart", "every second row", "in a subclass", "a parameter"]
"""Rows that can be read, and written."""

VECTORS: dict[str, Callable[[Tensor], Any]] = {
    "plain": lambda v: v.clone(),
    "every second": lambda v: v.repeat_interleave(2)[::2],
    "one, expanded": lambda v: v[:1].expand_as(v),
    "in a subclass": lambda v: v.clone().as_subclass(Own),
    "negative view": lambda v: torch._neg_view(-v),
    "int32": lambda v: v.int(),
    "float64": lambda v: v.double(),
    "bool": lambda v: v.bool(),
    "complex": lambda v: v.to(torch.complex64),
    "one less": lambda v: v[:-1].clone(),
    "one more": lambda v: torch.cat([v, v[:1]]),
    "a column": lambda v: v[:, None],
    "far": lambda v: v + 100,
    "negative": lambda v: v - 2,
    "on meta": lambda v: v.to("meta"),
    "sparse": lambda v: v.to_sparse(),
    "half of its memory": resized,
    "a list": lambda v: v.tolist(),
}


def formed(forms: dict[str, Callable[[Tensor], Any]], share: int) -> st.SearchStrategy[str]:
    """Mostly plain: one in `share` of another form."""
    return st.one_of(*[st.just("plain")] * (share - 1), st.sampled_from(sorted(forms)))


def values(given: Any) -> Tensor:
    """What a tensor holds, in plain memory."""
    assert isinstance(given, Tensor)
    return given.detach().as_subclass(Tensor).resolve_neg().clone().contiguous()


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(values(a), b)


def kept(*tensors: Any) -> list[Tensor | None]:
    """What the tensors that can be read hold."""
    return [
        values(t)
        if isinstance(t, Tensor)
        and t.layout == torch.strided
        and not t.is_meta
        and t.untyped_storage().nbytes() >= t.numel() * t.element_size()
        else None
        for t in tensors
    ]


def refused(call: Callable[[], Any], *written: Any) -> bool:
    """Whether it is refused: by a sentence, before anything is written."""
    before = kept(*written)
    try:
        call()
    except ValueError as error:
        message = str(error)
    else:
        return False
    assert len(message) > 20
    assert ": " in message or ", " in message
    for a, b in zip(before, kept(*written), strict=True):
        assert a is b is None or torch.equal(a, b)
    return True


def matrix(rng: torch.Generator, k: int) -> Mixing:
    W = torch.randn(k, k, generator=rng) * (torch.rand(k, k, generator=rng) < 0.5)
    return Mixing.from_dense(W)


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_step_is_the_reference_s_or_is_refused(data: st.DataObject) -> None:
    draw = data.draw
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    k, n, width = draw(st.integers(1, 5)), 5, draw(st.sampled_from([1, 2, 63, 65]))
    dtype = draw(st.sampled_from(DTYPES))
    mixing = matrix(rng, k).to(draw(st.sampled_from(["cpu"] * 9 + ["meta"])))

    def rows(count: int) -> Any:
        plain = torch.randint(-9, 9, (count, width), generator=rng).to(dtype)
        return ROWS[draw(formed(ROWS, 4))](plain)

    def vector(plain: Tensor) -> Any:
        return VECTORS[draw(formed(VECTORS, 4))](plain)

    step, kind = draw(st.booleans()), draw(st.sampled_from([None, "heavy ball", "nesterov"]))
    x = rows(n)
    source = vector(torch.randint(n, (k,), generator=rng))
    target = vector(torch.randperm(n, generator=rng)[:k])
    out = rows(n)
    if draw(st.booleans()):
        target, out = None, draw(st.sampled_from([None, x]))
    settings: dict[str, Any] = {"source": source, "target": target, "out": out}
    momentum = grad = None
    if step:
        grad, momentum = rows(k), rows(k) if kind else None
        if draw(st.integers(0, 9)) == 0:
            grad = draw(st.sampled_from([x, out, momentum]))
        if draw(st.integers(0, 9)) == 0 and kind:
            momentum = draw(st.sampled_from([x, out, grad]))
        lr: Any = 0.25
        if draw(st.booleans()):
            lr = vector(torch.full((k,), 0.25))
        settings |= {"grad": grad, "lr": lr, "momentum": momentum, "weight_decay": 0.5}
        settings |= {"beta": 0.5 if kind else 0.0, "nesterov": kind == "nesterov"}
    mix = tk.sgd_mix if step else tk.teleport_mix
    before = kept(x, grad, momentum, out)
    backend = draw(st.sampled_from([None, "reference"]))
    done: list[Tensor] = []
    if refused(
        lambda: done.append(mix(x, mixing=mixing, backend=backend, **settings)), out, momentum
    ):
        return
    dtype = x.dtype
    if done[0].is_meta:
        assert done[0].shape == (k if out is None else n, width)
        return
    y, m = values(x)[values(source)], None
    if step:
        g, was = before[1], before[2]
        assert g is not None
        eta = lr if isinstance(lr, float) else values(lr).to(reference.accumulation_dtype(dtype))
        eta = torch.as_tensor(eta).expand(k).unsqueeze(1)
        y, m = reference.descend(
            y, g, eta, was, settings["beta"], settings["nesterov"], settings["weight_decay"]
        )
    expected = reference.gossip(y, mixing).to(dtype)
    if m is not None:
        assert same(momentum, m.to(dtype))
    if target is not None:
        whole = before[3]
        assert whole is not None
        whole[values(target)] = expected
        expected = whole
    assert same(done[0], expected)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(ROWS)), st.sampled_from([None, *sorted(VECTORS)]), st.data())
def test_consensus_is_the_reference_s_or_is_refused(
    form: str, grouped: str | None, data: st.DataObject
) -> None:
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    ids = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    x = ROWS[form](torch.randn(len(ids), 65, generator=rng))
    groups = None if grouped is None else VECTORS[grouped](ids)
    done: list[tuple[Tensor, Tensor]] = []
    if refused(lambda: done.append(tk.consensus(x, groups))):
        return
    if x.is_meta:
        assert groups is None
        return
    ends = torch.tensor([0, len(x)])
    if groups is not None:
        ends = torch.cat([torch.tensor([0]), values(groups).long().bincount().cumsum(0)])
    mean, distance = reference.consensus(values(x), ends)
    if groups is None:
        mean, distance = mean[0], distance[0]
    assert same(done[0][0], mean)
    assert same(done[0][1], distance)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.sampled_from(sorted(VECTORS)), min_size=3, max_size=3),
    st.integers(0, 2),
    st.integers(-1, 5),
    st.data(),
)
def test_a_matrix_is_what_its_parts_say_or_is_refused(
    forms: list[str], changed: int, by: int, data: st.DataObject
) -> None:
    """One part of three is of any form, and one number of one part is another."""
    rng = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    whole = matrix(rng, 4)
    parts = [whole.indptr, whole.indices, whole.weights]
    only = data.draw(st.integers(0, 2))
    given = [
        VECTORS[form](part) if i == only else part
        for i, (form, part) in enumerate(zip(forms, parts, strict=True))
        if len(part) > 1 or form == "plain" or i != only
    ]
    if len(given) < 3:
        return
    if isinstance(given[changed], Tensor) and only != changed and len(given[changed]):
        given[changed] = given[changed].clone()
        given[changed][data.draw(st.integers(0, len(given[changed]) - 1))] += by
    made: list[Mixing] = []
    if refused(lambda: made.append(Mixing(*given))):
        return
    indptr, indices, weights = (
        values(p) if isinstance(p, Tensor) else torch.tensor(p) for p in given
    )
    W = torch.zeros(len(indptr) - 1, len(indptr) - 1, dtype=torch.float64)
    for i in range(len(W)):
        for e in range(int(indptr[i]), int(indptr[i + 1])):
            W[i, int(indices[e])] = float(weights[e])
    x = torch.randn(len(W), 65, dtype=torch.float64, generator=rng)
    assert torch.equal(made[0].dense(), W)
    assert same(tk.gossip_mix(x, made[0]), reference.gossip(x, made[0]))


@pytest.mark.parametrize("form", sorted(ROWS))
def test_a_prepared_call_takes_the_rows_that_can_be_read_by_address(form: str) -> None:
    x, mixing = torch.randn(3, 65), Mixing.identity(3)
    if not cpu.available():
        pytest.skip("no C++ compiler on this machine")
    for name in ("x", "grad", "momentum", "out"):
        given: dict[str, Any] = dict.fromkeys(("x", "grad", "momentum", "out"), x)
        given |= {"lr": torch.ones(3), name: ROWS[form](x)}
        fits = form in (*PROPER, "one row, expanded")
        assert refused(lambda given=given: cpu.prepare(mixing=mixing, **given)) != fits


@pytest.mark.parametrize("form", sorted(VECTORS))
def test_a_prepared_call_takes_the_vectors_that_can_be_read_by_address(form: str) -> None:
    x, mixing = torch.randn(3, 65), Mixing.identity(3)
    if not cpu.available():
        pytest.skip("no C++ compiler on this machine")
    for name in ("lr", "source", "target"):
        given: dict[str, Any] = {"x": x, "grad": x, "out": x, "lr": torch.ones(3)}
        plain = torch.ones(3) if name == "lr" else torch.arange(3)
        given[name] = VECTORS[form](plain)
        fits = form in ("plain", "in a subclass", "far", "negative")  # whose values are not read
        assert refused(lambda given=given: cpu.prepare(mixing=mixing, **given)) != fits
