"""From the clips of some requests to their embeddings, each clip encoded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lalm.family import AudioFeatures
from service.inference.audio_cache import AudioCache, digest_of
from service.inference.isolation import ignore, isolated

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """What became of some requests.

    outcomes: for each, the embeddings of its clips, or what the encoder raised on one of them.
    num_hits, num_misses: clips that were, and were not, known already.
    """

    outcomes: list[list[Tensor] | Exception]
    num_hits: int
    num_misses: int


def encode(
    embed: Callable[[list[AudioFeatures]], list[Tensor]],
    cache: AudioCache,
    requests: list[list[AudioFeatures]],
    on_out_of_memory: Callable[[int], None] = ignore,
) -> Encoded:
    """Embed the clips of requests that `cache` does not know, equal ones once; a bad one costs no other.

    embed: the encoder; may be called again on parts of what it failed on.
    on_out_of_memory: see `isolated`.
    """
    digests = [[digest_of(clip) for clip in clips] for clips in requests]
    known: dict[bytes, Tensor | Exception] = {}
    missing: dict[bytes, AudioFeatures] = {}
    for of_request, clips in zip(digests, requests, strict=True):
        for digest, clip in zip(of_request, clips, strict=True):
            if (embeds := cache.get(digest)) is not None:
                known[digest] = embeds
            else:
                missing[digest] = clip
    embedded = isolated(embed, list(missing.values()), on_out_of_memory)
    for digest, outcome in zip(missing, embedded, strict=True):
        known[digest] = outcome
        if not isinstance(outcome, Exception):
            cache.put(digest, outcome)
    num_clips = sum(map(len, requests))
    outcomes = [_outcome([known[digest] for digest in of_request]) for of_request in digests]
    return Encoded(outcomes, num_clips - len(missing), len(missing))


def _outcome(clips: list[Tensor | Exception]) -> list[Tensor] | Exception:
    embeds = []
    for clip in clips:
        if isinstance(clip, Exception):
            return clip
        embeds.append(clip)
    return embeds
