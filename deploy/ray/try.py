"""Copies of the embedded model on Ray Serve: a second one comes, one is killed, more is asked than they take.

    python deploy/ray/try.py --out deploy/ray/result.json

First, one copy gets more requests than it decodes together, until there are two. Second, clients send
requests, and send one again that got no answer or a 500 or 503; in the middle one copy is killed. Every
request must be answered, and two copies must be there again. Third, copies that take two requests each, with
two more at the proxy, get many at once: some must be answered, the others refused with 503.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray.util.state import list_actors

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from deploy.ray.app import application  # noqa: E402
from service.settings import Settings  # noqa: E402

LIMIT_S = 300.0
NUM_CLIENTS, NUM_REQUESTS, NUM_AT_ONCE = 6, 60, 24
# From the proxy or from a copy that leaves; says nothing of the request itself, which may be sent again.
TRY_AGAIN = {500, 503}


def replica_pids() -> list[int]:
    """The processes of the copies that live."""
    actors = list_actors(filters=[("state", "=", "ALIVE")], limit=1000)
    return [actor.pid for actor in actors if actor.class_name.startswith("ServeReplica:")]


async def until_two(*, without: int = 0) -> list[int]:
    """The processes of two copies, neither of them `without`, once they run.

    Raises:
        TimeoutError: it takes too long.
    """
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s:
        pids = await asyncio.to_thread(replica_pids)
        state = await asyncio.to_thread(lambda: serve.status().applications["default"].status)
        if len(pids) == 2 and without not in pids and state == "RUNNING":
            return pids
        await asyncio.sleep(0.5)
    raise TimeoutError("there are not two copies")


async def grow(client: httpx.AsyncClient, recording: bytes) -> dict[str, Any]:
    """How long it took until a second copy was started, and what became of the requests until then."""
    statuses: Counter[str] = Counter()
    copies_before = len(await asyncio.to_thread(replica_pids))
    grown = asyncio.create_task(until_two())

    async def ask() -> None:
        while not grown.done():
            statuses[str((await client.post("/tasks/asr", content=recording)).status_code)] += 1

    start_s = time.monotonic()
    await asyncio.gather(*(ask() for _ in range(NUM_CLIENTS)))
    return {
        "copies_before": copies_before,
        "copies_after": len(await grown),
        "seconds": round(time.monotonic() - start_s, 1),
        "statuses": dict(statuses),
    }


async def kill_one(client: httpx.AsyncClient, recording: bytes) -> dict[str, Any]:
    """What became of requests while one of two copies was killed."""
    victim, _ = await until_two()
    jobs = iter(range(NUM_REQUESTS))
    first_tries: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    num_sent_again = 0

    async def ask() -> None:
        nonlocal num_sent_again
        for number in jobs:
            if number == NUM_REQUESTS // 3:
                os.kill(victim, signal.SIGKILL)
            for attempt in range(60):
                try:
                    response = await client.post("/tasks/asr", content=recording)
                    outcome = str(response.status_code)
                except httpx.TransportError as error:
                    outcome = type(error).__name__
                if attempt == 0:
                    first_tries[outcome] += 1
                if outcome.isdigit() and int(outcome) not in TRY_AGAIN:
                    break
                num_sent_again += 1
                await asyncio.sleep(1.0)
            answers[f"{outcome} {response.json().get('text')}"] += 1

    start_s = time.monotonic()
    await asyncio.gather(*(ask() for _ in range(NUM_CLIENTS)))
    took_s = time.monotonic() - start_s
    after = await until_two(without=victim)
    return {
        "requests": NUM_REQUESTS,
        "outcomes_of_first_tries": dict(first_tries),
        "sent_again": num_sent_again,
        "answers": dict(answers),
        "seconds": round(took_s, 1),
        "seconds_until_two_copies_again": round(time.monotonic() - start_s, 1),
        "copies_after": len(after),
    }


async def ask_too_much(client: httpx.AsyncClient, recording: bytes) -> dict[str, Any]:
    """What becomes of many requests at once."""
    await until_two()
    responses = await asyncio.gather(
        *(client.post("/tasks/asr", content=recording) for _ in range(NUM_AT_ONCE))
    )
    return {
        "requests": NUM_AT_ONCE,
        "statuses": dict(Counter(str(response.status_code) for response in responses)),
    }


async def run(port: int) -> dict[str, Any]:
    """All parts, and whether they went as they must."""
    samples = REPOSITORY / "samples"
    expected = json.loads((samples / "expected.json").read_text(encoding="utf-8"))
    sample = next(entry for entry in expected if entry["task"] == "asr")
    recording = (samples / sample["file"]).read_bytes()
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S, limits=limits
    ) as client:
        few = Settings(max_slots=2)
        await asyncio.to_thread(serve.run, application(few, min_replicas=1, max_replicas=2, max_queued=64))
        grown = await grow(client, recording)
        await asyncio.to_thread(
            serve.run, application(Settings(), min_replicas=2, max_replicas=2, max_queued=64)
        )
        killed = await kill_one(client, recording)
        narrow = Settings(max_slots=1, max_waiting=1)
        await asyncio.to_thread(serve.run, application(narrow, min_replicas=2, max_replicas=2, max_queued=2))
        refused = await ask_too_much(client, recording)
    ok = (
        (grown["copies_before"], grown["copies_after"], set(grown["statuses"])) == (1, 2, {"200"})
        and set(killed["answers"]) == {f"200 {sample['result']['text']}"}
        and set(refused["statuses"]) == {"200", "503"}
    )
    return {
        "ok": ok,
        "a second copy comes": grown,
        "one of two copies killed": killed,
        "more than they take": refused,
    }


def main() -> int:
    """The exit code: 0 when all went as it must."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=4, include_dashboard=True, runtime_env={"env_vars": environment}, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        result = asyncio.run(run(port))
    finally:
        serve.shutdown()
        ray.shutdown()
    text = json.dumps({"ray": ray.__version__, "num_cpus": os.cpu_count(), **result}, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
