"""The limits of an engine, and the phases of its life."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from service.inference.decode_graphs import Capture


@dataclass(frozen=True)
class EngineConfig:
    """Limits of one engine.

    max_slots: rows decoded together.
    max_waiting: rows that may wait beyond those.
    max_sequence_tokens: prompt and answer of one row, two clips of 30 s being 1,500 tokens; what the decoder
        can do if that is less.
    max_prefill_tokens: prompt positions of one step; None: 256 where a prompt may come in parts, and
        twice that while no row is in mid-answer; else 4096, padding included, and a longer prompt is let in.
    max_audio_cache_bytes: encoded audio kept for recordings that come again; 0 keeps none.
    packed: False to run the decoder padded even where the packed pass fits.
    capture: how the decode steps of the padded pass are recorded before the engine is ready, to be replayed
        (`decode_graphs.py`); None computes each anew.
    """

    max_slots: int = 16
    max_waiting: int = 64
    max_sequence_tokens: int = 2048
    max_prefill_tokens: int | None = None
    max_audio_cache_bytes: int = 64 * 2**20
    packed: bool = True
    capture: Capture | None = None


class Phase(Enum):
    """Where an engine stands; only READY takes requests."""

    NEW = "not started"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
