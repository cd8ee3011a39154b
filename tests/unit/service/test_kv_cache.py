from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.inference.kv_cache import BLOCK_TOKENS, KvCache, select_rows

NUM_LAYERS, NUM_KV_HEADS, HEAD_DIM = 2, 3, 4
CPU = torch.device("cpu")


def random_states(batch: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, NUM_KV_HEADS, length, HEAD_DIM)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def prefill(cache: KvCache, slots: list[int], length: int, seed: int) -> tuple[Tensor, Tensor]:
    """The same states in every layer, times the layer's number plus one."""
    keys, values = random_states(len(slots), length, seed)
    view = cache.prefill(slots, CPU)
    for layer in range(NUM_LAYERS):
        seen = view.update(keys * (layer + 1), values * (layer + 1), layer)
        assert torch.equal(seen[0], keys * (layer + 1))
        assert torch.equal(seen[1], values * (layer + 1))
    return keys, values


def decode(cache: KvCache, slots: list[int], positions: list[int], seed: int) -> list[tuple[Tensor, Tensor]]:
    """One step; what every layer sees."""
    keys, values = random_states(len(slots), 1, seed)
    index = torch.tensor(slots)
    view = cache.decode(index, select_rows(slots, index), torch.tensor(positions), max(positions) + 1)
    return [view.update(keys * (layer + 1), values * (layer + 1), layer) for layer in range(NUM_LAYERS)]


@pytest.mark.parametrize(
    ("slots", "adjacent"), [([0], True), ([2], True), ([1, 2, 3], True), ([0, 2], False), ([0, 1, 3], False)]
)
def test_adjacent_slots_are_seen_without_a_copy(slots: list[int], adjacent: bool) -> None:
    data = torch.arange(5)
    rows = select_rows(slots, torch.tensor(slots))
    assert data[rows].tolist() == slots
    assert isinstance(rows, slice) is adjacent


@pytest.mark.parametrize("slots", [[0, 1], [0, 2], [3]])
def test_a_decode_step_sees_prompt_and_new_token_of_its_own_rows(slots: list[int]) -> None:
    cache = KvCache(NUM_LAYERS, 4, 64)
    cache.reserve(4, 64)
    keys, values = prefill(cache, slots, length=5, seed=1)
    positions = [
        5 - number for number in range(len(slots))
    ]  # the second row's prompt has one token of padding

    for layer, (seen_keys, seen_values) in enumerate(decode(cache, slots, positions, seed=2)):
        new_keys, new_values = random_states(len(slots), 1, seed=2)
        assert seen_keys.shape == (len(slots), NUM_KV_HEADS, 6, HEAD_DIM)
        for row, position in enumerate(positions):
            for seen, old, new in ((seen_keys, keys, new_keys), (seen_values, values, new_values)):
                expected = torch.cat([old[row, :, :position], new[row]], dim=1) * (layer + 1)
                assert torch.equal(seen[row, :, : position + 1], expected)


def test_a_step_touches_no_other_slot() -> None:
    cache = KvCache(NUM_LAYERS, 4, 64)
    cache.reserve(4, 64)
    prefill(cache, [0, 1, 2, 3], length=5, seed=1)
    before = [part.clone() for layer in range(NUM_LAYERS) for part in cache.layer(layer, torch.empty(0))]
    decode(cache, [0, 2], [5, 7], seed=2)
    prefill(cache, [3], length=4, seed=3)
    cache.clear(3)
    after = [part for layer in range(NUM_LAYERS) for part in cache.layer(layer, torch.empty(0))]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[1], new[1])
        assert torch.equal(old[0, :, :5], new[0, :, :5])
        assert not torch.equal(old[0, :, 5], new[0, :, 5])
        assert new[3].count_nonzero() == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 500)), min_size=1, max_size=5))
def test_growing_keeps_what_is_there_and_stays_inside_the_limits(demands: list[tuple[int, int]]) -> None:
    cache = KvCache(NUM_LAYERS, 6, 500)
    cache.reserve(1, 3)
    keys, _ = prefill(cache, [0], length=3, seed=1)
    for num_slots, num_positions in demands:
        cache.reserve(num_slots, num_positions)
        stored, _ = cache.layer(1, keys)
        assert num_slots <= stored.shape[0] <= 6
        assert num_positions <= stored.shape[2] <= 500
        assert torch.equal(stored[0, :, :3], 2 * keys[0])


def test_memory_follows_the_demand() -> None:
    cache = KvCache(NUM_LAYERS, 16, 2048)
    assert cache.num_bytes == 0
    cache.reserve(3, 10)
    prefill(cache, [0, 1, 2], length=10, seed=1)
    assert cache.num_bytes == 2 * NUM_LAYERS * 4 * NUM_KV_HEADS * BLOCK_TOKENS * HEAD_DIM * 4
    cache.release()
    assert cache.num_bytes == 0
    cache.reserve(1, 10)
    prefill(cache, [0], length=10, seed=1)
    assert cache.num_bytes == 2 * NUM_LAYERS * NUM_KV_HEADS * BLOCK_TOKENS * HEAD_DIM * 4


@pytest.mark.parametrize("demand", [(5, 10), (1, 65)])
def test_more_than_the_limits_is_refused(demand: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        KvCache(NUM_LAYERS, 4, 64).reserve(*demand)
