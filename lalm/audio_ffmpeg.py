"""Audio by FFmpeg (PyAV): MP3, M4A/AAC, MP4, WebM, and whatever soundfile does not read."""

from __future__ import annotations

import io
import time
from collections.abc import Generator
from typing import NamedTuple

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from lalm.errors import UndecodableAudioError
from lalm.mp4_tables import is_mp4, tables_fit

# FFmpeg knows playlists that name other files and servers: only plain containers may be opened, and nothing
# may be opened from inside them. With audio codecs only, it decodes no picture while it looks for the audio.
_LOSSLESS_CODECS = (
    "alac,flac,pcm_alaw,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,pcm_mulaw,pcm_s16be,pcm_s16le,"
    "pcm_s24be,pcm_s24le,pcm_s32be,pcm_s32le,pcm_s8,pcm_u8"
)
_LOSSY_CODECS = (
    "aac,aac_latm,ac3,adpcm_ima_wav,adpcm_ms,amrnb,amrwb,eac3,gsm,gsm_ms,libopus,mp2,mp2float,mp3,"
    "mp3float,opus,speex,vorbis,wmav1,wmav2"
)
_CONTAINERS_BUT_MP4 = "aac,ac3,aiff,amr,asf,au,avi,caf,eac3,flac,matroska,mp3,mpegts,ogg,wav"
_AV_OPTIONS = {
    "codec_whitelist": f"{_LOSSLESS_CODECS},{_LOSSY_CODECS}",
    "protocol_whitelist": "none",
}
_LOSSY_PADDING_FRAMES = 2_048  # lossy encoders fill up their last one or two frames with silence
_MAX_CPU_S = 5.0  # the heaviest file within the limits takes less than one; a hostile one may find slow paths


class AudioBlock(NamedTuple):
    """Some samples of a recording, as decoded."""

    samples: NDArray[np.float32]  # [num_frames, num_channels]
    sample_rate_hz: int
    max_padding: int = 0  # frames at the end of the recording that may be the encoder's own


def ffmpeg_blocks(content: bytes) -> Generator[AudioBlock]:
    """Decode the best audio stream of a file, frame by frame.

    Raises:
        UndecodableAudioError: no accepted container or codec, no audio stream, or damaged.
    """
    if not _lists_fit(content):
        raise UndecodableAudioError("a list of the file is said to be longer than the file")
    mp4 = is_mp4(content)
    if mp4 and not tables_fit(content):
        raise UndecodableAudioError("the tables of the file announce more samples than it has bytes")
    options = {**_AV_OPTIONS, "format_whitelist": "mov" if mp4 else _CONTAINERS_BUT_MP4}
    file = _Memory(content)
    try:
        with av.open(file, "r", options=options, metadata_errors="replace") as container:
            stream = container.streams.best("audio")
            if not isinstance(stream, av.AudioStream):
                raise UndecodableAudioError("there is no audio stream in the file")
            codec = stream.codec_context.name if stream.codec_context else "an unknown codec"
            lossy = codec in _LOSSY_CODECS.split(",")
            if not lossy and codec not in _LOSSLESS_CODECS.split(","):
                raise UndecodableAudioError(f"the audio is coded as {codec!r}")
            padding = _LOSSY_PADDING_FRAMES if lossy else 0
            for frame in container.decode(stream):
                file.check()
                yield AudioBlock(_frame_samples(frame), frame.sample_rate, padding)
            file.check()
    except av.error.FFmpegError as error:
        file.check()
        raise UndecodableAudioError(f"not audio, or damaged ({error.strerror})") from error


def _lists_fit(content: bytes) -> bool:
    """Whether every list of texts of a WAV file ends within the file.

    FFmpeg allocates and clears what a text in such a list is said to take, up to 2 GiB, if only the list is
    said to be as long. Wherever the bytes of a list stand counts, for FFmpeg looks for chunks in its own way.
    """
    place = content.find(b"LIST")
    while place >= 0:
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        if content[place + 8 : place + 12] == b"INFO" and place + 8 + size > len(content):
            return False
        place = content.find(b"LIST", place + 4)
    return True


class _Memory:
    """Bytes as a file that ends after `_MAX_CPU_S` of this thread's time, wherever FFmpeg is by then."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)
        self._end_s = time.thread_time() + _MAX_CPU_S
        self._expired = False

    def read(self, size: int) -> bytes:
        return b"" if self._is_expired() else self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return -1 if self._is_expired() else self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def check(self) -> None:
        """Raise if the file was ended early; `read` and `seek` do not, for PyAV would print it."""
        if self._expired:
            raise UndecodableAudioError(f"the audio takes more than {_MAX_CPU_S:g} s to decode")

    def _is_expired(self) -> bool:
        self._expired = self._expired or time.thread_time() > self._end_s
        return self._expired


def _frame_samples(frame: av.AudioFrame) -> NDArray[np.float32]:
    """The samples of a frame, [num_frames, num_channels]; integers are scaled to -1 .. 1."""
    raw = frame.to_ndarray()
    raw = raw.T if frame.format.is_planar else raw.reshape(-1, frame.layout.nb_channels)
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite
        samples = raw.astype(np.float32)
    if raw.dtype.kind == "f":
        return samples
    full_scale = np.float32(2 ** (8 * raw.dtype.itemsize - 1))
    if raw.dtype.kind == "u":
        samples -= full_scale
    return samples / full_scale
