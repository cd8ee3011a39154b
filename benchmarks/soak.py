"""Twenty minutes at 80 % of what the service can do: does memory stay flat, is every request answered?

    python -m benchmarks.soak                                    starts a service of its own; 20 minutes
    python -m benchmarks.soak --minutes 0.3 --out /tmp/soak.json a look at whether it runs

First the service is measured: as many clients as it has slots, each asking again as soon as it is answered.
Then requests arrive at random (a Poisson process) at 80 % of that rate, with a random task and a recording
that was not heard before; every tenth is a sample as it lies, whose answer may never change. The verdict is
printed, and written to benchmarks/results/soak.json with all that was seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from benchmarks.soak_service import served
from benchmarks.soak_traffic import Traffic, recordings
from benchmarks.soak_verdict import Sample, verdict

RESULTS = Path(__file__).resolve().parent / "results" / "soak.json"
SAMPLES = Path(__file__).resolve().parent.parent / "samples"


def main(arguments: list[str] | None = None) -> int:
    """Run, print the verdict and write the figures; 0 if it is good."""
    options = _options(arguments)
    report = asyncio.run(_soak(options))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {options.out}")
    for reason in report["verdict"]["reasons"]:
        print(f"- {reason}")
    print("verdict: " + ("good" if report["verdict"]["good"] else "bad"))
    return 0 if report["verdict"]["good"] else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long the load lasts (20)")
    parser.add_argument("--load", type=float, default=0.8, help="share of the measured rate (0.8)")
    parser.add_argument("--clients", type=int, default=16, help="clients of the measurement (16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


async def _soak(options: argparse.Namespace) -> dict[str, Any]:
    duration_s = 60 * options.minutes
    async with served() as (process, base_url):
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        async with httpx.AsyncClient(base_url=base_url, timeout=120.0, limits=limits) as client:
            traffic = Traffic(client, await _tasks(client), recordings(SAMPLES), options.seed)
            rate_hz = await traffic.measure_rate(options.clients, max(5.0, min(60.0, duration_s / 10)))
            print(
                f"{rate_hz:.1f} requests a second at most; {options.load * rate_hz:.1f} from now on",
                flush=True,
            )
            traffic.forget()
            watching = asyncio.create_task(_watch(client, traffic, max(1.0, duration_s / 240)))
            await traffic.arrive(options.load * rate_hz, duration_s)
            watching.cancel()
            (samples,) = await asyncio.gather(watching)
            # Requests that are on their way when the service is told to stop are answered, too.
            last = [asyncio.create_task(traffic.ask()) for _ in range(options.clients)]
            await traffic.all_accepted(len(last))
            process.terminate()
            await asyncio.gather(*last)
        exit_code = await process.wait()
    return {
        "minutes": options.minutes,
        "load": options.load,
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "max_requests_per_s": round(rate_hz, 2),
        "requests": traffic.summary(),
        "exit_code": exit_code,
        "samples": [sample._asdict() for sample in samples],
        "verdict": verdict(samples, traffic.outcomes, exit_code),
    }


async def _tasks(client: httpx.AsyncClient) -> list[str]:
    tasks = (await client.get("/tasks")).json()["tasks"]
    return [task["name"] for task in tasks if task["num_audios"] == 1]


async def _watch(client: httpx.AsyncClient, traffic: Traffic, interval_s: float) -> list[Sample]:
    """What the service says of itself, every `interval_s` seconds until cancelled."""
    samples: list[Sample] = []
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    try:
        while True:
            await asyncio.sleep(interval_s)
            series = _series((await client.get("/metrics")).text)
            sample = Sample(
                time_s=round(loop.time() - start_s, 1),
                rss_bytes=int(series("process_resident_memory_bytes")),
                open_files=int(series("process_open_fds")),
                waiting=int(series("ahamask_waiting")),
                running=int(series("ahamask_running")),
                num_answered=len(traffic.outcomes),
            )
            samples.append(sample)
            mib = sample.rss_bytes / 2**20
            print(f"{sample.time_s:7.0f} s  {mib:7.1f} MiB  {sample.num_answered} answered", flush=True)
    except asyncio.CancelledError:
        return samples


def _series(text: str) -> Callable[[str], float]:
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return lambda name: float(values[name])


if __name__ == "__main__":
    sys.exit(main())
