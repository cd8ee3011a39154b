"""A model that runs out of memory: what does not fit alone is refused, everything else is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lalm.family import AudioFeatures, ModelFamily
from service.inference.engine import Engine, EngineRequest, EngineResult
from service.inference.exceptions import OutOfMemoryError
from tests.engine_support import (
    FamilyWith,
    Leash,
    make_request,
    make_row,
    random_mask,
    reference,
    running_engine,
)


class Memory(Leash):
    """Writes down when the engine ran out of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.limits: list[int] = []

    def on_out_of_memory(self, max_rows: int) -> None:
        self.limits.append(max_rows)


def requests(family: ModelFamily, count: int, *, n: int = 12) -> list[EngineRequest]:
    return [
        make_request(family, 0.5 + 0.3 * seed, make_row(random_mask(family, seed), n=n), seed=seed)
        for seed in range(count)
    ]


async def ask(engine: Engine, asked: list[EngineRequest]) -> list[EngineResult | BaseException]:
    return await asyncio.gather(*map(engine.submit, asked), return_exceptions=True)


async def ask_in_one_batch(
    engine: Engine, memory: Memory, asked: list[EngineRequest]
) -> list[EngineResult | BaseException]:
    """All but the first come while the engine stands still, so that they are admitted in one step."""
    first = asyncio.create_task(engine.submit(asked[0]))
    await memory.decode_steps(1)
    others = asyncio.create_task(ask(engine, asked[1:]))
    await memory.until(lambda: memory.queue == (len(asked) - 1, 1))
    memory.let_go()
    return [await first, *await others]


def check_answers(
    family: ModelFamily, asked: list[EngineRequest], answers: list[EngineResult | BaseException]
) -> None:
    for request, answer in zip(asked, answers, strict=True):
        assert isinstance(answer, EngineResult)
        assert answer.rows[0].token_ids == reference(family, request, request.rows[0])


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def in_the_encoder(family: ModelFamily, fits: Callable[[int], bool]) -> FamilyWith:
    def embed_audio(features: list[AudioFeatures]) -> list[torch.Tensor]:
        if not fits(len(features)):
            raise out_of_memory()
        return family.embed_audio(features)

    return FamilyWith(family, embed_audio=embed_audio)


def in_the_decoder(family: ModelFamily, fits: Callable[[int], bool]) -> FamilyWith:
    def lm_head(hidden: torch.Tensor) -> Any:
        if not fits(len(hidden)):
            raise out_of_memory()
        return family.lm_head(hidden)

    return FamilyWith(family, lm_head=lm_head)


@pytest.mark.parametrize("where", [in_the_encoder, in_the_decoder])
def test_a_batch_that_does_not_fit_is_answered_in_smaller_ones(
    toy_family: ModelFamily, where: Callable[..., FamilyWith]
) -> None:
    memory, asked = Memory(), requests(toy_family, 8)
    with running_engine(where(toy_family, lambda num_rows: num_rows <= 2), memory, max_slots=8) as engine:
        check_answers(toy_family, asked, asyncio.run(ask_in_one_batch(engine, memory, asked)))
        assert memory.limits[0] <= 4
        assert min(memory.limits) <= 2
        check_answers(toy_family, asked, asyncio.run(ask(engine, asked)))
        assert engine.ready
        assert (engine.num_waiting, engine.num_running) == (0, 0)


def test_a_request_that_does_not_fit_alone_fails_and_no_other(toy_family: ModelFamily) -> None:
    memory, asked = Memory(), requests(toy_family, 5)
    giant = make_request(toy_family, 9.0, make_row(None))

    def embed_audio(features: list[AudioFeatures]) -> list[torch.Tensor]:
        if any(clip is giant.audio[0] for clip in features):
            raise out_of_memory()
        return toy_family.embed_audio(features)

    with running_engine(FamilyWith(toy_family, embed_audio=embed_audio), memory, max_slots=6) as engine:
        memory.let_go()
        *answers, failure = asyncio.run(ask(engine, [*asked, giant]))
        check_answers(toy_family, asked, answers)
        assert isinstance(failure, OutOfMemoryError)
        assert failure.retry_after_s > 0
        assert "CUDA" not in str(failure)
        check_answers(toy_family, asked, asyncio.run(ask(engine, asked)))
        assert engine.ready


def test_with_memory_again_the_batch_is_large_again(toy_family: ModelFamily) -> None:
    memory, asked = Memory(), requests(toy_family, 5, n=40)
    room = [1]
    family = in_the_decoder(toy_family, lambda num_rows: num_rows <= room[0])
    with running_engine(family, memory, max_slots=5) as engine:
        answers = asyncio.run(ask_in_one_batch(engine, memory, asked))
        check_answers(toy_family, asked, answers)
        assert memory.limits[-1] == 1
        room[0] = 5
        num_limits = len(memory.limits)
        num_steps = len(memory.decoded)
        while max(memory.decoded[num_steps:], default=0) < 5:
            assert len(memory.decoded) - num_steps < 500
            again = asyncio.run(ask(engine, asked))
            assert [answer.rows[0].token_ids for answer in again] == [
                answer.rows[0].token_ids for answer in answers
            ]
    assert len(memory.limits) == num_limits
