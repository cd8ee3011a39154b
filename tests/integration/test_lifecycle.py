"""Start and exit, on real sockets and with real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from lalm.head_mask import ModelIdentity
from service.app import create_app, serve, serve_app
from service.settings import Settings
from tests.fake_engine import IDENTITY, FakeEngine, FakeFamily
from tests.served import LIMIT_S, free_port, run, serving


def test_while_loading_the_service_is_alive_and_not_ready(settings: Settings, engine: FakeEngine) -> None:
    loading = threading.Event()

    class SlowFamily(FakeFamily):
        @property
        def identity(self) -> ModelIdentity:  # type: ignore[override]
            assert loading.wait(LIMIT_S)
            return IDENTITY

    engine.family = SlowFamily()

    async def test() -> None:
        async with serving(settings, engine) as service:
            assert (await service.client.get("/healthz")).status_code == 200
            for response in (await service.client.get("/readyz"), await service.post()):
                assert response.status_code == 503
                assert int(response.headers["retry-after"]) > 0
                assert response.json()["error"]["type"] == "not_ready"
                assert "loading" in response.json()["error"]["message"]
            loading.set()
            await service.runtime.settled.wait()
            assert (await service.client.get("/readyz")).status_code == 200
            assert (await service.post()).status_code == 200

    run(test)


def test_sigterm_answers_what_was_accepted_and_refuses_the_rest(
    settings: Settings, engine: FakeEngine
) -> None:
    engine.hold = True

    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            accepted = service.post()
            await service.in_engine()
            os.kill(os.getpid(), signal.SIGTERM)
            while (ready := await service.client.get("/readyz")).status_code == 200:
                pass  # the signal is on its way
            assert ready.headers["retry-after"]
            refused = await service.post()
            assert (refused.status_code, refused.json()["error"]["type"]) == (503, "not_ready")
            assert refused.headers["retry-after"]
            assert (await service.client.get("/healthz")).status_code == 200
            engine.release.set()
            assert (await accepted).status_code == 200
            assert await service.exit_code == 0
            assert not engine.ready

    run(test)


def test_a_second_sigterm_does_not_wait(settings: Settings, engine: FakeEngine) -> None:
    engine.hold = True

    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            abandoned = service.post()
            await service.in_engine()
            os.kill(os.getpid(), signal.SIGTERM)
            while (await service.client.get("/readyz")).status_code == 200:
                pass
            os.kill(os.getpid(), signal.SIGTERM)
            assert await service.exit_code == 0
            assert engine.cancelled.is_set()
            assert (await abandoned).status_code == 503
            assert (await abandoned).json()["error"]["type"] == "not_ready"

    run(test)


def test_draining_ends_at_its_time_limit(settings: Settings, engine: FakeEngine) -> None:
    engine.hold = True

    async def test() -> None:
        async with serving(settings.model_copy(update={"drain_timeout_s": 0.0}), engine) as service:
            await service.runtime.settled.wait()
            abandoned = service.post()
            await service.in_engine()
            os.kill(os.getpid(), signal.SIGTERM)
            assert await service.exit_code == 0
            assert engine.cancelled.is_set()
            assert (await abandoned).status_code == 503
            assert (await abandoned).json()["error"]["type"] == "not_ready"

    run(test)


def test_a_dead_engine_is_neither_ready_nor_alive(settings: Settings, engine: FakeEngine) -> None:
    async def test() -> None:
        async with serving(settings, engine) as service:
            await service.runtime.settled.wait()
            engine.ready = False
            for path in ("/healthz", "/readyz"):
                assert (await service.client.get(path)).status_code == 503
            assert (await service.post()).status_code == 503

    run(test)


def test_missing_masks_end_the_process(settings: Settings, engine: FakeEngine) -> None:
    async def test() -> int:
        return await serve_app(
            create_app(settings.model_copy(update={"masks_dir": Path("/nowhere")}), engine)
        )

    assert asyncio.run(test()) == 1
    assert not engine.ready


@pytest.mark.usefixtures("_logging_restored")
def test_a_model_that_cannot_be_loaded_ends_the_process_with_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(model=str(tmp_path), masks_dir=tmp_path, port=free_port(), log_json=True)
    assert serve(settings) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "cannot start" in line]
    assert str(tmp_path / "config.json") in line


@pytest.mark.usefixtures("_logging_restored")
def test_a_port_in_use_ends_the_process(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind((settings.host, settings.port))
        taken.listen()
        with pytest.raises(SystemExit) as caught:
            serve(settings)
    assert caught.value.code != 0
    # Loading has begun; Python may not end with torch at work in a daemon thread.
    for thread in threading.enumerate():
        if thread.name == "loading":
            thread.join(LIMIT_S)
