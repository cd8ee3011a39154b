"""Headers that lie about what is behind them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_MANY = 2**32 - 1
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE


def hostile_headers(wav: bytes, flac: bytes, ogg: bytes, m4a: bytes) -> Iterator[tuple[str, bytes]]:
    """Variations of good files."""
    yield from wav_headers(wav[44:])
    yield from flac_headers(flac)
    yield from ogg_headers(ogg)
    yield from mp4_boxes(m4a)
    yield from matroska_elements()


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    """A RIFF chunk, which says that it has `size` bytes."""
    return name + struct.pack("<I", len(content) if size is None else size) + content


def riff(*chunks: bytes, size: int | None = None) -> bytes:
    """A WAV file of chunks."""
    return chunk(b"RIFF", b"WAVE" + b"".join(chunks), size)


def layout(
    *, tag: int = _PCM, channels: int = 1, rate: int = 16_000, align: int | None = None, bits: int = 16
) -> bytes:
    """A chunk that says how samples lie."""
    align = channels * bits // 8 if align is None else align
    fields = struct.pack("<HHIIHH", tag, channels, rate, rate * align % 2**32, align % 2**16, bits)
    return chunk(b"fmt ", fields)


def wav_headers(data: bytes) -> Iterator[tuple[str, bytes]]:
    """WAV files; `data` is 16-bit samples."""
    sound = chunk(b"data", data)
    for channels in (0, 9, 32, 1_024, 65_535):
        yield f"wav: {channels} channels", riff(layout(channels=channels), sound)
    for rate in (0, 1, 768_000, 2**31, _MANY):
        yield f"wav: {rate} Hz", riff(layout(rate=rate), sound)
    for bits in (0, 1, 7, 12, 33, 64, 65_535):
        yield f"wav: {bits} bits", riff(layout(bits=bits), sound)
        yield f"wav: {bits} bits of float", riff(layout(bits=bits, tag=_FLOAT), sound)
    for align in (0, 1, 3, 65_535):
        yield f"wav: frames of {align} bytes", riff(layout(align=align), sound)
    for tag in (0, 2, 6, 0x11, 0x31, 0x50, 0x55, 0x161, 0xFF, 0x674F, _EXTENSIBLE, 0xFFFF):
        yield f"wav: format {tag:#x}", riff(layout(tag=tag), sound)
    for size in (0, 1, 2**31 - 1, 2**31, _MANY):
        yield f"wav: data of {size} bytes", riff(layout(), chunk(b"data", data, size))
        yield f"wav: file of {size} bytes", riff(layout(), sound, size=size)
    yield "wav: no layout", riff(sound)
    yield "wav: no data", riff(layout())
    yield "wav: data first", riff(sound, layout())
    yield "wav: two layouts", riff(layout(), layout(channels=2, rate=8_000), sound)
    yield "wav: a short layout", riff(chunk(b"fmt ", b"\1\0\1\0"), sound)
    yield "wav: a long layout", riff(chunk(b"fmt ", layout()[8:] + bytes(60_000)), sound)
    yield "wav: a layout beyond the file", riff(chunk(b"fmt ", layout()[8:], _MANY), sound)
    yield "wav: 20000 empty chunks", riff(layout(), chunk(b"junk", b"") * 20_000, sound)
    yield "wav: lists in lists", riff(layout(), _nested(500), sound)
    yield "wav: a list beyond the file", riff(layout(), chunk(b"LIST", b"INFOIART", _MANY), sound)
    yield (
        "wav: a name without an end",
        riff(layout(), chunk(b"LIST", b"INFO" + chunk(b"IART", b"a" * 60_000)), sound),
    )


def _nested(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        content = chunk(b"LIST", b"INFO" + content)
    return content


def flac_headers(flac: bytes) -> Iterator[tuple[str, bytes]]:
    """FLAC files, by the bits of their first block."""
    frames = flac[42:]

    def stream(
        *, block: int = 4_096, rate: int = 16_000, channels: int = 1, bits: int = 16, total: int = 0
    ) -> bytes:
        packed = rate << 44 | (channels - 1) << 41 | (bits - 1) << 36 | total
        info = struct.pack(">HH", block, block) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
        return b"fLaC\x80\0\0\x22" + info + frames

    yield "flac: 2^36 - 1 samples", stream(total=2**36 - 1)
    yield "flac: 0 Hz", stream(rate=0)
    yield "flac: 1048575 Hz", stream(rate=2**20 - 1)
    yield "flac: 8 channels of one", stream(channels=8)
    yield "flac: 1 bit", stream(bits=1)
    yield "flac: 32 bits of 16", stream(bits=32)
    yield "flac: blocks of none", stream(block=0)
    yield "flac: blocks of 65535", stream(block=65_535)
    yield "flac: a picture of 16 MiB", flac[:4] + b"\0" + flac[5:42] + b"\x86\xff\xff\xff" + flac[42:]
    yield "flac: 2000 blocks of padding", b"fLaC\0" + flac[5:42] + b"\x01\0\0\0" * 2_000 + flac[42:]


def ogg_headers(ogg: bytes) -> Iterator[tuple[str, bytes]]:
    """OGG files, by the header of a page."""
    for name, place, value in (
        ("a position beyond everything", 6, b"\xff" * 7 + b"\x7f"),
        ("a negative position", 6, b"\xff" * 8),
        ("another stream", 14, b"\xde\xad\xbe\xef"),
        ("255 segments", 26, b"\xff"),
        ("no segment", 26, b"\0"),
    ):
        last = ogg.rindex(b"OggS")
        for which, page in (("first", 0), ("last", last)):
            bad = bytearray(ogg)
            bad[page + place : page + place + len(value)] = value
            yield f"ogg: {name} in the {which} page", bytes(bad)
    yield "ogg: 2000 first pages", ogg[:58] * 2_000 + ogg
    yield "ogg: without its first page", ogg[ogg.index(b"OggS", 1) :]


def box(name: bytes, content: bytes, size: int | None = None) -> bytes:
    """An MP4 box, which says that it has `size` bytes."""
    return struct.pack(">I", len(content) + 8 if size is None else size) + name + content


def mp4_boxes(m4a: bytes) -> Iterator[tuple[str, bytes]]:
    """MP4 files, by the tables of their samples."""
    for table in (b"stsz", b"stts", b"stsc", b"stco", b"mdhd", b"esds", b"mp4a", b"tkhd"):
        place = m4a.index(table)
        for name, value in (("ones", b"\xff"), ("zeros", b"\0")):
            bad = bytearray(m4a)
            bad[place + 8 : place + 24] = value * 16
            yield f"mp4: {table.decode()} of {name}", bytes(bad)
        yield f"mp4: {table.decode()} of no size", m4a[: place - 4] + bytes(4) + m4a[place:]
    kind = box(b"ftyp", b"M4A \0\0\0\0M4A ")
    deep = b""
    for _ in range(2_000):
        deep = box(b"moov", deep)
    yield "mp4: boxes in boxes", kind + deep
    yield "mp4: a box of 2^63 bytes", kind + struct.pack(">I4sQ", 1, b"mdat", 2**63) + bytes(64)
    yield "mp4: a box of one byte", kind + box(b"moov", bytes(64), 1)
    yield "mp4: 20000 empty boxes", kind + box(b"free", b"") * 20_000
    yield "mp4: no track", kind + box(b"moov", box(b"mvhd", bytes(100)))


def matroska_elements() -> Iterator[tuple[str, bytes]]:
    """Matroska files that begin and go nowhere."""
    head = bytes.fromhex("1a45dfa39f4286810142f7810142f2810442f381084282847765626d4287810442858102")
    segment, tracks = bytes.fromhex("18538067"), bytes.fromhex("1654ae6b")
    endless = head + segment + b"\xff"
    yield "matroska: a segment of unknown size", head + segment + b"\x01" + b"\xff" * 7
    yield "matroska: a segment of 2^56 - 2 bytes", head + segment + b"\x01" + b"\xff" * 6 + b"\xfe"
    yield "matroska: tracks of unknown size", endless + tracks + b"\xff" + b"\xae\x80" * 5_000
    yield "matroska: a size of no length", head + bytes(64)
    yield "matroska: clusters in a row", endless + bytes.fromhex("1f43b675ff") * 5_000
