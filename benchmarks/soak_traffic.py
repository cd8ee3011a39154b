"""Requests of the soak test: random tasks, recordings never heard before, random arrivals."""

from __future__ import annotations

import asyncio
import io
import random
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import soundfile as sf
from numpy.typing import NDArray

# Every so many requests one is a sample as it lies.
_KNOWN_EVERY = 10


class Recording(NamedTuple):
    """A sample: its file, and its samples float32 [num_samples] at `rate_hz`."""

    content: bytes
    waveform: NDArray[np.float32]
    rate_hz: int


class Outcome(NamedTuple):
    """What became of a request: HTTP status, or 0 when there was no answer; `same` is whether a known
    recording was answered as before."""

    status: int
    seconds: float
    same: bool


def recordings(folder: Path) -> list[Recording]:
    """The WAV files of a folder."""
    found = []
    for path in sorted(folder.glob("*.wav")):
        waveform, rate_hz = sf.read(path, dtype="float32")
        found.append(Recording(path.read_bytes(), waveform, rate_hz))
    return found


class Traffic:
    """Asks the service, and writes down what became of it in `outcomes`."""

    def __init__(
        self, client: httpx.AsyncClient, tasks: list[str], samples: list[Recording], seed: int
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._client = client
        self._tasks = tasks
        self._samples = samples
        self._random = random.Random(seed)
        self._noise = np.random.default_rng(seed)
        self._num_asked = 0
        self._answers: dict[tuple[str, int], str] = {}

    def forget(self) -> None:
        """Begin the outcomes anew."""
        self.outcomes = []

    async def measure_rate(self, num_clients: int, seconds: float) -> float:
        """Requests a second that so many clients get answered, each asking as soon as it was answered."""
        loop = asyncio.get_running_loop()
        start_s = loop.time()

        async def keep_asking() -> None:
            while loop.time() < start_s + seconds:
                await self.ask()

        await asyncio.gather(*(keep_asking() for _ in range(num_clients)))
        return sum(outcome.status == 200 for outcome in self.outcomes) / (loop.time() - start_s)

    async def arrive(self, rate_hz: float, seconds: float) -> None:
        """Send requests at random moments, `rate_hz` a second on average, and wait for all answers."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds
        next_s = loop.time()
        asking: set[asyncio.Task[None]] = set()
        while (next_s := next_s + self._random.expovariate(rate_hz)) < end_s:
            await asyncio.sleep(max(0.0, next_s - loop.time()))
            task = asyncio.create_task(self.ask())
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.gather(*asking)

    async def ask(self) -> None:
        """One request."""
        self._num_asked += 1
        task = self._random.choice(self._tasks)
        number = self._random.randrange(len(self._samples))
        known = self._num_asked % _KNOWN_EVERY == 0
        content = self._samples[number].content if known else self._unheard(self._samples[number])
        start_s = asyncio.get_running_loop().time()
        status, same = 0, True
        try:
            response = await self._client.post(
                f"/tasks/{task}", content=content, headers={"Content-Type": "audio/wav"}
            )
            status = response.status_code
            if known and status == 200:
                text = response.json()["text"]
                same = self._answers.setdefault((task, number), text) == text
        except httpx.TransportError:
            pass
        self.outcomes.append(Outcome(status, asyncio.get_running_loop().time() - start_s, same))

    async def all_accepted(self, num_requests: int) -> None:
        """Wait until the service has so many requests, or has answered those that it has not any more."""
        target = len(self.outcomes) + num_requests
        while True:
            lines = (await self._client.get("/metrics")).text.splitlines()
            values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
            in_engine = float(values["ahamask_waiting"]) + float(values["ahamask_running"])
            if len(self.outcomes) + in_engine >= target:
                return

    def summary(self) -> dict[str, Any]:
        """Counts by status, and how long answers took, in milliseconds."""
        statuses = [outcome.status for outcome in self.outcomes]
        times_ms = sorted(1e3 * outcome.seconds for outcome in self.outcomes if outcome.status == 200)
        hundredths = statistics.quantiles(times_ms, n=100) if len(times_ms) > 1 else [0.0] * 99
        return {
            "by_status": {str(status): statuses.count(status) for status in sorted(set(statuses))},
            "latency_ms": {f"p{p}": round(hundredths[p - 1], 1) for p in (50, 95, 99)},
            "num_changed_answers": sum(not outcome.same for outcome in self.outcomes),
        }

    def _unheard(self, sample: Recording) -> bytes:
        """A sample at another level, in a little noise."""
        gain = self._random.uniform(0.7, 1.0)
        noise = 1e-3 * self._noise.standard_normal(len(sample.waveform)).astype(np.float32)
        file = io.BytesIO()
        sf.write(file, gain * sample.waveform + noise, sample.rate_hz, format="WAV", subtype="PCM_16")
        return file.getvalue()
