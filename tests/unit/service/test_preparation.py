from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

from lalm.audio import AudioLimits, decode_audio
from lalm.errors import AudioTooLongError
from lalm.task import LongAudio, TaskSpec
from service.preparation import Prepared, limit_s, prepare
from tests.fake_engine import FakeFamily, recording
from tests.spoken_samples import SPOKEN

TEXT: dict[str, Any] = {"kind": "text"}
LABEL = {"kind": "label", "labels": ["a", "b"]}
LIMITS = AudioLimits(max_duration_s=60.0)


def task(output: dict[str, Any] = TEXT, **keys: Any) -> TaskSpec:
    return TaskSpec.model_validate({"name": "t", "title": "T", "output": output, "max_new_tokens": 4} | keys)


def wav(*parts: NDArray[np.float32]) -> bytes:
    file = io.BytesIO()
    sf.write(file, np.concatenate(parts), 16_000, format="WAV")
    return file.getvalue()


def silence(seconds: float) -> NDArray[np.float32]:
    return np.zeros(int(16_000 * seconds), dtype=np.float32)


def prepared(recordings: list[bytes], *tasks: TaskSpec) -> Prepared:
    return prepare(FakeFamily(), LIMITS, tasks, recordings)  # type: ignore[arg-type]


def test_a_short_recording_is_one_piece_for_all_tasks() -> None:
    found = prepared([recording(2.0)], task(segment_s=3.0), task(LABEL), task(long_audio="first-window"))
    assert [(piece.start_s, piece.end_s) for piece in found.pieces] == [(0.0, 2.0)]
    assert [(heard.pieces, heard.truncated) for heard in found.heard] == [((0,), False)] * 3


def test_each_task_hears_a_long_recording_in_its_own_way() -> None:
    sentence = decode_audio(min(SPOKEN, key=lambda path: path.stat().st_size))
    longest_s = len(sentence) / 16_000 + 0.5  # more than the silence that a piece keeps around its speech
    content = wav(sentence, silence(1.0), sentence, silence(1.0), sentence)
    whole, first, split = prepared(
        [content],
        task(LABEL),
        task(LABEL, long_audio="first-window", segment_s=longest_s),
        task(segment_s=longest_s),
    ).heard
    assert [len(heard.pieces) for heard in (whole, first, split)] == [1, 1, 3]
    assert [heard.truncated for heard in (whole, first, split)] == [False, True, False]


def test_what_is_not_about_speech_is_split_evenly() -> None:
    found = prepared([recording(7.0)], task(segment_s=3.0, needs_speech=False))
    assert [round(piece.end_s - piece.start_s, 2) for piece in found.pieces] == [2.33, 2.33, 2.33]


@pytest.mark.parametrize(("output", "needs_speech"), [(TEXT, True), (LABEL, True), (TEXT, False)])
def test_in_silence_there_is_nothing_to_hear(output: dict[str, Any], needs_speech: bool) -> None:
    found = prepared([wav(silence(3.0))], task(output, needs_speech=needs_speech))
    assert (found.pieces, found.heard[0].pieces, found.duration_s) == ([], (), 3.0)


def test_noise_is_something_to_hear_for_a_task_that_is_not_about_speech() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    speech, sound = prepared([wav(noise)], task(), task(needs_speech=False)).heard
    assert (speech.pieces, sound.pieces) == ((), (0,))


@pytest.mark.parametrize(
    ("tasks", "seconds", "limit"),
    [([task(LABEL)], 31.0, 30.0), ([task(), task(LABEL)], 31.0, 30.0), ([task()], 61.0, 60.0)],
)
def test_the_limit_is_that_of_the_strictest_task(tasks: list[TaskSpec], seconds: float, limit: float) -> None:
    with pytest.raises(AudioTooLongError) as raised:
        prepared([recording(seconds)], *tasks)
    assert (raised.value.limit_s, raised.value.param) == (limit, "file")
    assert min(limit_s(each, LIMITS, 30.0) for each in tasks) == limit


def test_both_clips_of_a_pair_are_heard_whole() -> None:
    found = prepared([recording(2.0), recording(1.0)], task(LABEL, num_audios=2))
    assert [clip.num_frames for clip in found.pieces[0].audio] == [32_000, 16_000]
    assert found.duration_s == 3.0


@pytest.mark.parametrize(
    ("keys", "policy"),
    [
        ({}, LongAudio.SPLIT),
        ({"output": LABEL}, LongAudio.REFUSE),
        ({"num_audios": 2}, LongAudio.REFUSE),
        ({"output": LABEL, "long_audio": "first-window"}, LongAudio.FIRST_WINDOW),
        ({"long_audio": "refuse"}, LongAudio.REFUSE),
    ],
)
def test_what_becomes_of_long_audio(keys: dict[str, Any], policy: LongAudio) -> None:
    assert task(**keys).long_audio_policy is policy


@pytest.mark.parametrize(
    "keys",
    [
        {"output": LABEL, "long_audio": "split"},
        {"num_audios": 2, "long_audio": "first-window"},
        {"output": LABEL, "segment_s": 3.0},
        {"long_audio": "refuse", "segment_s": 3.0},
        {"segment_s": 0.1},
        {"segment_s": "3"},
        {"segment_s": float("nan")},
        {"long_audio": "cut"},
        {"needs_speech": "no"},
    ],
)
def test_keys_that_do_not_fit_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"long_audio|segment_s|needs_speech"):
        task(**keys)
