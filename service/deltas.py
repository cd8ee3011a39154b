"""Tokens of the pieces of a recording -> the new text, in the order of the recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# What a byte-level tokeniser makes of the beginning of a character.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Deltas:
    """Calls `on_text` with new text, such that all of it together is the joined answers of the pieces.

    The pieces run at the same time; text of a later one is held back until those before it are complete. What
    a token adds is seen beside the tokens told just before it, as decoders treat the first ones of a text
    differently; so a token costs the same wherever it stands.

    Source: detokenize_incrementally of vLLM (vllm/transformers_utils/detokenizer_utils.py).
    """

    def __init__(self, decode_tokens: Callable[[Sequence[int]], str], on_text: Callable[[str], None]) -> None:
        self._decode_tokens = decode_tokens
        self._on_text = on_text
        self._ids: dict[int, list[int]] = {}
        self._complete: set[int] = set()
        self._current = 0
        self._context = ""  # what was told last of the current piece: tokens [_start, _end)
        self._start = self._end = 0
        self._any_told = False

    def on_token(self, piece: int, row: int, token_id: int | None) -> None:  # noqa: ARG002 (there is one row)
        """A piece has one more token, or (None) is complete."""
        ids = self._ids.setdefault(piece, [])
        if token_id is None:
            self._complete.add(piece)
        else:
            ids.append(token_id)
        while self._current in self._complete:
            self._tell(final=True)
            self._current, self._context, self._start, self._end = self._current + 1, "", 0, 0
        if piece == self._current:
            self._tell(final=False)

    def _tell(self, *, final: bool) -> None:
        """Tell what the current piece has beyond what was told, unless it may still change."""
        ids = self._ids.get(self._current, [])
        text = self._decode_tokens(ids[self._start :])
        if not final and text.endswith(_INCOMPLETE):
            return
        if len(text) <= len(self._context) or not text.startswith(self._context):
            return
        space = " " if self._any_told and not self._end else ""
        self._on_text(space + text[len(self._context) :])
        self._start, self._end, self._any_told = self._end, len(ids), True
        self._context = self._decode_tokens(ids[self._start :])
