"""What goes wrong while others are answered; over HTTP, with the real engine and a small model."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from lalm.family import AudioFeatures, ModelFamily
from service.inference.engine import Engine, EngineConfig
from service.inference.observer import EngineObserver, NullObserver
from service.settings import Settings
from tests.engine_support import FamilyWith, Leash
from tests.fake_engine import recording
from tests.mask_files import random_mask, write_mask_file
from tests.served import LIMIT_S, WAV, Service, free_port, run, serving

GOOD_S = [0.4, 0.6, 0.8, 1.0, 1.2, 1.4]
POISONED_S, GIANT_S = 1.7, 2.3


@pytest.fixture
def settings(toy_family: ModelFamily, tmp_path: Path) -> Settings:
    for name in ("asr", "gr"):
        write_mask_file(tmp_path, name, toy_family.identity, random_mask(18, (3, 8), seed=len(name)))
    return Settings(masks_dir=tmp_path, port=free_port(), drain_timeout_s=4 * LIMIT_S)


def engine_of(family: Any, observer: EngineObserver | None = None) -> Any:
    return Engine(family, EngineConfig(max_slots=4), observer or NullObserver())


def post(service: Service, seconds: float, task: str = "asr") -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(
        service.client.post(f"/tasks/{task}", content=recording(seconds), headers=WAV, timeout=LIMIT_S)
    )


def test_a_request_that_breaks_the_model_or_the_memory_costs_no_other_anything(
    toy_family: ModelFamily, settings: Settings
) -> None:
    def num_tokens(seconds: float) -> int:
        return toy_family.features(np.zeros(int(16_000 * seconds), dtype=np.float32)).num_audio_tokens

    def embed_audio(features: list[AudioFeatures]) -> list[torch.Tensor]:
        lengths = {clip.num_audio_tokens for clip in features}
        if num_tokens(POISONED_S) in lengths:
            raise RuntimeError("secret internals")
        if num_tokens(GIANT_S) in lengths:
            raise torch.OutOfMemoryError("secret internals")
        return toy_family.embed_audio(features)

    async def test() -> None:
        async with serving(settings, engine_of(FamilyWith(toy_family, embed_audio=embed_audio))) as service:
            await service.runtime.settled.wait()
            alone = [(await post(service, seconds)).json()["text"] for seconds in GOOD_S]
            for _ in range(2):
                posts = [post(service, seconds) for seconds in (POISONED_S, *GOOD_S, GIANT_S)]
                poisoned, *good, giant = [await each for each in posts]
                assert [response.json()["text"] for response in good] == alone
                assert (poisoned.status_code, giant.status_code) == (500, 503)
                assert poisoned.json()["error"]["type"] == "internal_error"
                assert giant.json()["error"]["type"] == "out_of_memory"
                assert int(giant.headers["retry-after"]) >= 1
                assert "secret" not in poisoned.text + giant.text
            assert (await service.client.get("/readyz")).status_code == 200

    run(test)


def test_sigterm_under_load_answers_every_accepted_request(
    toy_family: ModelFamily, settings: Settings
) -> None:
    leash = Leash()

    async def test() -> None:
        async with serving(settings, engine_of(toy_family, leash)) as service:
            await service.runtime.settled.wait()
            accepted = [post(service, seconds, task) for seconds in GOOD_S for task in ("asr", "gr")]
            # Some run, the others wait, and all stands still.
            await leash.until(lambda: sum(leash.queue) == len(accepted))
            os.kill(os.getpid(), signal.SIGTERM)
            while (await service.client.get("/readyz")).status_code == 200:
                pass  # the signal is on its way
            refused = await post(service, 0.5)
            assert (refused.status_code, refused.json()["error"]["type"]) == (503, "not_ready")
            leash.let_go()
            responses = [await each for each in accepted]
            assert [response.status_code for response in responses] == [200] * len(accepted)
            assert await service.exit_code == 0

    run(test)
