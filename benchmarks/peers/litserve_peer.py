"""LitServe around batched generate (`litserve_app.py`), asked over HTTP."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from pathlib import Path

from benchmarks.jobs import REPOSITORY, Job, Recording, Task
from benchmarks.peers.peer import Answer, PeerError
from benchmarks.peers.process import Served, free_port

PYTHON = REPOSITORY / ".venv-peers" / "bin" / "python"


class LitServePeer:
    """Dynamic batching of up to 16 requests, which is also the service's default number of slots."""

    key = "litserve"
    title = "LitServe, batched generate"
    uses_head_masks = False

    def __init__(self, checkpoint: Path, logs: Path) -> None:
        self._checkpoint, self._logs = checkpoint, logs

    @property
    def pid(self) -> int:
        return self._served.pid

    async def start(self) -> None:
        if not PYTHON.exists():
            raise PeerError("not installed; `make peers` does it")
        port = free_port()
        command = [str(PYTHON), "-m", "benchmarks.peers.litserve_app"]
        command += ["--checkpoint", str(self._checkpoint), "--port", str(port)]
        self._served = await Served.start(
            command, self._logs / "litserve.log", {"PYTHONPATH": str(REPOSITORY)}, port=port, ready="/health"
        )

    async def answer(self, job: Job) -> Answer:
        request = {
            "audio": base64.b64encode(job.recording.content).decode(),
            "instruction": job.task.instruction,
            "max_new_tokens": job.task.spec.max_new_tokens,
        }
        response = await self._served.client.post("/predict", json=request)
        if response.status_code != 200:
            return Answer("", error=f"HTTP {response.status_code}")
        body = response.json()
        return Answer(body["text"], body["after_first_token_s"])

    async def answer_tasks(self, recording: Recording, tasks: Sequence[Task]) -> list[Answer]:
        """All at once: they may share a batch."""
        return list(
            await asyncio.gather(*(self.answer(Job(recording, recording.name, task)) for task in tasks))
        )

    async def stop(self) -> None:
        await self._served.close()
