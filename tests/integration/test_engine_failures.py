"""What goes wrong costs nobody else anything: cancels, errors, a full queue, drain and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from lalm.family import AudioFeatures, ModelFamily
from lalm.head_mask import HeadMask
from service.inference.chunk import Chunk
from service.inference.decode_graphs import DecodeGraphs
from service.inference.engine import Engine, EngineConfig, EngineRequest, EngineResult
from service.inference.exceptions import (
    EngineStoppedError,
    PromptTooLongError,
    QueueFullError,
    SequenceFailedError,
)
from service.inference.observer import NullObserver
from service.inference.packed import PackedPass
from service.inference.padded import PaddedPass
from tests.engine_support import (
    FORWARDS,
    FamilyWith,
    Leash,
    make_request,
    make_row,
    poisoned,
    random_mask,
    reference,
    running_engine,
)


@contextmanager
def decode_fails_under(head_mask: HeadMask) -> Iterator[None]:
    """Every decode step with a row under this mask raises, however it runs; prefills do not."""

    def refusing(decode: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(self: Any, input_ids: Sequence[int], chunks: Sequence[Chunk]) -> Any:
            if any(chunk.head_mask == head_mask for chunk in chunks):
                raise RuntimeError("secret internals")
            return decode(self, input_ids, chunks)

        return refuse

    with (
        patch.object(PackedPass, "decode", refusing(PackedPass.decode)),
        patch.object(PaddedPass, "decode", refusing(PaddedPass.decode)),
        patch.object(DecodeGraphs, "decode", refusing(DecodeGraphs.decode)),
    ):
        yield


def good_requests(family: ModelFamily, count: int = 3) -> list[EngineRequest]:
    return [
        make_request(family, 1.0 + seed, make_row(random_mask(family, seed), n=10 + seed), seed=seed)
        for seed in range(count)
    ]


async def gather(answers: list[Awaitable[EngineResult]]) -> list[EngineResult | BaseException]:
    return await asyncio.gather(*answers, return_exceptions=True)


def check_only_the_second_fails(
    engine: Engine, family: ModelFamily, bad: EngineRequest
) -> SequenceFailedError:
    """Ask good, bad, good, good at once; the good ones get their tokens and no slot is lost."""
    good = good_requests(family)
    order = [good[0], bad, *good[1:]]

    async def ask() -> list[EngineResult | BaseException]:
        return await gather([engine.submit(request) for request in order])

    for _ in range(2):  # the second round runs in the slots that the first has left
        first, failure, *others = asyncio.run(ask())
        for request, answer in zip(good, [first, *others], strict=True):
            assert isinstance(answer, EngineResult)
            assert answer.rows[0].token_ids == reference(family, request, request.rows[0])
        assert isinstance(failure, SequenceFailedError)
        assert (engine.num_waiting, engine.num_running) == (0, 0)
    assert engine.ready
    return failure


def test_audio_that_breaks_the_encoder_fails_alone(toy_family: ModelFamily) -> None:
    bad = make_request(toy_family, 0.77, make_row(None))

    def embed_audio(features: list[AudioFeatures]) -> list[torch.Tensor]:
        if any(clip is bad.audio[0] for clip in features):
            raise RuntimeError("secret internals")
        return toy_family.embed_audio(features)

    with running_engine(FamilyWith(toy_family, embed_audio=embed_audio)) as engine:
        failure = check_only_the_second_fails(engine, toy_family, bad)
    assert str(failure.__cause__) == "secret internals"
    assert "secret" not in str(failure)


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_prompt_that_breaks_the_prefill_fails_alone(toy_family: ModelFamily, forward: str) -> None:
    wrong_shape = HeadMask.ones(1, 1)
    with running_engine(toy_family, **FORWARDS[forward]) as engine:
        failure = check_only_the_second_fails(
            engine, toy_family, make_request(toy_family, 1.0, make_row(wrong_shape))
        )
    assert isinstance(failure.__cause__, ValueError)


@pytest.mark.parametrize("forward", FORWARDS)
def test_a_row_that_breaks_the_decode_step_fails_alone(toy_family: ModelFamily, forward: str) -> None:
    marked = random_mask(toy_family, 99, num_active=5)
    with decode_fails_under(marked), running_engine(toy_family, **FORWARDS[forward]) as engine:
        failure = check_only_the_second_fails(
            engine, toy_family, make_request(toy_family, 1.0, make_row(marked))
        )
    assert str(failure.__cause__) == "secret internals"


def test_an_answer_that_cannot_be_decoded_fails_alone(toy_family: ModelFamily) -> None:
    bad = make_request(toy_family, 1.5, make_row(random_mask(toy_family, 42), n=7))
    unspeakable = reference(toy_family, bad, bad.rows[0])

    def decode_tokens(ids: list[int]) -> str:
        if ids == unspeakable:
            raise KeyError(ids[0])
        return toy_family.decode_tokens(ids)

    with running_engine(FamilyWith(toy_family, decode_tokens=decode_tokens)) as engine:
        check_only_the_second_fails(engine, toy_family, bad)


@pytest.mark.parametrize("forward", FORWARDS)
def test_what_is_not_finite_fails_alone_and_leaves_nothing_in_its_slot(
    toy_family: ModelFamily, forward: str
) -> None:
    long = make_request(toy_family, 6.0, make_row(random_mask(toy_family, 1), n=40), seed=1)
    bad = make_request(toy_family, 5.0, make_row(None), seed=2)
    bad = EngineRequest("bad", [poisoned(bad.audio[0])], bad.rows)
    short = make_request(toy_family, 0.3, make_row(random_mask(toy_family, 3), n=30), seed=3)
    leash = Leash()
    batches = []

    def lm_head(hidden: torch.Tensor) -> Any:
        batches.append(len(hidden))
        return toy_family.lm_head(hidden)

    async def ask(engine: Engine) -> list[EngineResult]:
        running = asyncio.create_task(engine.submit(long))
        await leash.decode_steps(1)
        failing = asyncio.create_task(engine.submit(bad))
        await leash.decode_steps(1)
        with pytest.raises(SequenceFailedError) as failed:
            await failing
        assert isinstance(failed.value.__cause__, FloatingPointError)
        # Takes the slot of the bad one, and is decoded beside a row that is longer than itself: with what the
        # bad one left there, every step would fail, and be done again row by row.
        follower = asyncio.create_task(engine.submit(short))
        await leash.decode_steps(2)
        assert batches[-3:] == [1, 2, 2]
        leash.let_go()
        return [await running, await follower]

    family = FamilyWith(toy_family, lm_head=lm_head)
    with running_engine(family, leash, max_slots=2, **FORWARDS[forward]) as engine:
        answers = asyncio.run(ask(engine))
    for request, answer in zip((long, short), answers, strict=True):
        assert answer.rows[0].token_ids == reference(toy_family, request, request.rows[0])


def test_one_bad_row_fails_its_request_and_frees_the_other_rows(toy_family: ModelFamily) -> None:
    rows = [make_row(random_mask(toy_family, 1)), make_row(HeadMask.ones(1, 1)), make_row(None)]
    leash = Leash()
    leash.let_go()
    with running_engine(toy_family, leash, max_slots=2) as engine:
        with pytest.raises(SequenceFailedError):
            asyncio.run(engine.submit(make_request(toy_family, 1.0, *rows)))
        assert (engine.num_waiting, engine.num_running) == (0, 0)
    assert sorted(str(sequence.finish_reason) for sequence in leash.finished) == [
        "cancelled",
        "cancelled",
        "error",
    ]


def test_a_cancelled_request_frees_its_places_and_its_slots(toy_family: ModelFamily) -> None:
    many = make_request(toy_family, 1.0, *(make_row(None, n=100) for _ in range(3)))
    after = good_requests(toy_family, 1)[0]
    leash = Leash()

    async def ask(engine: Engine) -> EngineResult:
        going = asyncio.create_task(engine.submit(many))
        await leash.decode_steps(2)
        assert leash.queue == (1, 2)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        assert leash.queue == (0, 2)  # the step that is under way still has both rows
        answer = asyncio.create_task(engine.submit(after))
        await leash.decode_steps(1)
        assert leash.queue == (0, 1)
        leash.let_go()
        return await answer

    with running_engine(toy_family, leash, max_slots=2) as engine:
        answer = asyncio.run(ask(engine))
    assert answer.rows[0].token_ids == reference(toy_family, after, after.rows[0])
    assert [str(row.finish_reason) for row in leash.finished] == [
        "cancelled",
        "cancelled",
        "cancelled",
        "length",
    ]


def test_an_event_loop_that_has_gone_takes_nothing_along(toy_family: ModelFamily) -> None:
    abandoned, request = make_request(toy_family, 1.0, make_row(None, n=3)), good_requests(toy_family, 1)[0]
    leash = Leash()

    async def walk_away(engine: Engine) -> None:
        task = asyncio.create_task(engine.submit(abandoned))
        await leash.decode_steps(1)
        assert not task.done()
        task.get_loop().stop()  # closed below, with the request still running

    with running_engine(toy_family, leash) as engine:
        loop = asyncio.new_event_loop()
        walking = loop.create_task(walk_away(engine))
        loop.run_forever()
        assert walking.done()
        loop.close()
        leash.let_go()
        answer = asyncio.run(engine.submit(request))
        assert answer.rows[0].token_ids == reference(toy_family, request, request.rows[0])
        assert (engine.num_waiting, engine.num_running) == (0, 0)


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_slot_is_lost_over_a_random_life(toy_family: ModelFamily, seed: int, forward: str) -> None:
    rng = np.random.default_rng(seed)
    marked, leash = random_mask(toy_family, 99, num_active=5), Leash()
    leash.let_go()
    answered: list[tuple[EngineRequest, EngineResult]] = []

    async def one(engine: Engine, number: int) -> None:
        fate = rng.choice(["well", "cancelled", "nan", "shape", "decode"])
        head_mask = {"shape": HeadMask.ones(1, 1), "decode": marked}.get(
            fate, random_mask(toy_family, number)
        )
        rows = [make_row(head_mask, n=int(rng.integers(1, 12))) for _ in range(rng.integers(1, 3))]
        request = make_request(toy_family, float(rng.uniform(0.1, 3.0)), *rows, seed=number)
        if fate == "nan":
            request = EngineRequest("nan", [poisoned(request.audio[0])], rows)
        if fate == "decode":
            rows = [make_row(marked)]
            request = EngineRequest("decode", request.audio, rows)
        steps = len(leash.decoded) + int(rng.integers(0, 6))
        task = asyncio.create_task(engine.submit(request))
        if fate == "cancelled":
            far_enough = asyncio.create_task(leash.until(lambda: len(leash.decoded) >= steps))
            await asyncio.wait((task, far_enough), return_when=asyncio.FIRST_COMPLETED)
            far_enough.cancel()
            task.cancel()
        (answer,) = await gather([task])
        if isinstance(answer, EngineResult):
            assert fate in ("well", "cancelled")
            answered.append((request, answer))
        else:
            assert fate != "well"
            expected = asyncio.CancelledError if fate == "cancelled" else SequenceFailedError
            assert isinstance(answer, expected)

    async def live(engine: Engine) -> None:
        for batch in range(6):
            await asyncio.gather(*(one(engine, 10 * batch + number) for number in range(5)))
        full = good_requests(toy_family, 3)
        answered.extend(zip(full, await asyncio.gather(*map(engine.submit, full)), strict=True))

    with (
        decode_fails_under(marked),
        running_engine(toy_family, leash, max_slots=3, **FORWARDS[forward]) as engine,
    ):
        asyncio.run(live(engine))
        assert engine.drain(60.0)
        assert (engine.num_waiting, engine.num_running) == (0, 0)
    assert max(leash.decoded) == 3
    assert leash.queue == (0, 0)
    for request, answer in answered:
        tokens = [row.token_ids for row in answer.rows]
        assert tokens == [reference(toy_family, request, row) for row in request.rows]


def test_a_row_that_ends_with_another_of_its_request_leaves_nothing_in_its_slot(
    toy_family: ModelFamily,
) -> None:
    long = make_request(toy_family, 6.0, make_row(random_mask(toy_family, 1), n=40), seed=1)
    bad = make_request(toy_family, 7.0, make_row(None), make_row(None), seed=2)
    bad = EngineRequest("bad", [poisoned(bad.audio[0])], bad.rows)
    head_mask = random_mask(toy_family, 3)
    short = [make_request(toy_family, 2.0, make_row(head_mask, n=20), seed=seed) for seed in (3, 4)]
    num_prompt_tokens = sum(map(len, toy_family.prompt_segments(None, 1))) + bad.num_audio_tokens
    leash = Leash()
    batches = []

    def lm_head(hidden: torch.Tensor) -> Any:
        batches.append(len(hidden))
        return toy_family.lm_head(hidden)

    async def ask(engine: Engine) -> None:
        running = asyncio.create_task(engine.submit(long))
        await leash.decode_steps(1)
        failing = asyncio.create_task(engine.submit(bad))
        await leash.decode_steps(2)
        with pytest.raises(SequenceFailedError):
            await failing
        followers = [asyncio.create_task(engine.submit(request)) for request in short]
        await leash.decode_steps(2)
        assert batches[-2:] == [3, 3]
        leash.let_go()
        await asyncio.gather(running, *followers)

    # In one step the first bad row is prefilled, and a part of the second, longer than those that follow it.
    options = {"max_slots": 3, "packed": True, "max_prefill_tokens": num_prompt_tokens * 3 // 2}
    with running_engine(FamilyWith(toy_family, lm_head=lm_head), leash, **options) as engine:
        asyncio.run(ask(engine))


def test_a_full_queue_refuses_and_takes_again(toy_family: ModelFamily) -> None:
    leash = Leash()
    request = good_requests(toy_family, 1)[0]
    pair = EngineRequest("pair", request.audio, request.rows * 2)

    async def ask(engine: Engine) -> None:
        accepted = [asyncio.create_task(engine.submit(request))]
        await leash.decode_steps(1)
        accepted.append(asyncio.create_task(engine.submit(request)))
        await leash.until(lambda: leash.queue == (1, 1))
        with pytest.raises(QueueFullError) as refused:
            await engine.submit(pair)
        assert refused.value.retry_after_s > 0
        assert engine.num_waiting == 1
        accepted.append(asyncio.create_task(engine.submit(request)))
        await leash.until(lambda: leash.queue == (2, 1))
        with pytest.raises(QueueFullError):
            await engine.submit(request)
        leash.let_go()
        assert len({tuple(answer.rows[0].token_ids) for answer in await asyncio.gather(*accepted)}) == 1
        assert len((await engine.submit(pair)).rows) == 2

    with running_engine(toy_family, leash, max_slots=1, max_waiting=2) as engine:
        asyncio.run(ask(engine))


def test_drain_finishes_what_was_accepted_and_refuses_the_rest(toy_family: ModelFamily) -> None:
    leash = Leash()
    requests = good_requests(toy_family)

    async def ask(engine: Engine) -> None:
        answers = [asyncio.create_task(engine.submit(request)) for request in requests]
        await leash.decode_steps(1)
        assert not await asyncio.to_thread(engine.drain, 0.0)
        assert not engine.ready
        with pytest.raises(EngineStoppedError, match="draining"):
            await engine.submit(requests[0])
        leash.let_go()
        assert await asyncio.to_thread(engine.drain, 60.0)
        for request, answer in zip(requests, await asyncio.gather(*answers), strict=True):
            assert answer.rows[0].token_ids == reference(toy_family, request, request.rows[0])

    with running_engine(toy_family, leash, max_slots=1) as engine:
        asyncio.run(ask(engine))


def test_stop_ends_what_is_left(toy_family: ModelFamily) -> None:
    leash = Leash()

    async def ask(engine: Engine) -> list[EngineResult | BaseException]:
        answers = [asyncio.create_task(engine.submit(request)) for request in good_requests(toy_family)]
        await leash.decode_steps(1)
        # The engine stands in a step, and leaves after it.
        stopping = asyncio.create_task(asyncio.to_thread(engine.stop))
        await leash.until(lambda: not engine.ready)
        leash.let_go()
        await stopping
        return await gather(list(answers))

    with running_engine(toy_family, leash, max_slots=2) as engine:
        answers = asyncio.run(ask(engine))
        engine.stop()
        with pytest.raises(EngineStoppedError):
            asyncio.run(engine.submit(good_requests(toy_family, 1)[0]))
    assert [type(answer) for answer in answers] == [EngineStoppedError] * 3
    assert (engine.num_waiting, engine.num_running) == (0, 0)


def test_an_engine_runs_once_and_only_when_started(toy_family: ModelFamily) -> None:
    engine = Engine(toy_family, EngineConfig(), NullObserver())
    assert not engine.ready
    with pytest.raises(EngineStoppedError, match="not started"):
        asyncio.run(engine.submit(good_requests(toy_family, 1)[0]))
    engine.start()
    assert engine.ready
    with pytest.raises(RuntimeError, match="ready"):
        engine.start()
    engine.stop()
    assert not engine.ready


def test_a_model_that_does_not_run_fails_the_start(toy_family: ModelFamily) -> None:
    def embed_audio(features: list[AudioFeatures]) -> list[torch.Tensor]:
        raise RuntimeError("no kernel for this device")

    engine = Engine(FamilyWith(toy_family, embed_audio=embed_audio), EngineConfig(), NullObserver())
    with pytest.raises(RuntimeError, match="no kernel"):
        engine.start()
    assert not engine.ready
    engine.stop()


def test_an_engine_that_breaks_says_so_to_everybody(toy_family: ModelFamily) -> None:
    class Broken(NullObserver):
        def on_decode_step(self, seconds: float, num_rows: int) -> None:
            raise RuntimeError("broken")

    with running_engine(toy_family, Broken(), max_slots=1) as engine:

        async def ask() -> list[EngineResult | BaseException]:
            return await gather([engine.submit(request) for request in good_requests(toy_family)])

        answers = asyncio.run(ask())
        assert not engine.ready
    assert [type(answer) for answer in answers] == [EngineStoppedError] * 3


def test_the_decoders_own_limit_holds(toy_family: ModelFamily) -> None:
    limit_tokens = toy_family.decoder.config.max_position_embeddings
    request = make_request(toy_family, 2.0, make_row(None, n=limit_tokens))
    with running_engine(toy_family, max_sequence_tokens=10 * limit_tokens) as engine:
        refused = asyncio.run(gather([engine.submit(request)]))
    assert isinstance(refused[0], PromptTooLongError)


def test_requests_that_cannot_be_run_are_refused_at_once(toy_family: ModelFamily) -> None:
    request = make_request(toy_family, 2.0, make_row(None, n=14))
    num_prompt_tokens = request.num_audio_tokens + sum(map(len, toy_family.prompt_segments(None, 1)))

    with running_engine(toy_family, max_sequence_tokens=num_prompt_tokens + 14) as engine:
        (row,) = asyncio.run(engine.submit(request)).rows
        assert row.token_ids == reference(toy_family, request, request.rows[0])
        longer = EngineRequest("longer", request.audio, [make_row(None, n=15)])
        with pytest.raises(PromptTooLongError) as too_long:
            asyncio.run(engine.submit(longer))
        assert too_long.value.limit_tokens == num_prompt_tokens - 1
        for rows, audio in (([], request.audio), (request.rows, []), ([make_row(None, n=0)], request.audio)):
            with pytest.raises(ValueError, match=r"request needs|max_new_tokens"):
                asyncio.run(engine.submit(EngineRequest("odd", audio, rows)))
        assert engine.num_waiting == 0
