"""Every error that `lalm` raises on purpose.

    LalmError
    ├ AudioError                  the input audio; .param names the part of the request it came in, if known
    │ ├ EmptyAudioError           no bytes, or no samples
    │ ├ UndecodableAudioError     not audio, damaged, or with samples that are no numbers
    │ ├ UnsupportedAudioError     channels or sample rate outside the limits
    │ ├ AudioTooLargeError        too many bytes; .limit_bytes
    │ └ AudioTooLongError         too many seconds; .limit_s
    ├ HeadMaskError               a head mask file that cannot be used; .path, .reason
    └ ModelError                  a model that cannot be loaded

The message of each says what was wrong and what is allowed; it is meant for the person who sent the input.
"""

from __future__ import annotations

from pathlib import Path


class LalmError(Exception):
    """The root of the tree."""


class AudioError(LalmError):
    """The input audio cannot be used."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class EmptyAudioError(AudioError):
    """No bytes, or no samples."""


class UndecodableAudioError(AudioError):
    """Not audio, damaged, or with samples that are no numbers; the message ends with what is accepted."""

    def __init__(self, reason: str, *, param: str | None = None) -> None:
        accepted = "WAV, FLAC, OGG (Vorbis, Opus), MP3, M4A/AAC, MP4 and WebM"
        super().__init__(f"{reason}; accepted are {accepted}", param=param)


class UnsupportedAudioError(AudioError):
    """Audio whose channels or sample rate lie outside the limits."""


class AudioTooLargeError(AudioError):
    """More bytes than `limit_bytes`."""

    def __init__(self, message: str, *, limit_bytes: int, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.limit_bytes = limit_bytes


class AudioTooLongError(AudioError):
    """More seconds than `limit_s`."""

    def __init__(self, message: str, *, limit_s: float, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.limit_s = limit_s


class HeadMaskError(LalmError):
    """The head mask file at `path` cannot be used, because of `reason`."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason


class ModelError(LalmError):
    """The model cannot be loaded: not found, damaged, or of a kind that is not supported."""
