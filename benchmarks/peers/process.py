"""Processes of peers: started on a free port, waited for, asked, and ended."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from benchmarks.jobs import REPOSITORY
from benchmarks.peers.peer import PeerError

START_TIMEOUT_S = 400.0
_STOP_TIMEOUT_S = 10.0


def free_port() -> int:
    """A port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def serve_command(model: str | Path, port: int) -> list[str]:
    """This project's service as a command."""
    return [
        sys.executable,
        str(REPOSITORY / "ahamask.py"),
        "serve",
        "--model",
        str(model),
        "--port",
        str(port),
    ]


class ServerProcess:
    """An HTTP server as a child process. Its output goes to a file, whose end an error shows."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("w", encoding="utf-8") as output:
            self._process = subprocess.Popen(
                list(command),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **env},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait_until(self, url: str) -> None:
        """Return once `url` answers 200.

        Raises:
            PeerError: the process ended, or the time was not enough.
        """
        end_s = time.monotonic() + START_TIMEOUT_S
        async with httpx.AsyncClient(timeout=5.0) as client:
            while time.monotonic() < end_s:
                if self._process.poll() is not None:
                    raise PeerError(f"ended with code {self._process.returncode}: {self.log_end()}")
                try:
                    if (await client.get(url)).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.05)
        raise PeerError(f"{url} did not answer within {START_TIMEOUT_S:g} s: {self.log_end()}")

    def log_end(self) -> str:
        """The last lines it printed."""
        return " | ".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])

    def stop(self) -> None:
        """SIGTERM, and after ten seconds SIGKILL for what is left, children too."""
        try:
            children = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _, alive = psutil.wait_procs(children, timeout=1.0)
        for child in alive:
            with suppress(psutil.NoSuchProcess):
                child.kill()


class Served:
    """A server that answers and a client for it; both end together."""

    def __init__(self, server: ServerProcess, client: httpx.AsyncClient) -> None:
        self.client = client
        self._server = server

    @classmethod
    async def start(
        cls, command: Sequence[str], log: Path, env: Mapping[str, str], *, port: int, ready: str
    ) -> Served:
        """Run `command`, which listens on `port`, until the path `ready` answers 200.

        Raises:
            PeerError: it ended or took too long; nothing of it is left.
        """
        address = f"http://127.0.0.1:{port}"
        server = ServerProcess(command, log, env)
        try:
            await server.wait_until(address + ready)
        except PeerError:
            server.stop()
            raise
        limits = httpx.Limits(max_connections=None)
        return cls(server, httpx.AsyncClient(base_url=address, timeout=None, limits=limits))

    @property
    def pid(self) -> int:
        return self._server.pid

    async def close(self) -> None:
        await self.client.aclose()
        self._server.stop()
