"""Who waits, who runs, and in which slot. Standard library only: no tensor, no clock, no thread.

First come, first served. Invariants, which hold after every call:

    a sequence is WAITING (in the queue), RUNNING (in one slot) or FINISHED (in neither)
    every slot is free or has exactly one sequence
    waiting + running <= max_slots + max_waiting, but for a single request that is larger than that alone
"""

from __future__ import annotations

import heapq
from collections import deque

from service.inference.exceptions import QueueFullError
from service.inference.sequence import FinishReason, Sequence, SequenceState

# What a row is taken to last before any has finished, and how much the latest one counts afterwards.
_FIRST_GUESS_S = 1.0
_LATEST_WEIGHT = 0.1
# How much more is prefilled in a step that holds up no row in mid-answer: fewer, larger products.
_ALONE_FACTOR = 2


class Scheduler:
    """Admits waiting sequences into free slots. Not thread-safe.

    max_slots: rows in the batch.
    max_waiting: rows that may wait beyond those that fit into slots.
    max_running: rows that `admit` fills the batch up to; `max_slots`, or fewer for a time.
    max_prefill_tokens: prompt positions prefilled in one step, so that rows in mid-answer do not stand still
        for long.
    in_parts: whether a prompt may be prefilled over several steps; then a step without a row in mid-answer
        takes twice as many positions. If not, padding counts, and the first row of a step may exceed the
        limit.
    """

    def __init__(
        self, max_slots: int, max_waiting: int, max_prefill_tokens: int, *, in_parts: bool = False
    ) -> None:
        if min(max_slots, max_prefill_tokens) < 1 or max_waiting < 0:
            raise ValueError("max_slots and max_prefill_tokens must be positive, max_waiting not negative")
        self._max_slots = max_slots
        self._capacity = max_slots + max_waiting
        self._max_prefill_tokens = max_prefill_tokens
        self._in_parts = in_parts
        self._free_slots = list(range(max_slots))  # a heap: low slots first keeps the running ones together
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}
        self._row_s: float | None = None
        self.max_running = max_slots

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def is_empty(self) -> bool:
        return not self._waiting and not self._running

    @property
    def running(self) -> list[Sequence]:
        """The sequences in slots, in the order of their slots."""
        return [self._running[slot] for slot in sorted(self._running)]

    def add(self, sequences: list[Sequence]) -> None:
        """Queue the rows of one request, all or none; they may be admitted at different steps.

        An empty scheduler takes a request of any size, so that every request is accepted some day.

        Raises:
            QueueFullError: not all of them fit.
        """
        num_rows = self.num_waiting + self.num_running
        num_over = num_rows + len(sequences) - self._capacity
        if num_rows and num_over > 0:
            raise QueueFullError(self._seconds_until_free(min(num_over, num_rows)))
        self._waiting.extend(sequences)

    def admit(self, now_s: float) -> list[Sequence]:
        """Move waiting sequences into free slots, as far as the prefill budget of one step goes."""
        admitted: list[Sequence] = []
        while self._waiting and self._free_slots and self.num_running < self.max_running:
            if not self._fits([*admitted, self._waiting[0]]):
                break
            sequence = self._waiting.popleft()
            sequence.state = SequenceState.RUNNING
            sequence.slot = heapq.heappop(self._free_slots)
            sequence.times.admitted_s = now_s
            self._running[sequence.slot] = sequence
            admitted.append(sequence)
        return admitted

    def _fits(self, admitted: list[Sequence]) -> bool:
        """Whether the last of the newcomers is to come in this step as well."""
        if self._in_parts:
            left = sum(row.num_prompt_tokens - row.num_prefilled for row in self._running.values())
            return left < self._step_budget
        longest = max(sequence.num_prompt_tokens for sequence in admitted)
        return len(admitted) == 1 or longest * len(admitted) <= self._max_prefill_tokens

    @property
    def _step_budget(self) -> int:
        """Positions of a step that may come in parts."""
        in_mid_answer = any(row.is_prefilled for row in self._running.values())
        return self._max_prefill_tokens * (1 if in_mid_answer else _ALONE_FACTOR)

    def prefill_parts(self) -> list[tuple[Sequence, int]]:
        """Sequences to prefill in this step, the oldest first, and how many positions of each."""
        parts, left = [], self._step_budget
        for sequence in sorted(self._running.values(), key=lambda row: row.id):
            num_tokens = sequence.num_prompt_tokens - sequence.num_prefilled
            if self._in_parts:
                num_tokens = min(num_tokens, left)
                left -= num_tokens
            if num_tokens:
                parts.append((sequence, num_tokens))
        return parts

    def finish(self, sequence: Sequence, reason: FinishReason, now_s: float) -> bool:
        """End a sequence, from wherever it is; its slot, if it has one, is free for the next `admit`.

        Returns False, having done nothing, when it had ended before.
        """
        if sequence.state is SequenceState.FINISHED:
            return False
        if sequence.slot is None:
            self._waiting.remove(sequence)
        else:
            del self._running[sequence.slot]
            heapq.heappush(self._free_slots, sequence.slot)
            sequence.slot = None
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason = reason
        sequence.times.finished_s = now_s
        if sequence.times.admitted_s is not None and reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._note_duration(now_s - sequence.times.admitted_s)
        return True

    def _note_duration(self, row_s: float) -> None:
        known_s = row_s if self._row_s is None else self._row_s
        self._row_s = known_s + _LATEST_WEIGHT * (row_s - known_s)

    def _seconds_until_free(self, num_rows: int) -> float:
        """An estimate of the time until that many rows have ended, all slots being busy."""
        row_s = _FIRST_GUESS_S if self._row_s is None else self._row_s
        return num_rows * row_s / self._max_slots
