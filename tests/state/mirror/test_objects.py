"""Objects that are put once, and the running of several calls at once."""

from __future__ import annotations

import asyncio

import google_crc32c
import pytest

from asynctune.errors import CorruptStateError, NotFoundError, StorageError
from asynctune.state.mirror.current import Ref
from asynctune.state.mirror.objects import put_object, read_object, together
from asynctune.storage.local import LocalStorage
from asynctune.storage.memory import MemoryStorage
from asynctune.testing import FaultyStorage

DATA = b"frames" * 100
REF = Ref("seg-1-0123456789ab-1", len(DATA), google_crc32c.value(DATA), 1, 9)


@pytest.fixture(params=["memory", "directory", "no conditions"])
def storage(request, tmp_path) -> FaultyStorage:
    if request.param == "directory":
        return FaultyStorage(LocalStorage(str(tmp_path / "bucket")))
    return FaultyStorage(MemoryStorage(supports_conditions=request.param == "memory"))


async def test_it_comes_back(storage):
    await put_object(storage, REF, DATA)
    assert await read_object(storage, REF) == DATA


@pytest.mark.parametrize("how", ["lost", "own copy"])
async def test_a_reply_that_was_lost_is_settled(storage, how):
    if how == "lost":
        storage.fail(on="put", applied=True)
    else:
        storage.conflict(on="put")
    await put_object(storage, REF, DATA)
    assert await read_object(storage, REF) == DATA


async def test_one_that_was_not_applied_is_an_error(storage):
    storage.fail(on="put")
    with pytest.raises(StorageError, match="asked for"):
        await put_object(storage, REF, DATA)


async def test_other_bytes_are_no_settlement(storage):
    await storage.put(REF.key, b"other!" * 100)
    storage.fail(on="put")
    with pytest.raises(StorageError):
        await put_object(storage, REF, DATA)


async def test_an_error_that_does_not_pass_is_raised_as_it_is(storage):
    storage.fail(StorageError("no", retryable=False), on="put", applied=True)
    with pytest.raises(StorageError, match="no"):
        await put_object(storage, REF, DATA)
    assert storage.count("head") == 0


async def test_what_is_missing_or_another_is_told(storage):
    with pytest.raises(NotFoundError):
        await read_object(storage, REF)
    for other in (DATA[:-1], DATA + b"x", b"others" * 100):
        await storage.put(REF.key, other)
        with pytest.raises(CorruptStateError, match=REF.name) as caught:
            await read_object(storage, REF)
        assert str(caught.value.path).endswith(REF.key)


async def test_all_are_awaited_a_few_at_a_time():
    running = most = 0

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return number

    assert await together(*(work(n) for n in range(30))) == tuple(range(30))
    assert most == 8
    assert await together() == ()


async def test_the_first_error_ends_all_and_is_raised_as_it_is():
    ended = []

    async def work(number: int) -> None:
        try:
            await asyncio.sleep(0)
            if number == 3:
                raise StorageError("three")
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    with pytest.raises(StorageError, match="three"):
        await together(*(work(n) for n in range(30)))
    assert set(ended) >= set(range(8))
    assert len(ended) < 30  # the rest never began


async def test_a_cancellation_ends_all():
    task = asyncio.get_running_loop().create_task(together(*(asyncio.Event().wait() for _ in range(30))))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
