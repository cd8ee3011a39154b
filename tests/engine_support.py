"""What the tests of the engine share: references, requests, and a leash for the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from lalm.family import AudioFeatures, ModelFamily
from lalm.head_gate import gate_tensor, gating
from lalm.head_mask import HeadMask
from service.inference.decode_graphs import Step
from service.inference.engine import Engine, EngineConfig, EngineRequest, RowRequest
from service.inference.observer import EngineObserver, NullObserver
from service.inference.sequence import Sequence as EngineSequence
from tests.toy import toy_waveform

TIMEOUT_S = 60.0


def capture_by_running_again(step: Step) -> Step:
    """What a CUDA graph does, without a GPU: the output stays where it is and is computed anew."""
    output = step()

    def replay() -> Tensor:
        return output.copy_(step())

    return replay


# The ways in which a decoder runs, as limits of an engine.
FORWARDS: Final[dict[str, dict[str, Any]]] = {
    "packed": {},
    "padded": {"packed": False},
    "replayed": {"packed": False, "capture": capture_by_running_again},
}


class FamilyWith:
    """A family with some of its members replaced."""

    def __init__(self, family: ModelFamily, **members: Any) -> None:
        self._family = family
        self.__dict__.update(members)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)


class Leash(NullObserver):
    """Lets the engine decode only as many steps as it is given, and writes down what it did."""

    def __init__(self) -> None:
        self.encoded: list[int] = []
        self.prefilled: list[int] = []
        self.decoded: list[int] = []
        self.finished: list[EngineSequence] = []
        self.queue = (0, 0)
        self._steps = threading.Semaphore(0)
        self._free = False
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def on_queue(self, num_waiting: int, num_running: int) -> None:
        self.queue = (num_waiting, num_running)
        self._wake()

    def on_encode(self, seconds: float, num_audios: int) -> None:
        assert seconds >= 0
        self.encoded.append(num_audios)

    def on_prefill(self, seconds: float, num_rows: int) -> None:
        assert seconds >= 0
        self.prefilled.append(num_rows)

    def on_decode_step(self, seconds: float, num_rows: int) -> None:
        assert seconds >= 0
        self.decoded.append(num_rows)
        self._wake()
        if not self._free:
            assert self._steps.acquire(timeout=TIMEOUT_S)

    def on_row_finished(self, sequence: EngineSequence) -> None:
        self.finished.append(sequence)

    async def decode_steps(self, count: int) -> None:
        """Return when the engine has done `count` more decode steps, and stands still after the last."""
        await asyncio.sleep(0)  # requests whose tasks were just made are submitted first
        for _ in range(count):
            target = len(self.decoded) + 1
            if self.decoded:
                self._steps.release()
            await self.until(lambda target=target: len(self.decoded) >= target)

    def allow_step(self) -> None:
        """Let the engine go on behind one decode step, the one it stands at or the next."""
        self._steps.release()

    def let_go(self) -> None:
        """Decode freely from now on."""
        self._free = True
        self._steps.release()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition()` holds; looked at whenever the engine has done something."""
        progress = asyncio.Event()
        waiter = (asyncio.get_running_loop(), progress)
        self._waiters.add(waiter)
        try:
            while not condition():
                await asyncio.wait_for(progress.wait(), TIMEOUT_S)
                progress.clear()
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for loop, progress in tuple(self._waiters):
            loop.call_soon_threadsafe(progress.set)


@contextmanager
def running_engine(family: Any, observer: EngineObserver | None = None, **limits: Any) -> Iterator[Engine]:
    """A started engine, stopped at the end whatever happens."""
    engine = Engine(family, EngineConfig(**limits), observer or NullObserver())
    engine.start()
    try:
        yield engine
    finally:
        if isinstance(observer, Leash):
            observer.let_go()
        engine.stop()


def random_mask(family: ModelFamily, seed: int, num_active: int | None = None) -> HeadMask:
    """About three quarters of the heads, or exactly `num_active`."""
    rng = np.random.default_rng(seed)
    shape = (family.identity.num_layers, family.identity.num_heads)
    return HeadMask.random(num_active or int(0.75 * shape[0] * shape[1]), rng, shape)


def make_row(
    head_mask: HeadMask | None, *, task: str = "asr", instruction: str | None = None, n: int = 24
) -> RowRequest:
    return RowRequest(task, head_mask, instruction, n)


def make_request(
    family: ModelFamily, seconds: float | Sequence[float], *rows: RowRequest, seed: int = 0
) -> EngineRequest:
    durations = [seconds] if isinstance(seconds, float) else seconds
    audio = [family.features(toy_waveform(each, seed + number)) for number, each in enumerate(durations)]
    return EngineRequest(f"request-{seed}", audio, list(rows))


def poisoned(clip: AudioFeatures) -> AudioFeatures:
    """The same clip, its features not finite."""
    return AudioFeatures(torch.full_like(clip.mel, torch.nan), clip.num_frames, clip.num_audio_tokens)


def reference(family: ModelFamily, request: EngineRequest, row: RowRequest) -> list[int]:
    """The tokens of plain Hugging Face generate under the row's gate, the end of the text cut off."""
    embeds = family.embed_prompt(family.embed_audio(request.audio), row.instruction)[None]
    identity = family.identity
    gate = gate_tensor([row.head_mask], identity.num_layers, identity.num_heads)
    with gating(family.decoder, gate), torch.no_grad():
        output = family.model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            max_new_tokens=row.max_new_tokens,
            do_sample=False,
            num_beams=1,
        )
    ids = output[0].tolist()
    ends = [place for place, token in enumerate(ids) if token in family.eos_token_ids]
    return ids[: ends[0]] if ends else ids
