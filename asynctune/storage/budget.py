"""Owns how many bytes may be under way at once, whoever moves them. Knows no storage and no file. No I/O."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from asynctune.errors import ConfigError

__all__ = ["ByteBudget"]


class ByteBudget:
    """Bounds the bytes in flight of all transfers that share it; used from one event loop.

    First come, first served: who wants much is not overtaken by those who want little. Who wants more than there is
    waits until nobody else has any, and gets all.

    Example::

        async with budget.take(len(part)):
            await send(part)

    Args:
        max_bytes: How many bytes may be taken at once.

    Raises:
        ConfigError: `max_bytes` is below 1.
    """

    def __init__(self, max_bytes: int = 128 << 20) -> None:
        if max_bytes < 1:
            raise ConfigError(f"a budget has at least 1 byte, not {max_bytes!r}")
        self._max_bytes = max_bytes
        self._taken = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @property
    def max_bytes(self) -> int:
        """As it was made."""
        return self._max_bytes

    @property
    def taken_bytes(self) -> int:
        """How many are taken."""
        return self._taken

    @asynccontextmanager
    async def take(self, size_bytes: int) -> AsyncGenerator[None, None]:
        """Have so many bytes inside the block, or all there are if that is less; wait for them before."""
        wanted = min(size_bytes, self._max_bytes)
        await self._wait_for(wanted)
        try:
            yield
        finally:
            self._taken -= wanted
            self._hand_on()

    async def _wait_for(self, wanted: int) -> None:
        if not self._waiting and self._taken + wanted <= self._max_bytes:
            self._taken += wanted
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, wanted))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came in the same moment
                self._taken -= wanted
            self._hand_on()
            raise

    def _hand_on(self) -> None:
        while self._waiting:
            turn, wanted = self._waiting[0]
            if not turn.done():  # else its caller was cancelled
                if self._taken + wanted > self._max_bytes:
                    return
                self._taken += wanted
                turn.set_result(None)
            self._waiting.popleft()
