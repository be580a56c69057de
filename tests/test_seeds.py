"""Named random streams."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teleport_bench.seeds import generator, seed_for

names = st.dictionaries(
    st.text("abcxyz", min_size=1, max_size=3),
    st.integers() | st.text("abc= ,", max_size=5),
    max_size=4,
)
bases = st.integers(0, 2**64)
streams = st.sampled_from(["init", "active", "batches"])


@settings(deadline=None)
@given(bases, streams, names, st.randoms(use_true_random=False))
def test_the_order_of_the_names_does_not_matter(base, stream, named, random):
    items = list(named.items())
    random.shuffle(items)
    assert seed_for(base, stream, **dict(items)) == seed_for(base, stream, **named)


@settings(deadline=None)
@given(bases, streams, names, bases, streams, names)
def test_another_base_stream_name_or_value_is_another_seed(b1, s1, n1, b2, s2, n2):
    same = (b1, s1, n1) == (b2, s2, n2)
    assert (seed_for(b1, s1, **n1) == seed_for(b2, s2, **n2)) == same


@settings(deadline=None)
@given(bases, streams, names)
def test_a_name_more_or_less_is_another_seed(base, stream, named):
    for name in named:
        fewer = {k: v for k, v in named.items() if k != name}
        assert seed_for(base, stream, **fewer) != seed_for(base, stream, **named)


def test_a_value_cannot_pose_as_another_name():
    assert seed_for(0, "init", a="1\nb=2") != seed_for(0, "init", a=1, b=2)


def test_neighbouring_streams_have_distinct_seeds_of_128_bits():
    seeds = {
        seed_for(base, stream, nodes=n, block=block)
        for base, stream, n, block in itertools.product(
            range(12), ("init", "active"), range(1, 21), range(20)
        )
    }
    assert len(seeds) == 12 * 2 * 20 * 20
    assert min(seeds) >= 0
    assert 2**120 < max(seeds) < 2**128


@given(bases, streams, names)
def test_a_generator_is_philox_with_the_seed_as_its_key(base, stream, named):
    wanted = np.random.Philox(key=seed_for(base, stream, **named))
    found = generator(base, stream, **named).bit_generator
    assert isinstance(found, np.random.Philox)
    np.testing.assert_equal(found.state, wanted.state)


def test_seeds_stay_the_same_from_version_to_version():
    assert seed_for(0, "init") == 198386883753090669338532926453291342149
    active = seed_for(7, "active", nodes=25, active=8, block=3)
    assert active == 327265963275504863520364844878798750986
    words = generator(0, "init").bit_generator.random_raw(2).tolist()
    assert words == [14590717761189148189, 5913259747167651262]


@settings(deadline=None)
@given(bases, streams, names)
def test_a_generator_gives_its_stream_whatever_was_drawn_from_others(base, stream, named):
    first = generator(base, stream, **named).random(8)
    other = generator(base, stream + "2", **named)
    other.random(100)
    assert np.array_equal(generator(base, stream, **named).random(8), first)
    assert not np.array_equal(generator(base, stream + "2", **named).random(8), first)


@pytest.mark.parametrize("change", [{"base": 1}, {"stream": "noise"}, {"block": 1}])
def test_neighbouring_streams_are_uncorrelated(change):
    """A correct generator fails for one in a million seeds: |normal| > 4.9."""
    draws = 2**16
    names = {"base": 0, "stream": "active", "block": 0}
    x, y = (generator(**n).standard_normal(draws) for n in (names, names | change))
    assert abs(x @ y) / np.sqrt(draws) < 4.9
