"""Owns the reading of time and the waiting for it; decides nothing about how long anything should take.

Every other room takes a `Clock`, so that tests drive time by hand (`asynctune.testing.ManualClock`).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """What asynctune needs to know of time. Safe to read from any thread; `sleep` belongs to the loop."""

    def monotonic(self) -> float:
        """Seconds that only go forward, from an arbitrary start."""
        ...

    def busy(self) -> float:
        """Seconds that the calling thread has computed, from an arbitrary start; waiting is not among them."""
        ...

    def time(self) -> float:
        """Seconds since the Unix epoch, as the wall clock tells them."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds` of this clock's monotonic time."""
        ...

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        """Wait until `event` is set, but no longer than `seconds` (`None`: for ever); whether it is set."""
        ...

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        """For `async with`: cancel the block after `seconds` (`None`: never), and raise `TimeoutError` from it."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """`time.monotonic()`."""
        return time.monotonic()

    def busy(self) -> float:
        """`time.thread_time()`."""
        return time.thread_time()

    def time(self) -> float:
        """`time.time()`."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """`asyncio.sleep`."""
        await asyncio.sleep(seconds)

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        """`event.wait()` under `asyncio.timeout`."""
        try:
            async with asyncio.timeout(seconds):
                return await event.wait()
        except TimeoutError:
            return event.is_set()

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        """`asyncio.timeout`."""
        return asyncio.timeout(seconds)
