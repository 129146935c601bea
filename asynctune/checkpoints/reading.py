"""Owns how checkpoints of one experiment are listed, restored, leased and fetched. Commits nothing.

What a reader and a writer have in common; `catalog.TrialCheckpoints` adds the rest.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from asynctune.checkpoints.context import Context
from asynctune.checkpoints.deletion import Deletions
from asynctune.checkpoints.disk import path_text
from asynctune.checkpoints.records import check_step
from asynctune.checkpoints.restoring import Restorer
from asynctune.errors import CheckpointNotFoundError, StoreClosedError
from asynctune.protocols import CheckpointPlace
from asynctune.trial import Checkpoint

__all__ = ["ReadableCheckpoints"]


class ReadableCheckpoints:
    """What does not change what is committed.

    Args:
        context: What the room shares.
        deletions: Keeps the leases, and removes private copies.
        restorer: Makes them.
        slots: Bounds how many are made at once.
    """

    def __init__(
        self, context: Context, deletions: Deletions, restorer: Restorer, slots: asyncio.Semaphore
    ) -> None:
        self._context = context
        self._deletions = deletions
        self._restorer = restorer
        self._slots = slots
        self._under_way = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._closing = False

    # -- looking -------------------------------------------------------------------------------------

    def list(self, trial_id: str) -> tuple[Checkpoint, ...]:
        """The trial's checkpoints, oldest first, from the records alone; those being deleted are left out.

        One without a `path` is in the bucket only.

        Raises:
            CorruptStateError: A record cannot be used.
        """
        return tuple(self._context.value_of(record) for record in self._context.records.live(trial_id))

    def newest_place(self, trial_id: str) -> CheckpointPlace | None:
        """Where the newest checkpoint of a trial is; `None`: there is none.

        It stays there for as long as the trial has no newer one.

        Raises:
            CorruptStateError: A record cannot be used.
        """
        live = self._context.records.live(trial_id)
        if not live:
            return None
        record = live[-1]
        return CheckpointPlace(
            checkpoint=record.checkpoint(None),
            directory=record.directory,
            manifest_sha256=record.manifest_sha256,
            path=None if record.bucket_only else self._context.path_of(record),
            is_in_copy=record.mirrored and not record.bucket_deleting,
        )

    # -- using ---------------------------------------------------------------------------------------

    async def restore(
        self, trial_id: str, step: int | None = None, to: str | os.PathLike[str] | None = None
    ) -> Checkpoint:
        """A verified private copy of a checkpoint: what is done to it changes nothing that is committed.

        Args:
            trial_id: Whose.
            step: Which; `None`: the newest that is intact. What is missing or damaged here is fetched
                from the bucket; what is so there, too, is passed over, with a warning in the log and a
                `checkpoint_damaged` event each.
            to: A new or empty directory that receives the files. `None`: a directory of asynctune's own,
                which is removed at the close (or by `release`); move it, or give `to`, to keep it.

        Raises:
            CheckpointNotFoundError: There is none, none that is intact, or the one asked for is damaged.
            ConfigError: `to` is not empty.
            StorageError: The copy cannot be written, or the bucket that has the files cannot be asked.
        """
        target = None if to is None else path_text(to)
        wanted = None if step is None else check_step(step)
        async with self._operation(), self._slots:
            if wanted is None:
                return await self._restorer.newest(trial_id, target)
            return await self._restorer.exactly(trial_id, wanted, target)

    def lease(self, trial_id: str, step: int | None = None) -> AbstractAsyncContextManager[Checkpoint]:
        """Hand out the committed directory itself, to read; it is not deleted inside the `async with` block.

        Raises:
            CheckpointNotFoundError: There is none (on entering).
        """
        return self._lease(trial_id, None if step is None else check_step(step))

    async def fetch(self, checkpoint: Checkpoint, to: str | os.PathLike[str] | None = None) -> str:
        """Absolute path of a directory with the checkpoint's files, brought from the bucket if they are not here.

        Args:
            checkpoint: A committed one of this experiment.
            to: A new or empty directory that receives verified copies. `None`: the committed directory itself where
                it is complete, else one of asynctune's own, to be read only, until the trial is released or the close.

        Raises:
            CheckpointNotFoundError: It is neither here nor in the bucket.
            ConfigError: `to` is not empty.
            StorageError: The bucket or the disk said no.
        """
        step = checkpoint.step
        if checkpoint.trial_id is None or step is None:
            raise CheckpointNotFoundError(
                "this checkpoint was never committed; fetch takes one that the store returned"
            )
        target = None if to is None else path_text(to)
        async with self._operation(), self._slots:
            if target is not None:
                return str((await self._restorer.exactly(checkpoint.trial_id, step, target)).path)
            record = self._restorer.pick(checkpoint.trial_id, step)
            with self._deletions.leases.hold(record.trial_id, record.step):
                return await self._restorer.readable(record, look=True)

    def release(self, trial_id: str) -> None:
        """Remove the private copies that `restore` made for this trial; for one that has ended. No I/O."""
        self._deletions.remove_soon(self._restorer.release(trial_id))

    # -- inside --------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _lease(self, trial_id: str, step: int | None) -> AsyncIterator[Checkpoint]:
        record = self._restorer.pick(trial_id, step)
        with self._deletions.leases.hold(trial_id, record.step):
            async with self._operation():
                path = await self._restorer.readable(record)
            yield record.checkpoint(path)

    @asynccontextmanager
    async def _operation(self) -> AsyncIterator[None]:
        if self._closing:
            raise StoreClosedError("the store is closed; open it again")
        self._under_way += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._quiet.set()
