"""This project's service, with the settings a user gets, but that no encoded audio is kept.

Workloads send the same recordings many times, which the peers encode every time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.jobs import Job, Recording, Task
from benchmarks.peers.peer import Answer
from benchmarks.peers.process import Served, free_port, serve_command

_INSIDE = ("encoder", "prefill", "decode")
_MAX_WAIT_S = 2.0


class ServicePeer:
    """`ahamask serve`, asked over HTTP. A 429 is counted and asked again after its Retry-After."""

    key = "ahamask"
    title = "AHAMask service"
    uses_head_masks = True

    def __init__(self, checkpoint: Path, logs: Path) -> None:
        self._checkpoint, self._logs = checkpoint, logs

    @property
    def pid(self) -> int:
        return self._served.pid

    async def start(self) -> None:
        port = free_port()
        environment = {"AHAMASK_LOG_LEVEL": "warning", "AHAMASK_MAX_AUDIO_CACHE_BYTES": "0"}
        self._served = await Served.start(
            serve_command(self._checkpoint, port),
            self._logs / "ahamask.log",
            environment,
            port=port,
            ready="/readyz",
        )

    async def answer(self, job: Job) -> Answer:
        response, num_refused = await self._post(f"/tasks/{job.task.name}", job.recording)
        if response.status_code != 200:
            return Answer("", num_refused=num_refused, error=f"HTTP {response.status_code}")
        return _answer(response.json(), num_refused)

    async def answer_tasks(self, recording: Recording, tasks: Sequence[Task]) -> list[Answer]:
        """One upload: the audio is encoded once, the tasks share the batch."""
        names = ",".join(task.name for task in tasks)
        response, num_refused = await self._post(f"/tasks?tasks={names}", recording)
        if response.status_code != 200:
            return [Answer("", num_refused=num_refused, error=f"HTTP {response.status_code}")] * len(tasks)
        return [_answer(answer, num_refused) for answer in response.json()["results"].values()]

    async def _post(self, path: str, recording: Recording) -> tuple[httpx.Response, int]:
        num_refused = 0
        while True:
            response = await self._served.client.post(
                path, content=recording.content, headers={"Content-Type": "audio/wav"}
            )
            if response.status_code != 429:
                return response, num_refused
            num_refused += 1
            await asyncio.sleep(min(float(response.headers.get("Retry-After", "1")), _MAX_WAIT_S))

    async def stop(self) -> None:
        await self._served.close()


def _answer(body: dict[str, Any], num_refused: int) -> Answer:
    timings_ms = body["timings_ms"]
    return Answer(
        body["text"],
        after_first_token_s=timings_ms["decode"] / 1e3,
        inside_s=sum(timings_ms[stage] for stage in _INSIDE) / 1e3,
        num_refused=num_refused,
    )
