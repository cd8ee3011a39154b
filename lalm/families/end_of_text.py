"""Which tokens end an answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def eos_token_ids(tokenizer: Any, configs: Iterable[Any]) -> frozenset[int]:
    """Whatever `configs` and the tokenizer call the end of a text, and the end of a chat turn.

    configs: configurations of transformers, each with one `eos_token_id`, several or none; or None.
    """
    ids: set[int | None] = {tokenizer.eos_token_id, tokenizer.get_vocab().get("<|im_end|>")}
    for config in configs:
        given = getattr(config, "eos_token_id", None)
        ids |= set(given) if isinstance(given, (list, tuple)) else {given}
    return frozenset(int(token) for token in ids if token is not None)
