"""Owns the checkpoints of one run that wait on a node: each is brought when its commit asks for it, or given up.

The driver's end of `bringing`. A commit may ask late: the run has not ended before all have come, or are not wanted.
With what comes late, a checkpoint waits for the next round, and one that retention would drop at once is not brought.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from asynctune.checkpoints.arriving import ArrivalPlace, ArrivingCheckpoint, InBucket
from asynctune.checkpoints.manifest import Manifest, ManifestError
from asynctune.checkpoints.staging import StagedCheckpoint
from asynctune.errors import AsynctuneError, ConfigError, TrialFailedError
from asynctune.runners.peer import Peer, PeerLostError

__all__ = ["Arrivals"]

logger = logging.getLogger("asynctune")

_LOOK_S: Final = 1.0
_DROP_S: Final = 10.0


class Arrivals:
    """Those of one run.

    Args:
        peer: The agent.
        trial_id: Whose they are, for messages.
        period_s: With what comes late: seconds between two rounds. `None`: nothing comes late.
        keep: With what comes late: how many of the newest are wanted; `None`: all.
        unasked_s: How long after the run's end a commit may take to ask.
        claimed: Gets the path of each that has come home.
    """

    def __init__(
        self,
        peer: Peer,
        trial_id: str,
        *,
        period_s: float | None = None,
        keep: int | None = None,
        unasked_s: float = 1800.0,
        claimed: set[str] | None = None,
    ) -> None:
        self._peer = peer
        self._trial_id = trial_id
        self._period_s = period_s
        self._keep = keep
        self._unasked_s = unasked_s
        self._claimed = set() if claimed is None else claimed
        self._round = asyncio.get_running_loop().time()
        self._promised: dict[int, weakref.ref[Any]] = {}
        self._under_way = 0
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._closed = False

    async def promised(self, told: Mapping[str, Any]) -> ArrivingCheckpoint:
        """The checkpoint of a report, as the node tells of it.

        Raises:
            ConfigError: It makes no sense.
        """
        number, encoded = told.get("waits"), told.get("manifest")
        if not isinstance(number, int) or not isinstance(encoded, bytes):
            raise ConfigError(f"the node told of a checkpoint as {told!r:.80}, which makes no sense")
        try:
            manifest, paths = await asyncio.to_thread(_decoded, encoded)
        except ManifestError as error:
            raise ConfigError(f"the node told of a checkpoint that cannot be: {error}") from error
        due = self._next_round()
        in_bucket = bool(told.get("bucket"))

        async def bring(place: ArrivalPlace) -> StagedCheckpoint | InBucket | None:
            return await self._bring(number, due, place, manifest if in_bucket else None)

        # Once the commit is gone, so is this function, and nobody can ask any more.
        self._promised[number] = weakref.ref(bring)
        files = paths if in_bucket else ()
        return ArrivingCheckpoint(bring=bring, late=self._period_s is not None, files=files)

    def answered(self, told: Mapping[str, Any]) -> None:
        """The report that promised it has been answered: unless it comes late, nobody asks for it any more."""
        if self._period_s is None:
            self._forget(told["waits"])

    def _forget(self, number: int) -> None:
        if self._promised.pop(number, None) is not None:
            self._changed.set()

    async def _bring(
        self, number: int, due: float, place: ArrivalPlace, manifest: Manifest | None
    ) -> StagedCheckpoint | InBucket | None:
        what = f"checkpoint {place.step} of trial {self._trial_id}"
        if self._closed:
            raise TrialFailedError(f"{what} was asked for when its node had left the trial")
        self._under_way += 1
        self._forget(number)
        try:
            await self._until(due)
            if self._keep is not None and self._wait_too() >= self._keep:
                await self._drop(number)  # newer ones wait, which leave no place for it
                return None
            try:
                return await self._brought(number, place, manifest)
            except PeerLostError as error:
                raise TrialFailedError(f"{what} was lost with its node: {error}") from error
            except AsynctuneError as error:
                raise TrialFailedError(
                    f"{what} could not be brought, as {self._peer.name} says: {error}"
                ) from error
        except asyncio.CancelledError:
            await self._drop(number)
            raise
        finally:
            self._under_way -= 1
            self._changed.set()

    def _wait_too(self) -> int:
        return sum(bring() is not None for bring in self._promised.values())

    async def _brought(
        self, number: int, place: ArrivalPlace, manifest: Manifest | None
    ) -> StagedCheckpoint | InBucket:
        if manifest is None:
            value = await self._peer.call("bring", {"waits": number})
            staged = await asyncio.to_thread(StagedCheckpoint.from_value, value)
            self._claimed.add(staged.path)
            return staged
        encoded = await asyncio.to_thread(_named, manifest, place)
        told = {"waits": number, "directory": place.directory, "manifest": encoded}
        await self._peer.call("upload", told)
        return InBucket(encoded)

    async def _drop(self, number: int) -> None:
        """The node is told that nobody wants it; what has come of it, it takes back."""
        with suppress(TimeoutError, ConnectionError, AsynctuneError):
            async with asyncio.timeout(_DROP_S):
                await self._peer.call("drop", {"waits": number})

    def _next_round(self) -> float:
        now = asyncio.get_running_loop().time()
        if self._period_s is None:
            return now
        while self._round <= now:
            self._round += self._period_s
        return self._round

    async def _until(self, due: float) -> None:
        """Wait for the round, or for the end of the run."""
        left_s = due - asyncio.get_running_loop().time()
        if left_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._ended.wait()

    async def settled(self) -> None:
        """The run has ended: return when what was promised has come, or nobody asks for it any more."""
        self._ended.set()
        quiet_s = 0.0
        while (self._promised or self._under_way) and self._peer.why_closed is None:
            self._changed.clear()
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._changed.wait()
            except TimeoutError:
                quiet_s = 0.0 if self._under_way else quiet_s + _LOOK_S
            for number in [number for number, bring in self._promised.items() if bring() is None]:
                del self._promised[number]
            if quiet_s > self._unasked_s:
                return

    def close(self) -> None:
        """The node runs another trial from now on; nothing can be asked for any more."""
        self._closed = True
        self._ended.set()


def _named(manifest: Manifest, place: ArrivalPlace) -> bytes:
    """In a thread: with many files it takes a while."""
    return manifest.named(
        trial_id=place.trial_id, step=place.step, epoch=place.epoch, attempt=place.attempt
    ).encode()


def _decoded(encoded: bytes) -> tuple[Manifest, tuple[str, ...]]:
    """In a thread, likewise: with the paths of its files."""
    manifest = Manifest.decode(encoded)
    return manifest, tuple(file.path for file in manifest.files)
