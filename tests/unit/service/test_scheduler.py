from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.inference.exceptions import QueueFullError
from service.inference.scheduler import Scheduler
from service.inference.sequence import FinishReason, Sequence, SequenceState, Times


def make_sequence(number: int = 0, *, num_prompt_tokens: int = 10, arrived_s: float = 0.0) -> Sequence:
    return Sequence(number, f"request-{number}", "asr", None, None, num_prompt_tokens, 8, Times(arrived_s))


def make_sequences(count: int, **kwargs: int) -> list[Sequence]:
    return [make_sequence(number, **kwargs) for number in range(count)]


def test_first_come_first_served_into_the_lowest_slots() -> None:
    scheduler, sequences = Scheduler(2, 8, 1000), make_sequences(4)
    scheduler.add(sequences)

    assert scheduler.admit(1.0) == sequences[:2]
    assert [sequence.slot for sequence in sequences] == [0, 1, None, None]
    assert scheduler.admit(2.0) == []

    scheduler.finish(sequences[0], FinishReason.STOP, 3.0)
    assert scheduler.admit(4.0) == [sequences[2]]
    assert sequences[2].slot == 0
    assert sequences[2].times.admitted_s == 4.0
    assert scheduler.running == [sequences[2], sequences[1]]


def test_a_request_is_queued_whole_or_not_at_all() -> None:
    scheduler = Scheduler(1, 2, 1000)
    scheduler.add(make_sequences(2))
    with pytest.raises(QueueFullError):
        scheduler.add(make_sequences(2))
    assert scheduler.num_waiting == 2
    scheduler.add([make_sequence()])
    assert scheduler.num_waiting == 3


def test_rows_of_one_request_are_admitted_at_different_steps() -> None:
    scheduler, rows = Scheduler(2, 2, 1000), make_sequences(3)
    scheduler.add(rows)
    assert scheduler.admit(0.0) == rows[:2]
    scheduler.finish(rows[1], FinishReason.STOP, 1.0)
    assert scheduler.admit(1.0) == rows[2:]


def test_an_empty_scheduler_takes_a_request_of_any_size() -> None:
    scheduler = Scheduler(1, 0, 1000)
    scheduler.add(make_sequences(5))
    with pytest.raises(QueueFullError):
        scheduler.add([make_sequence()])


def test_the_prefill_budget_counts_padding_and_lets_one_row_in_whatever_its_length() -> None:
    scheduler = Scheduler(8, 8, max_prefill_tokens=100)
    rows = [make_sequence(n, num_prompt_tokens=tokens) for n, tokens in enumerate((500, 10, 10, 60, 10))]
    scheduler.add(rows)
    # 500 alone; then 10 and 10, to which 60 would make it 3 x 60; then 60, to which 10 would make it 2 x 60
    assert scheduler.admit(0.0) == rows[:1]
    assert scheduler.admit(0.0) == rows[1:3]
    assert scheduler.admit(0.0) == rows[3:4]
    assert scheduler.admit(0.0) == rows[4:]


def test_retry_after_follows_how_long_rows_last() -> None:
    def refused_after(row_s: float, num_rows: int = 1) -> float:
        scheduler, rows = Scheduler(2, 2, 1000), make_sequences(5)
        scheduler.add(rows[:1])
        scheduler.admit(0.0)
        scheduler.finish(rows[0], FinishReason.STOP, row_s)
        scheduler.add(rows[1:])
        scheduler.admit(row_s)
        with pytest.raises(QueueFullError) as refused:
            scheduler.add(make_sequences(num_rows))
        return refused.value.retry_after_s

    assert refused_after(6.0) == pytest.approx(3.0)  # one of two slots is free every three seconds
    assert refused_after(60.0) == pytest.approx(30.0)
    assert refused_after(6.0, num_rows=3) == pytest.approx(9.0)
    assert refused_after(6.0, num_rows=300) == pytest.approx(12.0)  # no longer than until all is free


def test_rows_that_are_given_up_say_nothing_of_how_long_rows_last() -> None:
    scheduler, (row, given_up, *rows) = Scheduler(2, 0, 1000), make_sequences(5)
    scheduler.add([row, given_up])
    scheduler.admit(0.0)
    scheduler.finish(given_up, FinishReason.CANCELLED, 0.1)
    scheduler.finish(row, FinishReason.STOP, 6.0)
    scheduler.add(rows[:2])
    scheduler.admit(6.0)
    with pytest.raises(QueueFullError) as refused:
        scheduler.add(rows[2:])
    assert refused.value.retry_after_s == pytest.approx(3.0)


def test_finishing_twice_does_nothing() -> None:
    scheduler, (sequence,) = Scheduler(1, 1, 1000), make_sequences(1)
    scheduler.add([sequence])
    scheduler.admit(0.0)
    assert scheduler.finish(sequence, FinishReason.STOP, 1.0)
    assert not scheduler.finish(sequence, FinishReason.ERROR, 2.0)
    assert (sequence.finish_reason, sequence.times.finished_s) == (FinishReason.STOP, 1.0)


