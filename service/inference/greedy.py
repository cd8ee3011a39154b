"""The choice of the next token: the likeliest."""

from __future__ import annotations

from torch import Tensor


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token of each row of [batch, vocab_size], -1 where logits are not finite: int64 [batch].

    Its transfer to the host, which `finite` is for, is the only one of a step.
    """
    return logits.argmax(-1).masked_fill(~logits.amax(-1).isfinite(), -1)


def finite(ids: list[int]) -> list[int]:
    """The tokens themselves.

    Raises:
        FloatingPointError: one of them is none.
    """
    if min(ids) < 0:
        rows = [row for row, token in enumerate(ids) if token < 0]
        raise FloatingPointError(f"the logits of rows {rows} of {len(ids)} are not finite")
    return ids
