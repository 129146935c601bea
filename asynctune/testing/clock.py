"""Owns time that stands still until a test moves it; knows nothing of what waits for it.

`ManualClock` fits wherever a `Clock` is asked for. Nothing in it waits for real time.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

__all__ = ["ManualClock"]

_ROUNDS: Final = 25


@dataclass(slots=True, order=True)
class _Sleeper:
    """Somebody who wants to be woken at `due` (monotonic seconds); `wake` runs on `loop`."""

    due: float
    number: int
    loop: asyncio.AbstractEventLoop = field(compare=False)
    wake: Callable[[], None] = field(compare=False)
    done: bool = field(default=False, compare=False)

    def __call__(self) -> None:
        if not self.done:
            self.done = True
            self.wake()


class ManualClock:
    """A `Clock` whose time moves only by `advance` or `move`.

    Args:
        monotonic: Where `monotonic()` starts, in seconds.
        time: Where `time()` starts, in seconds since the Unix epoch.

    Example::

        clock = ManualClock()
        store = await ExperimentStore.open(path, clock=clock)
        store.add_trial({"lr": 0.1})
        await clock.advance(60)
    """

    def __init__(self, monotonic: float = 1_000.0, time: float = 1_750_000_000.0) -> None:
        self._guard = threading.Lock()
        self._monotonic = monotonic
        self._time = time
        self._sleepers: list[_Sleeper] = []
        self._numbers = itertools.count()

    # -- what asynctune calls ------------------------------------------------------------------------------

    def monotonic(self) -> float:
        """Seconds, moved by hand."""
        return self._monotonic

    def busy(self) -> float:
        """The same: while a test moves the time, every thread computes."""
        return self._monotonic

    def time(self) -> float:
        """Seconds since the Unix epoch, moved by hand."""
        return self._time

    async def sleep(self, seconds: float) -> None:
        """Wait until the time was moved by `seconds`; with 0 or less, let other tasks run once."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        sleeper = self._enter(seconds, wake)
        try:
            await future
        finally:
            self._leave(sleeper)

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        """Wait until `event` is set, or until the time was moved by `seconds`; whether it is set."""
        try:
            async with self.timeout(seconds):
                return await event.wait()
        except TimeoutError:
            return event.is_set()

    @asynccontextmanager
    async def timeout(self, seconds: float | None) -> AsyncGenerator[object, None]:
        """Cancel the block when the time was moved by `seconds`, and raise `TimeoutError` from it."""
        loop = asyncio.get_running_loop()
        sleeper: _Sleeper | None = None
        async with asyncio.timeout(0 if seconds is not None and seconds <= 0 else None) as limit:
            if seconds is not None and seconds > 0:
                sleeper = self._enter(seconds, lambda: limit.reschedule(loop.time()))
            try:
                yield limit
            finally:
                if sleeper is not None:
                    self._leave(sleeper)

    # -- what a test calls ---------------------------------------------------------------------------------

    async def advance(self, seconds: float) -> None:
        """Move the time by `seconds`, stopping at each moment somebody waits for, so that tasks run in order.

        Tasks get turns on the loop; work in other threads is not waited for: await its outcome (a `flush`, an event).

        Raises:
            ValueError: Time does not go back.
        """
        _check(seconds)
        await self._let_run()
        target = self._monotonic + seconds
        while True:
            with self._guard:
                due = self._sleepers[0].due if self._sleepers else target
            if due >= target:
                break
            self.move(max(0.0, due - self._monotonic))
            await self._let_run()
        self.move(max(0.0, target - self._monotonic))
        await self._let_run()

    def move(self, seconds: float) -> None:
        """Move the time at once, from any thread, as if whatever runs now had taken `seconds`.

        Raises:
            ValueError: Time does not go back.
        """
        _check(seconds)
        ready = []
        with self._guard:
            self._monotonic += seconds
            self._time += seconds
            # Sums of floats may miss a deadline by one part in 2**52: such a moment is taken for the deadline.
            while self._sleepers and self._sleepers[0].due <= self._monotonic + 1e-9:
                ready.append(heapq.heappop(self._sleepers))
                self._monotonic = max(self._monotonic, ready[-1].due)
        for sleeper in ready:
            with contextlib.suppress(RuntimeError):  # its loop is closed: nobody is left to be woken
                sleeper.loop.call_soon_threadsafe(sleeper)

    def set_time(self, time: float) -> None:
        """Set the wall clock, back too, as an administrator or NTP may; `monotonic()` stays."""
        with self._guard:
            self._time = time

    @property
    def sleepers(self) -> int:
        """How many wait for a moment to come."""
        with self._guard:
            return len(self._sleepers)

    # -- small things --------------------------------------------------------------------------------------

    def _enter(self, seconds: float, wake: Callable[[], None]) -> _Sleeper:
        loop = asyncio.get_running_loop()
        with self._guard:
            sleeper = _Sleeper(self._monotonic + seconds, next(self._numbers), loop, wake)
            heapq.heappush(self._sleepers, sleeper)
        return sleeper

    def _leave(self, sleeper: _Sleeper) -> None:
        sleeper.done = True
        with self._guard:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)
                heapq.heapify(self._sleepers)

    async def _let_run(self) -> None:
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)


def _check(seconds: float) -> None:
    if not seconds >= 0:
        msg = f"time moves forward only, not by {seconds!r}"
        raise ValueError(msg)
