"""Patience, work in parallel, and the proof by reading."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from asynctune.errors import AuthenticationError, StorageError
from asynctune.storage.carrying import Patience, confirmed, in_parallel
from asynctune.storage.local import LocalStorage
from asynctune.testing import FaultyStorage, ManualClock
from asynctune.testing.storage_scenes import cancelled, let_run
from tests.storage.transfers import Longest, QuickClock, crc32c_of, make_transfer, memory, other_tasks


def away(**more) -> StorageError:
    return StorageError("away", retryable=True, **more)


async def failing(times: int, error: StorageError | None = None):
    """A request that fails so often."""
    left = times

    async def request() -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            raise error or away()
        return "done"

    return request


async def test_pauses_grow_to_their_cap():
    clock = QuickClock()
    patience = Patience(clock, Longest(), 1000.0)
    assert await patience.run(await failing(10), "put", "k") == "done"
    assert clock.slept == [pytest.approx(min(30.0, 0.2 * 2**n)) for n in range(10)]


async def test_what_the_storage_asks_for_comes_on_top():
    clock = QuickClock()
    patience = Patience(clock, Longest(), 1000.0)
    await patience.run(await failing(1, away(retry_after_s=5.0)), "put", "k")
    await patience.run(await failing(1, away(retry_after_s=-5.0)), "put", "k")
    assert clock.slept == [pytest.approx(5.2), pytest.approx(0.2)]


async def test_what_cannot_pass_is_not_repeated():
    clock = QuickClock()
    with pytest.raises(AuthenticationError):
        await Patience(clock, Longest(), 1000.0).run(await failing(1, AuthenticationError("no")), "put", "k")
    assert clock.slept == []


async def test_progress_renews_patience():
    clock = ManualClock()
    patience = Patience(clock, Longest(), 10.0)
    clock.move(9.9)
    with pytest.raises(StorageError, match="away"):
        await patience.run(await failing(1), "put", "k")
    patience.progressed()
    running = asyncio.create_task(patience.run(await failing(1), "put", "k"))
    await clock.advance(1.0)
    assert await running == "done"


async def test_bytes_renew_patience_by_what_they_would_take():
    clock = ManualClock()
    patience = Patience(clock, Longest(), 10.0)
    for _ in range(9):  # a chunk now and then
        clock.move(9.0)
        patience.received(16 * 1024)
    running = asyncio.create_task(patience.run(await failing(1), "get", "k"))
    await clock.advance(1.0)
    assert await running == "done"
    for _ in range(10):  # one byte a second
        clock.move(1.0)
        patience.received(1)
    with pytest.raises(StorageError, match="away"):
        await patience.run(await failing(1), "get", "k")


async def test_a_request_without_an_answer_is_ended():
    clock = ManualClock()
    patience = Patience(clock, Longest(), 10.0)
    running = asyncio.create_task(patience.once(asyncio.Event().wait, "put", "k"))
    await clock.advance(9.0)
    assert not running.done()
    await clock.advance(1.0)
    with pytest.raises(StorageError, match="for 10 s") as caught:
        await running
    assert (caught.value.operation, caught.value.key, caught.value.retryable) == ("put", "k", True)


async def test_so_many_at_once_and_in_order():
    began: list[int] = []
    go = [asyncio.Event() for _ in range(5)]

    async def work(number: int) -> None:
        began.append(number)
        await go[number].wait()

    running = asyncio.create_task(in_parallel([partial(work, n) for n in range(5)], 2))
    await let_run(3)
    assert began == [0, 1]
    go[1].set()
    await let_run(3)
    assert began == [0, 1, 2]
    for event in go:
        event.set()
    await running
    assert began == [0, 1, 2, 3, 4]


async def test_the_first_failure_ends_the_others():
    ended: list[int] = []

    async def work(number: int) -> None:
        try:
            if number == 1:
                raise away()
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    with pytest.raises(StorageError, match="away"):
        await in_parallel([partial(work, n) for n in range(5)], 3)
    assert sorted(ended) == [0, 1, 2]
    assert other_tasks() == set()


async def test_a_cancellation_ends_all():
    async def work() -> None:
        await asyncio.Event().wait()

    running = asyncio.create_task(in_parallel([work] * 5, 3))
    await let_run(3)
    await cancelled(running)
    assert running.cancelled()
    assert other_tasks() == set()


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "read"])
async def test_an_object_is_what_was_stored(tmp_path, kept):
    inner = memory() if kept else LocalStorage(str(tmp_path / "bucket"))
    storage = FaultyStorage(inner)
    transfer = make_transfer(storage)
    means = transfer._means
    assert await confirmed(means, "k", 3, crc32c_of(b"abc")) is None
    await storage.put("k", b"abc")
    info = await storage.head("k")
    assert info is not None
    assert await confirmed(means, "k", 3, crc32c_of(b"abc")) == info.version
    assert await confirmed(means, "k", 3, crc32c_of(b"abd")) is None
    assert await confirmed(means, "k", 4, crc32c_of(b"abc")) is None
    assert storage.count("get") == (0 if kept else 2)
    if not kept:
        storage.call(lambda _: inner.delete(["k"]), on="get")
        assert await confirmed(means, "k", 3, crc32c_of(b"abc")) is None
        await inner.put("k", b"abc")
        storage.call(lambda _: inner.put("k", b"abc"), on="get")
        assert await confirmed(means, "k", 3, crc32c_of(b"abc")) is None
    transfer.close()
    await storage.aclose()
