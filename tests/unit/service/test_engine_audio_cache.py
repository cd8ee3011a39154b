from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from lalm.family import AudioFeatures
from service.inference.audio_cache import AudioCache, digest_of
from service.inference.encoding import encode

CLIP = AudioFeatures(torch.arange(12.0).view(3, 4), num_frames=2, num_audio_tokens=1)


def clip(number: float) -> AudioFeatures:
    return AudioFeatures(torch.full((3, 4), number), num_frames=2, num_audio_tokens=1)


def test_the_digest_tells_apart_all_that_the_encoder_is_given() -> None:
    others = [
        dataclasses.replace(CLIP, mel=CLIP.mel + 1e-6),
        dataclasses.replace(CLIP, mel=CLIP.mel.view(4, 3)),
        dataclasses.replace(CLIP, mel=CLIP.mel.double()),
        dataclasses.replace(CLIP, num_frames=3),
        dataclasses.replace(CLIP, num_audio_tokens=2),
        dataclasses.replace(CLIP, extra={"fbank": CLIP.mel}),
        dataclasses.replace(CLIP, extra={"other": CLIP.mel}),
    ]
    assert len({digest_of(each) for each in (CLIP, *others)}) == 8
    assert digest_of(dataclasses.replace(CLIP, mel=CLIP.mel.t().contiguous().t())) == digest_of(CLIP)


class Encoder:
    def __init__(self) -> None:
        self.calls: list[list[float]] = []
        self.broken: set[float] = set()

    def __call__(self, clips: list[AudioFeatures]) -> list[Tensor]:
        numbers = [float(each.mel[0, 0]) for each in clips]
        self.calls.append(numbers)
        if self.broken & set(numbers):
            raise RuntimeError("broken")
        batch = torch.tensor(numbers)[:, None, None].expand(-1, 2, 8).contiguous()
        return list(batch)


def test_a_clip_is_encoded_once_in_a_batch_and_not_again_afterwards() -> None:
    encoder, cache = Encoder(), AudioCache(1000)
    first = encode(encoder, cache, [[clip(1), clip(2)], [clip(1)]])
    assert encoder.calls == [[1.0, 2.0]]
    assert (first.num_hits, first.num_misses) == (1, 2)
    again = encode(encoder, cache, [[clip(2)], [clip(3), clip(1)]])
    assert encoder.calls == [[1.0, 2.0], [3.0]]
    assert (again.num_hits, again.num_misses) == (2, 1)
    found = [
        [float(each[0, 0]) for each in request] for request in again.outcomes if isinstance(request, list)
    ]
    assert found == [[2.0], [3.0, 1.0]]


def test_what_fails_fails_its_requests_and_is_not_kept() -> None:
    encoder, cache = Encoder(), AudioCache(1000)
    encoder.broken = {2.0}
    encoded = encode(encoder, cache, [[clip(1)], [clip(3), clip(2)], [clip(4)]])
    assert [isinstance(outcome, RuntimeError) for outcome in encoded.outcomes] == [False, True, False]
    encoder.broken = set()
    assert encode(encoder, cache, [[clip(2)], [clip(1)]]).num_misses == 1


def test_nothing_that_is_not_finite_is_kept() -> None:
    cache = AudioCache(1000)
    for value in (float("nan"), float("inf")):
        cache.put(b"x", torch.full((2, 2), value))
    assert cache.get(b"x") is None
    assert cache.num_bytes == 0


def test_a_part_of_a_batch_does_not_keep_the_batch() -> None:
    batch = torch.zeros(8, 2, 2)
    cache = AudioCache(16)
    cache.put(b"x", batch[3])
    kept = cache.get(b"x")
    assert kept is not None
    assert kept.untyped_storage().nbytes() == kept.nbytes == 16


@pytest.mark.parametrize("max_bytes", [0, 15])
def test_a_clip_larger_than_the_cache_is_not_kept(max_bytes: int) -> None:
    cache = AudioCache(max_bytes)
    cache.put(b"x", torch.zeros(2, 2))
    assert (cache.get(b"x"), cache.num_bytes) == (None, 0)


class CacheMachine(RuleBasedStateMachine):
    """Against a list in order of use."""

    @initialize(max_bytes=st.integers(0, 200))
    def begin(self, max_bytes: int) -> None:
        self.max_bytes, self.cache = max_bytes, AudioCache(max_bytes)
        self.kept: dict[bytes, int] = {}

    @rule(key=st.sampled_from([b"a", b"b", b"c", b"d"]), length=st.integers(1, 20))
    def put(self, key: bytes, length: int) -> None:
        self.cache.put(key, torch.full((length,), float(key[0])))
        if key not in self.kept and 4 * length <= self.max_bytes:
            self.kept[key] = 4 * length
            while sum(self.kept.values()) > self.max_bytes:
                del self.kept[next(iter(self.kept))]

    @rule(key=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def get(self, key: bytes) -> None:
        found = self.cache.get(key)
        assert (found is not None) == (key in self.kept)
        if found is not None:
            assert float(found[0]) == key[0]
            self.kept[key] = self.kept.pop(key)

    @invariant()
    def memory_is_counted(self) -> None:
        if hasattr(self, "cache"):
            assert self.cache.num_bytes == sum(self.kept.values()) <= self.max_bytes


TestCacheMachine = CacheMachine.TestCase


@pytest.mark.parametrize("operation", ["clone", "isfinite"])
def test_without_memory_for_a_copy_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    cache = AudioCache(1_000)
    cache.put(b"first", torch.zeros(2, 8))

    def refuse(tensor: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Tensor, operation, refuse)
    cache.put(b"second", torch.zeros(2, 8))
    assert (cache.get(b"first"), cache.get(b"second"), cache.num_bytes) == (None, None, 0)
