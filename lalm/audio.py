"""Audio bytes or a file -> waveform; the one place that holds the limits on input audio.

soundfile reads WAV, FLAC and OGG; PyAV reads everything else and what soundfile would not read to its end.
That includes MP3: libsndfile guesses the length of an MP3 without a length header, and stops there. Both
decode block by block, and every limit is checked on each block as it comes, so that a small file that unpacks
to hours costs no more than the longest clip that is allowed.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

from lalm.audio_ffmpeg import AudioBlock, ffmpeg_blocks
from lalm.errors import (
    AudioError,
    AudioTooLargeError,
    AudioTooLongError,
    EmptyAudioError,
    UndecodableAudioError,
    UnsupportedAudioError,
)
from lalm.wav_data import missing_data

SAMPLE_RATE_HZ = 16_000

_MIN_SAMPLES = SAMPLE_RATE_HZ // 1000
_MAX_ABS_SAMPLE = 2.0**31  # integer samples that nobody scaled; far beyond that a spectrum overflows
_BLOCK_FRAMES = 16_384
_UNKNOWN_FRAMES = 2**62  # libsndfile says SF_COUNT_MAX when the header leaves the length open

# how files begin that soundfile may open: WAV, RF64, W64, FLAC, OGG, AIFF, AU, CAF
_SOUNDFILE_MAGIC = (b"RIFF", b"RF64", b"riff", b"fLaC", b"OggS", b"FORM", b".snd", b"caff")
_OGG_FIRST_PAGE = b"OggS\x00\x02"


@dataclass(frozen=True)
class AudioLimits:
    """What input audio may have; a value at the limit is still allowed."""

    max_bytes: int = 25 * 2**20
    max_duration_s: float = 30.0
    max_channels: int = 8
    min_sample_rate_hz: int = 4_000
    max_sample_rate_hz: int = 192_000


def decode_audio(
    source: bytes | Path, limits: AudioLimits = AudioLimits(), *, channel: int | None = None
) -> NDArray[np.float32]:
    """Decode one recording to mono 16 kHz.

    Channels are averaged, or `channel` (from 0; the last one, where there are fewer) is taken; samples keep
    their scale and are not clipped. Silence is a recording like any other. Lossy codecs pad: up to 2048
    frames past the longest duration are theirs, and dropped.
    Safe to call from several threads.

    Returns:
        float32 [num_samples], C-contiguous and finite, at least 1 ms long.

    Raises:
        EmptyAudioError: no bytes, or less than 1 ms.
        UndecodableAudioError: no accepted format, no audio, damaged, cut off, or samples that are no numbers.
        UnsupportedAudioError: channels or sample rate outside the limits.
        AudioTooLargeError: more than `limits.max_bytes`.
        AudioTooLongError: longer than `limits.max_duration_s`.
        AudioError: `source` is a path that cannot be read.
    """
    content = _read(source, limits)
    if cut := missing_data(content):
        raise UndecodableAudioError(f"the audio is cut off: {cut[0]} of {cut[1]} bytes of sound are missing")
    sound = _open_soundfile(content)
    blocks = ffmpeg_blocks(content) if sound is None else _soundfile_blocks(sound)
    waveform = _Waveform(limits, channel)
    with closing(blocks):
        for block in blocks:
            waveform.add(block)
    return waveform.finish()


def _read(source: bytes | Path, limits: AudioLimits) -> bytes:
    """The bytes of `source`, of which never more are read than allowed."""
    if isinstance(source, bytes):
        content, num_bytes = source, len(source)
    else:
        content, num_bytes = _read_file(source, limits.max_bytes)
    if num_bytes > limits.max_bytes:
        raise AudioTooLargeError(
            f"the audio has {num_bytes} bytes; at most {limits.max_bytes} are allowed",
            limit_bytes=limits.max_bytes,
        )
    if not content:
        raise EmptyAudioError("the audio is empty: 0 bytes")
    return content


def _read_file(path: Path, max_bytes: int) -> tuple[bytes, int]:
    """The content and the size of a file; no content when the size is beyond `max_bytes`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise AudioError(f"{path} is not a file")
        if status.st_size > max_bytes:
            return b"", status.st_size
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror}") from error
    return content, len(content)


def _open_soundfile(content: bytes) -> sf.SoundFile | None:
    """A decoder, if soundfile has one and would read the whole of `content`."""
    if not content.startswith(_SOUNDFILE_MAGIC):
        return None
    if content.startswith(b"OggS") and content.count(_OGG_FIRST_PAGE) > 1:
        return None  # several recordings one after the other, of which it reads the first
    try:
        sound = sf.SoundFile(_Memory(content))
    except sf.SoundFileError:
        return None
    if sound.frames >= _UNKNOWN_FRAMES or sound.subtype.startswith("MPEG"):
        sound.close()
        return None
    return sound


