"""Owns the checkpoints of one run that wait on a node: each is brought when its commit asks for it, or given up.

The driver's end of `bringing`. A commit may ask late: the run has not ended before all have come, or are not wanted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from asynctune.checkpoints.arriving import ArrivalPlace, ArrivingCheckpoint, InBucket
from asynctune.checkpoints.manifest import Manifest, ManifestError
from asynctune.checkpoints.staging import StagedCheckpoint
from asynctune.errors import ConfigError
from asynctune.runners.peer import Peer, PeerLostError

__all__ = ["Arrivals"]

logger = logging.getLogger("asynctune")

_UNASKED_S: Final = 30.0


class Arrivals:
    """Those of one run.

    Args:
        peer: The agent.
        trial_id: Whose they are, for messages.
        period_s: With what comes late: seconds between two rounds. `None`: nothing comes late.
        claimed: Gets the path of each that has come home.
    """

    def __init__(self, peer: Peer, trial_id: str, period_s: float | None, claimed: set[str]) -> None:
        self._peer = peer
        self._trial_id = trial_id
        self._period_s = period_s
        self._claimed = claimed
        self._round = asyncio.get_running_loop().time()
        self._unsettled: set[int] = set()
        self._under_way = 0
        self._changed = asyncio.Event()
        self._ended = False

    def promised(self, told: Mapping[str, Any]) -> ArrivingCheckpoint:
        """The checkpoint of a report, as the node tells of it.

        Raises:
            ConfigError: It makes no sense.
        """
        number, encoded = told.get("waits"), told.get("manifest")
        if not isinstance(number, int) or not isinstance(encoded, bytes):
            raise ConfigError(f"the node told of a checkpoint as {told!r:.80}, which makes no sense")
        try:
            manifest = Manifest.decode(encoded)
        except ManifestError as error:
            raise ConfigError(f"the node told of a checkpoint that cannot be: {error}") from error
        self._unsettled.add(number)
        in_bucket = bool(told.get("bucket"))

        async def bring(place: ArrivalPlace) -> StagedCheckpoint | InBucket | None:
            self._under_way += 1
            try:
                return await self._bring(number, place, manifest if in_bucket else None)
            except PeerLostError as error:
                logger.warning(
                    "checkpoint %d of trial %s was lost with its node: %s", place.step, self._trial_id, error
                )
                return None
            finally:
                self._under_way -= 1
                self._unsettled.discard(number)
                self._changed.set()

        return ArrivingCheckpoint(bring=bring, late=self._period_s is not None)

    async def _bring(
        self, number: int, place: ArrivalPlace, manifest: Manifest | None
    ) -> StagedCheckpoint | InBucket | None:
        arguments: dict[str, Any] = {"waits": number, "in_s": self._next_round_s()}
        if manifest is None:
            staged = StagedCheckpoint.from_value(await self._peer.call("bring", arguments))
            self._claimed.add(staged.path)
            return staged
        encoded = await asyncio.to_thread(_named, manifest, place)
        await self._peer.call("upload", {**arguments, "directory": place.directory, "manifest": encoded})
        return InBucket(encoded)

    def _next_round_s(self) -> float:
        """Seconds until the next round; a checkpoint goes at once where nothing comes late, or the run is over."""
        if self._period_s is None or self._ended:
            return 0.0
        now = asyncio.get_running_loop().time()
        while self._round <= now:
            self._round += self._period_s
        return self._round - now

    async def settled(self) -> None:
        """The run has ended: return when what was promised has come, or nobody asks for it any more."""
        self._ended = True
        while self._unsettled and self._peer.why_closed is None:
            self._changed.clear()
            try:
                async with asyncio.timeout(None if self._under_way else _UNASKED_S):
                    await self._changed.wait()
            except TimeoutError:
                return


def _named(manifest: Manifest, place: ArrivalPlace) -> bytes:
    """In a thread: with many files it takes a while."""
    return manifest.named(
        trial_id=place.trial_id, step=place.step, epoch=place.epoch, attempt=place.attempt
    ).encode()
