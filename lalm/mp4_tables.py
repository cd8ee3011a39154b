"""What the tables of an MP4 file announce, read before FFmpeg believes them.

FFmpeg makes an entry for every sample that a table announces before it reads the first one. In a fragmented
file with a track that has no id, it searches a thousand million entries that do not exist, again for every
fragment. A few bytes can so cost gigabytes of memory and minutes of work.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice

import numpy as np

_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"pnot")
_TABLES = re.compile(rb"stsz|stz2|trun|stsc|stco|co64|moof|trak|tkhd")
_MAX_TABLES = 20_000  # a fragmented file has a few for each fragment
_CHUNK_MARGIN = 64  # how far chunks may differ in size; FFmpeg indexes a large one by 1024 samples


def is_mp4(content: bytes) -> bool:
    """Whether `content` begins like an MP4, M4A or QuickTime file."""
    return content[4:8] in _FIRST_BOXES


def tables_fit(content: bytes) -> bool:
    """Whether the tables announce no more samples than there are bytes, and no track lacks an id it needs."""
    starts: defaultdict[bytes, list[int]] = defaultdict(list)
    tables = list(islice(_tables(content), _MAX_TABLES + 1))
    for name, start in tables:
        starts[name].append(start)
    num_samples = sum(_number(content, start) for start in starts[b"trun"])
    num_samples += sum(_number(content, start + 4) for start in starts[b"stsz"] + starts[b"stz2"])
    num_chunks = sum(
        min(_number(content, start), len(content) // 4) for start in starts[b"stco"] + starts[b"co64"]
    )
    num_ids = sum(_has_track_id(content, start) for start in starts[b"tkhd"])
    return (
        len(tables) <= _MAX_TABLES
        and num_samples <= len(content)
        and num_chunks * _largest_chunk(content, starts[b"stsc"]) <= _CHUNK_MARGIN * len(content)
        and (not starts[b"moof"] or len(starts[b"trak"]) <= num_ids)
    )


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


def _largest_chunk(content: bytes, starts: list[int]) -> int:
    """The most samples a chunk has in the `stsc` tables at `starts`; overlapping tables count as endless."""
    largest = num_runs_of_all = 0
    for start in starts:
        num_runs = max(0, min(_number(content, start), (len(content) - start - 4) // 12))
        num_runs_of_all += num_runs
        if num_runs_of_all > len(content) // 12:
            return 2**32
        if num_runs:  # of first chunk, samples a chunk, description
            runs = np.frombuffer(content, dtype=">u4", count=3 * num_runs, offset=start + 4)
            largest = max(largest, int(runs[1::3].max()))
    return largest


def _has_track_id(content: bytes, start: int) -> bool:
    """Whether the id in the `tkhd` at `start` is a positive number; version 1 has longer times before it."""
    version = content[start - 4 : start - 3]
    return 0 < _number(content, start + (16 if version == b"\1" else 8)) < 2**31


def _number(content: bytes, start: int) -> int:
    """The unsigned 32-bit number at `start`, 0 past the end."""
    return int.from_bytes(content[start : start + 4].ljust(4, b"\0"))
