"""Owns how a payload is stored in its frame: as it is, compressed, stuffed; never with a long run of zeros.

Recovery tells a sector that never reached the disk from one that changed there by its being all zeros, so no
sector may be that by right. Pure functions; the frame around it belongs to the codec.
"""

from __future__ import annotations

import zlib
from typing import Final

__all__ = ["SECTOR", "STUFFED", "ZLIB", "restored", "stored"]

SECTOR: Final = 512
"""What a disk writes whole or not at all, in bytes."""

ZLIB: Final = 2
"""Flag of a frame: the payload is compressed."""

STUFFED: Final = 4
"""Flag of a frame: what is stored has an 0xff after each 127 bytes."""

# A quarter of a sector: a sector inside a payload without such a run keeps several bytes that are not zero,
# so that no single flipped bit can make it look as if it had never been written.
_RUN: Final = SECTOR // 4
_ZERO_RUN: Final = b"\0" * _RUN
_MARK: Final = b"\xff"


def stored(payload: bytes, *, compress: bool) -> tuple[bytes, int]:
    """The bytes to store, and the flags that say how; compressed if that is asked for and smaller."""
    if not compress and _ZERO_RUN not in payload:
        return payload, 0
    data, flags = payload, 0
    packed = zlib.compress(payload, 1)
    if len(packed) < len(payload):
        data, flags = packed, ZLIB
    # What zlib makes of a long run is its own business, and may be a long run of zeros.
    if _ZERO_RUN in data:
        data, flags = _stuff(data), flags | STUFFED
    return data, flags


def restored(data: bytes, flags: int, *, max_bytes: int) -> bytes:
    """Take back what `stored` made.

    Raises:
        ValueError, zlib.error: Not of that form, or of more than `max_bytes`.
    """
    if flags & STUFFED:
        data = _unstuff(data)
    if flags & ZLIB:
        stream = zlib.decompressobj()
        packed, data = data, stream.decompress(data, max_bytes)
        if not stream.eof or stream.unconsumed_tail or stream.unused_data or not packed:
            msg = "a compressed payload that is over the cap or does not end"
            raise ValueError(msg)
    if len(data) > max_bytes:
        msg = f"a payload of {len(data):,} bytes; the cap is {max_bytes:,}"
        raise ValueError(msg)
    return data


def _stuff(data: bytes) -> bytes:
    # a column at a time, so that the loop is short however long the data is
    step = _RUN - 1
    stuffed = bytearray(_MARK) * (len(data) + len(data) // step)
    for column in range(min(step, len(data))):
        stuffed[column::_RUN] = data[column::step]
    return bytes(stuffed)


def _unstuff(stuffed: bytes) -> bytes:
    marks = stuffed[_RUN - 1 :: _RUN]
    if marks.count(_MARK) != len(marks):
        msg = "a stuffed payload without its marks"
        raise ValueError(msg)
    data = bytearray(stuffed)
    del data[_RUN - 1 :: _RUN]
    return bytes(data)
