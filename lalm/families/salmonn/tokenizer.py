"""Vicuna's tokenizer: the folder's own sentencepiece model, as SALMONN was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from lalm.errors import ModelError


class Tokenizer:
    """Text to token ids and back; safe from any thread.

    A text is encoded with sentencepiece's word-start prefix and without BOS; what looks like a special token
    in it is text like any other.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.model"
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ModelError(f"{path}: not a sentencepiece model: {' '.join(str(error).split())}") from error
        self.vocab_size: int = self._model.vocab_size()
        self.bos_token_id: int = self._model.bos_id()
        self.eos_token_id: int = self._model.eos_id()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return list(self._model.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special and unknown ones skipped."""
        return str(self._model.decode([token for token in ids if self._is_text(token)]))

    def _is_text(self, token: int) -> bool:
        return token < self.vocab_size and not (
            self._model.is_control(token) or self._model.is_unknown(token)
        )
