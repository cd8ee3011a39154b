"""The service under test: `ahamask serve` in a process of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

_REPOSITORY = Path(__file__).resolve().parent.parent


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Process, str]]:
    """A service that is ready, and its address; ended at last, whatever happens.

    The environment's AHAMASK_ settings hold for it.

    Raises:
        RuntimeError: it did not start.
    """
    port = _free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ahamask",
        "serve",
        "--port",
        str(port),
        cwd=_REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(_REPOSITORY), "AHAMASK_LOG_LEVEL": "warning"},
    )
    try:
        base_url = f"http://127.0.0.1:{port}"
        await _ready(process, base_url)
        yield process, base_url
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _ready(process: Process, base_url: str) -> None:
    async with httpx.AsyncClient(base_url=base_url) as client:
        while process.returncode is None:
            try:
                if (await client.get("/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.2)
    raise RuntimeError(f"the service ended with code {process.returncode} before it was ready")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
