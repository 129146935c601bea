"""Owns who waits for a commit to be in the bucket."""

from __future__ import annotations

import asyncio

__all__ = ["Waiters"]


class Waiters:
    """Callers, each with the commit it waits for."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, seq: int) -> None:
        """Return when `reached` says so much, or raise what `fail` was given. A cancelled caller waits no more."""
        entry = seq, asyncio.get_running_loop().create_future()
        self._waiting.append(entry)
        try:
            await entry[1]
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    def reached(self, seq: int) -> None:
        """Commit `seq` is there."""
        self._end([future for wanted, future in self._waiting if wanted <= seq], None)

    def fail(self, error: Exception) -> None:
        """It will not be there, for those who wait."""
        self._end([future for _, future in self._waiting], error)

    def _end(self, futures: list[asyncio.Future[None]], error: Exception | None) -> None:
        ended = set(futures)
        self._waiting = [entry for entry in self._waiting if entry[1] not in ended]
        for future in futures:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
