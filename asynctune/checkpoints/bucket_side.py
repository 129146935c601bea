"""Owns the bucket's part in the checkpoints of one experiment: joins uploads, deletions there, and how both begin."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from asynctune.checkpoints.bucket import Bucket
from asynctune.checkpoints.bucket_deletion import BucketDeletions
from asynctune.checkpoints.context import Context, logger
from asynctune.checkpoints.deletion import Deletions
from asynctune.checkpoints.disk import disk_errors
from asynctune.checkpoints.reconciling import (
    Local,
    ReconcileReport,
    look_for,
    plan_reconciliation,
)
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.checkpoints.settling import Quarantine
from asynctune.checkpoints.upload_plan import Key
from asynctune.checkpoints.uploads import UploadQueue
from asynctune.config import CheckpointConfig
from asynctune.errors import CorruptStateError

__all__ = ["BucketSide"]

_TRIALS_PER_SLICE: Final = 64
_SHOWN: Final = 5


class BucketSide:
    """What a bucket adds; `deletion.Elsewhere` of the local deletions.

    Args:
        context: What the room shares.
        bucket: The bucket.
        config: How many checkpoints are kept.
        local: The deletions on this disk.

    Attributes:
        bucket: The bucket.
        uploads: The uploads.
        reconciled: Set when `reconcile` is over: what is set aside by it must not be deleted before.
    """

    def __init__(self, context: Context, bucket: Bucket, config: CheckpointConfig, local: Deletions) -> None:
        self._context = context
        self.bucket: Final = bucket
        self._config = config
        self._local = local
        self.uploads: Final = UploadQueue(context, bucket, local.leases, self._mirrored)
        self.reconciled: Final = asyncio.Event()
        self._deletions = BucketDeletions(context, bucket, config, self.uploads)
        local.elsewhere = self

    def retired(self, trial_id: str, step: int) -> None:
        """See `Elsewhere.retired`."""
        self.uploads.drop(trial_id, step)
        self._deletions.retired(trial_id, step)

    def local_gone(self, record: CheckpointRecord) -> bool:
        """See `Elsewhere.local_gone`."""
        return self._deletions.local_gone(record)

    def arrived(self, trial_id: str) -> None:
        """A checkpoint was put into the bucket by its worker, and its record is put, but not yet committed."""
        self._mirrored(trial_id)

    def _mirrored(self, trial_id: str) -> None:
        self._deletions.consider(trial_id)

    async def run(self) -> None:
        """Upload and delete until both are closed; see `UploadQueue.run`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.uploads.run())
            group.create_task(self._deletions.run())

    async def close_deletions(self, timeout_s: float | None) -> None:
        """Finish what is to be deleted there, after the uploads and the local deletions were closed."""
        await self._deletions.close(timeout_s)

    # -- the beginning -------------------------------------------------------------------------------

    async def reconcile(
        self, trial_ids: Collection[str], *, from_bucket: bool, bucket_is_new: bool
    ) -> ReconcileReport:
        """See `TrialCheckpoints.reconcile`."""
        found = _Found()
        every = list(trial_ids)
        for start in range(0, len(every), _TRIALS_PER_SLICE):
            slice_ = {
                trial_id: self._records_of(trial_id) for trial_id in every[start : start + _TRIALS_PER_SLICE]
            }
            local: Mapping[Key, Local] = {}
            if from_bucket or bucket_is_new:
                local = await self._look_for([record for records in slice_.values() for record in records])
            for trial_id, records in slice_.items():
                if bucket_is_new:
                    self._unsay(records, local, found)
                if from_bucket:
                    await self._compare(records, local, found)
                self._begin(trial_id)
            await asyncio.sleep(0)
        if found.changed:
            await self._context.records.commit()
        self._tell(found)
        self.reconciled.set()
        return ReconcileReport(
            lost=tuple(found.lost),
            revived=tuple(found.revived),
            set_aside=tuple(found.set_aside),
            pending=self.uploads.stats.pending,
        )

    def _records_of(self, trial_id: str) -> list[CheckpointRecord]:
        try:
            return list(self._context.records.all(trial_id))
        except CorruptStateError as error:
            logger.warning("the checkpoints of trial %s stay as they are: %s", trial_id, error)
            return []

    async def _look_for(self, records: Sequence[CheckpointRecord]) -> Mapping[Key, Local]:
        context = self._context
        with disk_errors("look through the checkpoints", context.experiment_dir):
            return await context.threads.run(look_for, context.files, context.experiment_dir, records)

    def _unsay(self, records: Sequence[CheckpointRecord], local: Mapping[Key, Local], found: _Found) -> None:
        """The bucket is a new one: what is said of it has to be found out anew.

        But of what this disk lacks: it could not be sent, and if it is anywhere, it is there.
        """
        for record in records:
            is_lacking = not record.deleting and local[record.trial_id, record.step] != "here"
            if (record.mirrored or record.bucket_deleting) and not is_lacking:
                self._context.records.put(replace(record, mirrored=False, bucket_deleting=False))
                found.unsaid = True

    async def _compare(
        self, records: Sequence[CheckpointRecord], local: Mapping[Key, Local], found: _Found
    ) -> None:
        trials = {record.directory.partition("/")[0]: record.trial_id for record in records}
        quarantine = Quarantine(self._context, trials.get)
        for record in records:
            there = local[record.trial_id, record.step]
            # What a half deletion has left is that deletion's; another line's files are nobody's to delete.
            if there == "other" or (there == "broken" and not record.deleting):
                await quarantine.take(record.directory, "what lay in the place of another checkpoint")
        found.set_aside += quarantine.taken
        here = frozenset(record.step for record in records if local[record.trial_id, record.step] == "here")
        records = [await self._with_what_is_there(record, here, found) for record in records]
        plan = plan_reconciliation(records, here, self._config)
        for record in records:
            key = record.trial_id, record.step
            if record.step in plan.lost:
                self._context.records.put(replace(record, deleting=True))
                found.lost.append(key)
            elif record.step in plan.revived:
                self._context.records.put(replace(record, deleting=False))
                found.revived.append(key)
            if key not in found.lost and record.step not in here:
                self._context.absent.add(key)

    async def _with_what_is_there(
        self, record: CheckpointRecord, here: frozenset[int], found: _Found
    ) -> CheckpointRecord:
        """The record; if all of it was uploaded, and the crash came before that was recorded, it says so now."""
        if record.mirrored or record.deleting or record.step in here:
            return record
        if not await self.bucket.copies.is_complete(record):
            return record
        known = replace(record, mirrored=True)
        self._context.records.put(known)
        found.unsaid = True
        return known

    def _begin(self, trial_id: str) -> None:
        """Go on with what the records say now."""
        for record in self._records_of(trial_id):
            if record.deleting:
                self._local.resume(trial_id, record.step)
            elif not record.mirrored:
                self.uploads.add(trial_id, record.step)
        self._local.request(trial_id)

    def _tell(self, found: _Found) -> None:
        for trial_id, step in found.lost:
            message = f"checkpoint {step} of trial {trial_id} is lost: it is not on this disk, and was never uploaded"
            self._context.emit("checkpoint_lost", trial_id=trial_id, step=step, message=message)
        for what, keys in (("are lost", found.lost), ("are used again", found.revived)):
            if keys:
                shown = ", ".join(f"{step} of trial {trial_id}" for trial_id, step in keys[:_SHOWN])
                more = ", ..." if len(keys) > _SHOWN else ""
                logger.warning("%d checkpoints %s: %s%s", len(keys), what, shown, more)


@dataclass(slots=True)
class _Found:
    lost: list[Key] = field(default_factory=list)
    revived: list[Key] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    unsaid: bool = False

    @property
    def changed(self) -> bool:
        return self.unsaid or bool(self.lost or self.revived)
