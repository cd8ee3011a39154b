"""One bad row must not cost its neighbours anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

ItemT = TypeVar("ItemT")
OutcomeT = TypeVar("OutcomeT")


def isolated(call: Callable[[list[ItemT]], list[OutcomeT]], items: list[ItemT]) -> list[OutcomeT | Exception]:
    """One outcome an item: what `call` returns for it, or the exception it raises.

    The items go together. If that fails they go in halves, down to single ones, so that only the items that
    fail on their own end with an exception; a batch too large for the memory passes in parts. `call` must
    therefore bear being repeated.
    """
    if not items:
        return []
    try:
        return list(call(items))
    except Exception as error:  # noqa: BLE001 (whatever a model raises concerns these items only)
        if len(items) == 1:
            return [error]
    # Here the exception is gone, and with it the tensors that its traceback held.
    middle = len(items) // 2
    return isolated(call, items[:middle]) + isolated(call, items[middle:])
