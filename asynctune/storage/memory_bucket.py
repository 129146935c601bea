"""Owns what a bucket in memory holds, and each change of it that has to happen in one step."""

from __future__ import annotations

import asyncio
import bisect
import itertools
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Final

import google_crc32c

from asynctune.storage.values import (
    Condition,
    Conflict,
    IfVersion,
    ObjectInfo,
    OnlyCreate,
    Outcome,
    Stored,
    Upload,
    UploadedPart,
    UploadRules,
)

__all__ = ["IN_ANY_ORDER", "IN_ORDER", "PAGE", "Begun", "Held", "MemoryBucket", "held_of", "slices"]

IN_ANY_ORDER: Final = UploadRules(
    min_part_bytes=5 << 20, max_part_bytes=5 << 30, max_parts=10_000, max_put_bytes=5 << 30
)
"""Parts as S3 takes them."""

IN_ORDER: Final = UploadRules(
    min_part_bytes=256 << 10,
    max_part_bytes=5 << 30,
    max_parts=1 << 30,
    max_put_bytes=5 << 40,
    part_multiple=256 << 10,
    in_order=True,
    listed=False,
)
"""Parts as a GCS resumable session takes them."""

PAGE: Final = 1000
"""How many keys are looked at in one step."""


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes in small pieces, as they came."""

    chunks: tuple[bytes, ...]
    crc32c: int
    size_bytes: int


@dataclass(slots=True)
class Begun:
    """An upload of the object `full`, with the parts that are there."""

    full: str
    upload: Upload
    begun_at: float
    parts: dict[int, tuple[UploadedPart, Held]] = field(default_factory=dict)


class MemoryBucket:
    """Objects and uploads, shared by the storages that are made of it; safe within one thread."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[ObjectInfo, Held]] = {}
        self.uploads: dict[str, Begun] = {}
        self._numbers = itertools.count(1)
        self._sorted: list[str] | None = None

    def number(self) -> str:
        """A number not given before."""
        return str(next(self._numbers))

    def after(self, key: str, *, inclusive: bool) -> list[str]:
        """At most a page of keys, in order, from `key` on."""
        if self._sorted is None:
            self._sorted = sorted(self.objects)  # code points and UTF-8 bytes have the same order
        find = bisect.bisect_left if inclusive else bisect.bisect_right
        start = find(self._sorted, key)
        return self._sorted[start : start + PAGE]

    def store(self, key: str, held: Held, condition: Condition, now: float) -> Outcome:
        """Replace an object if the condition holds; in one step."""
        there = self.objects.get(key)
        version = None if there is None else there[0].version
        if (isinstance(condition, OnlyCreate) and version is not None) or (
            isinstance(condition, IfVersion) and version != condition.version
        ):
            return Conflict(version)
        info = ObjectInfo(key, held.size_bytes, self.number(), held.crc32c, now)
        self.objects[key] = info, held
        if version is None:
            self._sorted = None
        return Stored(info.version)

    def remove(self, key: str) -> None:
        """Remove an object, if it is there."""
        if self.objects.pop(key, None) is not None:
            self._sorted = None


def held_of(chunks: list[bytes]) -> Held:
    """Chunks with their size and checksum."""
    check = 0
    for chunk in chunks:
        check = google_crc32c.extend(check, chunk)
    return Held(tuple(chunks), check, sum(map(len, chunks)))


async def slices(held: Held, begin: int, end: int) -> AsyncGenerator[bytes, None]:
    """The bytes of a range, in chunks."""
    position = 0
    for chunk in held.chunks:
        piece = chunk[max(0, begin - position) : max(0, end - position)]
        position += len(chunk)
        if piece:
            await asyncio.sleep(0)
            yield piece
        if position >= end:
            return
