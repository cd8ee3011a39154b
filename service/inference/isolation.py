"""One bad row must not cost its neighbours anything."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

from service.inference.memory import is_out_of_memory

ItemT = TypeVar("ItemT")
OutcomeT = TypeVar("OutcomeT")


def ignore(num_items: int) -> None:
    """Nothing is done about memory that ran out, but to try smaller parts."""


def isolated(
    call: Callable[[list[ItemT]], list[OutcomeT]],
    items: list[ItemT],
    on_out_of_memory: Callable[[int], None] = ignore,
) -> list[OutcomeT | Exception]:
    """One outcome an item: what `call` returns for it, or the exception it raises.

    The items go together. If that fails they go in halves, down to single ones, so that only the items that
    fail on their own end with an exception; a batch too large for the memory passes in parts. `call` must
    therefore bear being repeated.

    on_out_of_memory: called with the number of items of each call that did not fit into the memory, once what
        that call had allocated is free again.
    """
    if not items:
        return []
    try:
        return list(call(items))
    except Exception as error:  # noqa: BLE001 (whatever a model raises concerns these items only)
        failure = error
    out_of_memory = is_out_of_memory(failure)
    if out_of_memory:
        traceback.clear_frames(failure.__traceback__)  # the tensors in them
        on_out_of_memory(len(items))
    if len(items) == 1:
        return [failure]
    del failure
    middle = len(items) // 2
    return [
        outcome
        for half in (items[:middle], items[middle:])
        for outcome in isolated(call, half, on_out_of_memory)
    ]
