"""An engine under random arrivals, cancels and failures, driven step by step and held to plain generate.

hypothesis draws what happens between decode steps; the engine stands still meanwhile, so that a failing
example happens again in much the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from lalm.family import ModelFamily
from service.inference.chunk import Chunk
from service.inference.decode_graphs import DecodeGraphs
from service.inference.engine import EngineRequest, EngineResult
from service.inference.exceptions import QueueFullError, SequenceFailedError
from service.inference.packed import PackedPass
from service.inference.padded import PaddedPass
from tests.engine_support import (
    FORWARDS,
    Leash,
    make_request,
    make_row,
    poisoned,
    random_mask,
    reference,
    running_engine,
)

MAX_SLOTS, MAX_WAITING = 3, 4
MARKED = 99  # the seed of the head mask under which a decode step raises


def refusing(decode: Callable[..., Any], marked: Any) -> Callable[..., Any]:
    def refuse(self: Any, input_ids: list[int], chunks: list[Chunk]) -> Any:
        if any(chunk.head_mask == marked for chunk in chunks):
            raise RuntimeError("refused")
        return decode(self, input_ids, chunks)

    return refuse


class Requests:
    """A few requests, good and bad, and what plain generate answers to the good ones; made once."""

    def __init__(self, family: ModelFamily) -> None:
        self.good, self.bad = [], []
        for seed in range(6):
            rows = [
                make_row(random_mask(family, 10 * seed + number), n=1 + 3 * ((seed + number) % 4))
                for number in range(1 + seed % 3)
            ]
            self.good.append(make_request(family, 0.2 + 0.6 * seed, *rows, seed=seed))
        marked = make_row(random_mask(family, MARKED, num_active=5), n=5)
        self.bad.append(make_request(family, 0.8, marked, make_row(None, n=9), seed=20))
        spoilt = make_request(family, 1.3, make_row(random_mask(family, 1), n=4), seed=21)
        self.bad.append(EngineRequest("spoilt", [poisoned(spoilt.audio[0])], spoilt.rows))
        self.expected = [[reference(family, request, row) for row in request.rows] for request in self.good]


class EngineMachine(RuleBasedStateMachine):
    """Needs `family` and `requests` from a class below it."""

    family: ModelFamily
    requests: Requests

    @initialize(forward=st.sampled_from(sorted(FORWARDS)), max_prefill_tokens=st.sampled_from([9, 40, 400]))
    def start(self, forward: str, max_prefill_tokens: int) -> None:
        marked = random_mask(self.family, MARKED, num_active=5)
        self.loop, self.leash, self.stack = asyncio.new_event_loop(), Leash(), ExitStack()
        for decoder in (PackedPass, PaddedPass, DecodeGraphs):
            self.stack.enter_context(patch.object(decoder, "decode", refusing(decoder.decode, marked)))
        self.engine = self.stack.enter_context(
            running_engine(
                self.family,
                self.leash,
                **FORWARDS[forward],
                max_slots=MAX_SLOTS,
                max_waiting=MAX_WAITING,
                max_prefill_tokens=max_prefill_tokens,
            )
        )
        self.open: list[tuple[asyncio.Task[EngineResult], int | None]] = []

    def let(self, task: Any) -> Any:
        return self.loop.run_until_complete(task)

    def submit(self, request: EngineRequest, number: int | None) -> None:
        async def submit() -> asyncio.Task[EngineResult]:
            task = asyncio.create_task(self.engine.submit(request))
            await asyncio.sleep(0)
            return task

        self.open.append((self.let(submit()), number))

    @rule(number=st.integers(0, 5))
    def arrive(self, number: int) -> None:
        self.submit(self.requests.good[number], number)

    @rule(number=st.integers(0, 1))
    def arrive_bad(self, number: int) -> None:
        self.submit(self.requests.bad[number], None)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        task, _ = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        task.cancel()
        self.let(asyncio.gather(task, return_exceptions=True))

    @rule(num_steps=st.integers(1, 3))
    def go_on(self, num_steps: int) -> None:
        """Let the engine do some decode steps, if there is anything to decode."""

        async def go_on() -> None:
            target = len(self.leash.decoded) + num_steps
            for _ in range(num_steps):
                self.leash.allow_step()
            await self.leash.until(lambda: len(self.leash.decoded) >= target or self.leash.queue == (0, 0))

        self.let(go_on())

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        try:
            self.leash.let_go()
            answers = self.let(self.answers())
            assert self.engine.drain(60.0)
            assert (self.engine.num_waiting, self.engine.num_running) == (0, 0)
            for (_, number), answer in zip(self.open, answers, strict=True):
                self.check(answer, number)
        finally:
            self.stack.close()
            self.loop.close()

    async def answers(self) -> list[EngineResult | BaseException]:
        tasks = [task for task, _ in self.open]
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 120)

    def check(self, answer: EngineResult | BaseException, number: int | None) -> None:
        if isinstance(answer, QueueFullError):
            return
        if number is None:
            assert isinstance(answer, SequenceFailedError)
        else:
            assert isinstance(answer, EngineResult)
            assert [row.token_ids for row in answer.rows] == self.requests.expected[number]


@pytest.fixture(scope="module")
def life(toy_family: ModelFamily) -> type[RuleBasedStateMachine]:
    members = {"family": toy_family, "requests": Requests(toy_family)}
    return type("Life", (EngineMachine,), members)


def test_every_request_gets_its_own_answer_whatever_happens_to_others(
    life: type[RuleBasedStateMachine],
) -> None:
    case = life.TestCase
    case.settings = settings(max_examples=10, stateful_step_count=12, deadline=None)
    case("runTest").runTest()
