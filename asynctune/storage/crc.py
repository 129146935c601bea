"""Owns the arithmetic of CRC-32C beyond computing it: how buckets spell it, and the one of pieces joined. No I/O.

Joining follows Mark Adler's way in zlib (`crc32_combine`): a checksum is a polynomial over GF(2), and appending zeros
multiplies it by a power of x, which is found by squaring.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

__all__ = ["crc32c_joined", "crc32c_of_text", "crc32c_text"]

_POLYNOMIAL: Final = 0x82F63B78  # Castagnoli's, bits reversed, as RFC 3720 has it
_ONE: Final = 1 << 31
_BYTES: Final = 4


def crc32c_text(crc32c: int) -> str:
    """As buckets spell it: base64 of the four bytes, most significant first."""
    return base64.b64encode(crc32c.to_bytes(_BYTES, "big")).decode()


def crc32c_of_text(text: str | None) -> int | None:
    """What `crc32c_text` wrote; `None` for what is no checksum of a whole (`"...-3"`, S3's of three checksums)."""
    try:
        raw = base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError):
        return None
    return int.from_bytes(raw, "big") if len(raw) == _BYTES else None


def crc32c_joined(pieces: Iterable[tuple[int, int]]) -> int:
    """The checksum of pieces one after the other, from the checksum and the size in bytes of each."""
    whole = 0
    for crc32c, size_bytes in pieces:
        whole = _times(_power(size_bytes), whole) ^ crc32c
    return whole


@lru_cache(maxsize=64)
def _power(size_bytes: int) -> int:
    """X to the number of bits, modulo the polynomial."""
    result, square, bits = _ONE, _ONE >> 1, size_bytes * 8
    while bits:
        if bits & 1:
            result = _times(square, result)
        square = _times(square, square)
        bits >>= 1
    return result


def _times(a: int, b: int) -> int:
    product, bit = 0, _ONE
    while bit:
        if a & bit:
            product ^= b
        bit >>= 1
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product
