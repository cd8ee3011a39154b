from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.jobs import REPOSITORY, SAMPLES, Job, load_expected, load_recordings, load_tasks
from benchmarks.machine import describe, peak_rss_bytes
from benchmarks.peers.generate_peer import GeneratePeer
from benchmarks.peers.peer import PeerError
from benchmarks.peers.process import ServerProcess
from benchmarks.peers.service_peer import ServicePeer
from lalm import tiny


@pytest.fixture(scope="module")
def job() -> Job:
    recording = load_recordings(SAMPLES)[0]
    tasks = load_tasks(REPOSITORY / "masks" / "tiny-lalm", REPOSITORY / "training" / "recipes")
    return Job(recording, recording.name, next(task for task in tasks if task.name == "gr"))


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


def body(text: str) -> dict[str, Any]:
    return {"text": text, "timings_ms": {"encoder": 5.0, "prefill": 10.0, "decode": 30.0, "queue": 1.0}}


def served_by(handler: Any) -> ServicePeer:
    peer = ServicePeer(Path("unused"), Path("unused"))
    client = httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url="http://service")
    peer._served = SimpleNamespace(client=client)
    return peer


def test_a_refusal_is_counted_and_asked_again(job: Job) -> None:
    statuses = iter([429, 429, 200])

    def handler(request: httpx.Request) -> httpx.Response:
        assert (request.url.path, request.content) == ("/tasks/gr", job.recording.content)
        status = next(statuses)
        return httpx.Response(
            status, headers={"Retry-After": "0"}, json=body("male") if status == 200 else {}
        )

    answer = asyncio.run(served_by(handler).answer(job))
    assert (answer.text, answer.num_refused, answer.error) == ("male", 2, None)
    assert (answer.after_first_token_s, answer.inside_s) == (0.03, 0.045)


def test_any_other_status_is_an_error(job: Job) -> None:
    answer = asyncio.run(served_by(lambda _: httpx.Response(503)).answer(job))
    assert answer.error == "HTTP 503"


def test_several_tasks_are_one_upload(job: Job) -> None:
    tasks = [job.task, job.task]

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.params["tasks"] == "gr,gr"
        return httpx.Response(200, json={"id": "x", "results": {"a": body("male"), "b": body("female")}})

    answers = asyncio.run(served_by(handler).answer_tasks(job.recording, tasks))
    assert [answer.text for answer in answers] == ["male", "female"]


def test_generate_answers_over_its_pipe(job: Job, tmp_path: Path) -> None:
    tasks = load_tasks(REPOSITORY / "masks" / "tiny-lalm", REPOSITORY / "training" / "recipes")
    transcribe = Job(job.recording, job.source, next(task for task in tasks if task.name == "asr"))

    async def ask() -> Any:
        peer = GeneratePeer(tiny.CHECKPOINT, tmp_path)
        await peer.start()
        try:
            peak = peak_rss_bytes(peer.pid)
            given_up = asyncio.create_task(peer.answer(transcribe))
            await asyncio.sleep(0)
            given_up.cancel()
            return await peer.answer(job), peak
        finally:
            await peer.stop()

    answer, peak = asyncio.run(ask())
    assert answer.error is None
    assert job.task.spec.parse(answer.text).result == load_expected(SAMPLES)[job.source, "gr"]
    assert answer.after_first_token_s > 0
    assert peak > 50e6


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    server = ServerProcess([sys.executable, "-c", "raise SystemExit('no port')"], tmp_path / "log", {})
    with pytest.raises(PeerError, match="ended with code 1: no port"):
        asyncio.run(server.wait_until("http://127.0.0.1:1/"))
    server.stop()


def test_a_server_takes_its_children_with_it(tmp_path: Path) -> None:
    child = "import time; print('up', flush=True); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    server = ServerProcess([sys.executable, "-c", code], tmp_path / "log", {})
    parent = psutil.Process(server.pid)
    wait_until(lambda: "up" in server.log_end())
    (process,) = parent.children(recursive=True)
    server.stop()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


def test_the_machine_is_described() -> None:
    machine = describe()
    assert machine["num_cpus"] >= 1
    assert machine["processor"]
    assert peak_rss_bytes(os.getpid()) > 10e6
