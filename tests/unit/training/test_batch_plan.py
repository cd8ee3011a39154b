from __future__ import annotations

import numpy as np
import pytest

from training.objective import by_length
from training.plan import BatchPlan, forward_passes

LENGTHS = np.random.default_rng(1).integers(5, 90, size=131).tolist()


def test_an_epoch_uses_no_example_twice_and_epochs_differ() -> None:
    plan = BatchPlan(LENGTHS, 8, seed=3)
    assert plan.batches_per_epoch == 16
    epochs = [[plan.indices(16 * epoch + step) for step in range(16)] for epoch in range(2)]
    for epoch in epochs:
        assert all(len(batch) == 8 for batch in epoch)
        flat = [index for batch in epoch for index in batch]
        assert len(set(flat)) == len(flat) == 128
    assert epochs[0] != epochs[1]


def test_a_plan_is_a_function_of_the_step() -> None:
    forward, backward = BatchPlan(LENGTHS, 8, seed=3), BatchPlan(LENGTHS, 8, seed=3)
    there = [forward.indices(step) for step in range(40)]
    assert [backward.indices(step) for step in reversed(range(40))] == there[::-1]
    assert BatchPlan(LENGTHS, 8, seed=4).indices(0) != there[0]


def test_examples_of_a_batch_are_of_like_length() -> None:
    def spread(plan: BatchPlan) -> float:
        batches = [[LENGTHS[index] for index in plan.indices(step)] for step in range(16)]
        return float(np.mean([max(batch) - min(batch) for batch in batches]))

    assert spread(BatchPlan(LENGTHS, 8, seed=0)) < 25 < max(LENGTHS) - min(LENGTHS)


def test_fewer_examples_than_a_batch_make_one_batch() -> None:
    plan = BatchPlan([4, 5, 6], 16, seed=0)
    assert plan.batches_per_epoch == 1
    assert sorted(plan.indices(7)) == [0, 1, 2]


def test_no_example_is_an_error() -> None:
    with pytest.raises(ValueError, match="no example"):
        BatchPlan([], 4, seed=0)


def test_every_index_is_evaluated_once_in_order_of_length() -> None:
    batches = by_length([5, 1, 4, 2, 3], 2)
    assert batches == [[1, 3], [4, 2], [0]]


def test_the_passes_of_a_step_cover_its_batch_once() -> None:
    batch = list(range(10))
    assert [batch[part] for part in forward_passes(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert forward_passes(3, 4) == [slice(0, 3)]
