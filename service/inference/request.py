"""What is submitted to the engine, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lalm.head_mask import HeadMask
from lalm.task import OutputSpec

if TYPE_CHECKING:
    from lalm.family import AudioFeatures


@dataclass(frozen=True)
class RowRequest:
    """One task on the audio of a request.

    head_mask: None for the plain model.
    instruction: None for audio alone, the prompt of a head mask.
    output: the form of the answer, if it is known; it makes answers come faster and changes none.
    with_scores: whether the probabilities of a label task's labels are wanted.
    """

    task: str
    head_mask: HeadMask | None
    instruction: str | None
    max_new_tokens: int
    output: OutputSpec | None = None
    with_scores: bool = False


@dataclass(frozen=True)
class EngineRequest:
    """One upload: `audio` (one or two clips) is encoded once, every row is decoded on its own.

    request_id: for the log; need not be unique.
    on_token: called with the number of a row and each token it generates, then with None once the row is
        complete; in order, in the event loop that waits for the answer, and before it has that. End-of-text
        tokens are not told.
    """

    request_id: str
    audio: list[AudioFeatures]
    rows: list[RowRequest]
    on_token: Callable[[int, int | None], None] | None = None

    @property
    def num_audio_tokens(self) -> int:
        """Decoder positions of all clips."""
        return sum(clip.num_audio_tokens for clip in self.audio)


@dataclass(frozen=True)
class RowResult:
    """The answer of one row.

    token_ids: without the end-of-text token.
    finish_reason: `stop` when the model ended the answer, `length` when `max_new_tokens` did.
    timings_ms: milliseconds in `queue`, `encoder`, `prefill`, `decode`, and their sum, `total`.
    scores: probability of each label among the labels of a label task, if it was asked for and can be had:
        not under a decoder with a sliding window.
    arrived_s: when it came to the engine, in seconds of `time.perf_counter`; the stages follow from there.
    """

    token_ids: list[int]
    text: str
    finish_reason: Literal["stop", "length"]
    timings_ms: dict[str, float]
    scores: dict[str, float] | None = None
    arrived_s: float | None = None


@dataclass(frozen=True)
class EngineResult:
    """The answers to one request, in the order of its rows; audio_tokens counts all clips."""

    audio_tokens: int
    rows: list[RowResult]
