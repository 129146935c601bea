"""A storage on a loop of its own: the suite, and what is special about it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import aclosing

import pytest

from asynctune.errors import StorageError
from asynctune.storage.aside import StorageAside
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.values import Stored
from asynctune.testing import FaultyStorage, ObjectStorageTests


def side_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "asynctune-storage"]


async def memory(name: str) -> MemoryStorage:
    return MemoryStorage.named(name, "prefix")


class TestStorageAside(ObjectStorageTests):
    stream_allowance_bytes = 96 << 20  # the storage itself is in memory

    @pytest.fixture
    def make_storage(self):
        name = f"aside-{os.urandom(6).hex()}"

        async def make():
            return await StorageAside.open(lambda: memory(name))

        yield make
        MemoryStorage.forget(name)


async def begun(storage: FaultyStorage) -> None:
    """Return when the other thread has begun a call."""

    def watch() -> None:
        while not storage.log:
            time.sleep(0.001)

    await asyncio.to_thread(watch)


@pytest.fixture
async def faulty():
    """The faults, and the storage aside of them."""
    inner: list[FaultyStorage] = []

    async def make():
        inner.append(FaultyStorage(MemoryStorage()))
        return inner[0]

    aside = await StorageAside.open(make)
    yield inner[0], aside
    await aside.aclose()


async def test_the_inner_one_is_called_in_one_thread_that_ends_with_it():
    threads: set[int] = set()

    class Watched(MemoryStorage):
        async def head(self, key):
            threads.add(threading.get_ident())
            return await super().head(key)

    async def make():
        threads.add(threading.get_ident())
        return Watched()

    before = len(side_threads())
    aside = await StorageAside.open(make)
    assert await asyncio.gather(*(aside.head("a") for _ in range(20))) == [None] * 20
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    ours = side_threads()
    assert len(ours) == before + 1
    await aside.aclose()
    await aside.aclose()
    await asyncio.to_thread(ours[-1].join, 10)
    assert len(side_threads()) == before
    with pytest.raises(StorageError, match="closed"):
        await aside.head("a")


async def test_what_cannot_be_made_leaves_no_thread():
    before = side_threads()

    async def make():
        raise StorageError("no such bucket")

    with pytest.raises(StorageError, match="no such bucket"):
        await StorageAside.open(make)
    for thread in side_threads():
        if thread not in before:
            await asyncio.to_thread(thread.join, 10)
    assert len(side_threads()) <= len(before)


async def test_a_cancelled_caller_waits_for_the_end_of_what_it_called(faulty):
    inner, aside = faulty
    inner.hang(on="put", applied=True)
    task = asyncio.create_task(aside.put("a", b"1"))
    await begun(inner)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await aside.read("a")).data == b"1"
    assert isinstance(await aside.put("a", b"2"), Stored), "and the storage goes on"


async def test_a_call_that_is_cancelled_before_it_began_does_nothing(faulty):
    inner, aside = faulty
    task = asyncio.create_task(aside.put("a", b"1"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await aside.head("b") is None
    assert len(inner.log) <= 2


async def test_errors_are_the_inner_ones(faulty):
    inner, aside = faulty
    error = StorageError("nobody answers", operation="head", key="a", retryable=True)
    inner.fail(error, on="head")
    with pytest.raises(StorageError) as caught:
        await aside.head("a")
    assert caught.value is error


async def test_a_body_is_read_a_few_chunks_ahead_and_no_more():
    handed: list[int] = []

    class Counted(MemoryStorage):
        def get(self, key, **settings):
            return _Counting(super().get(key, **settings), handed)

    async def make():
        return Counted()

    aside = await StorageAside.open(make)
    await aside.put("a", bytes(8 << 20))
    async with aside.get("a") as body:
        chunks = aiter(body)
        assert await anext(chunks)
        for _ in range(50):  # time enough for the other thread to read on, if it did
            await asyncio.sleep(0.002)
        assert len(handed) <= 5
        total = sum([len(chunk) async for chunk in chunks])
        assert total > 0
    await aside.aclose()


class _Counting:
    def __init__(self, inner, handed):
        self._inner = inner
        self._handed = handed

    async def __aenter__(self):
        self._body = await self._inner.__aenter__()
        return self

    async def __aexit__(self, *error):
        return await self._inner.__aexit__(*error)

    @property
    def info(self):
        return self._body.info

    async def __aiter__(self):
        async for chunk in self._body:
            for start in range(0, len(chunk), 65536):
                self._handed.append(1)
                yield chunk[start : start + 65536]


async def test_a_body_that_is_left_early_is_closed(faulty):
    _, aside = faulty
    await aside.put("a", bytes(4 << 20))
    async with aside.get("a") as body:
        async for _ in body:
            break
    assert (await aside.read("a", max_bytes=8 << 20)).info.size_bytes == 4 << 20


async def test_a_listing_that_is_left_early_is_closed(faulty):
    _, aside = faulty
    for number in range(1200):
        await aside.put(f"k{number:04}", b"")
    async with aclosing(aside.list_objects()) as listing:
        first = await anext(listing)
    assert first.key == "k0000"
    async with aclosing(aside.list_objects()) as listing:
        assert len([entry async for entry in listing]) == 1200


async def test_closing_ends_what_is_under_way(faulty):
    inner, aside = faulty
    inner.hang(on="head")
    waiting = asyncio.create_task(aside.head("a"))
    await begun(inner)
    await aside.aclose()
    with pytest.raises(StorageError, match="closed"):
        await waiting


async def test_one_that_is_forgotten_warns():
    made = [await StorageAside.open(lambda: memory("forgotten"))]
    with pytest.warns(ResourceWarning, match="was never closed"):
        made.clear()
    MemoryStorage.forget("forgotten")
