"""A storage that reads what it is sent, and keeps none of it; what is read of it is zeros. And a process that uses it.

As a program (`send|receive size directory`) it moves one file, and prints as JSON how much memory the process had at
most, before and after, and how long the event loop was held up.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

import google_crc32c
import psutil

from asynctune.storage.base import Body
from asynctune.storage.crc import crc32c_joined
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.notes import UploadNotes
from asynctune.storage.streams import open_body, range_of, read_source, source_size
from asynctune.storage.transfer import Transfer
from asynctune.storage.values import (
    Always,
    Condition,
    ObjectInfo,
    Outcome,
    Source,
    Stored,
    Upload,
    UploadedPart,
)

CHUNK = 1 << 20
ZEROS = bytes(CHUNK)
ALWAYS = Always()


@lru_cache
def crc32c_of_zeros(size_bytes: int) -> int:
    whole, rest = divmod(size_bytes, CHUNK)
    pieces = [(google_crc32c.value(ZEROS), CHUNK)] * whole
    return crc32c_joined([*pieces, (google_crc32c.value(ZEROS[:rest]), rest)])


class DiscardingStorage(MemoryStorage):
    """See above; it has objects of any size up to 1 TiB, whose keys are their sizes."""

    received = 0
    parts = 0

    async def _discard(self, data: Source, key: str, crc32c: int | None) -> int:
        found = 0
        async with aclosing(
            read_source(data, self._threads, operation="put", key=key, crc32c=crc32c)
        ) as chunks:
            async for chunk in chunks:
                found = google_crc32c.extend(found, chunk)
                self.received += len(chunk)
        return found

    async def put(
        self, key: str, data: Source, *, condition: Condition = ALWAYS, crc32c: int | None = None
    ) -> Outcome:
        await self._discard(data, key, crc32c)
        return Stored(str(source_size(data)))

    async def put_part(
        self, upload: Upload, number: int, data: Source, *, crc32c: int | None = None
    ) -> UploadedPart:
        found = await self._discard(data, upload.key, crc32c)
        self.parts += 1
        return UploadedPart(number, source_size(data), "tag", found)

    async def complete_upload(self, upload: Upload, parts: Any) -> Outcome:
        assert crc32c_joined([(part.crc32c, part.size_bytes) for part in parts]) == upload.crc32c
        del self._bucket.uploads[upload.upload_id]
        return Stored("1")

    async def head(self, key: str) -> ObjectInfo | None:
        return ObjectInfo(key, int(key), "1", crc32c_of_zeros(int(key)), 0.0)

    @asynccontextmanager
    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, version: str | None = None
    ) -> AsyncGenerator[Body, None]:
        info = await self.head(key)
        assert info is not None
        begin, end = range_of(info.size_bytes, start, length)

        async def zeros() -> AsyncGenerator[bytes, None]:
            for at in range(begin, end, CHUNK):
                await asyncio.sleep(0)
                yield bytes(min(CHUNK, end - at))  # new ones, as they would come

        async with open_body(zeros(), info, start=start, length=length) as body:
            yield body


async def watch_lag(ticks: list[float]) -> None:
    while True:
        ticks.append(time.perf_counter())
        await asyncio.sleep(0.001)


async def run(what: str, size_bytes: int, directory: str) -> dict[str, Any]:
    path = f"{directory}/file"
    storage = DiscardingStorage()
    notes = UploadNotes(f"{directory}/uploads", location=storage.location)
    transfer = Transfer(storage, notes=notes)
    crc32c = await asyncio.to_thread(crc32c_of_zeros, size_bytes)
    process = psutil.Process()
    before = most = process.memory_info().rss
    ticks: list[float] = []

    def look() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, process.memory_info().rss)
            time.sleep(0.005)

    done = asyncio.Event()
    looking = asyncio.create_task(asyncio.to_thread(look))
    lag = asyncio.create_task(watch_lag(ticks))
    began = time.perf_counter()
    try:
        if what == "send":
            await asyncio.to_thread(_make_sparse, path, size_bytes)
            await transfer.send(str(size_bytes), path, size_bytes=size_bytes, crc32c=crc32c)
        else:
            await transfer.receive(str(size_bytes), path, size_bytes=size_bytes, crc32c=crc32c)
            assert await asyncio.to_thread(os.path.getsize, path) == size_bytes
    finally:
        took_s = time.perf_counter() - began
        done.set()
        lag.cancel()
        await asyncio.wait([looking, lag])
    transfer.close()
    late = sorted(max(0.0, after - at - 0.001) for at, after in pairwise(ticks))
    return {
        "rss_before": before,
        "rss_most": most,
        "lag_p99_ms": 1e3 * late[int(len(late) * 0.99)],
        "lag_most_ms": 1e3 * late[-1],
        "took_s": took_s,
        "received": storage.received,
    }


def _make_sparse(path: str, size_bytes: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size_bytes)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(sys.argv[1], int(sys.argv[2]), sys.argv[3]))))
