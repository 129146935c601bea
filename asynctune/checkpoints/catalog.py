"""Owns the checkpoints of one experiment: list, save, adopt, clone, restore and lease them, for the store.

The front of this room. It joins staging, records, restoring and deletion, and owns the order of a commit:

1. the files, staged, hashed and synced; the manifest last; the directory renamed to its place and synced
   there;
2. the record, and in the same commit the marks of what retention gives up;
3. the caller is told;
4. only then is anything deleted, in the background (`run`).

Whatever fails before 2 leaves the recorded checkpoints as they were. What is cancelled during 2 is recorded:
the commit goes on.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

from asynctune.checkpoints.bucket import Bucket
from asynctune.checkpoints.committing import Committer, Wanted
from asynctune.checkpoints.context import Context, Emit
from asynctune.checkpoints.deletion import Deletions
from asynctune.checkpoints.disk import DiskThreads, disk_errors, path_text
from asynctune.checkpoints.reconciling import ReconcileReport
from asynctune.checkpoints.records import CheckpointRecord, Records, check_step
from asynctune.checkpoints.restoring import Restorer
from asynctune.checkpoints.settling import SettleReport, settle
from asynctune.checkpoints.staging import StagedCheckpoint, Staging
from asynctune.checkpoints.uploads import UploadLeft, UploadStats
from asynctune.clock import Clock
from asynctune.config import CheckpointConfig
from asynctune.errors import CheckpointNotFoundError, ConfigError, StoreClosedError
from asynctune.files import LocalFiles
from asynctune.packing import pack
from asynctune.protocols import CommitSink
from asynctune.trial import Checkpoint

__all__ = ["TrialCheckpoints"]


class TrialCheckpoints:
    """The checkpoints of one experiment, on the local disk.

    Steps of one trial only rise; `save`, `adopt` and `clone` of one trial go one after the other, in the
    order of the calls, and those of different trials beside each other.

    Args:
        experiment_dir: Absolute path of the experiment, which exists with its `.asynctune`.
        sink: Where records go.
        config: How many checkpoints are kept.
        files: The operating system.
        clock: Tells `committed_at`.
        emit: Publishes an event: `emit(kind, trial_id=..., step=..., message=..., **data)`.
        epoch: Number of this opening.
        scratch_dir: Where `restore` makes private copies; `<experiment>/.asynctune/restored` by default. A
            reader gives a directory of its own, because it writes nothing in the experiment.
        bucket: Where checkpoints are copied to, and fetched from when they are not on this disk.
    """

    def __init__(
        self,
        experiment_dir: str,
        *,
        sink: CommitSink,
        config: CheckpointConfig,
        files: LocalFiles,
        clock: Clock,
        emit: Emit,
        epoch: int,
        scratch_dir: str | None = None,
        bucket: Bucket | None = None,
    ) -> None:
        self._threads = DiskThreads()
        self._bucket = bucket
        self._context = Context(
            experiment_dir=experiment_dir,
            scratch_dir=scratch_dir or os.path.join(experiment_dir, ".asynctune", "restored"),
            epoch=epoch,
            nonce=secrets.token_hex(6),
            records=Records(sink),
            files=files,
            threads=self._threads,
            clock=clock,
            emit=emit,
        )
        self._staging = Staging(experiment_dir, files=files, threads=self._threads, nonce=self._context.nonce)
        self._deletions = Deletions(self._context, config)
        self._committer = Committer(self._context, self._deletions)
        self._restorer = Restorer(self._context, self._deletions.leases)
        self._under_way = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._closing = False

    # -- looking -------------------------------------------------------------------------------------

    def list(self, trial_id: str) -> tuple[Checkpoint, ...]:
        """The trial's checkpoints, oldest first, from the records alone; those being deleted are left out.

        Raises:
            CorruptStateError: A record cannot be used.
        """
        live = self._context.records.live(trial_id)
        return tuple(record.checkpoint(self._context.path_of(record)) for record in live)

    @property
    def deletions_pending(self) -> int:
        """How many checkpoints are retired and not deleted yet."""
        return self._deletions.pending

    @property
    def uploads(self) -> UploadStats:
        """How the uploads stand; all zero without a bucket."""
        return UploadStats()

    # -- committing ----------------------------------------------------------------------------------

    async def save(
        self,
        trial_id: str,
        source: str | os.PathLike[str] | Checkpoint,
        *,
        trial_name: str,
        attempt: int = 0,
        plain: bool = True,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        timeline: Mapping[str, Any] | None = None,
        move: bool = False,
    ) -> Checkpoint:
        """Commit the files of a directory, or a `Checkpoint`, as a checkpoint of the trial.

        Args:
            trial_id: Whose it is.
            source: A directory, or a checkpoint made by `from_directory` or `from_dict`. One that is
                committed in this experiment is cloned.
            trial_name: Name of the trial's directory.
            attempt: Which start of the trial wrote it.
            plain: Use the plain name `checkpoint_<step>`; otherwise, or where that is taken, the epoch and
                the attempt are added to it.
            step: Above every recorded one; `None`: one above the highest, the first is 1.
            metrics: What it is ranked and remembered by.
            timeline: Kept with it for the caller, who alone interprets it.
            move: The directory is given away: it is gone afterwards, and back where it was after an error.

        Returns:
            The committed checkpoint. Deletions that it causes come later.

        Raises:
            CheckpointExistsError: The step is not above every recorded one, or one that is being saved.
            ConfigError: The directory or the metrics cannot be stored.
            StorageError: The disk said no, or the files were written to meanwhile.
        """
        wanted = Wanted.of(
            trial_id, trial_name, attempt=attempt, plain=plain, metrics=metrics, timeline=timeline
        )
        value: bytes | None = None
        if isinstance(source, Checkpoint):
            if (committed := self._context.record_of(source)) is not None:
                if move:
                    raise ConfigError(
                        f"{source.path} is a committed checkpoint, which cannot be moved; use move=False"
                    )
                return await self._clone(wanted, committed, step, at_least=0)
            if source.path is None:
                value = pack(source.value, "checkpoint value")
            directory = "" if source.path is None else os.fspath(source.path)
        else:
            directory = path_text(source)
        async with self._operation(), self._committer.turn(wanted, step) as turn:
            with disk_errors(f"save checkpoint {turn} of trial {trial_id}", directory):
                if value is not None:
                    stage = await self._staging.of_value(value)
                else:
                    stage = await self._staging.of_directory(directory, move=move)
                return await self._committer.commit(wanted, turn, stage)

    async def adopt(
        self,
        trial_id: str,
        staged: StagedCheckpoint | str | os.PathLike[str],
        *,
        trial_name: str,
        attempt: int = 0,
        plain: bool = True,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        timeline: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """Commit a directory that was staged by `stage_for_adoption`: nothing is copied, and no file is read.

        After an error the directory is where it was, and may be adopted again. Arguments and errors as for
        `save`.
        """
        wanted = Wanted.of(
            trial_id, trial_name, attempt=attempt, plain=plain, metrics=metrics, timeline=timeline
        )
        what = staged if isinstance(staged, StagedCheckpoint) else path_text(staged)
        where = what if isinstance(what, str) else what.path
        async with self._operation(), self._committer.turn(wanted, step) as turn:
            with disk_errors(f"adopt checkpoint {turn} of trial {trial_id}", where):
                return await self._committer.commit(wanted, turn, await self._staging.of_staged(what))

    async def clone(
        self,
        source_trial_id: str,
        step: int | None,
        *,
        to_trial: str,
        trial_name: str,
        attempt: int = 0,
        plain: bool = True,
        to_step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        timeline: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """Commit a verified copy of one trial's checkpoint as another's (or its own).

        Args:
            source_trial_id: Whose checkpoint.
            step: Which; `None`: the newest.
            to_trial: Who gets it.
            trial_name: Name of that trial's directory.
            attempt: As for `save`.
            plain: As for `save`.
            to_step: Its new step; `None`: the source's own, or one above the highest of `to_trial` if that is
                more.
            metrics: Its metrics; `None`: those of the source.
            timeline: As for `save`; that of the trial which gets it.

        Raises:
            CheckpointNotFoundError: There is none, or it is damaged; the message says which one would do.
            CheckpointExistsError: As for `save`.
            StorageError: The disk said no.
        """
        record = self._restorer.pick(source_trial_id, None if step is None else check_step(step))
        metrics = record.metrics if metrics is None else metrics
        wanted = Wanted.of(
            to_trial, trial_name, attempt=attempt, plain=plain, metrics=metrics, timeline=timeline
        )
        return await self._clone(wanted, record, to_step, at_least=record.step)

    # -- using ---------------------------------------------------------------------------------------

    async def restore(
        self, trial_id: str, step: int | None = None, to: str | os.PathLike[str] | None = None
    ) -> Checkpoint:
        """A verified private copy of a checkpoint: what is done to it changes nothing that is committed.

        Args:
            trial_id: Whose.
            step: Which; `None`: the newest that is intact. Damaged ones are passed over, with a warning in
                the log and a `checkpoint_damaged` event each.
            to: A new or empty directory that receives the files. `None`: a directory of asynctune's own,
                which is removed at the close (or by `release`); move it, or give `to`, to keep it.

        Raises:
            CheckpointNotFoundError: There is none, none that is intact, or the one asked for is damaged.
            ConfigError: `to` is not empty.
            StorageError: The copy cannot be written.
        """
        target = None if to is None else path_text(to)
        wanted = None if step is None else check_step(step)
        async with self._operation(), self._committer.slots:
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
                it is complete, else one of asynctune's own, to read from until the trial is released or the close.

        Raises:
            CheckpointNotFoundError: It is neither here nor in the bucket.
            ConfigError: `to` is not empty.
            StorageError: The bucket or the disk said no.
        """
        raise NotImplementedError

    async def make_directory(self, path: str) -> None:
        """Make a trial's directory if it is missing; its name is durable with the first result or checkpoint.

        Raises:
            StorageError: The disk refused.
        """
        async with self._operation():
            with disk_errors("make the directory", path):
                await self._threads.run(_make_missing, self._context.files, path)

    def release(self, trial_id: str) -> None:
        """Remove the private copies that `restore` made for this trial; for one that has ended. No I/O."""
        self._deletions.remove_soon(self._restorer.release(trial_id))

    # -- life ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Delete what is retired, until `aclose`. The store's TaskGroup owns this call."""
        await self._deletions.run()

    async def settle(self, trial_of: Callable[[str], str | None]) -> SettleReport:
        """Put things in order once, at an opening for writing; may go on beside everything else.

        Args:
            trial_of: Id of the trial whose directory has this name, or `None`.

        Raises:
            StorageError: The experiment's directories cannot be read.
            CorruptStateError: A record cannot be used.
        """
        async with self._operation():
            return await settle(
                self._context,
                self._deletions,
                trial_of,
                own_nonce=self._context.nonce,
                being_placed=self._committer.being_placed,
            )

    async def reconcile(
        self, trial_ids: Collection[str], *, from_bucket: bool = False, bucket_is_new: bool = False
    ) -> ReconcileReport:
        """Begin with the bucket: once at an opening for writing, before `settle`. Uploads begin with this call.

        It looks through the records of all trials and goes on with what an earlier opening left.

        Args:
            trial_ids: All trials.
            from_bucket: The state was taken from the bucket, so this disk may lack checkpoints or hold others: each
                directory is looked at. What is neither here nor complete in the bucket is dropped, loudly.
            bucket_is_new: The bucket held no experiment: nothing that records say of it is true.

        Raises:
            StorageError: The disk or the journal refused.
        """
        del trial_ids, from_bucket, bucket_is_new
        return ReconcileReport()

    async def drain(self) -> None:
        """Return when every checkpoint that is pending now is in the bucket, or has been retired meanwhile.

        Raises:
            UploadError: Some failed; what and why. They stay pending, and are tried again.
        """

    async def aclose(self, *, drain_timeout_s: float | None = None) -> tuple[UploadLeft, ...]:
        """Wait for what is under way, let `run` finish uploads and what is retired, and remove private copies.

        Call it while `run` still runs, the sink still takes records and the mirror still works; calls from now on are
        a `StoreClosedError`.

        Args:
            drain_timeout_s: Seconds that uploads and deletions in the bucket may take; `None`: as long as they need.
                What fails meanwhile is tried once.

        Returns:
            What is not in the bucket; also logged. The next opening goes on with it.
        """
        del drain_timeout_s
        self._closing = True
        await self._quiet.wait()
        await self._deletions.close()
        for path in self._restorer.release_all():
            await self._deletions.remove(path)
        self._threads.close()
        return ()

    async def abandon(self) -> None:
        """Wait until what is under way has failed or ended, for a store that cannot go on; nothing is deleted."""
        self._closing = True
        await self._quiet.wait()
        self._threads.close()

    # -- inside --------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _lease(self, trial_id: str, step: int | None) -> AsyncIterator[Checkpoint]:
        record = self._restorer.pick(trial_id, step)
        with self._deletions.leases.hold(trial_id, record.step):
            yield record.checkpoint(self._context.path_of(record))

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

    async def _clone(
        self, wanted: Wanted, source: CheckpointRecord, step: int | None, *, at_least: int
    ) -> Checkpoint:
        path = self._context.path_of(source)
        doing = f"clone checkpoint {source.step} of trial {source.trial_id}"
        with self._deletions.leases.hold(source.trial_id, source.step):
            async with self._operation(), self._committer.turn(wanted, step, at_least=at_least) as turn:
                with disk_errors(doing, path):
                    stage, report = await self._staging.of_committed(path, source.manifest_sha256)
                    if stage is not None:
                        return await self._committer.commit(wanted, turn, stage)
            self._restorer.report_damage(source, report)
            raise CheckpointNotFoundError(
                f"checkpoint {source.step} of trial {source.trial_id} is damaged ({report}); "
                f"{await self._restorer.alternative(source.trial_id, source.step)}"
            )


def _make_missing(files: LocalFiles, path: str) -> None:
    with suppress(FileExistsError):
        files.make_plain_dir(path)
