"""An answer in the formats of OpenAI's audio API: json, text, verbose_json, srt and vtt."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

from fastapi.responses import JSONResponse, PlainTextResponse, Response

from service.openai_schemas import (
    TextDone,
    Transcript,
    TranscriptSegment,
    UsageDuration,
    UsageTokens,
    VerboseTranscript,
)
from service.schemas import Segment, TaskAnswer

UNKNOWN_LANGUAGE = "unknown"


class ResponseFormat(StrEnum):
    """What `response_format` may be."""

    JSON = "json"
    TEXT = "text"
    VERBOSE_JSON = "verbose_json"
    SRT = "srt"
    VTT = "vtt"


def formatted(
    answer: TaskAnswer,
    response_format: ResponseFormat,
    kind: Literal["transcribe", "translate"],
    language: str | None,
) -> Response:
    """The response to a request that is not streamed."""
    segments = answer.segments or []
    if response_format is ResponseFormat.TEXT:
        return PlainTextResponse(answer.text + "\n")
    if response_format is ResponseFormat.SRT:
        return PlainTextResponse(srt(segments), media_type="application/x-subrip")
    if response_format is ResponseFormat.VTT:
        return PlainTextResponse(vtt(segments), media_type="text/vtt")
    if response_format is ResponseFormat.JSON:
        return JSONResponse(Transcript(text=answer.text, usage=_usage(answer)).model_dump())
    verbose = VerboseTranscript(
        task=kind,
        language=language or UNKNOWN_LANGUAGE,
        duration=answer.audio.duration_s,
        text=answer.text,
        segments=[
            TranscriptSegment(id=number, start=each.start, end=each.end, text=each.text)
            for number, each in enumerate(segments)
        ],
        usage=UsageDuration(seconds=answer.audio.duration_s),
    )
    return JSONResponse(verbose.model_dump())


def done(answer: TaskAnswer) -> TextDone:
    """The last event of a streamed answer."""
    return TextDone(text=answer.text, usage=_usage(answer))


def srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered cues; a segment without text is none."""
    cues = [
        f"{number}\n{_clock(each.start, ',')} --> {_clock(each.end, ',')}\n{_one_line(each.text)}\n"
        for number, each in enumerate((each for each in segments if each.text), start=1)
    ]
    return "\n".join(cues)


def vtt(segments: Sequence[Segment]) -> str:
    """WebVTT; a segment without text is no cue.

    Source: https://www.w3.org/TR/webvtt1/
    """
    cues = [
        f"\n{_clock(each.start, '.')} --> {_clock(each.end, '.')}\n{_escaped(_one_line(each.text))}\n"
        for each in segments
        if each.text
    ]
    return "WEBVTT\n" + "".join(cues)


def _usage(answer: TaskAnswer) -> UsageTokens:
    usage = answer.usage
    return UsageTokens(
        input_tokens=usage.audio_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.audio_tokens + usage.output_tokens,
    )


def _clock(seconds: float, point: str) -> str:
    """hh:mm:ss and milliseconds behind `point`."""
    whole, ms = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{ms:03}"


def _one_line(text: str) -> str:
    """A blank line would end the cue."""
    return " ".join(text.split())


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