class _Memory:
    """Bytes as a file. libsndfile seeks to before the start of damaged files; that moves nothing."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)
        self.read, self.readinto, self.tell = self._file.read, self._file.readinto, self._file.tell

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with suppress(ValueError):
            self._file.seek(offset, whence)
        return self._file.tell()


def _soundfile_blocks(sound: sf.SoundFile) -> Generator[AudioBlock]:
    with sound:
        rate, announced = sound.samplerate, sound.frames
        yield AudioBlock(np.zeros((0, sound.channels), dtype=np.float32), rate)
        found = 0
        while True:
            try:
                samples = sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)
            except sf.SoundFileError as error:
                raise UndecodableAudioError(f"the audio is damaged: {error}") from error
            if len(samples) == 0:
                break
            found += len(samples)
            yield AudioBlock(samples, rate)
        if found < announced:
            seconds = f"{announced / rate:.2f} s announced, {found / rate:.2f} s found"
            raise UndecodableAudioError(f"the audio is damaged or cut off ({seconds})")


class _Waveform:
    """Blocks of any one sample rate in, one 16 kHz mono waveform out."""

    def __init__(self, limits: AudioLimits, channel: int | None) -> None:
        self._limits = limits
        self._channel = channel
        self._sample_rate_hz: int | None = None
        self._num_frames = 0
        self._resampler: soxr.ResampleStream | None = None
        self._parts: list[NDArray[np.float32]] = []

    def add(self, block: AudioBlock) -> None:
        rate = block.sample_rate_hz
        _check_layout(rate, block.samples.shape[1], self._limits)
        if self._sample_rate_hz is None:
            self._sample_rate_hz = rate
            if rate != SAMPLE_RATE_HZ:
                self._resampler = soxr.ResampleStream(rate, SAMPLE_RATE_HZ, 1, dtype="float32")
        if rate != self._sample_rate_hz:
            raise UndecodableAudioError(f"the sample rate changes from {self._sample_rate_hz} to {rate} Hz")
        self._num_frames += len(block.samples)
        if self._num_frames > self._limits.max_duration_s * rate + block.max_padding:
            raise _too_long(self._limits)
        if not np.all(np.abs(block.samples) <= _MAX_ABS_SAMPLE):  # NaN fails this as well
            raise UndecodableAudioError("the audio has samples that are NaN, infinite or beyond any scale")
        mono = _mono(block.samples, self._channel)
        self._parts.append(mono if self._resampler is None else self._resampler.resample_chunk(mono))

    def finish(self) -> NDArray[np.float32]:
        if self._resampler is not None:
            rest = self._resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
            self._parts.append(rest)
        if sum(len(part) for part in self._parts) < _MIN_SAMPLES:
            raise EmptyAudioError("the audio is empty: it holds less than 1 ms of sound")
        return np.concatenate(self._parts)[: int(self._limits.max_duration_s * SAMPLE_RATE_HZ)]


def _mono(samples: NDArray[np.float32], channel: int | None) -> NDArray[np.float32]:
    """One channel of float32 [num_frames, num_channels], or the mean of all."""
    if channel is None:
        mean: NDArray[np.float32] = samples.mean(axis=1, dtype=np.float32)
        return mean
    return np.ascontiguousarray(samples[:, min(channel, samples.shape[1] - 1)], dtype=np.float32)


def _check_layout(sample_rate_hz: int, num_channels: int, limits: AudioLimits) -> None:
    if not 1 <= num_channels <= limits.max_channels:
        allowed = f"1 to {limits.max_channels} are allowed"
        raise UnsupportedAudioError(f"the audio has {num_channels} channels; {allowed}")
    if not limits.min_sample_rate_hz <= sample_rate_hz <= limits.max_sample_rate_hz:
        allowed = f"{limits.min_sample_rate_hz} to {limits.max_sample_rate_hz} Hz are allowed"
        raise UnsupportedAudioError(f"the audio has a sample rate of {sample_rate_hz} Hz; {allowed}")


def _too_long(limits: AudioLimits) -> AudioTooLongError:
    limit_s = limits.max_duration_s
    message = f"the audio is longer than {limit_s:g} s, the most that is allowed"
    return AudioTooLongError(message, limit_s=limit_s)
