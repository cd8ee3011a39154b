"""Encoded audio by its content: a recording that comes again is not encoded again.

The key is a digest of the features, so that one recording in two file formats may be two entries, and two
recordings are never one.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

from lalm.family import AudioFeatures
from service.inference.memory import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor


class AudioCache:
    """The most recently used embeddings, `max_bytes` of them; 0 keeps none. One thread at a time.

    num_bytes: what is kept now.
    """

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._embeds: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, digest: bytes) -> Tensor | None:
        """The embeddings [num_audio_tokens, hidden] of a clip, or None."""
        if digest in self._embeds:
            self._embeds.move_to_end(digest)
        return self._embeds.get(digest)

    def put(self, digest: bytes, embeds: Tensor) -> None:
        """Keep the embeddings of a clip unless they are too large, or not finite: trouble may be passing."""
        if embeds.nbytes > self._max_bytes or digest in self._embeds:
            return
        try:
            if not bool(embeds.isfinite().all()):
                return
            # A part of a batch would keep the whole batch in memory.
            self._embeds[digest] = embeds.clone()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.clear()
            return
        self.num_bytes += embeds.nbytes
        while self.num_bytes > self._max_bytes:
            _, oldest = self._embeds.popitem(last=False)
            self.num_bytes -= oldest.nbytes

    def clear(self) -> None:
        """Keep nothing."""
        self.num_bytes = 0
        self._embeds.clear()


def digest_of(features: AudioFeatures) -> bytes:
    """SHA-256 of all that the encoder is given of a clip."""
    digest = hashlib.sha256(f"{features.num_frames} {features.num_audio_tokens}".encode())
    for name, tensor in {"": features.mel, **features.extra}.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.digest()
