"""What the sample tables of an MP4 file announce, read before FFmpeg believes them.

FFmpeg makes an entry for every sample that a table announces before it reads the first one. A few bytes can
announce a hundred million: gigabytes of memory and seconds of work for a file of 20 KB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot")
_TABLES = re.compile(rb"stsz|stz2|trun|stsc|stco|co64")
_MAX_TABLES = 10_000  # a fragmented file has one `trun` a fragment
_CHUNK_MARGIN = (
    64  # how far chunks may differ in size; FFmpeg indexes 1024 samples of a large chunk at a time
)


def is_mp4(content: bytes) -> bool:
    """Whether `content` begins like an MP4, M4A or QuickTime file."""
    return content[4:8] in _FIRST_BOXES


def tables_fit(content: bytes) -> bool:
    """Whether the tables announce no more samples than `content` has bytes; a sample has at least one."""
    num_samples = num_chunks = max_chunk_samples = num_runs = 0
    for count, (name, start) in enumerate(_tables(content)):
        if count >= _MAX_TABLES:
            return False
        if name in (b"stsz", b"stz2"):
            num_samples += _number(content, start + 4)
        elif name == b"trun":
            num_samples += _number(content, start)
        elif name == b"stsc":
            runs = _chunk_runs(content, start)
            num_runs += len(runs)
            if num_runs > len(content) // 12:
                return False
            max_chunk_samples = max(max_chunk_samples, int(runs.max(initial=0)))
        else:
            num_chunks += min(_number(content, start), len(content) // 4)
    return num_samples <= len(content) and num_chunks * max_chunk_samples <= _CHUNK_MARGIN * len(content)


def _tables(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Name of every table outside the media itself, and where its content starts."""
    for start, end in _boxes_but_media(content):
        for found in _TABLES.finditer(content, start, end):
            # a 32-bit size of 1 before the name says that a 64-bit size follows it; then version and flags
            extended = content[max(found.start() - 4, 0) : found.start()] == b"\0\0\0\1"
            yield found[0], found.end() + (12 if extended else 4)


def _boxes_but_media(content: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of the outermost boxes, without those that hold the media itself."""
    start = 0
    while start + 8 <= len(content):
        size = _number(content, start)
        if size == 1:
            size = int.from_bytes(content[start + 8 : start + 16])
        end = min(start + max(size, 8), len(content)) if size else len(content)
        if content[start + 4 : start + 8] != b"mdat":
            yield start, end
        start = end


def _chunk_runs(content: bytes, start: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """The samples a chunk has, for each run of like chunks that the `stsc` at `start` lists."""
    num_runs = max(0, min(_number(content, start), (len(content) - start - 4) // 12))
    table = np.frombuffer(content, dtype=">u4", count=3 * num_runs, offset=start + 4 if num_runs else 0)
    return table[1::3]  # first chunk, samples a chunk, description


def _number(content: bytes, start: int) -> int:
    """The unsigned 32-bit number at `start`, 0 past the end."""
    return int.from_bytes(content[start : start + 4].ljust(4, b"\0"))
