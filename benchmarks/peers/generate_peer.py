"""transformers generate with an instruction, one request at a time, in a process without HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.jobs import REPOSITORY, Job, Recording, Task
from benchmarks.peers.peer import Answer, PeerError
from benchmarks.peers.process import START_TIMEOUT_S

_LINE_BYTES = 64 * 2**20


class GeneratePeer:
    """Requests wait for each other; nothing but a pipe lies between them and the model.

    compiled: a static cache, and the decode step compiled by torch.
    """

    uses_head_masks = False

    def __init__(self, checkpoint: Path, logs: Path, *, compiled: bool = False) -> None:
        self.key = "compiled" if compiled else "generate"
        self.title = "generate, static cache, torch.compile" if compiled else "transformers generate"
        self._checkpoint, self._logs, self._compiled = checkpoint, logs, compiled
        self._one_at_a_time = asyncio.Lock()

    @property
    def pid(self) -> int:
        return self._process.pid

    async def start(self) -> None:
        command = ["-m", "benchmarks.peers.generate_worker", "--checkpoint", str(self._checkpoint)]
        command += ["--compile"] if self._compiled else []
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{self.key}.log"
        with log.open("w", encoding="utf-8") as errors:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                limit=_LINE_BYTES,
            )
        ready = await asyncio.wait_for(self._read(), START_TIMEOUT_S)
        if ready is None:
            await self.stop()
            raise PeerError(log.read_text(encoding="utf-8", errors="replace").strip()[-500:])

    async def answer(self, job: Job) -> Answer:
        request = {
            "audio": base64.b64encode(job.recording.content).decode(),
            "instruction": job.task.instruction,
            "max_new_tokens": job.task.spec.max_new_tokens,
        }
        # An answer that nobody waits for any more is still read, or the next request would get it.
        return await asyncio.shield(self._exchange(request))

    async def _exchange(self, request: dict[str, Any]) -> Answer:
        async with self._one_at_a_time:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()
            body = await self._read()
        if body is None:
            return Answer("", error="the process ended")
        return Answer(body.get("text", ""), body.get("after_first_token_s"), error=body.get("error"))

    async def answer_tasks(self, recording: Recording, tasks: Sequence[Task]) -> list[Answer]:
        return [await self.answer(Job(recording, recording.name, task)) for task in tasks]

    async def _read(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return json.loads(line) if line else None

    async def stop(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()
