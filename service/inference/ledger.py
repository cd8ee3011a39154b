"""Which rows belong to which request, and what becomes of the request when one of them ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

import structlog

from service.inference.exceptions import (
    EngineStoppedError,
    InferenceError,
    OutOfMemoryError,
    SequenceFailedError,
)
from service.inference.memory import is_out_of_memory
from service.inference.observer import EngineObserver
from service.inference.request import EngineResult, RowResult
from service.inference.scheduler import Scheduler
from service.inference.sequence import FinishReason, Sequence, SequenceState
from service.inference.ticket import Ticket

if TYPE_CHECKING:
    from torch import Tensor

log = structlog.get_logger(__name__)


class Ledger:
    """The open tickets. Not thread-safe; the engine's lock guards it."""

    def __init__(
        self, scheduler: Scheduler, observer: EngineObserver, decode_tokens: Callable[[list[int]], str]
    ) -> None:
        self._scheduler = scheduler
        self._observer = observer
        self._decode_tokens = decode_tokens
        self._tickets: dict[int, Ticket] = {}  # by the id of each row that has not ended

    @property
    def is_empty(self) -> bool:
        return not self._tickets

    def enter(self, tickets: Iterable[Ticket]) -> None:
        """Queue all rows of some requests, or none.

        Raises:
            QueueFullError: they do not fit.
        """
        owners = {sequence: ticket for ticket in tickets for sequence in ticket.sequences}
        self._scheduler.add(list(owners))
        self._tickets.update((sequence.id, ticket) for sequence, ticket in owners.items())

    def tickets_of(self, sequences: Iterable[Sequence]) -> list[Ticket]:
        """The requests of some rows, each once."""
        return list(dict.fromkeys(self._tickets[sequence.id] for sequence in sequences))

    def audio_embeds(self, sequence: Sequence) -> list[Tensor]:
        """The encoded clips of the request that a row belongs to."""
        embeds = self._tickets[sequence.id].audio_embeds
        if embeds is None:
            raise RuntimeError(f"the audio of sequence {sequence.id} is not encoded")
        return embeds

    def extend(self, sequence: Sequence, token_ids: Iterable[int], eos_token_ids: Collection[int]) -> None:
        """A running row has more tokens; it ends before one that ends the text, or when it has all it may."""
        for token_id in token_ids:
            if token_id in eos_token_ids:
                self.complete(sequence, FinishReason.STOP)
                return
            sequence.output_ids.append(token_id)
            self._tickets[sequence.id].publish(sequence, token_id)
            if len(sequence.output_ids) == sequence.max_new_tokens:
                self.complete(sequence, FinishReason.LENGTH)
                return

    def complete(self, sequence: Sequence, reason: FinishReason) -> None:
        """A row has its answer; the request is answered when it was the last one."""
        ticket = self._tickets[sequence.id]
        self._end(sequence, reason)
        ticket.publish(sequence, None)
        if any(row.id in self._tickets for row in ticket.sequences):
            return
        try:
            ticket.settle(self._result(ticket))
        except Exception as error:  # noqa: BLE001 (a tokeniser's trouble with these tokens concerns nobody else)
            ticket.settle(_failure(sequence, error))

    def fail(self, sequence: Sequence, error: Exception) -> None:
        """The model failed on a row: the request fails, and its other rows end."""
        ticket = self._tickets[sequence.id]
        self._end(sequence, FinishReason.ERROR)
        self._end_all(ticket)
        ticket.settle(_failure(sequence, error))

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for it any more: waiting rows end now, those in slots at the next `sweep`."""
        ticket.cancelled = True
        for sequence in ticket.sequences:
            if sequence.state is SequenceState.WAITING:
                self._end(sequence, FinishReason.CANCELLED)

    def sweep(self) -> None:
        """End the rows in slots of cancelled requests; between steps only."""
        for ticket in set(self._tickets.values()):
            if ticket.cancelled:
                self._end_all(ticket)

    def abandon(self, failure: BaseException | None) -> None:
        """The engine has stopped, because of `failure` or because it was told to: every request ends."""
        for ticket in set(self._tickets.values()):
            stopped = EngineStoppedError("the engine stopped before the answer")
            stopped.__cause__ = failure
            self._end_all(ticket)
            ticket.settle(stopped)

    def _end_all(self, ticket: Ticket) -> None:
        for sequence in ticket.sequences:
            self._end(sequence, FinishReason.CANCELLED)
        ticket.audio_embeds = None

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        if self._scheduler.finish(sequence, reason, time.perf_counter()):
            del self._tickets[sequence.id]
            self._observer.on_row_finished(sequence)

    def _result(self, ticket: Ticket) -> EngineResult:
        rows = [
            RowResult(
                token_ids=sequence.output_ids,
                text=self._decode_tokens(sequence.output_ids),
                finish_reason="stop" if sequence.finish_reason is FinishReason.STOP else "length",
                timings_ms=sequence.times.timings_ms(),
                scores=sequence.scores,
                arrived_s=sequence.times.arrived_s,
            )
            for sequence in ticket.sequences
        ]
        return EngineResult(audio_tokens=ticket.request.num_audio_tokens, rows=rows)


def _failure(sequence: Sequence, error: Exception) -> InferenceError:
    log.error("sequence failed", request_id=sequence.request_id, task=sequence.task, exc_info=error)
    if is_out_of_memory(error):
        return OutOfMemoryError()
    failure = SequenceFailedError(sequence.task)
    failure.__cause__ = error
    return failure
