"""What the tests of transfers have in common: small parts, pauses that take no time, and what is left afterwards."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

import google_crc32c

from asynctune.clock import SystemClock
from asynctune.storage.base import ObjectStorage
from asynctune.storage.budget import ByteBudget
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.memory_bucket import MemoryBucket
from asynctune.storage.transfer import Transfer
from asynctune.storage.values import UploadRules
from asynctune.testing import FaultyStorage
from asynctune.testing.storage_scenes import let_run

PART: Final = 1000
SIZE: Final = 4 * PART + 321
"""Of a file that goes in five parts."""
SMALL: Final = 700
"""Of a file that goes at once."""

RULES: Final = {
    "any order": UploadRules(min_part_bytes=1, max_part_bytes=1 << 30, max_parts=1000, max_put_bytes=1 << 30),
    "in order": UploadRules(
        min_part_bytes=1,
        max_part_bytes=1 << 30,
        max_parts=1000,
        max_put_bytes=1 << 30,
        in_order=True,
        listed=False,
    ),
}


class QuickClock(SystemClock):
    """Real time, in which pauses are over at once; `slept` has them."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


class Longest(random.Random):
    """Draws the longest pause each time."""

    def uniform(self, a: float, b: float) -> float:
        return b


def crc32c_of(data: bytes) -> int:
    return google_crc32c.value(data)


def memory(rules: str = "any order", bucket: MemoryBucket | None = None) -> MemoryStorage:
    return MemoryStorage(bucket, rules=RULES[rules])


def make_transfer(storage: ObjectStorage, **options: Any) -> Transfer:
    given: dict[str, Any] = {
        "budget": ByteBudget(3 * PART),
        "clock": QuickClock(),
        "part_bytes": PART,
        "put_bytes": PART,
        "parts_at_once": 3,
    }
    return Transfer(storage, **(given | options))


def bucket_of(storage: ObjectStorage) -> MemoryBucket:
    """Of a `MemoryStorage`, in a `FaultyStorage` or not."""
    inner = storage.storage if isinstance(storage, FaultyStorage) else storage
    assert isinstance(inner, MemoryStorage)
    return inner._bucket


def stored(storage: ObjectStorage, key: str) -> bytes | None:
    there = bucket_of(storage).objects.get(key)
    return None if there is None else b"".join(there[1].chunks)


def open_files(directory: object) -> list[str]:
    """Files below a directory that this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue
        if path.startswith(str(directory)):
            found.append(path)
    return found


def other_tasks() -> set[asyncio.Task[Any]]:
    """Tasks that run besides the test itself."""
    return asyncio.all_tasks() - {asyncio.current_task()}


async def let_threads_end(condition: Callable[[], bool]) -> None:
    """Wait until a descriptor that is closed in a thread, or the like, is gone."""
    while not condition():
        await let_run(1)


async def until(event: Awaitable[Any], task: asyncio.Task[Any]) -> None:
    """Wait for an event, or for the end of the task in which it was to happen."""
    waiting = asyncio.ensure_future(event)
    await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
