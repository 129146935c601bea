"""The storage that fails when told to. Without faults it passes the suite: tests/storage/test_memory.py."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from asynctune.errors import StorageError
from asynctune.storage.base import ObjectStorage
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.values import Conflict, IfVersion, OnlyCreate, Stored, Upload
from asynctune.testing import FaultyStorage
from asynctune.testing.storage_faults import STORAGE_OPERATIONS
from asynctune.testing.storage_scenes import entries, get


@pytest.fixture
def storage():
    return FaultyStorage(MemoryStorage())


def test_every_operation_of_a_storage_is_counted():
    public = {name for name, _ in inspect.getmembers(ObjectStorage, inspect.isfunction) if name[0] != "_"}
    assert public - {"aclose"} == STORAGE_OPERATIONS


async def test_the_nth_operation_of_a_kind_fails_and_no_other(storage):
    fault = storage.fail(on="put", nth=2)
    await storage.put("a", b"1")
    assert await storage.head("b") is None
    with pytest.raises(StorageError, match="asked for") as caught:
        await storage.put("b", b"2")
    assert caught.value.retryable
    await storage.put("c", b"3")
    assert await entries(storage) == ["a", "c"]
    assert fault.hits == 1
    assert fault.struck.is_set()
    assert [(call.number, call.operation, call.key) for call in storage.log] == [
        (1, "put", "a"),
        (2, "head", "b"),
        (3, "put", "b"),
        (4, "put", "c"),
        (5, "list_objects", ""),
    ]
    assert storage.count("put") == 3


async def test_each_operation_can_fail_before_and_after(storage):
    upload = await storage.begin_upload("u", size_bytes=1, part_bytes=5 << 20)
    assert isinstance(upload, Upload)
    inner = storage.storage

    async def complete():
        return await storage.complete_upload(upload, await inner.list_parts(upload))

    calls = {
        "head": lambda: storage.head("k"),
        "get": lambda: get(storage, "k"),
        "read": lambda: storage.read("k"),
        "put": lambda: storage.put("k", b"1"),
        "delete": lambda: storage.delete(["x"]),
        "list_objects": lambda: entries(storage),
        "begin_upload": lambda: storage.begin_upload("u", size_bytes=1, part_bytes=5 << 20),
        "put_part": lambda: storage.put_part(upload, 1, b"1"),
        "list_parts": lambda: storage.list_parts(upload),
        "list_uploads": lambda: pending(storage),
        "complete_upload": complete,
        "abort_upload": lambda: storage.abort_upload("u", upload.upload_id),
    }
    assert set(calls) == STORAGE_OPERATIONS
    await storage.put("k", b"1")
    for name, call in calls.items():
        for applied in (False, True):
            storage.fail(KeyError(name), on=name, applied=applied)
            with pytest.raises(KeyError, match=name):
                await call()


async def pending(storage):
    return [upload async for upload in storage.list_uploads()]


@pytest.mark.parametrize("applied", [False, True])
async def test_a_reply_may_be_a_conflict_with_oneself(storage, applied):
    storage.conflict(applied=applied)
    assert await storage.put("k", b"1", condition=OnlyCreate()) == Conflict()
    assert (await storage.head("k") is not None) is applied


@pytest.mark.parametrize("applied", [False, True])
async def test_what_hangs_ends_by_healing_or_cancellation(storage, applied):
    for heals in (True, False):
        fault = storage.hang(on="put", applied=applied)
        running = asyncio.create_task(storage.put(f"k{heals}", b"1"))
        await fault.struck.wait()
        await asyncio.wait([running], timeout=0.001)
        assert not running.done()
        if heals:
            storage.heal()
            assert isinstance(await running, Stored)
        else:
            running.cancel()
            await asyncio.wait([running])
            assert running.cancelled()
        assert (await storage.head(f"k{heals}") is not None) is (heals or applied)


async def test_a_body_may_break_off(storage):
    await storage.put("k", b"12345")
    storage.truncate(3)
    async with storage.get("k") as body:
        chunks = aiter(body)
        seen = await anext(chunks)
        with pytest.raises(StorageError, match="broke off after 3 bytes") as caught:
            await anext(chunks)
    assert caught.value.retryable
    assert seen == b"123"
    assert await get(storage, "k") == b"12345"


@pytest.mark.parametrize("start", [0, 2, 4], ids=["whole", "inside", "behind"])
async def test_a_body_may_be_damaged(storage, start):
    await storage.put("k", b"12345")
    storage.damage(3)
    expected = b"12355"[start:] if start <= 3 else b"5"
    assert await get(storage, "k", start=start) == expected
    assert await get(storage, "k", start=start) == b"12345"[start:]


async def test_something_may_happen_just_before(storage):
    inner = storage.storage
    storage.call(lambda _: inner.put("k", b"hers"), on="put")
    assert isinstance(await storage.put("k", b"mine", condition=OnlyCreate()), Conflict)


async def test_lasting_faults_end_by_healing(storage):
    storage.fail(on="head", nth=2, lasting=True)
    assert await storage.head("k") is None
    for _ in range(3):
        with pytest.raises(StorageError):
            await storage.head("k")
    storage.heal()
    assert await storage.head("k") is None


async def test_conditions_may_be_ignored_without_a_word():
    storage = FaultyStorage(MemoryStorage(), ignore_conditions=True)
    assert storage.supports_conditions
    for condition in (OnlyCreate(), IfVersion("none"), OnlyCreate()):
        assert isinstance(await storage.put("k", b"1", condition=condition), Stored)


def test_mistakes_are_refused(storage):
    with pytest.raises(ValueError, match="no operation is called pull"):
        storage.fail(on="pull")
    with pytest.raises(ValueError, match="counts from 1"):
        storage.hang(nth=0)
    with pytest.raises(ValueError, match="only complete_upload, put"):
        storage.conflict(on="get")
