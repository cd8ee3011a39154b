"""A sequence: one row of the batch, one task on the audio of one request. Holds no tensor.

WAITING ──admit──▶ RUNNING (in a slot) ──▶ FINISHED (with a finish reason)
   └───────────────────cancel────────────────▲
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum

from lalm.head_mask import HeadMask
from service.inference.draft import AnswerDrafts


class SequenceState(Enum):
    """Where a sequence is in its life; it only moves forward."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  # the model said so
    LENGTH = "length"  # max_new_tokens
    CANCELLED = "cancelled"  # the client went away, another row of the request failed, or the engine stopped
    ERROR = "error"


@dataclass
class Times:
    """When a sequence passed each point, in seconds of one monotonic clock; each is None until then."""

    arrived_s: float
    admitted_s: float | None = None
    encoded_s: float | None = None
    prefilled_s: float | None = None
    finished_s: float | None = None

    def timings_ms(self) -> dict[str, float]:
        """Milliseconds in `queue`, `encoder`, `prefill`, `decode`, and their sum, `total`.

        A stage that was not reached takes no time; the one in which the sequence ended takes the rest.
        """
        points = [self.arrived_s, self.admitted_s, self.encoded_s, self.prefilled_s, self.finished_s]
        timings = dict.fromkeys(("queue", "encoder", "prefill", "decode"), 0.0)
        start_s = self.arrived_s
        for number, stage in enumerate(timings, start=1):
            end_s = next((point for point in points[number:] if point is not None), start_s)
            timings[stage] = 1e3 * (end_s - start_s)
            start_s = end_s
        return {**timings, "total": 1e3 * (start_s - self.arrived_s)}


@dataclass(eq=False)
class Sequence:
    """One row.

    id: unique in its engine, in order of arrival.
    num_prompt_tokens: positions of its whole prompt, audio included.
    slot: its place in the batch and in the key-value cache while RUNNING, else None.
    output_ids: tokens generated so far, the end-of-text token not among them.
    drafts: what is known of its answer before it is generated.
    with_scores: whether the probabilities of its labels are asked for.
    num_prefilled: positions of the prompt that are in the key-value cache.
    scores: probability of each label, if asked for and known.
    """

    id: int
    request_id: str
    task: str
    head_mask: HeadMask | None
    instruction: str | None
    num_prompt_tokens: int
    max_new_tokens: int
    times: Times
    drafts: AnswerDrafts = field(default_factory=AnswerDrafts)
    with_scores: bool = False
    state: SequenceState = SequenceState.WAITING
    slot: int | None = None
    num_prefilled: int = 0
    output_ids: list[int] = field(default_factory=list)
    scores: dict[str, float] | None = None
    finish_reason: FinishReason | None = None

    @property
    def is_prefilled(self) -> bool:
        """Whether its whole prompt is in the key-value cache."""
        return self.num_prefilled == self.num_prompt_tokens

    @property
    def next_position(self) -> int:
        """Where the latest of its tokens goes, which is in no key-value cache yet."""
        return self.num_prompt_tokens + len(self.output_ids) - 1
