"""Normal noise by the library is NumPy's, bit for bit, wherever it is not NumPy's own."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from teleport_bench import RunSpec, native
from teleport_bench.fleet import Fleet
from teleport_bench.native import normals as module
from teleport_bench.native.normals import normals

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
TAIL = 3.6541529


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    module._as_numpy.cache_clear()
    yield
    module._as_numpy.cache_clear()


def stream(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def by_numpy(key: int, shape: Any, scale: float) -> NDArray[np.float32]:
    return stream(key).standard_normal(shape, dtype=np.float32) * np.float32(scale)


def same_bits(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())


by_the_library = pytest.mark.skipif(
    not module._as_numpy() and platform.machine() not in ("x86_64", "AMD64"),
    reason="the library draws normals on x86-64 alone",
)


@by_the_library
@settings(deadline=None)
@given(st.integers(0, 2**128 - 1), st.integers(0, 3000), st.floats(0, 10, width=32))
def test_any_stream_of_any_length_is_numpy_s(key: int, n: int, scale: float) -> None:
    rng = stream(key)
    found = module._drawn(rng, (n,), scale)
    assert found is not None
    assert same_bits(found, by_numpy(key, n, scale))
    np.testing.assert_equal(rng.bit_generator.state, stream(key).bit_generator.state)
    assert same_bits(normals(rng, (n,), scale, compiled=True), found)


@by_the_library
def test_so_are_millions_with_hundreds_in_the_tail() -> None:
    beyond = 0
    for key in range(8):
        found = module._drawn(stream(key << 60), (250, 40, 100), 1.0)
        assert found is not None
        assert same_bits(found, by_numpy(key << 60, found.shape, 1.0))
        beyond += int((np.abs(found) > TAIL).sum())
    assert beyond > 1500  # of 8 million 0.026 %
    assert module._as_numpy()


def altered(**changes: Any) -> np.random.Generator:
    """A stream at its start, but for these parts of its state."""
    rng = stream(1)
    rng.bit_generator.state = rng.bit_generator.state | changes
    return rng


def test_a_stream_that_does_not_begin_at_its_start_is_numpy_s_own() -> None:
    begun, half, other = stream(1), stream(1), np.random.default_rng(1)
    begun.standard_normal(1)
    half.standard_normal(1, dtype=np.float32)
    kept = altered(has_uint32=1, uinteger=12345)
    for rng in (begun, half, altered(buffer_pos=2), kept, other):
        copy = np.random.Generator(type(rng.bit_generator)())  # type: ignore[arg-type]
        copy.bit_generator.state = rng.bit_generator.state
        expected = copy.standard_normal(500, dtype=np.float32)
        assert same_bits(normals(rng, (500,), 1.0, compiled=True), expected)


def test_where_numpy_draws_otherwise_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = module._drawn

    def other(*given: Any) -> NDArray[np.float32] | None:
        found = drawn(*given)
        if found is not None:
            found[-1:] += 1
        return found

    monkeypatch.setattr(module, "_drawn", other)
    assert not module._as_numpy()
    assert same_bits(normals(stream(5), (100,), 2.0, compiled=True), by_numpy(5, 100, 2.0))


def test_without_compiling_no_library_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "library", lambda: pytest.fail("loaded"))
    assert same_bits(normals(stream(6), (9, 3), 2.0, compiled=False), by_numpy(6, (9, 3), 2.0))


@by_the_library
def test_both_engines_see_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, drawn = [], module._drawn
    monkeypatch.setattr(module, "_drawn", lambda *given: asked.append(1) or drawn(*given))
    settings = {"algorithm": "teleportation", "nodes": 9, "active": 3, "lr": 0.1, "rounds": 70}
    spec = RunSpec.model_validate({"problem": {"name": "quadratic", "sigma2": 3}} | settings)
    compiled = Fleet([spec], compiled=True).choices._draw(1).data
    assert asked
    asked.clear()
    assert same_bits(compiled, Fleet([spec]).choices._draw(1).data)
    assert not asked
