from __future__ import annotations

import weakref

from hypothesis import given
from hypothesis import strategies as st

from service.inference.isolation import isolated


def never(num_items: int) -> None:
    raise AssertionError("memory did not run out")


@given(st.lists(st.booleans(), max_size=20))
def test_only_the_items_that_fail_alone_fail(poisoned: list[bool]) -> None:
    def call(items: list[int]) -> list[int]:
        bad = [item for item in items if poisoned[item]]
        if bad:
            raise ValueError(bad[0])
        return [10 * item for item in items]

    outcomes = isolated(call, list(range(len(poisoned))), never)

    assert len(outcomes) == len(poisoned)
    for item, outcome in enumerate(outcomes):
        if poisoned[item]:
            assert isinstance(outcome, ValueError)
            assert outcome.args == (item,)
        else:
            assert outcome == 10 * item


def test_a_batch_that_is_too_large_passes_in_parts() -> None:
    sizes = []
    too_large: list[int] = []

    def call(items: list[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > 3:
            raise MemoryError
        return items

    assert isolated(call, list(range(10)), too_large.append) == list(range(10))
    assert sizes == [10, 5, 2, 3, 5, 2, 3]
    assert too_large == [10, 5, 5]


def test_what_a_call_held_is_free_when_it_is_repeated_in_parts() -> None:
    class Tensors:
        pass

    held = []

    def call(items: list[int]) -> list[int]:
        tensors = Tensors()
        held.append(weakref.ref(tensors))
        raise MemoryError

    def check(num_items: int) -> None:
        assert [reference() for reference in held] == [None] * len(held)

    assert [type(outcome) for outcome in isolated(call, [1, 2], check)] == [MemoryError, MemoryError]
    assert len(held) == 3


def test_a_batch_that_works_is_called_once() -> None:
    calls = []

    def call(items: list[int]) -> list[int]:
        calls.append(items)
        return items

    assert isolated(call, [1, 2, 3], never) == [1, 2, 3]
    assert calls == [[1, 2, 3]]
    assert isolated(call, [], never) == []
    assert len(calls) == 1
