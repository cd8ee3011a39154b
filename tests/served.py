"""An application on a real socket, in the test's own process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx

from service.app import create_app, serve_app
from service.runtime import Runtime
from service.settings import Settings
from tests.fake_engine import FakeEngine, recording

LIMIT_S = 120.0
WAV = {"Content-Type": "audio/wav"}


class Service:
    """A served application and a client for it."""

    def __init__(self, settings: Settings, engine: FakeEngine) -> None:
        app = create_app(settings, engine)
        self.engine = engine
        self.runtime: Runtime = app.state.runtime
        self.address = (settings.host, settings.port)
        self.exit_code = asyncio.create_task(serve_app(app))
        # The transport retries until the port is open.
        self.client = httpx.AsyncClient(
            base_url=f"http://{settings.host}:{settings.port}", transport=httpx.AsyncHTTPTransport(retries=8)
        )

    def post(self) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self.client.post("/tasks/asr", content=recording(), headers=WAV))

    async def in_engine(self) -> None:
        """Wait until the engine has a request."""
        assert await asyncio.to_thread(self.engine.entered.wait, LIMIT_S)


@asynccontextmanager
async def serving(settings: Settings, engine: FakeEngine) -> AsyncIterator[Service]:
    service = Service(settings, engine)
    async with service.client:
        await service.client.get("/healthz")
        yield service
        if not service.exit_code.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await service.exit_code


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), LIMIT_S))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
