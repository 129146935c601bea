"""The suite for storages finds out what is wrong. Right ones pass it: tests/storage."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager

import pytest

from asynctune.errors import AsynctuneError
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.memory_bucket import MemoryBucket
from asynctune.storage.values import Always, ObjectInfo, OnlyCreate, Stored
from asynctune.testing import FaultyStorage, ObjectStorageTests

ALWAYS = Always()


def as_utf16(entry):
    return (entry.key if isinstance(entry, ObjectInfo) else entry.name).encode("utf-16-be")


class Careless(FaultyStorage):
    """Ignores conditions."""

    def __init__(self, bucket):
        super().__init__(MemoryStorage(bucket), ignore_conditions=True)


class Racing(MemoryStorage):
    """Looks, and then writes."""

    async def put(self, key, data, *, condition=ALWAYS, crc32c=None):
        if isinstance(condition, OnlyCreate) and await self.head(key) is None:
            condition = ALWAYS
        return await super().put(key, data, condition=condition, crc32c=crc32c)


class Unchecked(MemoryStorage):
    """Believes checksums."""

    async def put(self, key, data, *, condition=ALWAYS, crc32c=None):
        return await super().put(key, data, condition=condition)


class Stale(MemoryStorage):
    """Reads whatever version there is."""

    def get(self, key, *, start=0, length=None, version=None):
        return super().get(key, start=start, length=length)


class Greedy(MemoryStorage):
    """Reads to the end."""

    @asynccontextmanager
    async def get(self, key, *, start=0, length=None, version=None):
        async with super().get(key, start=start, version=version) as body:
            yield body


class Unsorted(MemoryStorage):
    """Lists as UTF-16 sorts."""

    async def list_objects(self, prefix="", *, delimiter=None, start_after=None):
        listing = super().list_objects(prefix, delimiter=delimiter, start_after=start_after)
        for entry in sorted([entry async for entry in listing], key=as_utf16):
            yield entry


class FirstPage(MemoryStorage):
    """Forgets to ask for the next page."""

    async def list_objects(self, prefix="", *, delimiter=None, start_after=None):
        count = itertools.count(1)
        async for entry in super().list_objects(prefix, delimiter=delimiter, start_after=start_after):
            if next(count) > 1000:
                return
            yield entry


class Inclusive(MemoryStorage):
    """Begins with the key itself, as GCS's `startOffset` does."""

    async def list_objects(self, prefix="", *, delimiter=None, start_after=None):
        if start_after and (info := await self.head(start_after)) and start_after.startswith(prefix):
            yield info
        async for entry in super().list_objects(prefix, delimiter=delimiter, start_after=start_after):
            yield entry


class ByContent(MemoryStorage):
    """Has no version but the size."""

    async def put(self, key, data, *, condition=ALWAYS, crc32c=None):
        outcome = await super().put(key, data, condition=condition, crc32c=crc32c)
        return Stored(str(len(data))) if isinstance(outcome, Stored) else outcome


class Hasty(MemoryStorage):
    """Shows an object as soon as its last part is there."""

    async def put_part(self, upload, number, data, *, crc32c=None):
        part = await super().put_part(upload, number, data, crc32c=crc32c)
        parts = await self.list_parts(upload)
        if len(parts) == upload.num_parts:
            await self.put(upload.key, b"early")
        return part


class Leaking(MemoryStorage):
    """Aborts nothing."""

    async def abort_upload(self, key, upload_id):
        pass


class Unconditional(MemoryStorage):
    """Forgets the condition of an upload."""

    async def begin_upload(self, key, *, size_bytes, part_bytes, condition=ALWAYS, crc32c=None):
        return await super().begin_upload(key, size_bytes=size_bytes, part_bytes=part_bytes, crc32c=crc32c)


class Undying(MemoryStorage):
    """Works after its close."""

    async def aclose(self):
        pass


class Vague(MemoryStorage):
    """Lists sizes that are wrong."""

    async def list_objects(self, prefix="", *, delimiter=None, start_after=None):
        async for entry in super().list_objects(prefix, delimiter=delimiter, start_after=start_after):
            yield (
                ObjectInfo(entry.key, 0, entry.version, None, 0.0) if isinstance(entry, ObjectInfo) else entry
            )


@pytest.mark.parametrize(
    ("bad", "test", "arguments"),
    [
        (Careless, "test_conditions_are_kept_or_refused", []),
        (Careless, "test_no_increment_is_lost", ["other"]),
        (Racing, "test_of_many_that_create_one_does", ["other"]),
        (Unchecked, "test_a_source_that_is_not_what_it_should_be_is_refused", ["tmp_path"]),
        (Stale, "test_a_version_is_read_or_none", []),
        (Greedy, "test_ranges", [10, 10]),
        (Unsorted, "test_listings_begin_where_they_are_told_to", []),
        (FirstPage, "test_listings_and_deletions_may_be_long", []),
        (Inclusive, "test_listings_begin_where_they_are_told_to", []),
        (ByContent, "test_another_content_has_another_version", []),
        (Hasty, "test_an_object_is_made_of_its_parts", ["other", "tmp_path"]),
        (Leaking, "test_an_abort_leaves_nothing", ["other"]),
        (Unconditional, "test_the_condition_holds_at_the_end", [OnlyCreate()]),
        (Undying, "test_after_the_close_nothing_works", []),
        (Vague, "test_listings_and_deletions_may_be_long", []),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else None,
)
async def test_a_bad_storage_is_found_out(bad, test, arguments, tmp_path):
    bucket = MemoryBucket()
    storage, other = bad(bucket), bad(bucket)
    given = [
        {"other": other, "tmp_path": tmp_path}.get(each, each) if isinstance(each, str) else each
        for each in arguments
    ]

    async def make():
        return storage

    with pytest.raises((AssertionError, pytest.fail.Exception, AsynctuneError)):
        await getattr(ObjectStorageTests(), test)(make if "close" in test else storage, *given)
