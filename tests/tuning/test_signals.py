"""Signals stop a Tuner, and go back to whom they belonged."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading

import pytest

from asynctune.tuning.signals import stopping_on_signals
from tests.killing import ROOT
from tests.tuning.terminals import terminal


def handlers():
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def default_handlers():
    before = handlers()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    assert handlers() == (signal.default_int_handler, signal.SIG_DFL)
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGTERM, before[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
async def test_the_first_one_calls_stop_in_the_loop(number):
    stopped = asyncio.get_running_loop().create_future()
    with stopping_on_signals(stopped.set_result) as seen:
        os.kill(os.getpid(), number)
        assert await stopped is number
        assert seen.received is number


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
async def test_the_second_one_ends_the_process_also_when_the_loop_is_stuck(monkeypatch, second):
    ended: list = []
    monkeypatch.setattr(os, "_exit", ended.append)
    stopped: list = []
    with stopping_on_signals(stopped.append):
        os.kill(os.getpid(), signal.SIGINT)
        assert not ended
        os.kill(os.getpid(), second)
        assert ended == [128 + second]
        assert stopped == [], "the loop has not turned yet"
        await asyncio.sleep(0)
        assert stopped == [signal.SIGINT]


def test_the_handler_of_asyncio_run_is_given_back():
    found = []

    async def main():
        found.append(handlers())
        with stopping_on_signals(print):
            found.append(handlers())
        found.append(handlers())

    with asyncio.Runner() as runner:
        runner.run(main())
    assert found[0] == found[2]
    assert found[0][0] not in (found[1][0], signal.default_int_handler)
    assert found[0][1] != found[1][1]


async def test_handlers_are_given_back_after_an_error():
    before = handlers()
    with pytest.raises(RuntimeError, match="no"), stopping_on_signals(print):
        raise RuntimeError("no")
    assert handlers() == before


async def test_a_programs_own_handlers_are_left_alone():
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, came.set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping_on_signals(lambda number: pytest.fail(f"{number} belongs to the program")):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            await came.wait()
        came.clear()
        os.kill(os.getpid(), signal.SIGTERM)
        await came.wait()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGINT, signal.default_int_handler)


async def test_one_that_was_set_meanwhile_is_kept():
    def own(number, frame):
        pass

    with stopping_on_signals(print):
        signal.signal(signal.SIGTERM, own)
    assert signal.getsignal(signal.SIGTERM) is own
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


async def test_several_at_once_are_all_stopped_and_end_in_any_order():
    stopped: list = []
    first, second = (
        stopping_on_signals(lambda n: stopped.append(1)),
        stopping_on_signals(lambda n: stopped.append(2)),
    )
    first.__enter__()
    seen = second.__enter__()
    first.__exit__(None, None, None)
    third = stopping_on_signals(lambda n: stopped.append(3))
    third.__enter__()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0)
    assert seen.received is signal.SIGINT
    assert stopped == [2, 3]
    second.__exit__(None, None, None)
    third.__exit__(None, None, None)


async def test_in_another_thread_nothing_is_touched():
    before = handlers()
    inside = []

    async def main():
        with stopping_on_signals(print) as seen:
            inside.append((handlers(), seen.received))

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert inside == [(before, None)]


PROGRAM = """
import asyncio, os, signal, time
from asynctune.tuning.signals import stopping_on_signals

async def main():
    with stopping_on_signals(print):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        print("not reached")

asyncio.run(main())
"""


def test_the_process_is_gone_at_once():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_cursor_is_back_on_a_terminal():
    follower, stop = terminal()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, stderr=follower)
    os.close(follower)
    assert "\x1b[?25h" in stop()
    assert process.wait() == 130
