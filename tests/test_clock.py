"""The machine's own clocks. How long something takes is never asserted, only what cannot happen earlier."""

from __future__ import annotations

import asyncio
import time

import pytest

from asynctune.clock import SystemClock

LONG = 3600.0


def test_it_tells_the_time_of_the_machine():
    clock = SystemClock()
    before = time.monotonic()
    assert before <= clock.monotonic() <= time.monotonic()
    wall = time.time()
    assert abs(clock.time() - wall) < LONG


async def test_sleep_lets_the_time_pass_and_others_run():
    clock, ran = SystemClock(), asyncio.Event()
    asyncio.get_running_loop().call_soon(ran.set)
    loop, before = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    await clock.sleep(0.01)
    assert ran.is_set()
    # The loop rounds its timers to its own resolution.
    assert loop.time() - before >= 0.01 - time.get_clock_info("monotonic").resolution


@pytest.mark.parametrize("seconds", [None, 0, -1, LONG])
async def test_an_event_that_is_set_needs_no_waiting(seconds):
    event = asyncio.Event()
    event.set()
    assert await SystemClock().wait(event, seconds) is True


@pytest.mark.parametrize("seconds", [0.001, 0, -1])
async def test_waiting_ends_with_the_time(seconds):
    event = asyncio.Event()
    assert await SystemClock().wait(event, seconds) is False
    assert not event.is_set()


@pytest.mark.parametrize("seconds", [None, LONG])
async def test_waiting_ends_with_the_event(seconds):
    event = asyncio.Event()
    waiting = asyncio.create_task(SystemClock().wait(event, seconds))
    await asyncio.sleep(0)
    assert not waiting.done()
    event.set()
    assert await waiting is True


async def test_an_event_set_in_the_moment_the_time_is_up_counts():
    # The timer and the event come in one turn of the loop, so the waiting is cut short although it was met.
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    waiting = asyncio.create_task(SystemClock().wait(event, 0))
    loop.call_soon(loop.call_soon, event.set)
    assert await waiting is True


@pytest.mark.parametrize("call", ["sleep", "wait"])
async def test_cancellation_goes_through(call):
    clock = SystemClock()
    task = asyncio.ensure_future(clock.sleep(LONG) if call == "sleep" else clock.wait(asyncio.Event(), LONG))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_timeout_of_the_caller_is_the_callers():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await SystemClock().wait(asyncio.Event(), LONG)


async def test_a_timeout_cuts_the_block_short():
    with pytest.raises(TimeoutError):
        async with SystemClock().timeout(0):
            await asyncio.Event().wait()


@pytest.mark.parametrize("seconds", [None, LONG])
async def test_a_block_that_ends_in_time_is_left_alone(seconds):
    async with SystemClock().timeout(seconds):
        await asyncio.sleep(0)
