"""Memory, which is the reference: the suite, with parts as S3 and as GCS take them, and what is its own."""

from __future__ import annotations

from typing import Any

import pytest

from asynctune.errors import ConfigError
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.memory_bucket import IN_ANY_ORDER, IN_ORDER, MemoryBucket
from asynctune.storage.values import OnlyCreate, Stored, Upload
from asynctune.testing import FaultyStorage, ManualClock, ObjectStorageTests
from asynctune.testing.storage_scenes import entries


class TestMemory(ObjectStorageTests):
    stream_allowance_bytes = 96 << 20  # it holds the object

    @pytest.fixture(params=[IN_ANY_ORDER, IN_ORDER], ids=["any-order", "in-order"])
    def make_storage(self, request):
        bucket = MemoryBucket()

        async def make():
            return MemoryStorage(bucket, "some/prefix", rules=request.param)

        return make


class TestWithoutConditions(ObjectStorageTests):
    stream_allowance_bytes = 96 << 20

    @pytest.fixture
    def make_storage(self):
        bucket = MemoryBucket()

        async def make():
            return MemoryStorage(bucket, supports_conditions=False)

        return make


class TestFaultyWithoutFaults(ObjectStorageTests):
    stream_allowance_bytes = 96 << 20

    @pytest.fixture
    def make_storage(self):
        bucket = MemoryBucket()

        async def make():
            return FaultyStorage(MemoryStorage(bucket))

        return make


async def test_prefixes_of_a_bucket_do_not_see_each_other():
    bucket = MemoryBucket()
    one, two, all_of_it = (MemoryStorage(bucket, prefix) for prefix in ("a", "ab", ""))
    await one.put("k", b"1")
    await two.put("k", b"2")
    assert await entries(one) == ["k"]
    assert (await two.read("k")).data == b"2"
    assert await entries(all_of_it) == ["a/k", "ab/k"]
    await one.begin_upload("u", size_bytes=1, part_bytes=5 << 20)
    assert [upload async for upload in two.list_uploads()] == []
    assert [upload.key async for upload in one.list_uploads()] == ["u"]


async def test_a_named_bucket_outlives_its_storages_until_it_is_forgotten():
    first = MemoryStorage.named("memory-of-a-test", "p")
    await first.put("k", b"1")
    await first.aclose()
    second = MemoryStorage.named("memory-of-a-test", "p")
    assert (await second.read("k")).data == b"1"
    assert second.location == "memory://memory-of-a-test/p"
    MemoryStorage.forget("memory-of-a-test")
    assert await MemoryStorage.named("memory-of-a-test", "p").head("k") is None
    MemoryStorage.forget("memory-of-a-test")


async def test_times_are_those_of_its_clock():
    clock = ManualClock(time=5_000_000_000.0)
    storage = MemoryStorage(clock=clock)
    await storage.put("k", b"")
    clock.move(10)
    await storage.begin_upload("u", size_bytes=1, part_bytes=5 << 20)
    info = await storage.head("k")
    assert info is not None
    assert info.modified_at == 5_000_000_000.0
    assert [upload.begun_at async for upload in storage.list_uploads()] == [5_000_000_010.0]


async def test_in_order_means_in_order():
    storage = MemoryStorage(rules=IN_ORDER)
    upload = await storage.begin_upload("k", size_bytes=600 << 10, part_bytes=256 << 10)
    assert isinstance(upload, Upload)
    with pytest.raises(ConfigError, match="part 1 comes next, not 2"):
        await storage.put_part(upload, 2, bytes(256 << 10))
    first = await storage.put_part(upload, 1, bytes(256 << 10))
    assert await storage.put_part(upload, 1, bytes(256 << 10)) == first


async def test_what_is_put_does_not_change_with_the_callers_own():
    storage = MemoryStorage()
    changing: Any = bytearray(b"1")
    with pytest.raises(ConfigError, match="bytearray"):
        await storage.put("k", changing)
    assert isinstance(await storage.put("k", b"1", condition=OnlyCreate()), Stored)
