"""Owns an event loop in a thread of its own, and the calls that other loops make to it: answers, items, cancellations.

A caller that is cancelled waits until what it called has ended, cancelled too. Knows nothing of storages.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, TypeVar

from asynctune.errors import StorageError

__all__ = ["HandOver", "SideLoop"]

T = TypeVar("T")


class SideLoop:
    """A loop aside. Calls come from one loop at a time.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()  # of the side loop, touched there only
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            # as asyncio.run does
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def stop(self) -> None:
        """Let the thread end, after what is under way at this moment; from any thread. Again: does nothing."""
        with suppress(RuntimeError):  # it is closed already
            self._loop.call_soon_threadsafe(self._loop.stop)

    async def call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await a call on the side loop. A caller that is cancelled waits until the call, cancelled too, has ended."""
        call = self._start(function)
        try:
            return await asyncio.shield(call.answer)
        except asyncio.CancelledError:
            if call.answer.cancelled() and not _is_cancelled():
                raise _ended() from None
            raise
        finally:
            await self._end(call)

    @asynccontextmanager
    async def stream(
        self, pump: Callable[[HandOver[T]], Coroutine[Any, Any, None]], ahead: int
    ) -> AsyncGenerator[HandOver[T], None]:
        """Iterate over what `pump` puts on the side loop, at most `ahead` items early. Leaving the block ends it."""
        items: HandOver[T] = HandOver(self._loop, asyncio.get_running_loop(), ahead)
        call = self._start(lambda: pump(items))
        call.answer.add_done_callback(items.ended)
        try:
            yield items
        finally:
            await self._end(call)

    async def cancel_others(self) -> None:
        """On the side loop: cancel every other call, and wait for their ends."""
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others)

    def _start(self, function: Callable[[], Coroutine[Any, Any, T]]) -> _Call[T]:
        call = _Call(function, asyncio.get_running_loop(), self._tasks)
        self._loop.call_soon_threadsafe(call.start)
        return call

    async def _end(self, call: _Call[Any]) -> None:
        """Cancel a call that goes on, and wait for its end however often the caller is cancelled meanwhile."""
        if not call.answer.done():
            self._loop.call_soon_threadsafe(call.cancel)
        cancelled = None
        while not call.answer.done():
            try:
                await asyncio.wait([call.answer])
            except asyncio.CancelledError as error:
                cancelled = error
        if not call.answer.cancelled():
            call.answer.exception()  # looked at: whoever wanted it has got it
        if cancelled is not None:
            raise cancelled


def _ended() -> StorageError:
    return StorageError("the storage was closed while this was under way", operation="call")


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Call(Generic[T]):
    """One call: begun and cancelled on the side loop, answered on the caller's."""

    def __init__(
        self,
        function: Callable[[], Coroutine[Any, Any, T]],
        loop: asyncio.AbstractEventLoop,
        calls: set[asyncio.Task[Any]],
    ) -> None:
        self._function = function
        self._caller = loop
        self._calls = calls
        self._task: asyncio.Task[T] | None = None
        self._is_cancelled = False
        self.answer: asyncio.Future[T] = loop.create_future()

    def start(self) -> None:
        """On the side loop."""
        if self._is_cancelled:
            self._tell(self._answer_cancelled)
            return
        self._task = asyncio.ensure_future(self._function())
        self._calls.add(self._task)
        self._task.add_done_callback(self._done)

    def cancel(self) -> None:
        """On the side loop, after `start`."""
        self._is_cancelled = True
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[T]) -> None:
        self._calls.discard(task)
        if task.cancelled():
            self._tell(self._answer_cancelled)
        elif (error := task.exception()) is not None:
            self._tell(self._answer_error, error)
        else:
            self._tell(self._answer, task.result())

    def _answer(self, result: T) -> None:
        if not self.answer.done():
            self.answer.set_result(result)

    def _answer_error(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def _answer_cancelled(self) -> None:
        self.answer.cancel()

    def _tell(self, function: Callable[..., object], *args: Any) -> None:
        with suppress(RuntimeError):  # the caller's loop has ended, and nobody wants the answer
            self._caller.call_soon_threadsafe(function, *args)


class HandOver(AsyncIterator[T]):
    """Items from the side loop, a few ahead of who takes them; iterated once, until the call that puts them ends."""

    def __init__(
        self, side: asyncio.AbstractEventLoop, caller: asyncio.AbstractEventLoop, ahead: int
    ) -> None:
        self._side = side
        self._caller = caller
        self._room = asyncio.Semaphore(ahead)  # of the side loop
        self._items: deque[T] = deque()
        self._moved = asyncio.Event()
        self._end: asyncio.Future[Any] | None = None

    async def put(self, item: T) -> None:
        """On the side loop: hand an item over, when there is room for it."""
        await self._room.acquire()
        with suppress(RuntimeError):  # the caller's loop has ended
            self._caller.call_soon_threadsafe(self._take, item)

    def _take(self, item: T) -> None:
        self._items.append(item)
        self._moved.set()

    def ended(self, answer: asyncio.Future[Any]) -> None:
        """On the caller's loop: nothing more comes."""
        self._end = answer
        self._moved.set()

    async def __anext__(self) -> T:
        while not self._items:
            if self._end is not None:
                if self._end.cancelled():
                    raise _ended()
                self._end.result()  # raises what ended it
                raise StopAsyncIteration
            self._moved.clear()
            await self._moved.wait()
        item = self._items.popleft()
        with suppress(RuntimeError):  # the side loop has ended: nothing waits for room
            self._side.call_soon_threadsafe(self._room.release)
        return item
