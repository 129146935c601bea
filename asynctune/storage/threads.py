"""Owns the threads in which a storage does what would block the event loop: files, and imports of heavy clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

__all__ = ["Stop", "Stopped", "Threads"]

P = ParamSpec("P")
T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - no failure: the caller is gone
    """Raised in a thread whose caller was cancelled; nobody sees it."""


class Stop:
    """Tells a function in a thread that its caller was cancelled."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """The caller was cancelled."""
        self._event.set()

    def check(self) -> None:
        """Raise `Stopped` if the caller was cancelled. To be called between small steps, and before the last one."""
        if self._event.is_set():
            raise Stopped


class Threads:
    """A few threads of one storage. One call is one hop of 50 to 100 µs: batch what is small.

    Not the loop's default executor: blocking code of trials may fill that for hours.
    """

    def __init__(self, name: str, count: int = 4) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=f"asynctune-{name}")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in a thread. A cancellation is raised when it has returned: it must be short."""
        return await self._await(lambda: function(*args, **kwargs), None)

    async def run_stoppable(self, function: Callable[[Stop], T]) -> T:
        """The same for a long `function(stop)`, which calls `stop.check()` now and then."""
        stop = Stop()
        return await self._await(lambda: function(stop), stop)

    def start(self, function: Callable[[], object]) -> None:
        """Call `function` in a thread, and do not wait for it; after `close`, call it here."""
        try:
            self._pool.submit(function)
        except RuntimeError:
            function()

    def close(self) -> None:
        """Let the threads end when they are done."""
        self._pool.shutdown(wait=False)

    async def _await(self, function: Callable[[], T], stop: Stop | None) -> T:
        work = asyncio.get_running_loop().run_in_executor(self._pool, function)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError as cancelled:
            if stop is not None:
                stop.set()
            while not work.done():
                try:
                    await asyncio.wait([work])
                except asyncio.CancelledError:
                    continue  # asked again: it is going to be raised anyway
            if (error := work.exception()) is not None and not isinstance(error, Stopped):
                cancelled.add_note(f"what was under way failed too: {error!r}")
            raise
