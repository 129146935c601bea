"""Uploads that nobody goes on with are aborted, until none is listed."""

from __future__ import annotations

import asyncio

import pytest

from asynctune.errors import StorageError
from asynctune.storage.values import Upload
from asynctune.testing import FaultyStorage, ManualClock
from asynctune.testing.storage_scenes import pattern
from tests.storage.transfers import PART, bucket_of, make_transfer, memory, other_tasks


@pytest.fixture
def storage():
    return FaultyStorage(memory())


@pytest.fixture
def transfer(storage):
    made = make_transfer(storage)
    yield made
    made.close()


async def begin(storage, key: str) -> Upload:
    upload = await storage.begin_upload(key, size_bytes=2 * PART, part_bytes=PART)
    assert isinstance(upload, Upload)
    await storage.put_part(upload, 1, pattern(PART))
    return upload


async def test_those_that_are_known_stay(storage, transfer):
    await begin(storage, "a/b")
    await begin(storage, "a/b")
    kept = await begin(storage, "a/c")
    outside = await begin(storage, "b")
    assert await transfer.abort_leftovers("a/", {kept.upload_id}) == 2
    assert set(bucket_of(storage).uploads) == {kept.upload_id, outside.upload_id}
    assert await transfer.abort_leftovers() == 2
    assert await transfer.abort_leftovers() == 0
    assert bucket_of(storage).uploads == {}


async def test_where_none_are_listed_nothing_is_asked():
    storage = FaultyStorage(memory("in order"))
    transfer = make_transfer(storage)
    await begin(storage, "a")
    assert await transfer.abort_leftovers() == 0
    assert storage.count("list_uploads") == 0
    transfer.close()


@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
async def test_any_request_may_fail_once(storage, transfer, applied):
    for nth in range(1, 5):
        for key in ("a", "b"):
            await begin(storage, key)
        fault = storage.fail(nth=nth, applied=applied)
        assert await transfer.abort_leftovers() == 2
        assert fault.hits == 1
        assert bucket_of(storage).uploads == {}


async def test_one_that_comes_back_is_aborted_again(storage, transfer):
    """A part was under way while it was aborted."""
    upload = await begin(storage, "a")
    bucket = bucket_of(storage)
    begun = bucket.uploads[upload.upload_id]
    storage.call(lambda _: bucket.uploads.update({upload.upload_id: begun}), on="list_uploads", nth=2)
    assert await transfer.abort_leftovers() == 1
    assert bucket.uploads == {}
    assert storage.count("abort_upload") == 2


async def test_one_that_always_comes_back_is_an_error(storage):
    clock = ManualClock()
    transfer = make_transfer(storage, clock=clock, timeout_s=60.0)
    upload = await begin(storage, "a")
    bucket = bucket_of(storage)
    begun = bucket.uploads[upload.upload_id]
    storage.call(lambda _: bucket.uploads.update({upload.upload_id: begun}), on="list_uploads", lasting=True)
    aborting = asyncio.create_task(transfer.abort_leftovers())
    while not aborting.done():
        await clock.advance(1.0)
    with pytest.raises(StorageError, match="again and again") as caught:
        await aborting
    assert upload.upload_id not in str(caught.value)
    assert other_tasks() == set()
    transfer.close()
