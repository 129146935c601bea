"""A syncer is called in turn, in a thread or on the loop, and what it does wrong is told."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from asynctune.checkpoints.syncer_calls import SyncerCalls
from asynctune.errors import ConfigError, StorageError
from asynctune.testing import ManualClock


class Plain:
    """Does what it is told to, and remembers the rest."""

    def __init__(self, act=lambda *_: None):
        self.act = act
        self.calls: list[tuple[Any, ...]] = []
        self.threads: set[threading.Thread] = set()

    def _do(self, *call):
        self.threads.add(threading.current_thread())
        self.calls.append(call)
        return self.act(*call)

    def sync_up(self, local_dir, remote_dir, exclude=None):
        return self._do("up", local_dir, remote_dir, exclude)

    def sync_down(self, remote_dir, local_dir, exclude=None):
        return self._do("down", remote_dir, local_dir, exclude)

    def delete(self, remote_dir):
        return self._do("delete", remote_dir)


class Async(Plain):
    """The same on the loop."""

    async def sync_up(self, local_dir, remote_dir, exclude=None):
        return await self._wait("up", local_dir, remote_dir, exclude)

    async def sync_down(self, remote_dir, local_dir, exclude=None):
        return await self._wait("down", remote_dir, local_dir, exclude)

    async def delete(self, remote_dir):
        return await self._wait("delete", remote_dir)

    async def _wait(self, *call):
        result = self._do(*call)
        return await result if asyncio.iscoroutine(result) else result


BOTH = pytest.mark.parametrize("kind", [Plain, Async], ids=["plain", "async"])


def calls_of(syncer, timeout_s=60.0, clock=None):
    return SyncerCalls(syncer, timeout_s=timeout_s, clock=clock or ManualClock())


@BOTH
async def test_what_it_is_told_and_where(kind):
    syncer = kind()
    calls = calls_of(syncer)
    await calls.up("/a", "s3://b/x", ["*.tmp"])
    await calls.down("s3://b/x", "/a")
    await calls.delete("s3://b/x")
    assert syncer.calls == [
        ("up", "/a", "s3://b/x", ["*.tmp"]),
        ("down", "s3://b/x", "/a", None),
        ("delete", "s3://b/x"),
    ]
    on_the_loop = threading.main_thread() in syncer.threads
    assert on_the_loop == (kind is Async)
    assert calls.name == kind.__name__


async def test_one_that_takes_no_patterns_and_one_that_is_a_function_of_another():
    class Small:
        def sync_up(self, local_dir, remote_dir):
            return asyncio.sleep(0, False)  # what a decorated coroutine function looks like

        def sync_down(self, remote_dir, local_dir): ...
        def delete(self, remote_dir): ...

    calls = calls_of(Small())
    await calls.down("/b", "/a")
    with pytest.raises(StorageError, match="sync_up returned False"):
        await calls.up("/a", "/b")


@BOTH
@pytest.mark.parametrize("result", [None, True, 0, "no"], ids=repr)
async def test_only_false_and_exceptions_are_failures(kind, result):
    await calls_of(kind(lambda *_: result)).up("/a", "/b")


@BOTH
async def test_a_failure_says_what_and_where_without_credentials(kind):
    def fail(*_):
        raise OSError("cannot reach https://me:hunter2@host/x")

    with pytest.raises(StorageError) as failed:
        await calls_of(kind(fail)).up("/a", "s3://me:hunter2@b/x")
    error = failed.value
    assert (error.operation, error.key, error.retryable) == ("sync_up", "s3://b/x", True)
    assert (
        f"sync_up of the syncer {kind.__name__}, s3://b/x: raised OSError (test_syncer_calls.py, line"
        in str(error)
    )
    assert str(error).endswith("cannot reach https://host/x")
    assert error.__suppress_context__
    with pytest.raises(StorageError, match=r"delete of the syncer .*: delete returned False"):
        await calls_of(kind(lambda *_: False)).delete("/b")


@BOTH
async def test_errors_of_asynctune_stay_what_they_are(kind):
    def fail(*_):
        raise ConfigError("no such option")

    with pytest.raises(ConfigError, match="no such option"):
        await calls_of(kind(fail)).up("/a", "/b")


@BOTH
async def test_its_own_timeout_is_a_failure_like_others(kind):
    def fail(*_):
        raise TimeoutError("of the socket")

    with pytest.raises(StorageError, match=r"raised TimeoutError .*: of the socket"):
        await calls_of(kind(fail)).up("/a", "/b")


async def test_wait_is_called_after_each():
    class Starting(Plain):
        def wait(self):
            return self._do("wait")

    syncer = Starting()
    calls = calls_of(syncer)
    await calls.up("/a", "/b")
    await calls.delete("/b")
    assert [call[0] for call in syncer.calls] == ["up", "wait", "delete", "wait"]
    syncer.act = lambda *call: call[0] != "wait"
    with pytest.raises(StorageError, match="wait returned False"):
        await calls.down("/b", "/a")


async def test_one_at_a_time_in_each_direction_in_order():
    gates = {name: asyncio.Event() for name in "abcd"}
    order: list[str] = []

    class Gated(Async):
        async def _wait(self, *call):
            name = call[1]
            order.append(f"+{name}")
            await gates[name].wait()
            order.append(f"-{name}")

    calls = calls_of(Gated())
    told: list[str] = []
    tasks = [
        asyncio.create_task(calls.up("a", "/b", waiting=lambda: told.append("a"))),
        asyncio.create_task(calls.delete("b")),
        asyncio.create_task(calls.up("c", "/b", waiting=lambda: told.append("c"))),
        asyncio.create_task(calls.down("d", "/a")),
    ]
    await let_run()
    assert order == ["+a", "+d"]
    for name in "cba":  # opened in another order than they came in
        gates[name].set()
        await let_run()
    assert order == ["+a", "+d", "-a", "+b", "-b", "+c", "-c"]
    assert (told.count("a"), told.count("c")) in {(1, 2), (1, 3)}
    gates["d"].set()
    await asyncio.gather(*tasks)


async def test_one_that_waits_can_be_cancelled():
    gate = asyncio.Event()

    class Gated(Async):
        async def _wait(self, *call):
            await gate.wait()
            self.calls.append(call)

    syncer = Gated()
    calls = calls_of(syncer)
    first, second, third = (asyncio.create_task(calls.up(name, "/b")) for name in "123")
    await let_run()
    second.cancel()
    await let_run()
    gate.set()
    await asyncio.gather(first, third)
    assert [call[1] for call in syncer.calls] == ["1", "3"]


async def test_a_hung_coroutine_is_cancelled_and_the_next_call_goes_on():
    ended = []

    class Hanging(Async):
        async def _wait(self, *call):
            if call[1] == "hang":
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.append(call[1])

    clock = ManualClock()
    calls = calls_of(Hanging(), 30, clock)
    task = asyncio.create_task(calls.up("hang", "/b"))
    await clock.advance(29)
    assert not task.done()
    await clock.advance(1)
    with pytest.raises(StorageError, match="did not end within 30 s") as failed:
        await task
    assert failed.value.retryable
    assert ended == ["hang"]
    await calls.up("go", "/b")


async def test_a_hung_thread_is_given_up_and_never_doubled():
    gate, entered = threading.Event(), threading.Semaphore(0)

    def hang(*call: Any) -> None:
        entered.release()
        if call[1] == "hang":
            gate.wait(30)

    clock = ManualClock()
    syncer = Plain(hang)
    calls = calls_of(syncer, 30, clock)
    task = asyncio.create_task(calls.up("hang", "/b"))
    await asyncio.to_thread(entered.acquire)
    await clock.advance(30)
    with pytest.raises(StorageError, match="did not end within 30 s"):
        await task

    again = asyncio.create_task(calls.up("again", "/b"))
    await let_run()
    await calls.down("/b", "other direction")
    await clock.advance(30)
    with pytest.raises(StorageError, match="did not end within 30 s"):
        await again
    assert [call[1] for call in syncer.calls] == ["hang", "/b"], "the one given up still runs"

    last = asyncio.create_task(calls.up("last", "/b"))
    await let_run()
    gate.set()
    await last
    assert [call[1] for call in syncer.calls] == ["hang", "/b", "last"]


async def test_a_cancelled_caller_is_not_held_up_by_a_thread():
    gate, entered = threading.Event(), threading.Event()

    def hang(*_: Any) -> None:
        entered.set()
        gate.wait(30)

    calls = calls_of(Plain(hang))
    task = asyncio.create_task(calls.up("/a", "/b"))
    await asyncio.to_thread(entered.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    await calls.up("/a", "/c")


async def let_run(turns: int = 20) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
