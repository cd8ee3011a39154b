"""Tokens as they come, and requests that belong together."""

from __future__ import annotations

import asyncio

import pytest

from lalm.family import ModelFamily
from service.inference.engine import EngineRequest
from service.inference.exceptions import QueueFullError, SequenceFailedError
from tests.engine_support import Leash, make_request, make_row, poisoned, random_mask, running_engine


def listening(request: EngineRequest, heard: list[tuple[int, int | None]]) -> EngineRequest:
    return EngineRequest(
        request.request_id, request.audio, request.rows, lambda row, token: heard.append((row, token))
    )


def test_every_token_is_heard_before_the_answer(toy_family: ModelFamily) -> None:
    rows = [make_row(random_mask(toy_family, seed)) for seed in range(2)]
    heard: list[tuple[int, int | None]] = []

    async def ask() -> None:
        result = await engine.submit(listening(make_request(toy_family, 1.0, *rows), heard))
        for number, row in enumerate(result.rows):
            assert [token for each, token in heard if each == number] == [*row.token_ids, None]
        assert any(row.token_ids for row in result.rows)

    with running_engine(toy_family) as engine:
        asyncio.run(ask())


def test_a_token_is_heard_while_the_row_still_runs(toy_family: ModelFamily) -> None:
    leash = Leash()
    heard: list[tuple[int, int | None]] = []

    async def ask() -> None:
        request = make_request(toy_family, 1.0, make_row(random_mask(toy_family, 3), n=24))
        answer = asyncio.create_task(engine.submit(listening(request, heard)))
        await leash.decode_steps(2)
        assert not answer.done()
        assert len(heard) >= 1
        leash.let_go()
        result = await answer
        assert [token for _, token in heard] == [*result.rows[0].token_ids, None]

    with running_engine(toy_family, leash) as engine:
        asyncio.run(ask())


def test_requests_that_belong_together_get_the_answers_they_get_alone(toy_family: ModelFamily) -> None:
    requests = [
        make_request(toy_family, 0.5 + seed, make_row(random_mask(toy_family, seed)), seed=seed)
        for seed in range(3)
    ]

    async def ask() -> None:
        together = await engine.submit_together(requests)
        alone = [await engine.submit(request) for request in requests]
        assert [result.rows[0].token_ids for result in together] == [
            result.rows[0].token_ids for result in alone
        ]

    with running_engine(toy_family) as engine:
        asyncio.run(ask())


def test_requests_that_belong_together_are_queued_all_or_none(toy_family: ModelFamily) -> None:
    leash = Leash()
    requests = [make_request(toy_family, 0.5, make_row(None, n=4), seed=seed) for seed in range(4)]

    async def ask() -> None:
        first = asyncio.create_task(engine.submit(requests[0]))
        await leash.decode_steps(1)
        with pytest.raises(QueueFullError):
            await engine.submit_together(requests[1:])
        assert (engine.num_running, engine.num_waiting) == (1, 0)
        leash.let_go()
        await first

    with running_engine(toy_family, leash, max_slots=1, max_waiting=2) as engine:
        asyncio.run(ask())


def test_when_one_fails_the_others_are_given_up(toy_family: ModelFamily) -> None:
    leash = Leash()
    good = make_request(toy_family, 0.5, make_row(None, n=24))
    bad = EngineRequest("bad", [poisoned(good.audio[0])], [make_row(None, n=24)])

    async def ask() -> None:
        answers = asyncio.create_task(engine.submit_together([good, bad, good]))
        with pytest.raises(SequenceFailedError):
            await answers
        leash.let_go()
        await leash.until(lambda: leash.queue == (0, 0))
        assert (await engine.submit(good)).rows[0].token_ids

    with running_engine(toy_family, leash) as engine:
        asyncio.run(ask())
