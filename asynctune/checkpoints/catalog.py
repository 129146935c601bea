"""Owns the checkpoints of one experiment, for the store: save, adopt and clone them; `reading` restores and leases.

The front of this room. It joins staging, records, restoring, deletion and the bucket, and owns the order of a commit:

1. the files, staged, hashed and synced; the manifest last; the directory renamed to its place and synced
   there;
2. the record, and in the same commit the marks of what retention gives up;
3. the caller is told;
4. only then is anything deleted or uploaded, in the background (`run`).

Whatever fails before 2 leaves the recorded checkpoints as they were. What is cancelled during 2 is recorded:
the commit goes on.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, Final

from asynctune.checkpoints.arriving_commits import ArrivingCommits
from asynctune.checkpoints.bucket import Bucket
from asynctune.checkpoints.bucket_side import BucketSide
from asynctune.checkpoints.committing import Committer, Wanted
from asynctune.checkpoints.context import Context, Emit
from asynctune.checkpoints.deletion import Deletions
from asynctune.checkpoints.disk import DiskThreads, disk_errors, path_text
from asynctune.checkpoints.reading import ReadableCheckpoints
from asynctune.checkpoints.reconciling import ReconcileReport
from asynctune.checkpoints.records import CheckpointRecord, Records, check_step
from asynctune.checkpoints.restoring import Restorer
from asynctune.checkpoints.settling import SettleReport, settle
from asynctune.checkpoints.staging import StagedCheckpoint, Staging
from asynctune.checkpoints.uploads import UploadLeft, UploadStats
from asynctune.clock import Clock
from asynctune.config import CheckpointConfig
from asynctune.errors import CheckpointNotFoundError, ConfigError
from asynctune.files import LocalFiles
from asynctune.packing import pack
from asynctune.protocols import CommitSink
from asynctune.trial import Checkpoint

__all__ = ["TrialCheckpoints"]


class TrialCheckpoints(ReadableCheckpoints):
    """The checkpoints of one experiment, on the local disk and in the bucket, if there is one.

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
        local: Whether `experiment_dir` is the experiment's, and not a place for what a reader fetches.

    Attributes:
        arrivals: Commits what workers bring, in turn with the others.
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
        local: bool = True,
    ) -> None:
        self._threads = DiskThreads()
        context = Context(
            experiment_dir=experiment_dir,
            scratch_dir=scratch_dir or os.path.join(experiment_dir, ".asynctune", "restored"),
            epoch=epoch,
            nonce=secrets.token_hex(6),
            records=Records(sink),
            files=files,
            threads=self._threads,
            clock=clock,
            emit=emit,
            local=local,
        )
        deletions = Deletions(context, config)
        copies = None if bucket is None else bucket.copies
        self._committer = Committer(context, deletions, self._recorded)
        super().__init__(
            context, deletions, Restorer(context, deletions.leases, copies), self._committer.slots
        )
        self._staging = Staging(experiment_dir, files=files, threads=self._threads, nonce=context.nonce)
        self._side = None if bucket is None else BucketSide(context, bucket, config, deletions)
        self.arrivals: Final = ArrivingCommits(
            context, self._committer, self._staging, deletions, self._side, self._operation
        )

    # -- figures -------------------------------------------------------------------------------------

    @property
    def deletions_pending(self) -> int:
        """How many checkpoints are retired and not deleted yet."""
        return self._deletions.pending

    @property
    def uploads(self) -> UploadStats:
        """How the uploads stand; all zero without a bucket."""
        return UploadStats() if self._side is None else self._side.uploads.stats

    def last_step(self, trial_id: str, attempt: int) -> int:
        """The step above which the next one of this start of a trial has to be."""
        return self._committer.last_step(trial_id, attempt)

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

    async def make_directory(self, path: str) -> None:
        """Make a trial's directory if it is missing; its name is durable with the first result or checkpoint.

        Raises:
            StorageError: The disk refused.
        """
        async with self._operation():
            with disk_errors("make the directory", path):
                await self._threads.run(_make_missing, self._context.files, path)

    # -- life ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Upload, and delete what is retired, until `aclose`. The store's TaskGroup owns this call.

        Raises:
            StorageError: The journal's disk failed for good.
            FencedError: Another opening owns the experiment.
        """
        if self._side is None:
            await self._deletions.run()
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._deletions.run())
            group.create_task(self._side.run())

    async def settle(self, trial_of: Callable[[str], str | None]) -> SettleReport:
        """Put things in order once, at an opening for writing; may go on beside everything else.

        With a bucket it waits for `reconcile`.

        Args:
            trial_of: Id of the trial whose directory has this name, or `None`.

        Raises:
            StorageError: The experiment's directories cannot be read.
            CorruptStateError: A record cannot be used.
        """
        if self._side is not None:
            await self._side.reconciled.wait()
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
        """Begin with the bucket: once at an opening for writing. Uploads begin with this call.

        It looks through the records of all trials and goes on with what an earlier opening left.

        Args:
            trial_ids: All trials.
            from_bucket: The state was taken from the bucket, so this disk may lack checkpoints or hold others: each
                directory is looked at. What is neither here nor complete in the bucket is dropped, loudly.
            bucket_is_new: The bucket is not the one that the records speak of, or was emptied: what this disk has is
                compared with it, and sent if it is not there.

        Raises:
            StorageError: The disk or the journal refused.
        """
        if self._side is None:
            return ReconcileReport()
        async with self._operation():
            return await self._side.reconcile(trial_ids, from_bucket=from_bucket, bucket_is_new=bucket_is_new)

    async def drain(self) -> None:
        """Return when every checkpoint that is pending now is in the bucket, or has been retired meanwhile.

        Raises:
            UploadError: Some failed; what and why. They stay pending, and are tried again.
        """
        if self._side is not None:
            await self._side.uploads.drain()

    async def aclose(self, *, drain_timeout_s: float | None = None) -> tuple[UploadLeft, ...]:
        """Wait for what is under way, let `run` finish uploads and what is retired, and remove private copies.

        Checkpoints that have not come from their workers are not waited for. Call it while `run` still runs, the sink
        still takes records and the mirror still works; calls from now on are a `StoreClosedError`.

        Args:
            drain_timeout_s: Seconds that uploads and deletions in the bucket may take; `None`: as long as they need,
                deletions at most `Bucket.patience_s`. What fails meanwhile is tried once.

        Returns:
            What is not in the bucket; also logged. The next opening goes on with it.
        """
        await self._end()
        clock = self._context.clock
        ends = None if drain_timeout_s is None else clock.monotonic() + drain_timeout_s
        left = () if self._side is None else await self._side.uploads.close(drain_timeout_s)
        await self._deletions.close()
        if self._side is not None:
            # Where uploads are left, the bucket is slow or away: no time is given to deletions there.
            remains = ends if ends is None else max(0.0, ends - clock.monotonic())
            await self._side.close_deletions(0.0 if left else remains)
        for path in self._restorer.release_all():
            await self._deletions.remove(path)
        self._threads.close()
        return left

    async def abandon(self) -> None:
        """Wait until what is under way has failed or ended, for a store that cannot go on; nothing is deleted."""
        await self._end()
        self._threads.close()

    # -- inside --------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Take no more, and wait for what is under way: also for what has come from a worker in this moment."""
        self.arrivals.end()
        await asyncio.sleep(0)  # that begins now
        self._closing = True
        await self._quiet.wait()

    def _recorded(self, trial_id: str, step: int) -> None:
        if self._side is not None:
            self._side.uploads.add(trial_id, step)

    async def _clone(
        self, wanted: Wanted, source: CheckpointRecord, step: int | None, *, at_least: int
    ) -> Checkpoint:
        path = self._context.path_of(source)
        doing = f"clone checkpoint {source.step} of trial {source.trial_id}"
        with self._deletions.leases.hold(source.trial_id, source.step):
            async with self._operation(), self._committer.turn(wanted, step, at_least=at_least) as turn:
                with disk_errors(doing, path):
                    stage, report = await self._restorer.stage(source, self._staging)
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
