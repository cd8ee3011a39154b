"""One step of the engine: encode and prefill the newcomers, decode everybody.

Runs in the engine's thread. What the model raises fails the request that it concerns, and no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Condition

import structlog

from service.inference.audio_cache import AudioCache
from service.inference.encoding import encode
from service.inference.isolation import isolated
from service.inference.ledger import Ledger
from service.inference.memory import BatchLimit
from service.inference.model_runner import ModelRunner, PromptPart
from service.inference.observer import EngineObserver
from service.inference.scheduler import Scheduler
from service.inference.sequence import Sequence

log = structlog.get_logger(__name__)


class Steps:
    """The computing half of an engine.

    changed: guards the scheduler and the ledger, here held only while rows change. notify: tell, under that
    lock, that they may have. batch_limit: rows that are decoded together.
    """

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        ledger: Ledger,
        observer: EngineObserver,
        audio_cache: AudioCache,
        batch_limit: BatchLimit,
        changed: Condition,
        notify: Callable[[], None],
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._ledger = ledger
        self._observer = observer
        self._audio_cache = audio_cache
        self._changed = changed
        self._notify = notify
        self.batch_limit = batch_limit

    def run(self, admitted: list[Sequence]) -> None:
        """One step; admitted: the rows that have just been given slots."""
        if admitted:
            self._encode(admitted)
        if parts := self._scheduler.prefill_parts():
            self._prefill(parts)
        running = [sequence for sequence in self._scheduler.running if sequence.is_prefilled]
        while running:
            size = self.batch_limit.num_rows
            self._decode(running[:size])
            # A row may have left its slot with another one of its request.
            running = [sequence for sequence in running[size:] if sequence.slot is not None]

    def _encode(self, admitted: list[Sequence]) -> None:
        """Encode the audio of those requests whose first rows these are."""
        tickets = [ticket for ticket in self._ledger.tickets_of(admitted) if ticket.audio_embeds is None]
        start_s = time.perf_counter()
        encoded = encode(
            self._runner.encode,
            self._audio_cache,
            [ticket.request.audio for ticket in tickets],
            self._on_out_of_memory,
        )
        end_s = time.perf_counter()
        if tickets:
            self._observer.on_audio_cache(encoded.num_hits, encoded.num_misses, self._audio_cache.num_bytes)
        if encoded.num_misses:
            self._observer.on_encode(end_s - start_s, encoded.num_misses)
        for sequence in admitted:
            sequence.times.encoded_s = end_s
        with self._changed:
            for ticket, outcome in zip(tickets, encoded.outcomes, strict=True):
                if isinstance(outcome, Exception):
                    self._ledger.fail(next(row for row in ticket.sequences if row in admitted), outcome)
                else:
                    ticket.audio_embeds = outcome
            self._notify()

    def _prefill(self, parts: list[tuple[Sequence, int]]) -> None:
        start_s = time.perf_counter()
        outcomes = isolated(
            self._runner.prefill,
            [PromptPart(row, self._ledger.audio_embeds(row), num_tokens) for row, num_tokens in parts],
            self._on_out_of_memory,
        )
        end_s = time.perf_counter()
        self._observer.on_prefill(end_s - start_s, len(parts))
        tokens: list[list[int] | Exception] = []
        for (sequence, num_tokens), outcome in zip(parts, outcomes, strict=True):
            sequence.num_prefilled += num_tokens
            sequence.times.prefilled_s = end_s
            if isinstance(outcome, Exception):
                tokens.append(outcome)
            else:
                sequence.scores = outcome.scores
                tokens.append(outcome.tokens)
        sequences = [sequence for sequence, _ in parts]
        for ticket in self._ledger.tickets_of(sequences):
            ticket.drop_audio_if_prefilled()
        self._collect(sequences, tokens)

    def _decode(self, sequences: list[Sequence]) -> None:
        start_s = time.perf_counter()
        outcomes = isolated(self._runner.decode, sequences, self._on_out_of_memory)
        self.batch_limit.step_done()
        self._observer.on_decode_step(time.perf_counter() - start_s, len(sequences))
        self._collect(sequences, outcomes)

    def _on_out_of_memory(self, num_rows: int) -> None:
        """A pass over `num_rows` rows did not fit: batches are smaller for a time."""
        self._audio_cache.clear()
        self._runner.recover()
        self.batch_limit.shrink(num_rows)
        log.warning("out of memory", num_rows=num_rows, max_rows=self.batch_limit.num_rows)
        self._observer.on_out_of_memory(self.batch_limit.num_rows)

    def _collect(self, sequences: list[Sequence], outcomes: list[list[int] | Exception]) -> None:
        """Append each row's tokens, and end the rows that are complete or failed."""
        failed = [row for row, it in zip(sequences, outcomes, strict=True) if isinstance(it, Exception)]
        for ticket in self._ledger.tickets_of(failed):
            for sequence in ticket.sequences:  # the others end too, and heard the same audio
                if sequence.slot is not None:
                    self._runner.clear(sequence.slot)
        with self._changed:
            for sequence, outcome in zip(sequences, outcomes, strict=True):
                if sequence.slot is None:
                    continue  # another row of its request has just failed
                if isinstance(outcome, Exception):
                    self._ledger.fail(sequence, outcome)
                else:
                    self._ledger.extend(sequence, outcome, self._runner.eos_token_ids)
            self._notify()
