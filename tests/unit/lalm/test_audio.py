"""Every format and shape of input audio, and every way to refuse it before it costs anything."""

from __future__ import annotations

import io
import itertools
import os
import struct
import tempfile
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile as sf
from av.container import OutputContainer
from numpy.typing import NDArray

from lalm.audio import SAMPLE_RATE_HZ, AudioLimits, decode_audio
from lalm.errors import (
    AudioError,
    AudioTooLargeError,
    AudioTooLongError,
    EmptyAudioError,
    UndecodableAudioError,
    UnsupportedAudioError,
)
from lalm.mp4_tables import is_mp4, tables_fit

Samples = NDArray[np.floating[Any]]


def tone(rate: int = 16_000, duration_s: float = 1.0, pitch_hz: float = 440.0) -> Samples:
    """A tone at half scale that swells and fades, so that a shift in time would show."""
    time_s = np.arange(round(rate * duration_s)) / rate
    return 0.5 * np.sin(2 * np.pi * pitch_hz * time_s) * np.sin(np.pi * time_s / duration_s)


def by_soundfile(samples: Samples, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    sf.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def by_av(samples: Samples, rate: int, container: str, codec: str, **options: str) -> bytes:
    """Encode mono samples with FFmpeg; `options` are the container's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        with av.open(str(path), "w", format=container, options=options) as output:
            encode_mono(output, codec, samples, rate)
        return path.read_bytes()


def encode_mono(output: OutputContainer, codec: str, samples: Samples, rate: int, film: bool = False) -> None:
    stream: Any = output.add_stream(codec, rate=rate)
    stream.layout = "mono"
    pictures = add_film(output) if film else []
    frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="fltp", layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
    output.mux([*pictures, *stream.encode(frame), *stream.encode(None)])


def add_film(output: OutputContainer) -> list[Any]:
    """A film stream of one black picture."""
    stream: Any = output.add_stream("mpeg4", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
    picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), dtype=np.uint8), format="rgb24")
    return [*stream.encode(picture), *stream.encode(None)]


def loudness(waveform: NDArray[np.floating[Any]]) -> float:
    return float(np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))


ENCODINGS: dict[str, Callable[[Samples, int], bytes]] = {
    "wav pcm16": lambda samples, rate: by_soundfile(samples, rate, "WAV", "PCM_16"),
    "wav pcm24": lambda samples, rate: by_soundfile(samples, rate, "WAV", "PCM_24"),
    "wav pcm8": lambda samples, rate: by_soundfile(samples, rate, "WAV", "PCM_U8"),
    "wav float": lambda samples, rate: by_soundfile(samples, rate, "WAV", "FLOAT"),
    "wav double": lambda samples, rate: by_soundfile(samples, rate, "WAV", "DOUBLE"),
    "wav mu-law": lambda samples, rate: by_soundfile(samples, rate, "WAV", "ULAW"),
    "aiff": lambda samples, rate: by_soundfile(samples, rate, "AIFF", "PCM_16"),
    "flac": lambda samples, rate: by_soundfile(samples, rate, "FLAC"),
    "ogg vorbis": lambda samples, rate: by_soundfile(samples, rate, "OGG", "VORBIS"),
    "ogg opus": lambda samples, rate: by_soundfile(samples, rate, "OGG", "OPUS"),
    "mp3": lambda samples, rate: by_soundfile(samples, rate, "MP3"),
    "m4a": lambda samples, rate: by_av(samples, rate, "ipod", "aac"),
    "m4a, header first": lambda samples, rate: by_av(samples, rate, "ipod", "aac", movflags="faststart"),
    "mp4 in fragments": lambda samples, rate: by_av(
        samples, rate, "mp4", "aac", movflags="frag_keyframe+empty_moov"
    ),
    "alac": lambda samples, rate: by_av(samples, rate, "ipod", "alac"),
    "quicktime pcm": lambda samples, rate: by_av(samples, rate, "mov", "pcm_s16le"),
    "aac stream": lambda samples, rate: by_av(samples, rate, "adts", "aac"),
    "webm opus": lambda samples, rate: by_av(samples, rate, "webm", "libopus"),
    "flac in ogg": lambda samples, rate: by_av(samples, rate, "ogg", "flac"),
}


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("name", ENCODINGS)
def test_every_format_gives_the_recording(name: str, rate: int) -> None:
    waveform = decode_audio(ENCODINGS[name](tone(rate), rate))
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert waveform.flags.c_contiguous
    original = tone(SAMPLE_RATE_HZ)
    assert len(original) - 80 <= len(waveform) <= len(original) + 2400  # codecs pad, mostly at the end
    found = np.correlate(waveform, original.astype(np.float32), mode="full").max()
    assert found > 0.98 * np.sqrt(np.sum(waveform**2.0) * np.sum(original**2))
    assert loudness(waveform) * len(waveform) ** 0.5 == pytest.approx(
        loudness(original) * len(original) ** 0.5, rel=0.03
    )


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_every_sample_rate_becomes_16_khz(rate: int) -> None:
    waveform = decode_audio(by_soundfile(tone(rate), rate, "WAV", "FLOAT"))
    assert len(waveform) == SAMPLE_RATE_HZ
    middle = slice(1_000, -1_000)
    assert np.abs(waveform[middle] - tone(SAMPLE_RATE_HZ)[middle]).max() < 1e-3


def test_what_is_at_16_khz_is_not_touched() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 50_000).astype(np.float32)
    assert np.array_equal(decode_audio(by_soundfile(samples, 16_000, "WAV", "FLOAT")), samples)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize("num_channels", [2, 3, 8])
def test_channels_are_averaged(kind: str, num_channels: int) -> None:
    scales = np.arange(num_channels) / num_channels
    waveform = decode_audio(by_soundfile(tone()[:, None] * scales, 16_000, kind))
    assert np.abs(waveform - tone() * scales.mean()).max() < 1e-4


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s32le", "pcm_f32le", "flac"])
def test_sample_types_are_scaled_alike_when_ffmpeg_reads_them(codec: str) -> None:
    waveform = decode_audio(by_av(tone(), 16_000, "matroska", codec))
    assert np.abs(waveform - tone()).max() < (1 / 64 if codec == "pcm_u8" else 1e-4)


def test_float_samples_keep_their_scale() -> None:
    assert decode_audio(by_soundfile(4 * tone(), 16_000, "WAV", "FLOAT")).max() == pytest.approx(2, rel=1e-3)


def test_silence_is_a_recording() -> None:
    waveform = decode_audio(by_soundfile(np.zeros(16_000), 16_000))
    assert len(waveform) == 16_000
    assert not waveform.any()


def test_a_path_gives_what_its_bytes_give(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    path.write_bytes(by_soundfile(tone(22_050), 22_050))
    assert np.array_equal(decode_audio(path), decode_audio(path.read_bytes()))


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("matroska", "flac"), ("mpegts", "mp2")])
def test_a_film_gives_its_sound(container: str, codec: str) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        encode_mono(output, codec, tone(48_000), 48_000, film=True)
    assert loudness(decode_audio(file.getvalue())) == pytest.approx(loudness(tone()), rel=0.1)


def test_threads_do_not_disturb_each_other() -> None:
    files = [
        encode(tone(48_000, pitch_hz=pitch), 48_000) for encode in ENCODINGS.values() for pitch in (220, 700)
    ]
    alone = [decode_audio(file) for file in files]
    barrier = threading.Barrier(8)

    def work(offset: int) -> list[NDArray[np.float32]]:
        barrier.wait(timeout=60)
        order = [(offset * 5 + i) % len(files) for i in range(len(files))]
        decoded = {i: decode_audio(files[i]) for i in order}
        return [decoded[i] for i in range(len(files))]

    with ThreadPoolExecutor(8) as pool:
        for together in pool.map(work, range(8)):
            assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


# nothing is cut silently


def without_length(mp3: bytes) -> bytes:
    """An MP3 without its first frame, the one that says how long it is."""
    second = mp3.index(mp3[:2], 4)
    while mp3[second : second + 2] != mp3[:2] or second < 100:
        second = mp3.index(mp3[:2], second + 1)
    return mp3[second:]


def test_an_mp3_without_a_length_is_read_to_its_end() -> None:
    quiet_then_loud = np.concatenate([np.zeros(48_000), np.random.default_rng(0).uniform(-0.5, 0.5, 48_000)])
    file = without_length(by_soundfile(quiet_then_loud, 16_000, "MP3"))
    assert b"Xing" not in file
    assert b"Info" not in file
    waveform = decode_audio(file)
    assert len(waveform) >= 96_000 - 1_152
    assert loudness(waveform[-30_000:-3_000]) > 0.1


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_recordings_in_a_row_are_all_read(subtype: str) -> None:
    one = by_soundfile(tone(48_000), 48_000, "OGG", subtype)
    assert len(decode_audio(one + one)) == pytest.approx(32_000, abs=400)


def open_ended(flac: bytes) -> bytes:
    """A FLAC whose header leaves its length open, as one that was written to a pipe."""
    file = bytearray(flac)
    file[21] &= 0xF0
    file[22:26] = bytes(4)
    return bytes(file)


def test_a_flac_that_leaves_its_length_open_is_read_to_its_end() -> None:
    assert len(decode_audio(open_ended(by_soundfile(tone(), 16_000, "FLAC")))) == 16_000


@pytest.mark.parametrize("size", [2**32 - 1, 2**32 - 37, 2**31 - 1, 2**31 - 37])  # as ffmpeg and sox write
def test_a_wav_that_leaves_its_length_open_is_read_to_its_end(size: int) -> None:
    file = bytearray(by_soundfile(tone(), 16_000))
    file[4:8] = file[40:44] = size.to_bytes(4, "little")
    assert len(decode_audio(bytes(file))) == 16_000


def test_a_wav_whose_length_has_the_header_in_it_is_not_cut_off() -> None:
    file = bytearray(by_soundfile(tone(), 16_000))
    file[40:44] = len(file).to_bytes(4, "little")
    assert len(decode_audio(bytes(file))) == 16_000


@pytest.mark.parametrize("before", [b"", b"fact\x04\0\0\0abcd", b"LIST\x05\0\0\0INFOx\0"])
def test_a_wav_that_was_cut_off_says_what_is_missing(before: bytes) -> None:
    file = by_soundfile(tone(), 16_000)
    file = file[:36] + before + file[36:]
    assert len(decode_audio(file)) == 16_000
    with pytest.raises(UndecodableAudioError, match="cut off: 20000 of 32000 bytes of sound are missing"):
        decode_audio(file[:-20_000])


WAVS = [name for name in ENCODINGS if name.startswith("wav")]
MP4S = ["m4a", "m4a, header first", "mp4 in fragments"]


@pytest.mark.parametrize("name", [*WAVS, *MP4S, "flac", "aac stream"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_file_that_was_cut_off_is_refused(name: str, kept: float) -> None:
    file = ENCODINGS[name](np.random.default_rng(0).uniform(-0.5, 0.5, 48_000), 16_000)
    with pytest.raises(UndecodableAudioError):
        decode_audio(file[: int(kept * len(file))])


@pytest.mark.parametrize("name", ["flac", "ogg vorbis"])
def test_a_damaged_file_is_refused(name: str) -> None:
    file = bytearray(ENCODINGS[name](np.random.default_rng(0).uniform(-0.5, 0.5, 96_000), 48_000))
    middle = len(file) // 2
    file[middle : middle + 2_000] = bytes(2_000)
    with pytest.raises(UndecodableAudioError, match=r"damaged.*accepted are WAV"):
        decode_audio(bytes(file))


# what is refused


@pytest.mark.parametrize(
    "content",
    [
        b"\0",
        b"RIFF",
        b"hello, this is no audio " * 100,
        b"%PDF-1.7\n" * 100,
        b"\x89PNG\r\n\x1a\n" + bytes(500),
        bytes(100_000),
        b"\xff\xfb" * 50_000,
        np.random.default_rng(0).bytes(200_000),
    ],
    ids=["one byte", "four bytes", "text", "pdf", "png", "zeros", "mp3 sync words", "noise"],
)
def test_what_is_no_audio_is_refused(content: bytes) -> None:
    with pytest.raises(UndecodableAudioError, match="accepted are WAV, FLAC, OGG"):
        decode_audio(content)


def test_a_film_without_sound_is_refused() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        output.mux(add_film(output))
    with pytest.raises(UndecodableAudioError, match="no audio stream"):
        decode_audio(file.getvalue())


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "other.wav"
    path.write_bytes(by_soundfile(tone(), 16_000))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{path.as_uri()}\n#EXT-X-ENDLIST\n"
    for content in (
        playlist,
        f"ffconcat version 1.0\nfile {path}\n",
        f"ffconcat version 1.0\nfile '{path.name}'\n",
    ):
        with pytest.raises(UndecodableAudioError):
            decode_audio(content.encode())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30])
@pytest.mark.parametrize("position", [0, 20_000, -1])
def test_samples_that_are_no_numbers_are_refused(value: float, position: int) -> None:
    samples = np.stack([tone(48_000), tone(48_000)], axis=1)
    samples[position, 1] = value
    with pytest.raises(UndecodableAudioError, match="NaN, infinite"):
        decode_audio(by_soundfile(samples, 48_000, "WAV", "FLOAT"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        by_soundfile(np.zeros(0), 16_000),
        by_soundfile(np.zeros(15), 16_000),
        by_soundfile(np.zeros(40), 48_000),
    ],
    ids=["no bytes", "no samples", "15 samples", "0.8 ms at 48 kHz"],
)
def test_nothing_is_empty(content: bytes) -> None:
    with pytest.raises(EmptyAudioError, match="empty"):
        decode_audio(content)


def test_one_millisecond_is_enough() -> None:
    assert len(decode_audio(by_soundfile(np.zeros(16), 16_000))) == 16


@pytest.mark.parametrize("num_channels", [9, 32])
def test_too_many_channels_are_refused(num_channels: int) -> None:
    with pytest.raises(UnsupportedAudioError, match=f"{num_channels} channels; 1 to 8 are allowed"):
        decode_audio(by_soundfile(np.zeros((1_000, num_channels)), 16_000))


@pytest.mark.parametrize("rate", [3_999, 192_001, 768_000])
def test_a_sample_rate_outside_the_limits_is_refused(rate: int) -> None:
    with pytest.raises(UnsupportedAudioError, match=f"{rate} Hz; 4000 to 192000 Hz are allowed"):
        decode_audio(by_soundfile(np.zeros(10_000), rate))


def test_channels_and_rate_are_checked_when_ffmpeg_reads_them() -> None:
    file = by_av(tone(48_000), 48_000, "webm", "libopus")
    with pytest.raises(UnsupportedAudioError, match="48000 Hz; 4000 to 16000 Hz"):
        decode_audio(file, AudioLimits(max_sample_rate_hz=16_000))


@pytest.mark.parametrize(("field", "value"), [(22, b"\0\0"), (22, b"\xff\xff"), (24, bytes(4))])
def test_a_wav_header_with_nonsense_is_refused(field: int, value: bytes) -> None:
    file = bytearray(by_soundfile(tone(), 16_000))
    file[field : field + len(value)] = value
    with pytest.raises((UndecodableAudioError, UnsupportedAudioError)):
        decode_audio(bytes(file))


# bytes and paths


def test_too_many_bytes_are_refused() -> None:
    file = by_soundfile(tone(), 16_000)
    assert len(decode_audio(file, AudioLimits(max_bytes=len(file)))) == 16_000
    with pytest.raises(AudioTooLargeError, match=f"{len(file)} bytes; at most 1000 are allowed") as refusal:
        decode_audio(file, AudioLimits(max_bytes=1_000))
    assert refusal.value.limit_bytes == 1_000


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.wav"
    with path.open("wb") as file:
        file.truncate(10 * 2**30)

    def no_reading(*args: object) -> None:
        raise AssertionError("the file was opened")

    monkeypatch.setattr(Path, "open", no_reading)
    with pytest.raises(AudioTooLargeError, match="10737418240 bytes"):
        decode_audio(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_a_path_that_is_no_file_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "clip.wav"
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(AudioError, match=r"clip\.wav (cannot be read: No such file|is not a file)"):
        decode_audio(path)


def test_an_empty_file_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.touch()
    with pytest.raises(EmptyAudioError):
        decode_audio(path)


# seconds


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("name", ["wav pcm16", "flac", "mp3", "m4a", "webm opus", "aac stream"])
def test_a_recording_at_the_limit_is_allowed_in_every_format(name: str, rate: int) -> None:
    rate = 48_000 if name == "webm opus" else rate
    limits = AudioLimits(max_duration_s=2.0)
    assert len(decode_audio(ENCODINGS[name](tone(rate, 2.0), rate), limits)) == 32_000


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_recording_past_the_limit_is_refused_in_every_format(name: str) -> None:
    file = ENCODINGS[name](tone(16_000, 2.3), 16_000)
    with pytest.raises(AudioTooLongError, match="longer than 2 s, the most that is allowed") as refusal:
        decode_audio(file, AudioLimits(max_duration_s=2.0))
    assert refusal.value.limit_s == 2.0


def test_one_sample_past_the_limit_is_too_long() -> None:
    with pytest.raises(AudioTooLongError):
        decode_audio(by_soundfile(np.zeros(16_001), 16_000), AudioLimits(max_duration_s=1.0))


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    """Minutes of silence in few bytes: with an honest length, without one, where only decoding can tell."""
    silence = np.zeros(8_000 * 240)
    flac = by_soundfile(silence, 8_000, "FLAC")
    opus = by_soundfile(silence, 8_000, "OGG", "OPUS")
    aac = by_av(silence, 8_000, "adts", "aac")
    return {"flac": flac, "open flac": open_ended(flac), "opus": opus, "opus twice": opus + opus, "aac": aac}


@pytest.mark.parametrize("name", ["flac", "open flac", "opus", "opus twice", "aac"])
def test_a_small_file_that_unpacks_to_much_costs_little(name: str, bombs: dict[str, bytes]) -> None:
    file = bombs[name]
    tracemalloc.start()
    try:
        with pytest.raises(AudioTooLongError):
            decode_audio(file, AudioLimits(max_duration_s=1.0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20  # all of it is 7.5 MiB at 8 kHz and 15 MiB at 16 kHz


def test_decoding_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The header lies: it says one second, the decoder would go on for ever."""
    num_frames = 0

    class Endless:
        samplerate, channels, frames = 16_000, 1, 16_000

        def read(self, frames: int, **options: object) -> NDArray[np.float32]:
            nonlocal num_frames
            num_frames += frames
            return np.zeros((frames, 1), dtype=np.float32)

        def __enter__(self) -> Endless:
            return self

        def __exit__(self, *args: object) -> None:
            pass

    monkeypatch.setattr("lalm.audio._open_soundfile", lambda content: Endless())
    with pytest.raises(AudioTooLongError):
        decode_audio(b"any", AudioLimits(max_duration_s=10.0))
    assert num_frames <= 10 * 16_000 + 16_384


@pytest.mark.parametrize("name", ["mp3", "m4a", "mp4 in fragments", "webm opus", "aac stream"])
def test_a_file_that_keeps_ffmpeg_busy_is_given_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ENCODINGS[name](tone(), 16_000)
    times_s = itertools.count(step=3.0)  # each look at the clock is three seconds later
    monkeypatch.setattr("lalm.audio_ffmpeg.time.thread_time", lambda: next(times_s))
    with pytest.raises(UndecodableAudioError, match="takes more than 5 s"):
        decode_audio(file)


# MP4 tables that announce what is not there


def patched(file: bytes, table: bytes, numbers: dict[int, int]) -> bytes:
    """`file` with 32-bit `numbers` at offsets after the name of `table`."""
    content = bytearray(file)
    start = content.index(table) + 4
    for offset, number in numbers.items():
        content[start + offset : start + offset + 4] = struct.pack(">I", number)
    return bytes(content)


MANY = 150_000_000


@pytest.mark.parametrize(
    ("name", "table", "numbers"),
    [
        ("m4a", b"stsz", {4: 1, 8: MANY}),
        ("m4a, header first", b"stsz", {4: 1, 8: MANY}),
        ("mp4 in fragments", b"trun", {0: 1, 4: MANY}),
        ("quicktime pcm", b"stsc", {12: 2**31 - 1}),
    ],
)
def test_an_mp4_that_announces_more_than_it_holds_is_refused(
    name: str, table: bytes, numbers: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_opening(*args: object, **options: object) -> None:
        raise AssertionError("FFmpeg saw the file")

    file = patched(ENCODINGS[name](tone(), 16_000), table, numbers)
    monkeypatch.setattr("lalm.audio_ffmpeg.av.open", no_opening)
    with pytest.raises(UndecodableAudioError, match="announce more samples than it has bytes"):
        decode_audio(file)


def test_a_fragmented_file_with_a_track_without_id_is_refused() -> None:
    file = ENCODINGS["mp4 in fragments"](tone(), 16_000)
    assert tables_fit(file)
    assert not tables_fit(patched(file, b"tkhd", {12: 0xFFFF0001}))
    assert not tables_fit(patched(file, b"tkhd", {12: 0}))
    assert not tables_fit(file.replace(b"tkhd", b"free"))
    long_times = patched(file, b"tkhd", {0: 0x01000003, 12: 0xFFFF0001, 20: 1})
    assert tables_fit(long_times)
    assert not tables_fit(patched(long_times, b"tkhd", {20: 2**31}))


def test_a_table_behind_a_64_bit_size_is_seen() -> None:
    table = struct.pack(">I4sQIII", 1, b"stsz", 28, 0, 1, MANY)
    assert not tables_fit(struct.pack(">I4s", 8 + len(table), b"moov") + table)


def test_many_tables_are_summed_and_limited() -> None:
    table = struct.pack(">I4sIII", 20, b"stsz", 0, 1, 200)
    moov = struct.pack(">I4s", 8 + 10 * len(table), b"moov") + 10 * table
    assert tables_fit(moov + bytes(2_000))
    assert not tables_fit(moov + bytes(1_000))
    assert not tables_fit(b"\0\0\0\0moov" + b"trun" * 20_000)
    chunk = b"stco" + struct.pack(">II", 0, 1)
    assert not tables_fit(b"\0\0\0\0moov" + chunk + (b"stsc" + struct.pack(">II", 0, 10**6)) * 5_000)


def test_the_media_itself_may_hold_any_bytes() -> None:
    media = b"stsz" + b"\xff" * 100 + b"trun" + b"\xff" * 100
    for size in (
        struct.pack(">I4s", 8 + len(media), b"mdat"),
        struct.pack(">I4sQ", 1, b"mdat", 16 + len(media)),
    ):
        assert tables_fit(size + media)
        assert not tables_fit(size.replace(b"mdat", b"free") + media)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 2**31, 2**32 - 1])
def test_box_sizes_of_any_kind_end_the_walk(size: int) -> None:
    content = struct.pack(">I4s", size, b"ftyp") + b"\xff" * 64
    assert is_mp4(content)
    assert tables_fit(content)


def test_damage_anywhere_is_refused_or_decoded_but_never_breaks() -> None:
    """A few hundred files with bytes changed at random: a waveform, or an error of the house."""
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.5, 0.5, 4_000)
    outcomes: set[type] = set()
    for encode in ENCODINGS.values():
        original = encode(samples, 16_000)
        for _ in range(20):
            file = bytearray(original)
            reach = len(file) if rng.random() < 0.5 else min(400, len(file))
            for position in rng.integers(0, reach, size=rng.integers(1, 20)):
                file[position] = rng.choice([0, 1, 127, 128, 255])
            try:
                waveform = decode_audio(bytes(file))
            except AudioError as error:
                outcomes.add(type(error))
            else:
                outcomes.add(np.ndarray)
                assert np.all(np.isfinite(waveform))
                assert 16 <= len(waveform) <= 30 * SAMPLE_RATE_HZ
    assert {np.ndarray, UndecodableAudioError} <= outcomes
