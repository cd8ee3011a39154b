from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.inference.kv_cache import KvCache
from service.inference.memory import BatchLimit, is_out_of_memory


def test_the_errors_that_say_so_are_known() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    for other in (RuntimeError("shapes differ"), ValueError(), KeyError("DefaultCPUAllocator")):
        assert not is_out_of_memory(other)


def test_a_batch_that_did_not_fit_is_halved_and_grows_again() -> None:
    limit = BatchLimit(16)
    limit.shrink(12)
    assert limit.num_rows == 6
    for _ in range(31):
        limit.step_done()
    assert limit.num_rows == 6
    limit.step_done()
    assert limit.num_rows == 7
    for _ in range(1_000):
        limit.step_done()
    assert limit.num_rows == 16


@given(st.lists(st.one_of(st.none(), st.integers(1, 20)), max_size=200))
def test_the_limit_is_never_below_one_or_above_all(events: list[int | None]) -> None:
    limit = BatchLimit(16)
    for num_rows in events:
        before = limit.num_rows
        if num_rows is None:
            limit.step_done()
            assert before <= limit.num_rows <= before + 1
        else:
            limit.shrink(num_rows)
            assert limit.num_rows <= before
            assert limit.num_rows <= max(1, (num_rows if num_rows > 1 else before) // 2)
        assert 1 <= limit.num_rows <= 16


def test_a_cache_that_could_not_grow_asks_for_no_more_than_it_has() -> None:
    cache = KvCache(num_layers=2, max_slots=8, max_positions=1_024)
    like = torch.zeros(1, 2, 3, 4)
    cache.reserve(2, 100)
    for layer in range(2):
        cache.layer(layer, like)
    cache.reserve(8, 1_000)
    cache.layer(0, like)  # grown; the other one is not
    cache.settle()
    assert cache.layer(1, like)[0].shape == (2, 2, 128, 4)
    cache.reserve(3, 200)
    assert cache.layer(1, like)[0].shape == (4, 2, 256, 4)
    assert cache.layer(0, like)[0].shape == (8, 2, 1_024, 4)
