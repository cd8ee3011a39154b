"""From recordings to what the engine hears: decoded, checked for speech, cut to what the model takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lalm.audio import SAMPLE_RATE_HZ, AudioLimits, decode_audio
from lalm.errors import AudioError
from lalm.speech import Span, has_speech, is_audible, split_at_pauses
from lalm.task import LongAudio, TaskSpec

if TYPE_CHECKING:
    from lalm.family import AudioFeatures, ModelFamily

PART = "file"


@dataclass(frozen=True)
class Piece:
    """A stretch of a request's audio that the model hears at once; both clips whole for a pair."""

    start_s: float
    end_s: float
    audio: list[AudioFeatures]


@dataclass(frozen=True)
class Heard:
    """What one task hears: numbers of pieces, in order; none if there is nothing to hear."""

    pieces: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True)
class Prepared:
    """Recordings, ready for the engine.

    duration_s: seconds of all recordings.
    pieces: each of them once, whichever tasks hear it.
    heard: one a task, in the order of the tasks.
    """

    duration_s: float
    pieces: list[Piece]
    heard: list[Heard]


def segment_s(task: TaskSpec, window_s: float) -> float:
    """The longest stretch that the model is given at once for `task`, in seconds."""
    return min(task.segment_s or window_s, window_s)


def limit_s(task: TaskSpec, limits: AudioLimits, window_s: float) -> float:
    """The longest recording that `task` takes, in seconds."""
    if task.long_audio_policy is LongAudio.REFUSE:
        return min(limits.max_duration_s, window_s)
    return limits.max_duration_s


def prepare(
    family: ModelFamily, limits: AudioLimits, tasks: Sequence[TaskSpec], recordings: Sequence[bytes | Path]
) -> Prepared:
    """Decode `recordings` for `tasks`, which all take as many. Blocks; for a worker thread.

    Raises:
        AudioError: a recording cannot be used, or is longer than a task takes; its `param` says which.
    """
    window_s = family.max_audio_s
    longest_s = min(limit_s(task, limits, window_s) for task in tasks)
    limits = replace(limits, max_duration_s=longest_s)
    channel = family.audio_input.channel
    waveforms = [
        _decode(recording, limits, channel, PART if len(recordings) == 1 else f"{PART}[{number}]")
        for number, recording in enumerate(recordings)
    ]
    try:
        clips = family.audio_input.clips(waveforms, longest_s)
    except AudioError as error:
        error.param = PART
        raise
    spans = _spans_of_tasks(tasks, clips, window_s)
    numbers = {
        span: number for number, span in enumerate(dict.fromkeys(each for all_ in spans for each in all_))
    }
    return Prepared(
        duration_s=sum(len(waveform) for waveform in waveforms) / SAMPLE_RATE_HZ,
        pieces=[_piece(family, span, clips) for span in numbers],
        heard=[
            Heard(
                tuple(numbers[span] for span in task_spans),
                truncated=_is_truncated(task, clips, window_s),
            )
            for task, task_spans in zip(tasks, spans, strict=True)
        ],
    )


def _decode(
    recording: bytes | Path, limits: AudioLimits, channel: int | None, param: str
) -> NDArray[np.float32]:
    try:
        return decode_audio(recording, limits, channel=channel)
    except AudioError as error:
        error.param = param
        raise


def _piece(family: ModelFamily, span: Span, clips: list[NDArray[np.float32]]) -> Piece:
    if len(clips) > 1:
        return Piece(span.start_s, span.end_s, [family.features(clip) for clip in clips])
    return Piece(span.start_s, span.end_s, [family.features(clips[0][span.start : span.end])])


def _spans_of_tasks(
    tasks: Sequence[TaskSpec], clips: list[NDArray[np.float32]], window_s: float
) -> list[list[Span]]:
    audible = any(is_audible(clip) for clip in clips)
    speech = audible and any(has_speech(clip) for clip in clips)
    return [
        _spans(task, clips, segment_s(task, window_s)) if (speech if task.needs_speech else audible) else []
        for task in tasks
    ]


def _spans(task: TaskSpec, clips: list[NDArray[np.float32]], max_s: float) -> list[Span]:
    """What `task` hears of its clips; of two, the whole of both, as if one lay behind the other."""
    num_samples, max_samples = sum(map(len, clips)), int(max_s * SAMPLE_RATE_HZ)
    policy = task.long_audio_policy
    if policy is LongAudio.REFUSE or num_samples <= max_samples:
        return [Span(0, num_samples)]
    if policy is LongAudio.FIRST_WINDOW:
        return [Span(0, max_samples)]
    pieces = split_at_pauses(clips[0], max_s) if task.needs_speech else []
    return pieces or _even_spans(num_samples, max_samples)


def _even_spans(num_samples: int, max_samples: int) -> list[Span]:
    """The fewest equal stretches that are not too long."""
    count = math.ceil(num_samples / max_samples)
    bounds = [round(number * num_samples / count) for number in range(count + 1)]
    return [Span(start, end) for start, end in pairwise(bounds)]


def _is_truncated(task: TaskSpec, clips: list[NDArray[np.float32]], window_s: float) -> bool:
    if task.long_audio_policy is not LongAudio.FIRST_WINDOW:
        return False
    return len(clips[0]) > int(segment_s(task, window_s) * SAMPLE_RATE_HZ)
