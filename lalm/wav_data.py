"""What the data chunk of a WAV file announces: decoders take a file that ends before it for a shorter one."""

from __future__ import annotations

_OPEN_SIZES = 0x7FFF_0000  # from here on: written by a program that could not know (a pipe, a stream)
_MAX_MISSING = 64  # some writers count the header in


def missing_data(content: bytes) -> tuple[int, int] | None:
    """How many bytes of sound a WAV file lacks, of how many that it announces; None: not cut off."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return None
    start = 12
    while start + 8 <= len(content):
        name, size = content[start : start + 4], int.from_bytes(content[start + 4 : start + 8], "little")
        end = start + 8 + size
        if name == b"data":
            missing = end - len(content)
            return (missing, size) if missing > _MAX_MISSING and size < _OPEN_SIZES else None
        start = end + size % 2
    return None
