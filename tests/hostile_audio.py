"""A corpus of malformed and hostile audio files, the same at every run.

python -m tests.hostile_audio DIR    writes the files into a folder, to send them to a running service
"""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from tests.hostile_headers import hostile_headers

Files = Iterator[tuple[str, bytes]]

_SEED = 7
_RATE_HZ = 16_000


def corpus() -> Files:
    """Every file, with a name of its own."""
    good = encodings()
    for part in (empty, truncated(good), damaged(good), samples, bombs, layouts, polyglots(good), others):
        yield from part()
    yield from hostile_headers(good["wav"], good["flac"], good["ogg vorbis"], good["m4a"])


def tone(seconds: float = 0.5, rate: int = _RATE_HZ) -> NDArray[np.float32]:
    """A sine of 440 Hz, float32 [num_samples]."""
    time_s = np.arange(int(rate * seconds)) / rate
    return (0.3 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)


def by_soundfile(samples: NDArray[Any], rate: int, kind: str, subtype: str | None = None) -> bytes:
    """Samples as a file of one of libsndfile's formats."""
    file = io.BytesIO()
    sf.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def by_av(samples: NDArray[np.float32], rate: int, container: str, codec: str, **options: str) -> bytes:
    """Samples as a file of one of FFmpeg's formats."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        with av.open(str(path), "w", format=container, options=options) as output:
            stream = output.add_stream(codec, rate=rate, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            resampler = av.AudioResampler(stream.format.name, "mono", rate, stream.frame_size or 1024)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                output.mux(stream.encode(part))
            output.mux(stream.encode(None))
        return path.read_bytes()


def encodings() -> dict[str, bytes]:
    """Half a second of good sound in every accepted format."""
    sound, sound_48 = tone(), tone(rate=48_000)
    return {
        "wav": by_soundfile(sound, _RATE_HZ, "WAV", "PCM_16"),
        "wav float": by_soundfile(sound, _RATE_HZ, "WAV", "FLOAT"),
        "wav mu-law": by_soundfile(sound, 8_000, "WAV", "ULAW"),
        "wav adpcm": by_soundfile(sound, _RATE_HZ, "WAV", "IMA_ADPCM"),
        "rf64": by_soundfile(sound, _RATE_HZ, "RF64", "PCM_24"),
        "w64": by_soundfile(sound, _RATE_HZ, "W64", "PCM_16"),
        "aiff": by_soundfile(sound, _RATE_HZ, "AIFF", "PCM_16"),
        "au": by_soundfile(sound, _RATE_HZ, "AU", "PCM_16"),
        "caf": by_soundfile(sound, _RATE_HZ, "CAF", "PCM_16"),
        "flac": by_soundfile(sound, _RATE_HZ, "FLAC"),
        "ogg vorbis": by_soundfile(sound, _RATE_HZ, "OGG", "VORBIS"),
        "ogg opus": by_soundfile(sound_48, 48_000, "OGG", "OPUS"),
        "mp3": by_soundfile(sound, _RATE_HZ, "MP3"),
        "m4a": by_av(sound, _RATE_HZ, "ipod", "aac"),
        "mp4 in fragments": by_av(sound, _RATE_HZ, "mp4", "aac", movflags="frag_keyframe+empty_moov"),
        "webm": by_av(sound_48, 48_000, "webm", "libopus"),
        "aac": by_av(sound, _RATE_HZ, "adts", "aac"),
    }


def empty() -> Files:
    """Nothing, and the first bytes of a format with nothing behind them."""
    beginnings = (
        b"\0", b"RIFF", b"RIFF\x24\0\0\0WAVE", b"RIFF\x24\0\0\0WAVEfmt ", b"RF64", b"fLaC", b"fLaC\0\0\0\x22",
        b"OggS", b"OggS\0\x02", b"FORM\0\0\0\0AIFF", b".snd", b"caff\0\x01\0\0", b"ID3\x04\0\0\0\0\0\0",
        b"ID3\x04\0\0\x7f\x7f\x7f\x7f", b"\xff\xfb\x90\x44", b"\xff\xf1\x50\x80", b"\x1aE\xdf\xa3",
        b"\0\0\0\x18ftypM4A ", b"\0\0\0\x08moov", b"ADIF", b"#!AMR\n", b"0&\xb2u\x8ef\xcf\x11", b"OpusHead",
    )  # fmt: skip
    yield "empty: nothing", b""
    for content in beginnings:
        yield f"empty: {content!r}", content


def truncated(good: dict[str, bytes]) -> Callable[[], Files]:
    """Good files, cut off."""

    def files() -> Files:
        for name, content in good.items():
            for kept in (0.02, 0.3, 0.8):
                yield f"truncated: {name} at {kept}", content[: int(len(content) * kept)]
            yield f"truncated: {name} by one byte", content[:-1]

    return files


def damaged(good: dict[str, bytes]) -> Callable[[], Files]:
    """Good files with wrong bytes: in the header, anywhere, and a hole in the middle."""

    def files() -> Files:
        rng = np.random.default_rng(_SEED)
        for name, content in good.items():
            for where, end, count in (("header", 96, 6), ("anywhere", len(content), 60)):
                bad = np.frombuffer(content, dtype=np.uint8).copy()
                places = rng.integers(4, min(end, len(bad)), size=count)
                bad[places] = rng.integers(0, 256, size=count)
                yield f"damaged: {name}, {where}", bad.tobytes()
            third = len(content) // 3
            yield f"damaged: {name}, a hole", content[:third] + bytes(third) + content[2 * third :]
            yield f"damaged: {name}, all ones", content[:64] + b"\xff" * (len(content) - 64)

    return files


def samples() -> Files:
    """Samples that are no numbers, or no sound."""
    for name, value in {
        "nan": np.nan,
        "inf": np.inf,
        "-inf": -np.inf,
        "huge": 3e38,
        "denormal": 1e-42,
    }.items():
        for kind in ("WAV", "AIFF", "CAF"):
            sound = tone()
            sound[1000] = value
            yield f"samples: {name} in {kind}", by_soundfile(sound, _RATE_HZ, kind, "FLOAT")
    doubles = tone().astype(np.float64)
    doubles[7] = 1e300
    yield "samples: a double beyond float32", by_soundfile(doubles, _RATE_HZ, "WAV", "DOUBLE")
    yield "samples: all nan", by_soundfile(np.full(8_000, np.nan), _RATE_HZ, "WAV", "FLOAT")
    yield "samples: all nan, resampled", by_soundfile(np.full(8_000, np.nan), 44_100, "WAV", "FLOAT")
    yield "samples: one", by_soundfile(tone()[:1], _RATE_HZ, "WAV")
    yield "samples: none", by_soundfile(tone()[:0], _RATE_HZ, "WAV")
    yield "samples: none in FLAC", by_soundfile(tone()[:0], _RATE_HZ, "FLAC")
    yield "samples: full scale square", by_soundfile(np.sign(tone()), _RATE_HZ, "WAV", "PCM_16")


def bombs() -> Files:
    """Small files that unpack to much."""
    silence = np.zeros(20 * 60 * 8_000, dtype=np.int16)
    yield "bomb: 20 minutes of silence in FLAC", by_soundfile(silence, 8_000, "FLAC")
    yield "bomb: 8 channels in FLAC", by_soundfile(np.zeros((2_000_000, 8), dtype=np.int16), 192_000, "FLAC")
    for kind, subtype in (("OGG", "OPUS"), ("OGG", "VORBIS"), ("MP3", None)):
        content = by_soundfile(silence[: 120 * 8_000], 8_000, kind, subtype)
        yield f"bomb: two minutes of silence in {subtype or kind}", content
    short = by_soundfile(tone(0.1), 48_000, "OGG", "OPUS")
    yield "bomb: 300 recordings in one OGG", short * 300
    yield "bomb: 300 FLACs in a row", by_soundfile(tone(0.1), _RATE_HZ, "FLAC") * 300
    yield "bomb: a gzip bomb", gzip.compress(bytes(20_000_000))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.wav", bytes(20_000_000))
    yield "bomb: a zip bomb", archive.getvalue()


def layouts() -> Files:
    """Good files with more channels and other sample rates than anybody needs."""
    for channels in (9, 32, 255):
        yield f"layout: {channels} channels", by_soundfile(np.zeros((800, channels)), _RATE_HZ, "WAV")
    for rate in (1, 10, 3_999, 192_001, 384_000, 768_000, 2**31 - 1):
        yield f"layout: {rate} Hz", by_soundfile(tone(), rate, "WAV")
    yield "layout: 655350 Hz in FLAC", by_soundfile(tone(), 655_350, "FLAC")


def polyglots(good: dict[str, bytes]) -> Callable[[], Files]:
    """Files that are two things at once."""

    def files() -> Files:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("a.txt", "text")
        yield "polyglot: WAV and ZIP", good["wav"] + archive.getvalue()
        yield "polyglot: PDF and MP3", b"%PDF-1.7\n1 0 obj<</Length 9>>stream\n" + good["mp3"]
        yield "polyglot: GIF and WAV", b"GIF89a" + good["wav"]
        yield "polyglot: HTML and MP3", b"<html><script>alert(1)</script>" + good["mp3"]
        yield "polyglot: shell and FLAC", b"#!/bin/sh\nrm -rf /\n" + good["flac"]
        for first, second in (("wav", "flac"), ("flac", "wav"), ("mp3", "ogg vorbis"), ("m4a", "webm")):
            yield f"polyglot: {first} and {second}", good[first] + good[second]
        for name in ("wav", "flac", "m4a", "ogg opus"):
            yield f"polyglot: ID3 before {name}", b"ID3\x04\0\0\0\0\x01\0" + bytes(128) + good[name]
        yield "polyglot: a long ID3 before MP3", b"ID3\x04\0\0\0\x3f\x7f\x7f" + bytes(2**20 - 1) + good["mp3"]
        yield "polyglot: WAV in WAV", good["wav"][:44] + good["wav"]

    return files


def others() -> Files:
    """What is no audio, or points to something that is elsewhere."""
    rng = np.random.default_rng(_SEED)
    for size in (1, 16, 1_000, 100_000):
        yield f"other: {size} random bytes", rng.bytes(size)
    yield "other: zeros", bytes(100_000)
    yield "other: ones", b"\xff" * 100_000
    yield "other: frame headers of MP3", b"\xff\xfb\x90\x44" * 25_000
    yield "other: page headers of OGG", b"OggS" * 25_000
    yield "other: chunk headers of WAV", b"RIFF\xff\xff\xff\xffWAVE" * 8_000
    texts = {
        "a playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "a concat script": "ffconcat version 1.0\nfile /etc/passwd\nfile http://127.0.0.1:1/a.wav\n",
        "a session": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 1 RTP/AVP 0\n",
        "a manifest": '<?xml version="1.0"?><MPD><Period><BaseURL>file:///etc/passwd</BaseURL></Period></MPD>',
        "an entity bomb": '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]><a>&c;</a>',
        "a play list": "[playlist]\nFile1=file:///etc/passwd\nNumberOfEntries=1\n",
        "JSON": '{"file": "/etc/passwd"}',
        "a path": "/etc/passwd",
        "an address": "http://169.254.169.254/latest/meta-data/",
        "a format string": "%s%n%x" * 50,
    }
    for name, text in texts.items():
        yield f"other: {name}", text.encode()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        file.addfile(tarfile.TarInfo("../../a.wav"))
    yield "other: a tar", archive.getvalue()
    yield "other: a program", b"\x7fELF\x02\x01\x01" + bytes(9) + rng.bytes(1_000)
    yield "other: a pickle", b"cos\nsystem\n(S'true'\ntR."
    yield "other: a DSD file of 1-bit samples", b"DSD " + (28).to_bytes(8, "little") + bytes(200) + b"fmt "


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, content) in enumerate(corpus()):
        path = folder / f"{number:03}-{''.join(c if c.isalnum() else '-' for c in name)}"
        path.write_bytes(content)
