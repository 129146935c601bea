"""Owns who waits for uploads to end, and what they are told. Loop only, no I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from asynctune.checkpoints.upload_plan import Key
from asynctune.errors import StoreClosedError

__all__ = ["Wish", "Wishes", "uploads_ended"]


def uploads_ended() -> StoreClosedError:
    """The error for waiting for uploads that nobody makes any more."""
    return StoreClosedError("the uploads have ended, and some are pending; open the experiment again")


class Wish:
    """Somebody waits until each of some uploads has ended in one way or another.

    Args:
        keys: Which.
    """

    def __init__(self, keys: Collection[Key]) -> None:
        self._keys = set(keys)
        self._failed: dict[Key, str] = {}
        self._over = asyncio.Event()
        if not self._keys:
            self._over.set()

    async def granted(self) -> dict[Key, str]:
        """Wait for the last; those that failed, and why.

        Raises:
            StoreClosedError: The uploads have ended before.
        """
        await self._over.wait()
        if self._keys:
            raise uploads_ended()
        return self._failed

    def settle(self, key: Key, error: str | None) -> None:
        """One has ended."""
        if key not in self._keys:
            return
        self._keys.discard(key)
        if error is not None:
            self._failed[key] = error
        if not self._keys:
            self._over.set()

    def end(self) -> None:
        """No other will end."""
        self._over.set()


class Wishes:
    """All who wait."""

    def __init__(self) -> None:
        self._wishes: set[Wish] = set()

    @contextmanager
    def make(self, keys: Collection[Key]) -> Iterator[Wish]:
        """Wait for these inside the block."""
        wish = Wish(keys)
        self._wishes.add(wish)
        try:
            yield wish
        finally:
            self._wishes.discard(wish)

    def settle(self, key: Key, error: str | None) -> None:
        """An upload has ended; `error` says how it failed."""
        for wish in self._wishes:
            wish.settle(key, error)

    def end(self) -> None:
        """No other upload will end."""
        for wish in self._wishes:
            wish.end()
