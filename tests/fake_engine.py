"""An engine that says what the test wants, and the mask files of its tasks."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch

from lalm.audio_input import AudioInput
from lalm.family import AudioFeatures
from lalm.head_mask import HeadMask, MaskFile, ModelIdentity
from lalm.task import TaskSpec
from service.inference.request import EngineRequest, EngineResult, RowResult

IDENTITY = ModelIdentity(
    family="qwen2_audio", name="toy", fingerprint="sha256:" + "0" * 64, num_layers=2, num_heads=4
)
LABELS = ["female", "male"]
TASKS: dict[str, dict[str, Any]] = {
    "asr": {"output": {"kind": "text"}},
    "gr": {"output": {"kind": "label", "labels": LABELS}},
    "asr-gr": {
        "output": {
            "kind": "fields",
            "separator": "|",
            "fields": [{"name": "transcript"}, {"name": "gender", "labels": LABELS}],
        }
    },
    "asv": {"output": {"kind": "label", "labels": ["yes", "no"]}, "num_audios": 2},
}
TEXTS = {"asr": "turn on the light", "gr": "Male", "asr-gr": "turn on the light | male", "asv": "yes"}
WORDS = TEXTS["asr"].split()
TIMINGS_MS = {"queue": 1.0, "encoder": 2.0, "prefill": 3.0, "decode": 4.0, "total": 10.0}


def head_mask(name: str) -> HeadMask:
    return HeadMask.random(2 + sorted(TASKS).index(name), np.random.default_rng(0), (2, 4))


def write_masks(folder: Path) -> None:
    for name, spec in TASKS.items():
        task = {"name": name, "title": name.upper(), "max_new_tokens": 16, **spec}
        heads = tuple(head_mask(name).to_strings())
        mask_file = MaskFile(
            task=TaskSpec.model_validate(task), model=IDENTITY, heads=heads, training={}, evaluation={}
        )
        mask_file.save(folder / f"{name}.json")


class FakeFamily:
    identity = IDENTITY
    max_audio_s = 30.0
    audio_input = AudioInput()

    def __init__(self) -> None:
        self.threads: list[str] = []

    def features(self, waveform: np.ndarray[Any, Any]) -> AudioFeatures:
        self.threads.append(threading.current_thread().name)
        return AudioFeatures(mel=torch.zeros(1, 1), num_frames=len(waveform), num_audio_tokens=7)

    def decode_tokens(self, ids: Sequence[int]) -> str:
        return " ".join(WORDS[token] for token in ids)


class FakeEngine:
    """Answers TEXTS, or raises `error`; with `hold` it answers only once `release` is set.

    Whoever listens hears WORDS, one before the hold and the others after it.
    """

    def __init__(self) -> None:
        self.family = FakeFamily()
        self.ready = False
        self.requests: list[EngineRequest] = []
        self.error: Exception | None = None
        self.hold = False
        self.entered = threading.Event()
        self.cancelled = threading.Event()
        self.release = asyncio.Event()

    def start(self, head_masks: Iterable[HeadMask] = ()) -> None:
        self.ready = True

    def drain(self, timeout_s: float) -> bool:
        return True

    def stop(self) -> None:
        self.ready = False

    async def submit_together(self, requests: list[EngineRequest]) -> list[EngineResult]:
        return list(await asyncio.gather(*(self._submit(request) for request in requests)))

    async def _submit(self, request: EngineRequest) -> EngineResult:
        self.requests.append(request)
        self.entered.set()
        if self.error is not None and request.on_token is None:
            raise self.error
        tell = request.on_token or (lambda row, token: None)
        tell(0, 0)
        try:
            if self.hold:
                await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.error is not None:
            raise self.error
        for token in [*range(1, len(WORDS)), None]:
            tell(0, token)
        rows = [
            RowResult(
                token_ids=[5, 6, 7], text=TEXTS[row.task], finish_reason="stop", timings_ms=dict(TIMINGS_MS)
            )
            for row in request.rows
        ]
        return EngineResult(audio_tokens=7 * len(request.audio), rows=rows)


def recording(seconds: float = 0.5, *, file_format: str = "WAV") -> bytes:
    samples = 0.1 * np.sin(np.arange(int(16_000 * seconds)) * 0.1)
    buffer = io.BytesIO()
    sf.write(buffer, samples, 16_000, format=file_format)
    return buffer.getvalue()
