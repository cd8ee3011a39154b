"""`transformers serve`, transformers' own server: chat completions with the recording as input_audio."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.jobs import Job, Recording, Task
from benchmarks.peers.litserve_peer import PYTHON
from benchmarks.peers.peer import Answer, PeerError
from benchmarks.peers.process import Served, free_port

COMMAND = PYTHON.parent / "transformers"


class TransformersServePeer:
    """One request at a time: its continuous batching is for text models. Streams, to see the first token."""

    key = "transformers-serve"
    title = "transformers serve"
    uses_head_masks = False

    def __init__(self, checkpoint: Path, logs: Path) -> None:
        self._checkpoint, self._logs = checkpoint, logs

    @property
    def pid(self) -> int:
        return self._served.pid

    async def start(self) -> None:
        if not COMMAND.exists():
            raise PeerError("not installed; `make peers` does it")
        port = free_port()
        command = [str(COMMAND), "serve", str(self._checkpoint), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--device", "cpu", "--dtype", "float32", "--log-level", "error"]
        self._served = await Served.start(
            command,
            self._logs / "transformers-serve.log",
            {"HF_HUB_OFFLINE": "1"},
            port=port,
            ready="/v1/models",
        )

    async def answer(self, job: Job) -> Answer:
        request = self._request(job)
        pieces: list[str] = []
        first_s = None
        async with self._served.client.stream("POST", "/v1/chat/completions", json=request) as response:
            if response.status_code != 200:
                return Answer("", error=f"HTTP {response.status_code}")
            async for line in response.aiter_lines():
                piece = _piece(line)
                if piece and first_s is None:
                    first_s = time.perf_counter()
                pieces.append(piece)
        after_s = None if first_s is None else time.perf_counter() - first_s
        return Answer("".join(pieces).strip(), after_s)

    def _request(self, job: Job) -> dict[str, Any]:
        audio = {"data": base64.b64encode(job.recording.content).decode(), "format": "wav"}
        content = [
            {"type": "input_audio", "input_audio": audio},
            {"type": "text", "text": job.task.instruction},
        ]
        return {
            "model": str(self._checkpoint),
            "messages": [{"role": "user", "content": content}],
            "max_tokens": job.task.spec.max_new_tokens,
            "temperature": 0,
            "stream": True,
        }

    async def answer_tasks(self, recording: Recording, tasks: Sequence[Task]) -> list[Answer]:
        return [await self.answer(Job(recording, recording.name, task)) for task in tasks]

    async def stop(self) -> None:
        await self._served.close()


def _piece(line: str) -> str:
    """The text that one line of the event stream adds."""
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return ""
    choices = json.loads(data).get("choices") or [{}]
    return str(choices[0].get("delta", {}).get("content") or "")
