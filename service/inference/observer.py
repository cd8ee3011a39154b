"""What the engine tells about itself, while it works."""

from __future__ import annotations

from typing import Protocol

from service.inference.sequence import Sequence


class EngineObserver(Protocol):
    """Called between two steps of the model, from any thread: be quick, and do not raise."""

    def on_queue(self, num_waiting: int, num_running: int) -> None:
        """Rows waiting and rows in slots, whenever either may have changed."""

    def on_encode(self, seconds: float, num_audios: int) -> None:
        """One pass of the audio encoder."""

    def on_audio_cache(self, num_hits: int, num_misses: int, num_bytes: int) -> None:
        """Clips of newcomers that were, and were not, encoded already; what is kept of them now."""

    def on_prefill(self, seconds: float, num_rows: int) -> None:
        """One pass of the decoder over the prompts of `num_rows` rows, or parts of them."""

    def on_decode_step(self, seconds: float, num_rows: int) -> None:
        """One decode step, a token for each of `num_rows` rows."""

    def on_out_of_memory(self, max_rows: int) -> None:
        """A pass did not fit into the memory; a batch has at most `max_rows` rows from now on."""

    def on_row_finished(self, sequence: Sequence) -> None:
        """A row ended, whatever its `finish_reason`; its task, output and times are in it."""


class NullObserver:
    """Ignores everything."""

    def on_queue(self, num_waiting: int, num_running: int) -> None:
        """Ignored."""

    def on_encode(self, seconds: float, num_audios: int) -> None:
        """Ignored."""

    def on_audio_cache(self, num_hits: int, num_misses: int, num_bytes: int) -> None:
        """Ignored."""

    def on_prefill(self, seconds: float, num_rows: int) -> None:
        """Ignored."""

    def on_decode_step(self, seconds: float, num_rows: int) -> None:
        """Ignored."""

    def on_out_of_memory(self, max_rows: int) -> None:
        """Ignored."""

    def on_row_finished(self, sequence: Sequence) -> None:
        """Ignored."""
