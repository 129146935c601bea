"""Owns when a local snapshot is put into the mirror: when CURRENT can name it, and beside the swaps: it is large."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from asynctune.clock import Clock
from asynctune.errors import StorageError
from asynctune.state.mirror.health import MAX_BACKOFF_S
from asynctune.state.mirror.planning import snapshot_is_due
from asynctune.state.mirror.swapping import Swapper

__all__ = ["SnapshotSending"]

logger = logging.getLogger("asynctune")


class SnapshotSending:
    """Puts one snapshot after the other.

    Args:
        clock: Time.
        rng: Where the jitter comes from.
        ready: Told when there is one for the next swap to name.
    """

    def __init__(self, clock: Clock, rng: random.Random, ready: Callable[[], object]) -> None:
        self._clock = clock
        self._rng = rng
        self._ready = ready
        self._newest: tuple[int, int] | None = None
        self._wanted: Swapper | None = None
        self._wake = asyncio.Event()

    def written(self, seq: int, size_bytes: int) -> bool:
        """A local snapshot of commit `seq` is durable; whether it is the newest."""
        if self._newest is not None and seq <= self._newest[0]:
            return False
        self._newest = seq, size_bytes
        return True

    def consider(self, swapper: Swapper | None, *, away: bool) -> None:
        """Have the newest one put if it is due."""
        if swapper is None or self._newest is None or away:
            return
        if self._newest[0] <= swapper.current.seq and snapshot_is_due(swapper.current, 0, *self._newest):
            self._wanted = swapper
            self._wake.set()

    async def run(self) -> None:
        """Put what is due, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            assert self._wanted is not None
            try:
                if await self._wanted.send_snapshot():
                    self._ready()
            except (StorageError, OSError) as error:
                # it is wanted again after the next swap
                logger.warning("a snapshot could not be put into the mirror: %s", error)
                await self._clock.sleep(self._rng.uniform(0.0, MAX_BACKOFF_S))
