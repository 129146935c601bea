"""Time moved by hand."""

from __future__ import annotations

import asyncio
import threading

import pytest

from asynctune.testing import ManualClock


async def test_time_stands_still_until_it_is_moved():
    clock = ManualClock(monotonic=5.0, time=100.0)
    await asyncio.sleep(0)
    assert (clock.monotonic(), clock.time()) == (5.0, 100.0)
    await clock.advance(2.5)
    assert (clock.monotonic(), clock.time()) == (7.5, 102.5)
    clock.set_time(90.0)
    assert (clock.monotonic(), clock.time()) == (7.5, 90.0)


async def test_sleepers_wake_in_the_order_of_their_time_and_see_it():
    clock, seen = ManualClock(monotonic=0.0), []

    async def sleep(seconds):
        await clock.sleep(seconds)
        seen.append((seconds, clock.monotonic()))

    async with asyncio.TaskGroup() as group:
        for seconds in (3.0, 1.0, 2.0, 10.0):
            group.create_task(sleep(seconds))
        await clock.advance(2.5)
        assert seen == [(1.0, 1.0), (2.0, 2.0)]
        await clock.advance(100)
        assert seen == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (10.0, 10.0)]


async def test_a_task_that_sleeps_again_and_again_gets_every_turn():
    clock, turns = ManualClock(), []

    async def tick():
        while True:
            await clock.sleep(1)
            turns.append(clock.monotonic())

    task = asyncio.create_task(tick())
    await clock.advance(10)
    assert turns == [1001.0 + i for i in range(10)]
    task.cancel()
    await asyncio.wait([task])
    assert clock.sleepers == 0


async def test_waiting_for_an_event_ends_with_the_event_or_the_time():
    clock, event = ManualClock(), asyncio.Event()
    assert await clock.wait(event, 0) is False
    task = asyncio.create_task(clock.wait(event, 3))
    await clock.advance(2.9)
    assert not task.done()
    await clock.advance(0.1)
    assert await task is False
    task = asyncio.create_task(clock.wait(event, 3))
    forever = asyncio.create_task(clock.wait(event, None))
    await clock.advance(1)
    assert not forever.done()
    event.set()
    assert await task is True
    assert await forever is True
    assert await clock.wait(event, 0) is True
    assert clock.sleepers == 0


async def test_a_deadline_missed_by_rounding_is_met():
    clock, seen = ManualClock(monotonic=100.0), []

    async def sleep():
        due = clock.monotonic() + 0.3
        await clock.sleep(0.3)
        seen.append(clock.monotonic() >= due)

    task = asyncio.create_task(sleep())
    await asyncio.sleep(0)
    for _ in range(3):
        await clock.advance(0.1)
    assert seen == [True]
    await task


async def test_a_cancelled_waiter_leaves_nothing_behind():
    clock = ManualClock()
    tasks = [asyncio.create_task(clock.sleep(5)), asyncio.create_task(clock.wait(asyncio.Event(), 5))]
    await asyncio.sleep(0)
    assert clock.sleepers == 2
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert clock.sleepers == 0
    await clock.advance(10)


async def test_another_thread_may_move_the_time():
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(5))
    await asyncio.sleep(0)
    thread = threading.Thread(target=clock.move, args=(5,))
    thread.start()
    await task
    thread.join()
    assert clock.monotonic() == 1005.0


@pytest.mark.parametrize("seconds", [-1, float("nan")])
async def test_time_does_not_go_back(seconds):
    with pytest.raises(ValueError, match="forward"):
        await ManualClock().advance(seconds)


async def test_a_timeout_comes_with_the_time_that_is_moved():
    clock = ManualClock()

    async def block(seconds):
        async with clock.timeout(seconds):
            await asyncio.Event().wait()

    soon, later, never = (asyncio.create_task(block(seconds)) for seconds in (3, 5, None))
    await clock.advance(4)
    assert isinstance(soon.exception(), TimeoutError)
    assert not later.done()
    later.cancel()
    never.cancel()
    await asyncio.wait([later, never])
    assert later.cancelled()
    assert never.cancelled()
    assert clock.sleepers == 0


async def test_a_block_that_ends_in_time_leaves_no_sleeper():
    clock = ManualClock()
    async with clock.timeout(3):
        assert clock.sleepers == 1
    assert clock.sleepers == 0
