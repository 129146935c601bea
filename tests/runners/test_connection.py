"""The driver's end of a worker process, with processes that are no workers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from asynctune.errors import ConfigError
from asynctune.runners.connection import Connection, WorkerLostError, cpu_seconds, end_process, wait_for
from tests.runners.world import ends, lives

HOUR_S = 3600.0

PROLOGUE = """
import os, socket, struct, sys, time, msgpack, signal
s = socket.socket(fileno=int(sys.argv[1]))
def say(message):
    data = msgpack.packb(message)
    s.sendall(struct.pack("!I", len(data)) + data)
"""


@pytest.fixture
async def connect():
    made = []

    async def connect(script, hung_after_s=60.0):
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", PROLOGUE + script, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        connection = await Connection.over(ours, process, hung_after_s=hung_after_s)
        made.append((connection, process))
        return connection, process

    yield connect
    for connection, process in made:
        await connection.aclose()
        assert process.returncode is not None


async def test_messages_come_without_the_signs_of_life(connect):
    connection, _ = await connect("say({'kind': 'beat'}); say({'a': 1}); say({'b': 2}); time.sleep(60)")
    assert [await connection.receive(), await connection.receive()] == [{"a": 1}, {"b": 2}]
    assert connection.is_alive


async def test_what_was_said_at_the_end_is_heard_first(connect):
    connection, process = await connect("say({'a': b'x' * 1000000}); say({'b': 2}); os._exit(3)")
    assert len((await connection.receive())["a"]) == 1_000_000
    await asyncio.to_thread(wait_for, process, 60)
    assert await connection.receive() == {"b": 2}
    with pytest.raises(WorkerLostError, match="ended with exit code 3"):
        await connection.receive()
    assert not connection.is_alive
    with pytest.raises(WorkerLostError, match="ended with exit code 3"):
        await connection.send({"kind": "run"})


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("s.sendall(b'hello, this is no frame'); time.sleep(60)", "sent what cannot be read"),
        ("say(3); time.sleep(60)", "said 3, which makes no sense"),
        ("s.close(); time.sleep(60)", "closed its connection to the driver, and was killed"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL, as the kernel does when memory"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 3)", "was killed by signal 37|SIGRT"),
    ],
    ids=["no-frame", "no-message", "closed", "killed", "unnamed-signal"],
)
async def test_why_it_is_of_no_use(connect, script, text):
    connection, _ = await connect(script)
    with pytest.raises(WorkerLostError, match=text):
        await connection.receive()


async def test_one_that_is_silent_and_idle_is_killed(connect):
    connection, process = await connect("say({'a': 1}); time.sleep(60)", hung_after_s=0.4)
    assert await connection.receive() == {"a": 1}
    with pytest.raises(WorkerLostError, match=r"no sign of life and used no CPU time for 0\.4 s"):
        await connection.receive()
    assert process.returncode == -signal.SIGKILL


async def test_signs_of_life_are_enough(connect):
    script = (
        "\nfor _ in range(20):\n    say({'kind': 'beat'}); time.sleep(0.05)\nsay({'a': 1})\ntime.sleep(60)"
    )
    connection, _ = await connect(script, hung_after_s=0.8)
    assert await connection.receive() == {"a": 1}


@pytest.fixture
def jumps(monkeypatch):
    """Sets the clocks: that of the loop forward, that of the wall forward or back."""
    monotonic, wall = time.monotonic, time.time

    def jump(wall_s):
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + HOUR_S)  # the loop's own, too
        monkeypatch.setattr(time, "time", lambda: wall() + wall_s)

    return jump


both_ways = pytest.mark.parametrize("wall_s", [HOUR_S, -HOUR_S], ids=["forward", "back"])


@both_ways
async def test_clocks_that_jump_hang_nobody(connect, jumps, wall_s):
    """It is silent for less than it may be, when an hour goes by at once: while it is waited for, and before that."""
    script = "\nfor at in 1, 2:\n    s.recv(1); time.sleep(0.6); say({'a': at})\ntime.sleep(60)"
    connection, _ = await connect(script, hung_after_s=4.0)
    loop = asyncio.get_running_loop()
    before = loop.time()
    await connection.send(b"x")
    waiting = asyncio.create_task(connection.receive())
    await asyncio.sleep(0.1)
    jumps(wall_s)
    assert loop.time() > before + HOUR_S
    assert await waiting == {"a": 1}
    await connection.send(b"x")
    assert await connection.receive() == {"a": 2}


@both_ways
async def test_one_that_hangs_is_killed_though_clocks_jump(connect, jumps, wall_s):
    """After the time that it may be silent, which neither begins again nor is over."""
    connection, process = await connect("say({'a': 1}); time.sleep(60)", hung_after_s=1.2)
    assert await connection.receive() == {"a": 1}
    now = time.perf_counter  # does not jump
    waiting, began = asyncio.create_task(connection.receive()), now()
    await asyncio.sleep(0.1)
    jumps(wall_s)
    with pytest.raises(WorkerLostError, match=r"no sign of life and used no CPU time for 1\.2 s"):
        await waiting
    assert now() - began > 0.7
    assert process.returncode == -signal.SIGKILL


async def test_a_wait_that_was_cancelled_loses_nothing(connect):
    connection, _ = await connect("s.recv(1); say({'a': 1}); say({'b': 2}); time.sleep(60)")
    waiting = asyncio.create_task(connection.receive())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await connection.send({"kind": "go on"})
    assert [await connection.receive(), await connection.receive()] == [{"a": 1}, {"b": 2}]


async def test_one_that_is_asked_to_ends_by_itself(connect):
    connection, process = await connect("s.recv(1); os._exit(5)")
    await connection.aclose({"kind": "bye"}, grace_s=60)
    assert process.returncode == 5


async def test_one_that_does_not_is_killed_with_what_it_started(connect):
    connection, process = await connect("child = os.fork()\nif child: say({'child': child})\ntime.sleep(60)")
    child = (await connection.receive())["child"]
    await connection.aclose({"kind": "bye"}, grace_s=0.2)
    assert process.returncode == -signal.SIGKILL
    await ends(child)
    await connection.aclose()


async def test_a_cancelled_farewell_kills_at_once(connect):
    connection, process = await connect("say({'a': 1}); time.sleep(60)")
    await connection.receive()
    closing = asyncio.create_task(connection.aclose({"kind": "bye"}, grace_s=60))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await ends(process.pid)


async def test_what_cannot_be_packed_is_refused(connect):
    connection, _ = await connect("time.sleep(60)")
    with pytest.raises(ConfigError, match="the thing"):
        await connection.send({"x": object()}, "the thing")


def test_cpu_time():
    assert (cpu_seconds(os.getpid()) or 0) > 0
    assert cpu_seconds(2**22 + 1) is None


def test_ending_what_has_ended():
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(4)"], start_new_session=True)
    assert end_process(process, 60) == 4
    assert end_process(process) == 4
    assert not lives(process.pid)
