"""An accepted request inside the engine, between the coroutine that waits and the thread that computes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from lalm.family import ModelFamily
from service.inference.draft import MAX_DRAFT_TOKENS, MAX_SCORED_TOKENS, Drafts
from service.inference.exceptions import InferenceError, PromptTooLongError
from service.inference.request import EngineRequest, EngineResult
from service.inference.sequence import Sequence, SequenceState, Times

if TYPE_CHECKING:
    from torch import Tensor


class Ticket:
    """An accepted request: its rows, and the future of the coroutine that waits for it.

    audio_embeds: its encoded clips, from the encoder until the last row's prefill.
    """

    def __init__(
        self, request: EngineRequest, sequences: list[Sequence], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.request = request
        self.sequences = sequences
        self.answer: asyncio.Future[EngineResult] = loop.create_future()
        self.audio_embeds: list[Tensor] | None = None
        self.cancelled = False
        self._loop = loop

    def drop_audio_if_prefilled(self) -> None:
        """Let the encoded clips go unless a row still has to start."""
        if all(row.is_prefilled or row.state is SequenceState.FINISHED for row in self.sequences):
            self.audio_embeds = None

    def publish(self, sequence: Sequence, token_id: int | None) -> None:
        """Tell whoever listens of a row's new token, or (None) that it is complete; from any thread."""
        if self.request.on_token is None:
            return
        with suppress(RuntimeError):  # its event loop is closed
            self._loop.call_soon_threadsafe(self.request.on_token, self.sequences.index(sequence), token_id)

    def settle(self, outcome: EngineResult | InferenceError) -> None:
        """Answer the waiting coroutine; from any thread. Nothing happens when nobody waits any more."""
        with suppress(RuntimeError):  # its event loop is closed
            self._loop.call_soon_threadsafe(self._deliver, outcome)

    def _deliver(self, outcome: EngineResult | InferenceError) -> None:
        if self.answer.done():
            return
        if isinstance(outcome, EngineResult):
            self.answer.set_result(outcome)
        else:
            self.answer.set_exception(outcome)


def open_ticket(
    request: EngineRequest,
    family: ModelFamily,
    drafts: Drafts,
    max_sequence_tokens: int,
    sequence_ids: Iterator[int],
) -> Ticket:
    """A request as the rows that it will be; called in the event loop that waits for the answer.

    Raises:
        PromptTooLongError: a row, its longest answer included, has more than `max_sequence_tokens`.
        ValueError: no audio, no row, or a row that may not generate a token.
    """
    if not request.audio or not request.rows:
        raise ValueError("a request needs audio and at least one row")
    arrived_s = time.perf_counter()
    sequences = []
    for row in request.rows:
        if row.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens of task {row.task!r} is {row.max_new_tokens}")
        segments = family.prompt_segments(row.instruction, len(request.audio))
        num_prompt_tokens = sum(map(len, segments)) + request.num_audio_tokens
        limit_tokens = max_sequence_tokens - row.max_new_tokens
        if num_prompt_tokens > limit_tokens:
            raise PromptTooLongError(num_prompt_tokens, limit_tokens)
        max_draft = MAX_SCORED_TOKENS if row.with_scores else MAX_DRAFT_TOKENS
        max_draft = min(max_draft, max_sequence_tokens - num_prompt_tokens)
        sequences.append(
            Sequence(
                id=next(sequence_ids),
                request_id=request.request_id,
                task=row.task,
                head_mask=row.head_mask,
                instruction=row.instruction,
                num_prompt_tokens=num_prompt_tokens,
                max_new_tokens=row.max_new_tokens,
                times=Times(arrived_s),
                drafts=drafts.of(row.output, max_draft),
                with_scores=row.with_scores,
            )
        )
    return Ticket(request, sequences, asyncio.get_running_loop())
