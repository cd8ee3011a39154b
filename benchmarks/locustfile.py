"""Load on a running service: locust -f benchmarks/locustfile.py --host http://localhost:8080 (extra `load`).

A user asks for a task of the service on a recording of samples/, thinks for a second, and asks again; one
request in eleven is for three tasks, one goes to OpenAI's route, two want their answer in events. A request
that is refused (429, 503) counts as failed, and its user waits as long as Retry-After says. No two uploads
are the same bytes, so that no cache has their audio.
"""

from __future__ import annotations

import random
from pathlib import Path

import gevent
from locust import HttpUser, between, task
from locust.clients import ResponseContextManager

_SAMPLES = [path.read_bytes() for path in sorted(Path(__file__).parent.parent.glob("samples/*.wav"))]
_HEADER_BYTES = 44  # of the files in samples/
_NUM_CHANGED = 16


class Listener(HttpUser):
    """Somebody with recordings and questions about them."""

    wait_time = between(0.5, 1.5)

    def on_start(self) -> None:
        self.tasks_served: list[str] = [
            entry["name"] for entry in self.client.get("/tasks").json()["tasks"] if entry["num_audios"] == 1
        ]

    @task(7)
    def one_task(self) -> None:
        name = random.choice(self.tasks_served)
        with self._ask(f"/tasks/{name}") as response:
            if self._is_answered(response) and response.json()["task"] != name:
                response.failure("the answer to another task")

    @task(1)
    def several_tasks(self) -> None:
        names = random.sample(self.tasks_served, k=min(3, len(self.tasks_served)))
        with self._ask("/tasks", name="/tasks?tasks=", tasks=",".join(names)) as response:
            if self._is_answered(response) and set(response.json()["results"]) != set(names):
                response.failure("not the tasks that were asked for")

    @task(2)
    def in_events(self) -> None:
        name = random.choice(self.tasks_served)
        with self._ask(f"/tasks/{name}", name="/tasks/…?stream=true", stream="true") as response:
            if self._is_answered(response) and "event: done" not in response.text:
                response.failure("a stream without its end")

    @task(1)
    def as_openai(self) -> None:
        path = "/v1/audio/transcriptions"
        form = {"data": {"model": "asr"}, "files": {"file": ("a.wav", _recording())}}
        with self.client.post(path, catch_response=True, **form) as response:
            if self._is_answered(response) and "text" not in response.json():
                response.failure("an answer without text")

    def _ask(self, path: str, name: str | None = None, **parameters: str) -> ResponseContextManager:
        return self.client.post(
            path, params=parameters, data=_recording(), name=name or path, catch_response=True
        )

    def _is_answered(self, response: ResponseContextManager) -> bool:
        if response.status_code == 200:
            return True
        response.failure(f"status {response.status_code}")
        if response.status_code in (429, 503):
            gevent.sleep(float(response.headers.get("Retry-After", 1)))
        return False


def _recording() -> bytes:
    """A sample with the lowest bit of a few 16-bit samples at random places flipped."""
    recording = bytearray(random.choice(_SAMPLES))
    for place in random.sample(range(_HEADER_BYTES, len(recording) - 1, 2), k=_NUM_CHANGED):
        recording[place] ^= 1
    return bytes(recording)
