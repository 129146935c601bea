"""Owns what sending and receiving have in common: what they work with, their patience, and the proof by reading.

The storages repeat single requests by themselves. `Patience` is above that: it begins a request again whose own
repetitions were used up, or whose body broke off, for as long as something comes of it now and then.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import google_crc32c

from asynctune.clock import Clock
from asynctune.errors import ConditionFailedError, NotFoundError, StorageError
from asynctune.files import LocalFiles
from asynctune.storage.base import ObjectStorage
from asynctune.storage.budget import ByteBudget
from asynctune.storage.notes import UploadNotes
from asynctune.storage.streams import source_chunks
from asynctune.storage.threads import Stop, Threads
from asynctune.storage.values import FileRange, ObjectInfo

__all__ = ["Digest", "Means", "Patience", "confirmed", "crc32c_of_file", "feed", "in_parallel"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BASE_S: Final = 0.2
_CAP_S: Final = 30.0
_MOST_DOUBLINGS: Final = 32
_TRICKLE_BYTES_PER_S: Final = 1024


class Digest(Protocol):
    """A hash of `hashlib`."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""
        ...

    def hexdigest(self) -> str:
        """Of all bytes so far."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What a transfer works with; see `asynctune.storage.transfer.Transfer`."""

    storage: ObjectStorage
    budget: ByteBudget
    clock: Clock
    files: LocalFiles
    threads: Threads
    notes: UploadNotes | None
    rng: random.Random
    part_bytes: int
    put_bytes: int
    parts_at_once: int
    timeout_s: float

    def patience(self) -> Patience:
        """That of a transfer which begins."""
        return Patience(self.clock, self.rng, self.timeout_s)


class Patience:
    """How long one transfer goes on: until nothing has come of it for `timeout_s` seconds.

    Bytes that trickle in, fewer than 1 KiB for each second, keep it going no longer than they would take at that rate:
    a server that sends one a second would else be waited for without end.

    The pause before the n-th repetition is drawn evenly from 0 to `min(30 s, 0.2 s * 2 ** (n - 1))`, and what the
    storage asks for comes on top of it.
    """

    def __init__(self, clock: Clock, rng: random.Random, timeout_s: float) -> None:
        self._clock = clock
        self._rng = rng
        self._timeout_s = timeout_s
        self._since = clock.monotonic()

    def progressed(self) -> None:
        """Something came of it: it has all its time again."""
        self._since = self._clock.monotonic()

    def received(self, size_bytes: int) -> None:
        """So many bytes came."""
        self._since = min(self._clock.monotonic(), self._since + size_bytes / _TRICKLE_BYTES_PER_S)

    async def once(self, request: Callable[[], Awaitable[T]], operation: str, key: str) -> T:
        """Await `request()` under a deadline of `timeout_s`.

        Raises:
            StorageError: It has not ended; retryable.
        """
        try:
            async with self._clock.timeout(self._timeout_s):
                return await request()
        except TimeoutError as cause:
            raise StorageError(
                f"{operation} of {key!r}: nothing has come of it for {self._timeout_s:g} s",
                operation=operation,
                key=key,
                retryable=True,
                hint="check the network and the storage's endpoint",
            ) from cause

    async def pause(self, error: StorageError, failed: int) -> None:
        """Wait before the next attempt, after `failed` ones; raise `error` if there is to be none."""
        if not error.retryable:
            raise error
        pause_s = self._rng.uniform(0.0, min(_CAP_S, _BASE_S * 2.0 ** min(failed - 1, _MOST_DOUBLINGS)))
        pause_s += max(0.0, error.retry_after_s or 0.0)
        idle_s = self._clock.monotonic() - self._since
        if idle_s + pause_s > self._timeout_s:
            error.add_note(f"given up after {failed} attempts; nothing has come of it for {idle_s:.0f} s")
            raise error
        logger.debug("again in %.2f s: %s", pause_s, error)
        await self._clock.sleep(pause_s)

    async def run(self, request: Callable[[], Awaitable[T]], operation: str, key: str) -> T:
        """Await `request()` again and again, until it returns or patience is at its end.

        Raises:
            StorageError: The last one.
        """
        failed = 0
        while True:
            try:
                return await self.once(request, operation, key)
            except StorageError as error:
                failed += 1
                await self.pause(error, failed)


async def in_parallel(work: Iterable[Callable[[], Awaitable[None]]], count: int) -> None:
    """Do all of the work, in order, at most `count` at once. The first failure ends the others, and is raised."""
    waiting = iter(work)

    async def some() -> None:
        for each in waiting:
            await each()

    failure: BaseException
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                tasks.create_task(some())
        return
    except BaseExceptionGroup as group:
        failure = group.exceptions[0]
    raise failure


def crc32c_of_file(source: FileRange, key: str, stop: Stop) -> int:
    """The checksum of bytes of a file. Blocking.

    Raises:
        StorageError: They cannot be read, or are too few; not retryable.
    """
    found = 0
    with closing(source_chunks(source, operation="read", key=key)) as chunks:
        for chunk in chunks:
            stop.check()
            found = google_crc32c.extend(found, chunk)
    return found


def feed(digest: Digest, source: FileRange, key: str, stop: Stop) -> None:
    """Update a hash with bytes of a file. Blocking.

    Raises:
        StorageError: As for `crc32c_of_file`.
    """
    with closing(source_chunks(source, operation="read", key=key)) as chunks:
        for chunk in chunks:
            stop.check()
            digest.update(chunk)


async def confirmed(means: Means, key: str, size_bytes: int, crc32c: int) -> str | None:
    """The version of the object, if it has this size and checksum; `None`: there is none, or another.

    Where the storage keeps no checksum the object is read to see.
    """
    info = await means.storage.head(key)
    if info is None or info.size_bytes != size_bytes:
        return None
    found = info.crc32c
    if found is None:
        found = await _read_back(means.storage, info)
    return info.version if found == crc32c else None


async def _read_back(storage: ObjectStorage, info: ObjectInfo) -> int | None:
    check = 0
    try:
        async with storage.get(info.key, version=info.version) as body:
            async for chunk in body:
                check = google_crc32c.extend(check, chunk)
    except (NotFoundError, ConditionFailedError):
        return None  # replaced or deleted meanwhile: it is not what was looked for
    return check