@pytest.mark.parametrize("limits", [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_limits_that_make_no_sense(limits: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="max_slots"):
        Scheduler(*limits)


@given(st.lists(st.floats(0, 100), max_size=3), st.floats(0, 1000))
def test_timings_add_up_however_far_a_sequence_came(gaps: list[float], last_gap: float) -> None:
    points = [5.0]
    for gap in gaps:
        points.append(points[-1] + gap)
    times = Times(*points)
    times.finished_s = points[-1] + last_gap

    timings = times.timings_ms()

    expected = [1e3 * gap for gap in (*gaps, last_gap)] + [0.0] * (3 - len(gaps))
    assert list(timings) == ["queue", "encoder", "prefill", "decode", "total"]
    assert [*timings.values()] == pytest.approx([*expected, sum(expected)], abs=1e-6)


class SchedulerMachine(RuleBasedStateMachine):
    """Random arrivals, admissions, ends and cancels; no slot is lost, none is shared, nobody is overtaken."""

    @initialize(
        max_slots=st.integers(1, 4),
        max_waiting=st.integers(0, 4),
        budget=st.integers(1, 60),
        in_parts=st.booleans(),
    )
    def begin(self, max_slots: int, max_waiting: int, budget: int, in_parts: bool) -> None:
        self.max_slots, self.max_waiting, self.budget = max_slots, max_waiting, budget
        self.in_parts = in_parts
        self.scheduler = Scheduler(max_slots, max_waiting, budget, in_parts=in_parts)
        self.accepted: list[Sequence] = []
        self.now_s = 0.0

    @property
    def alive(self) -> list[Sequence]:
        return [sequence for sequence in self.accepted if sequence.state is not SequenceState.FINISHED]

    @rule(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6))
    def arrive(self, lengths: list[int]) -> None:
        rows = [
            make_sequence(len(self.accepted) + number, num_prompt_tokens=length)
            for number, length in enumerate(lengths)
        ]
        before = len(self.alive)
        fits = not before or before + len(rows) <= self.max_slots + self.max_waiting
        if fits:
            self.scheduler.add(rows)
            self.accepted += rows
        else:
            with pytest.raises(QueueFullError) as refused:
                self.scheduler.add(rows)
            assert refused.value.retry_after_s >= 0
            assert len(self.alive) == before

    @rule()
    def admit(self) -> None:
        self.now_s += 1
        waiting = [sequence for sequence in self.alive if sequence.state is SequenceState.WAITING]
        num_free = self.max_slots - self.scheduler.num_running
        num_left = self.num_left
        admitted = self.scheduler.admit(self.now_s)
        assert admitted == waiting[: len(admitted)]
        if self.in_parts:
            if admitted:
                assert self.num_left - admitted[-1].num_prompt_tokens < self.step_budget
            if len(admitted) < min(len(waiting), num_free):
                assert self.num_left >= self.step_budget
            assert self.num_left == num_left + sum(row.num_prompt_tokens for row in admitted)
            return
        assert bool(admitted) == bool(waiting and num_free)
        padded = len(admitted) * max((row.num_prompt_tokens for row in admitted), default=0)
        assert padded <= self.budget or len(admitted) == 1
        if len(admitted) < min(len(waiting), num_free):
            longest = max(row.num_prompt_tokens for row in waiting[: len(admitted) + 1])
            assert longest * (len(admitted) + 1) > self.budget

    @property
    def step_budget(self) -> int:
        """Of prompts that come in parts: twice as much where nobody in mid-answer waits for it."""
        return self.budget * (1 if any(row.is_prefilled for row in self.scheduler.running) else 2)

    @property
    def num_left(self) -> int:
        return sum(row.num_prompt_tokens - row.num_prefilled for row in self.scheduler.running)

    @rule()
    def prefill(self) -> None:
        unfinished = sorted(
            (row for row in self.scheduler.running if not row.is_prefilled), key=lambda row: row.id
        )
        parts = self.scheduler.prefill_parts()
        assert [row for row, _ in parts] == unfinished[: len(parts)]
        if self.in_parts:
            assert sum(count for _, count in parts) == min(self.step_budget, self.num_left)
            assert all(row.num_prefilled + count == row.num_prompt_tokens for row, count in parts[:-1])
        else:
            assert [count for _, count in parts] == [row.num_prompt_tokens for row in unfinished]
        for row, count in parts:
            assert 0 < count <= row.num_prompt_tokens - row.num_prefilled
            row.num_prefilled += count

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), reason=st.sampled_from(FinishReason))
    def end(self, data: st.DataObject, reason: FinishReason) -> None:
        sequence = data.draw(st.sampled_from(self.alive))
        assert self.scheduler.finish(sequence, reason, self.now_s)
        assert sequence.finish_reason is reason

    @precondition(lambda self: len(self.alive) < len(self.accepted))
    @rule(data=st.data())
    def end_again(self, data: st.DataObject) -> None:
        done = [sequence for sequence in self.accepted if sequence.state is SequenceState.FINISHED]
        assert not self.scheduler.finish(data.draw(st.sampled_from(done)), FinishReason.ERROR, self.now_s)

    @invariant()
    def slots_and_states_agree(self) -> None:
        by_state = {
            state: [sequence for sequence in self.accepted if sequence.state is state]
            for state in SequenceState
        }
        running = by_state[SequenceState.RUNNING]
        slots = [sequence.slot for sequence in running]
        assert len(set(slots)) == len(slots)
        assert all(slot is not None and 0 <= slot < self.max_slots for slot in slots)
        assert sorted(self.scheduler.running, key=lambda row: row.id) == sorted(
            running, key=lambda row: row.id
        )
        assert self.scheduler.num_waiting == len(by_state[SequenceState.WAITING])
        assert self.scheduler.is_empty == (not self.alive)
        assert all(
            row.slot is None
            for state in SequenceState
            if state is not SequenceState.RUNNING
            for row in by_state[state]
        )

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for sequence in self.alive:
            self.scheduler.finish(sequence, FinishReason.CANCELLED, self.now_s)
        rows = make_sequences(self.max_slots, num_prompt_tokens=1)
        self.scheduler.add(rows)
        admitted = [row for _ in rows for row in self.scheduler.admit(self.now_s)]
        assert [row.slot for row in admitted] == list(range(self.max_slots))


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
