"""The Triton launchers: what they choose, and what the interpreter alone does differently."""

from __future__ import annotations

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("the package triton is missing", allow_module_level=True)

from teleport_kernels import triton_mix


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("k", [1, 2, 7, 8, 64, 1000, 4096, 10**6])
def test_all_programs_of_a_multiprocessor_find_room_in_its_cache(k: int, itemsize: int) -> None:
    c = triton_mix.configuration(k, k, itemsize)
    assert c.block & (c.block - 1) == c.rows & (c.rows - 1) == 0, "Triton's sizes are powers of two"
    assert c.block * itemsize >= 128, "a row of a range fills the lines of memory that it touches"
    assert c.rows * c.block <= triton_mix.TILE
    if c.block > 32:
        assert triton_mix.PROGRAMS * k * c.block * itemsize <= triton_mix.CACHE_BYTES


def test_a_complete_graph_works_on_its_one_distinct_row() -> None:
    assert triton_mix.configuration(1024, 1, 4).rows == 1


@pytest.mark.parametrize(
    ("dtype", "stride", "begin", "width", "cuts"),
    [
        (torch.float32, 64, 0, 64, [(4, 0, 64)]),
        (torch.float32, 68, 4, 63, [(4, 0, 60), (1, 60, 63)]),
        (torch.float32, 64, 1, 63, [(1, 0, 63)]),
        (torch.float32, 63, 0, 63, [(1, 0, 63)]),
        (torch.float32, 64, 0, 3, [(1, 0, 3)]),
        (torch.bfloat16, 64, 0, 60, [(8, 0, 56), (1, 56, 60)]),
        (torch.bfloat16, 68, 0, 60, [(1, 0, 60)]),
        (torch.float64, 2, 0, 2, [(2, 0, 2)]),
    ],
)
def test_rows_are_read_sixteen_bytes_at_a_time_where_they_begin_at_multiples_of_it(
    dtype: torch.dtype, stride: int, begin: int, width: int, cuts: list[tuple[int, int, int]]
) -> None:
    x = torch.empty(3, stride, dtype=dtype)[:, begin : begin + width]
    assert x.data_ptr() % 16 == begin * x.element_size() % 16
    assert triton_mix._cuts([x], width) == cuts
