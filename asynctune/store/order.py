"""Owns when checkpoints are put in order after an opening: with their copies first, then on this disk.

What order is, and how they get into it, is the checkpoints' room's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from asynctune.checkpoints.catalog import TrialCheckpoints
from asynctune.errors import CorruptStateError, StorageError, StoreClosedError, UploadError
from asynctune.store.events import EventStream
from asynctune.store.mirroring import Mirroring
from asynctune.store.moving import COPY, was_moved
from asynctune.store.records import Records

__all__ = ["CheckpointOrder"]

logger = logging.getLogger("asynctune")


class CheckpointOrder:
    """Puts the checkpoints of one opening in order.

    Args:
        checkpoints: They.
        mirroring: Their copies; `None`: there are none.
        records: The experiment's.
        events: Where is said what could not be done.
        from_copy: The state is the copy's.
    """

    def __init__(
        self,
        checkpoints: TrialCheckpoints,
        mirroring: Mirroring | None,
        records: Records,
        events: EventStream,
        *,
        from_copy: bool,
    ) -> None:
        self._checkpoints = checkpoints
        self._mirroring = mirroring
        self._records = records
        self._events = events
        self._from_copy = from_copy
        self._reconciled = asyncio.Event()

    async def begin(self) -> None:
        """Compare with the copies, before anybody uses the store; if they cannot be looked at, `run` does it later.

        Raises:
            StorageError: The disk or the journal refused.
        """
        if self._mirroring is not None and self._mirroring.is_owned:
            await self._reconcile(self._mirroring)

    async def run(self) -> None:
        """Do the rest beside everything else. Owned by the store's TaskGroup.

        Raises:
            StorageError: The disk or the journal refused what `begin` would have done.
        """
        with suppress(StoreClosedError):  # closed at once; the next opening does it
            if self._mirroring is not None and not self._reconciled.is_set():
                await self._mirroring.owned()
                await self._reconcile(self._mirroring)
            await self._settle()

    async def before_close(self, timeout_s: float | None) -> None:
        """Wait for that, but no longer: what is not compared with the copies is not brought there by the close."""
        if self._mirroring is not None and not self._reconciled.is_set():
            with suppress(UploadError):
                await self._mirroring.patiently(self._reconciled, timeout_s)

    async def _settle(self) -> None:
        try:
            await self._checkpoints.settle(self._trial_of)
        except (StorageError, CorruptStateError) as error:
            # a trial whose record cannot be used says so itself when it is asked for
            logger.warning("checkpoint directories without a record stay where they are: %s", error)
            self._events.emit("write_failed", message=str(error))

    async def drain(self, check: Callable[[], None]) -> None:
        """Return when all checkpoints of this moment are in the bucket. Errors: as for `TrialCheckpoints.drain`.

        Args:
            check: Raises the failure of the store, if there is one.
        """
        if self._mirroring is not None:
            await self._mirroring.patiently(self._reconciled)
            check()
            try:
                await self._checkpoints.drain()
            except StoreClosedError:
                # the uploads ended because of something: who was fenced learns that, perhaps before the store does
                check()
                await self._mirroring.mirror.reached(0)
                raise

    def give_up(self) -> None:
        """The store failed: whoever waits for `drain` gets that."""
        self._reconciled.set()

    async def _reconcile(self, mirroring: Mirroring) -> None:
        place = str(mirroring.remote)
        known = self._records.get(COPY)
        await self._checkpoints.reconcile(
            list(self._records.trial_ids),
            from_bucket=self._from_copy,
            bucket_is_new=mirroring.is_new or (not self._from_copy and was_moved(known, place)),
        )
        if known != place:
            self._records.put(COPY, place)
        self._reconciled.set()
        mirroring.mirror.settled()

    def _trial_of(self, trial_name: str) -> str | None:
        """Id of the trial with this directory, or `None`."""
        if (trial_id := self._records.get(f"name/{trial_name}")) is not None:
            return str(trial_id)
        return trial_name if trial_name in self._records.trial_ids else None
