"""Blocking calls aside: nothing goes on unowned when its caller is gone."""

from __future__ import annotations

import asyncio
import threading

import pytest

from asynctune.storage.threads import Threads


@pytest.fixture
def threads():
    threads = Threads("test", 1)
    yield threads
    threads.close()


async def test_results_and_errors_come_back(threads):
    assert await threads.run(lambda a, b: a + b, 1, b=2) == 3
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    assert await threads.run(lambda: threading.current_thread().name) == "asynctune-test_0"


async def test_a_cancelled_caller_waits_for_the_end(threads):
    entered, release, left = threading.Event(), threading.Event(), []

    def work():
        entered.set()
        release.wait()
        left.append(True)

    running = asyncio.create_task(threads.run(work))
    await asyncio.to_thread(entered.wait)
    for _ in range(2):
        running.cancel()
        await asyncio.wait([running], timeout=0)
        assert not running.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert left


async def test_a_cancelled_caller_stops_what_can_be_stopped(threads):
    entered, steps = threading.Event(), []

    def work(stop):
        while True:
            entered.set()
            stop.check()
            steps.append(1)

    running = asyncio.create_task(threads.run_stoppable(work))
    await asyncio.to_thread(entered.wait)
    running.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await running
    assert not hasattr(caught.value, "__notes__")


async def test_a_failure_behind_a_cancellation_is_told(threads):
    entered, release = threading.Event(), threading.Event()

    def work():
        entered.set()
        release.wait()
        raise OSError("disk")

    running = asyncio.create_task(threads.run(work))
    await asyncio.to_thread(entered.wait)
    running.cancel()
    release.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await running
    assert caught.value.__notes__ == ["what was under way failed too: OSError('disk')"]


async def test_what_is_started_is_done_even_after_the_close():
    threads, done = Threads("test", 1), []
    threads.start(lambda: done.append(threading.current_thread().name))
    await threads.run(lambda: None)
    threads.close()
    threads.start(lambda: done.append("here"))
    assert done == ["asynctune-test_0", "here"]
