"""Owns the part of a store that hands out checkpoints: lists, private copies, leases, and where they are."""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from asynctune.checkpoints.catalog import TrialCheckpoints
from asynctune.errors import CheckpointNotFoundError
from asynctune.protocols import CheckpointPlace
from asynctune.store.guarded import Guarded
from asynctune.store.records import Records
from asynctune.store.trials import TrialTable
from asynctune.trial import Checkpoint

__all__ = ["RestoringStore"]


class RestoringStore(Guarded):
    """What can be done with checkpoints that are committed, in every mode."""

    _checkpoints: TrialCheckpoints
    _records: Records
    _table: TrialTable

    @property
    def upload_uri(self) -> str | None:
        """Where the experiment's copy is, `<upload_dir>/<name>`; `None`: there is none (that this opening knows of)."""
        if self._reader is not None:
            return self._reader.source.copy_uri
        remote = None if self._engine is None else self._engine.remote
        return None if remote is None else str(remote)

    def checkpoint_uri(self, checkpoint: Checkpoint) -> str | None:
        """Where a committed checkpoint's copy is; `None`: there is none, or not all of it. No look at it."""
        value = self._records.get(f"checkpoint/{checkpoint.trial_id}/{checkpoint.step}")
        if self.upload_uri is None or value is None or not value["mirrored"]:
            return None
        return f"{self.upload_uri}/{value['dir']}"

    def newest_place(self, trial_id: str) -> CheckpointPlace | None:
        """Where the newest checkpoint of a trial is, for who reads it there; `None`: there is none. No look at it.

        Raises:
            TrialNotFoundError: No such trial.
        """
        self._table.given(trial_id)
        return self._checkpoints.newest_place(trial_id)

    def checkpoints(self, trial_id: str) -> tuple[Checkpoint, ...]:
        """A trial's committed checkpoints, oldest first.

        Raises:
            TrialNotFoundError: No such trial.
        """
        self._table.given(trial_id)
        return self._checkpoints.list(trial_id)

    async def restore_checkpoint(
        self, trial_id: str, step: int | None = None, to: str | os.PathLike[str] | None = None
    ) -> Checkpoint:
        """A verified private copy of a checkpoint, free to be written to.

        Where the newest is damaged, the one before is taken, with a warning in the log and an event; an unfinished
        trial's result rows after that one are cut off then, as the trial goes on from there. Where none is intact,
        all rows are: it has to start from the beginning.

        Args:
            trial_id: Whose.
            step: Which; by default the newest that is intact.
            to: A new or empty directory; by default one of asynctune's own, removed when the trial
                finishes, and at the close.

        Raises:
            TrialNotFoundError: No such trial.
            CheckpointNotFoundError: There is none, none that is intact, or the one asked for is damaged.
            StorageError: The copy cannot be written.
            StoreClosedError: After the close, and in a forked child.
        """
        self._check_open()
        status = self._table.status(trial_id)
        newest = max((c.step or 0 for c in self._checkpoints.list(trial_id)), default=0)
        falls_back = step is None and newest > 0 and self._engine is not None and not status.is_finished
        try:
            restored = await self._checkpoints.restore(trial_id, step, to)
        except CheckpointNotFoundError:
            if falls_back:
                self._rewind(trial_id, -1)
            raise
        if falls_back and restored.step is not None and restored.step < newest:
            self._rewind(trial_id, restored.step)
        return restored

    def _rewind(self, trial_id: str, step: int) -> None:
        assert self._engine is not None
        self._engine.journal_rows(self._table.rewind(trial_id, step))

    def lease(self, trial_id: str, step: int | None = None) -> AbstractAsyncContextManager[Checkpoint]:
        """`async with store.lease(...) as checkpoint`: the committed files themselves, not deleted meanwhile.

        To read, never to write. Raises `CheckpointNotFoundError` on entering if there is none.
        """
        self._check_open()
        self._table.given(trial_id)
        return self._checkpoints.lease(trial_id, step)

    async def fetch(self, checkpoint: Checkpoint, to: str | os.PathLike[str] | None = None) -> Path:
        """The local directory of a committed checkpoint's files, brought from the bucket if they are not on this disk.

        Args:
            checkpoint: One that this experiment's store returned.
            to: A new or empty directory, which receives a verified copy.

        Raises:
            CheckpointNotFoundError: It is not one of this experiment, was deleted, or is damaged.
            ConfigError: Only the copy has it, which a syncer keeps that was not given.
            StorageError: The bucket or the disk refused.
        """
        self._check_open()
        trial_id, step = checkpoint.trial_id, checkpoint.step
        if trial_id is None or step is None:
            msg = "this checkpoint was never committed; fetch() takes one that the store returned"
            raise CheckpointNotFoundError(msg)
        return Path(await self._checkpoints.fetch(checkpoint, to))
