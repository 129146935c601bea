"""The thread that answers on the loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from asynctune.state.thread import WorkThread


@pytest.fixture
def thread():
    made = WorkThread("asynctune-test")
    yield made
    made.stop()


async def test_calls_run_in_one_thread_in_order(thread):
    seen: list[tuple[int, int]] = []
    await asyncio.gather(
        *(thread.run(lambda n=n: seen.append((n, threading.get_ident()))) for n in range(20))
    )
    assert [number for number, _ in seen] == list(range(20))
    assert len({ident for _, ident in seen}) == 1
    assert threading.get_ident() not in {ident for _, ident in seen}


async def test_results_and_errors_come_back(thread):
    assert await thread.run(lambda a, b: a + b, 1, 2) == 3

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await thread.run(fail)

    def end() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        await thread.run(end)
    assert await thread.run(lambda: "still there") == "still there"


async def test_the_callback_runs_on_the_loop(thread):
    called = asyncio.get_running_loop().create_future()
    thread.call(lambda result, error: called.set_result((result, error, threading.get_ident())), lambda: 7)
    assert await called == (7, None, threading.get_ident())


async def test_a_cancelled_caller_leaves_the_work_running_to_its_end(thread):
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        go.wait()
        done.set()

    task = asyncio.create_task(thread.run(work))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not done.is_set()
    go.set()
    assert await thread.run(done.is_set)


async def test_stopping_lets_what_was_submitted_end(thread):
    go = threading.Event()
    first = asyncio.create_task(thread.run(go.wait))
    second = asyncio.create_task(thread.run(lambda: "done"))
    await asyncio.sleep(0)
    thread.stop()
    thread.stop()
    go.set()
    assert await first
    assert await second == "done"


def test_an_answer_to_a_closed_loop_is_dropped(thread):
    go, over = threading.Event(), threading.Event()

    def work() -> None:
        go.wait()
        over.set()

    async def submit() -> None:
        thread.call(lambda _result, _error: None, work)

    asyncio.run(submit())
    go.set()
    assert over.wait(10)
    assert asyncio.run(thread.run(lambda: "alive")) == "alive"


async def test_a_call_after_the_end_is_answered_and_leaves_no_thread():
    thread = WorkThread("late")
    await thread.run(lambda: None)
    thread.stop()
    assert await thread.run(lambda: 1) == 1
    assert await thread.run(threading.get_ident) != threading.get_ident()
    for each in threading.enumerate():
        if each.name == "late":
            await asyncio.to_thread(each.join)
    thread.stop()


async def test_no_thread_is_started_before_the_first_call():
    before = threading.active_count()
    WorkThread("asynctune-idle").stop()
    assert threading.active_count() == before


async def test_the_last_call_comes_after_what_was_submitted():
    thread, ended = WorkThread("test"), threading.Event()
    done: list[int] = []

    def end() -> None:
        done.append(2)
        ended.set()

    first = asyncio.ensure_future(thread.run(done.append, 1))
    await asyncio.sleep(0)
    thread.stop(end)
    await first
    assert await asyncio.to_thread(ended.wait, 30)
    assert done == [1, 2]


async def test_a_thread_that_never_ran_makes_its_last_call_at_once():
    done = []
    WorkThread("test").stop(lambda: done.append(1))
    assert done == [1]
