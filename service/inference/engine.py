"""The engine: one thread that owns the model, and the door to it for coroutines.

    submit ──▶ Scheduler ──admit──▶ encode ──▶ prefill ──▶ decode, decode, … ──▶ EngineResult
              (waiting)    (slot)   └──────────── one step of the loop ────┘

Every step admits what fits into free slots, gives the newcomers their first token, and every running row
one more: rows of different requests and tasks share the batch, each under its own head mask (continuous
batching). What a step raises costs only the request that caused it.

The sequences in slots belong to the engine's thread; submit, cancel, drain and stop may come from any other,
and reach only what waits.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterable

import structlog

from lalm.family import ModelFamily
from lalm.head_mask import HeadMask
from service.inference.audio_cache import AudioCache
from service.inference.config import EngineConfig, Phase
from service.inference.draft import Drafts
from service.inference.exceptions import EngineStoppedError
from service.inference.ledger import Ledger
from service.inference.memory import BatchLimit
from service.inference.model_runner import ModelRunner
from service.inference.observer import EngineObserver
from service.inference.request import EngineRequest, EngineResult, RowRequest, RowResult
from service.inference.scheduler import Scheduler
from service.inference.steps import Steps
from service.inference.ticket import Ticket, open_ticket

__all__ = [
    "Engine",
    "EngineConfig",
    "EngineObserver",
    "EngineRequest",
    "EngineResult",
    "RowRequest",
    "RowResult",
]

log = structlog.get_logger(__name__)


class Engine:
    """Serves one loaded model. See the module."""

    def __init__(self, family: ModelFamily, config: EngineConfig, observer: EngineObserver) -> None:
        self.family = family
        self._observer = observer
        self._runner = ModelRunner(
            family,
            config.max_slots,
            config.max_sequence_tokens,
            packed=config.packed,
            capture=config.capture,
        )
        in_parts = self._runner.takes_parts
        max_prefill_tokens = config.max_prefill_tokens or (256 if in_parts else 4096)
        self._scheduler = Scheduler(
            config.max_slots, config.max_waiting, max_prefill_tokens, in_parts=in_parts
        )
        self._ledger = Ledger(self._scheduler, observer, family.decode_tokens)
        self._sequence_ids = itertools.count()
        self._drafts = Drafts(family.encode_text)
        self._phase = Phase.NEW
        self._failure: BaseException | None = None
        self._expected_head_masks: tuple[HeadMask, ...] = ()
        self._changed = threading.Condition()  # its lock guards everything above
        self._steps = Steps(
            self._runner,
            self._scheduler,
            self._ledger,
            observer,
            AudioCache(config.max_audio_cache_bytes),
            BatchLimit(config.max_slots),
            self._changed,
            self._notify,
        )
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether `submit` takes requests."""
        return self._phase is Phase.READY

    @property
    def num_waiting(self) -> int:
        """Rows that wait for a slot."""
        return self._scheduler.num_waiting

    @property
    def num_running(self) -> int:
        """Rows in slots."""
        return self._scheduler.num_running

    def start(self, head_masks: Iterable[HeadMask] = ()) -> None:
        """Start the thread and return once the model has run through every stage. Blocks.

        head_masks: those that most rows will come with; the first of them is then as fast as later ones.

        Raises:
            RuntimeError: started before.
            Exception: whatever the model raised in its first run.
        """
        with self._changed:
            if self._phase is not Phase.NEW:
                raise RuntimeError(f"the engine is {self._phase.value}")
            self._phase = Phase.STARTING
            self._expected_head_masks = tuple(head_masks)
            self._thread.start()
            self._changed.wait_for(lambda: self._phase is not Phase.STARTING)
            if self._failure is not None:
                raise self._failure

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and finish those accepted; False if `timeout_s` was too short. Blocks."""
        with self._changed:
            if self._phase in (Phase.STARTING, Phase.READY):
                self._phase = Phase.DRAINING
            return self._changed.wait_for(lambda: self._ledger.is_empty, timeout_s)

    def stop(self) -> None:
        """End the thread after its step; requests without an answer get EngineStoppedError. Blocks."""
        with self._changed:
            self._phase = Phase.STOPPED
            self._notify()
        if self._thread.ident is not None:
            self._thread.join()

    async def submit(self, request: EngineRequest) -> EngineResult:
        """Answer every row of a request; as `submit_together` does for several."""
        (result,) = await self.submit_together([request])
        return result

    async def submit_together(self, requests: list[EngineRequest]) -> list[EngineResult]:
        """Answer requests that belong together, in their order: all are queued at once, or none.

        When one of them fails, the others are given up. Cancelling the awaiting task frees their places and
        slots.

        Raises:
            QueueFullError: too many rows are waiting; none of these was queued.
            EngineStoppedError: not ready, or stopped before the answer.
            PromptTooLongError: audio, instruction and answer are longer than one row may be.
            OutOfMemoryError: the model had no memory for this request.
            SequenceFailedError: the model failed on this request.
            ValueError: no audio, no row, or a row that may not generate a token.
        """
        tickets = [
            open_ticket(
                request, self.family, self._drafts, self._runner.max_sequence_tokens, self._sequence_ids
            )
            for request in requests
        ]
        with self._changed:
            if self._phase is not Phase.READY:
                raise EngineStoppedError(f"the engine takes no requests: {self._phase.value}")
            self._ledger.enter(tickets)
            self._notify()
        try:
            return await asyncio.gather(*(ticket.answer for ticket in tickets))
        except BaseException:
            self._cancel(tickets)
            raise

    def _cancel(self, tickets: list[Ticket]) -> None:
        with self._changed:
            for ticket in tickets:
                self._ledger.cancel(ticket)
            self._notify()

    def _notify(self) -> None:
        self._observer.on_queue(self._scheduler.num_waiting, self._scheduler.num_running)
        self._changed.notify_all()

    # From here on: the engine's thread.

    def _run(self) -> None:
        try:
            self._runner.warm_up(self._expected_head_masks)
            with self._changed:
                if self._phase is Phase.STARTING:
                    self._phase = Phase.READY
                self._notify()
            while self._wait_for_work():
                self._step()
        except BaseException as error:
            log.exception("the engine failed")
            self._failure = error
        with self._changed:
            self._phase = Phase.STOPPED
            self._ledger.abandon(self._failure)
            self._notify()

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False when that is to leave."""
        with self._changed:
            if self._scheduler.is_empty:
                self._runner.rest()
            self._changed.wait_for(lambda: self._phase is Phase.STOPPED or not self._scheduler.is_empty)
            return self._phase is not Phase.STOPPED

    def _step(self) -> None:
        with self._changed:
            self._ledger.sweep()
            self._scheduler.max_running = self._steps.batch_limit.num_rows
            admitted = self._scheduler.admit(time.perf_counter())
            self._notify()
        self._steps.run(admitted)
