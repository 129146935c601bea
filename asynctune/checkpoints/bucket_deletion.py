"""Owns the deletion of copies in a bucket: which are given up, and when it is safe to delete them.

The rule is retention's own, applied to what the bucket holds completely: those are its candidates, whether they are
still on this disk or not. So a copy goes only when what replaces it is there. Then, in this order:

1. The record, which is retired already, is marked `bucket_deleting`, in one commit with the marks of what replaces it.
2. That commit is named by the mirror. Whoever takes over from the bucket after this does not rely on the copy.
3. The local files are gone, by `deletion`.
4. Manifest, then data, in the bucket.
5. The record.

A crash anywhere leaves a marked record, and the next opening goes on. What an upload may have left that was never
finished goes the same way.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from asynctune.checkpoints.bucket import Bucket
from asynctune.checkpoints.context import Context, logger
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.checkpoints.retention import Candidate, plan_retention
from asynctune.checkpoints.upload_plan import Key, backoff_s
from asynctune.checkpoints.uploads import UploadQueue
from asynctune.config import CheckpointConfig
from asynctune.errors import ConfigError, CorruptStateError, StorageError, UploadError
from asynctune.storage.carrying import in_parallel

__all__ = ["BucketDeletions", "given_up"]

_AT_ONCE: Final = 4


def given_up(records: Sequence[CheckpointRecord], config: CheckpointConfig) -> set[int]:
    """Steps of one trial whose copies the bucket does not need any more. Pure.

    They are retired, and what the bucket keeps instead is complete there.

    Args:
        records: All of the trial's records.
        config: How many to keep, and by what.
    """
    held = [record for record in records if record.mirrored and not record.bucket_deleting]
    retired = {record.step for record in held if record.deleting}
    if config.num_to_keep is None:
        # Retired under another setting: kept only until a newer one is there that is not.
        newest = max((record.step for record in held if not record.deleting), default=-1)
        return {step for step in retired if step < newest}
    plan = plan_retention([Candidate(record.step, record.metrics) for record in held], config)
    return retired.intersection(plan.delete)


class BucketDeletions:
    """Deletes copies in the bucket, in the background.

    Args:
        context: What the room shares.
        bucket: Where they are.
        config: How many checkpoints are kept.
        uploads: Knows what may be there of unfinished ones.
    """

    def __init__(
        self, context: Context, bucket: Bucket, config: CheckpointConfig, uploads: UploadQueue
    ) -> None:
        self._context = context
        self._bucket = bucket
        self._config = config
        self._uploads = uploads
        self._retired: dict[str, set[int]] = {}
        """Steps that are `deleting` and may be in the bucket, by trial."""
        self._gone: set[Key] = set()
        """Of those, the ones whose local files are gone."""
        self._marked: dict[Key, None] = {}
        """Of those, the ones that are `bucket_deleting`, too: to be deleted now."""
        self._again: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._rng = random.Random()  # noqa: S311 - jitter is no secret
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._stop = asyncio.Event()
        self._claimed = False
        self._ended = asyncio.Event()
        self._ended.set()

    @property
    def pending(self) -> int:
        """How many copies are to be deleted."""
        return len(self._marked) + len(self._again)

    # -- telling, on the loop, no I/O ----------------------------------------------------------------

    def retired(self, trial_id: str, step: int) -> None:
        """A record is marked `deleting`."""
        self._retired.setdefault(trial_id, set()).add(step)

    def local_gone(self, record: CheckpointRecord) -> bool:
        """The local files of a retired checkpoint are gone; whether its record may go as well."""
        if not (record.mirrored or record.bucket_deleting or self._uploads.may_have_begun(record)):
            self._forget(record.trial_id, record.step)
            return True
        self._gone.add((record.trial_id, record.step))
        self.consider(record.trial_id)
        return False

    def consider(self, trial_id: str) -> None:
        """Mark what the bucket does not need any more, in the same commit as whatever was put just before."""
        retired = self._retired.get(trial_id)
        if not retired:
            return
        try:
            records = {record.step: record for record in self._context.records.all(trial_id)}
        except CorruptStateError as error:
            # Nothing of this trial is deleted while one of its records cannot be read.
            logger.warning("retention in the bucket leaves trial %s alone: %s", trial_id, error)
            return
        useless = given_up(list(records.values()), self._config)
        for step in sorted(retired):
            record = records.get(step)
            if record is None or not record.deleting:
                self._forget(trial_id, step)
                continue
            unfinished = not record.mirrored and self._uploads.may_have_begun(record)
            if not record.bucket_deleting and (step in useless or unfinished):
                record = replace(record, bucket_deleting=True)
                self._context.records.put(record)
            key = trial_id, step
            if record.bucket_deleting and key in self._gone and key not in self._again:
                self._marked[key] = None
                self._wake.set()

    # -- doing ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until closed. The store's TaskGroup owns this call, and gets what stops it.

        Raises:
            StorageError: The journal's disk failed for good.
            FencedError: Another opening owns the experiment.
        """
        self._ended.clear()
        try:
            async with asyncio.TaskGroup() as group:
                work = group.create_task(self._work())
                work.add_done_callback(lambda _: self._stop.set())
                await self._stop.wait()
                work.cancel()
        finally:
            self._ended.set()

    async def close(self, timeout_s: float | None) -> None:
        """Let `run` delete what is marked by now, for so long; the next opening goes on with the rest.

        Args:
            timeout_s: `None`: for as long as the bucket is worth waiting for (`Bucket.patience_s`).
        """
        self._closing.set()
        self._wake.set()
        limit_s = self._bucket.patience_s if timeout_s is None else timeout_s
        try:
            async with self._context.clock.timeout(limit_s if self._claimed else 0):
                await self._ended.wait()
        except TimeoutError:
            self._stop.set()
            await self._ended.wait()
        if self.pending:
            logger.warning(
                "%d retired checkpoints are still in %s; the next opening deletes them",
                self.pending,
                self._bucket.copies.location,
            )

    async def _work(self) -> None:
        await self._bucket.claimed()
        self._claimed = True
        clock = self._context.clock
        while True:
            self._wake.clear()
            now = clock.monotonic()
            closing = self._closing.is_set()
            for key in [key for key, due in self._again.items() if due <= now or closing]:
                del self._again[key]
                self._marked[key] = None
            if self._marked:
                await self._delete_marked()
            if closing and not self._marked:
                return  # all was tried once since the close began
            pause_s = max(0.0, min(self._again.values()) - now) if self._again else None
            await clock.wait(self._wake, pause_s)

    async def _delete_marked(self) -> None:
        keys = list(self._marked)
        # Marked before this line, and so is what replaces them.
        seq = await self._context.records.commit()
        try:
            await self._named(seq)
        except StorageError as error:
            for key in keys:
                self._fail(key, error)
            return
        await in_parallel([partial(self._delete, key) for key in keys], _AT_ONCE)

    async def _named(self, seq: int) -> None:
        """Return when the mirror names the commit; while closing, at once."""
        if not self._closing.is_set() and await _first(self._bucket.reached(seq), self._closing):
            return
        await (self._bucket.flush or self._bucket.reached)(seq)

    async def _delete(self, key: Key) -> None:
        trial_id, step = key
        record = self._context.records.get(trial_id, step)
        if record is not None and record.bucket_deleting:
            try:
                await self._bucket.copies.delete_tree(record)
            except (StorageError, UploadError, ConfigError) as error:
                self._fail(key, error)
                return
            self._context.records.remove(trial_id, step)
            self._context.emit(
                "bucket_copy_deleted",
                trial_id=trial_id,
                step=step,
                message=f"checkpoint {step} of trial {trial_id} was deleted in the bucket",
                size_bytes=record.size_bytes,
            )
        self._forget(trial_id, step)

    def _fail(self, key: Key, error: Exception) -> None:
        """The mark stays: tried again later, and at the next opening."""
        self._marked.pop(key, None)
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        retry_after_s = error.retry_after_s if isinstance(error, StorageError) else None
        self._again[key] = self._context.clock.monotonic() + backoff_s(failures, self._rng, retry_after_s)
        if failures == 1:
            message = (
                f"cannot delete checkpoint {key[1]} of trial {key[0]} in {self._bucket.copies.location}: {error}; "
                "tried again later"
            )
            logger.warning("%s", message)
            self._context.emit("write_failed", trial_id=key[0], step=key[1], message=message)

    def _forget(self, trial_id: str, step: int) -> None:
        key = trial_id, step
        self._gone.discard(key)
        self._marked.pop(key, None)
        self._again.pop(key, None)
        self._failures.pop(key, None)
        self._uploads.forget(trial_id, step)
        if (steps := self._retired.get(trial_id)) is not None:
            steps.discard(step)
            if not steps:
                del self._retired[trial_id]


async def _first(work: Awaitable[None], event: asyncio.Event) -> bool:
    """Await `work`, but not longer than until `event` is set; whether it returned."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        waiting.cancel()
        task.cancel()
        await asyncio.gather(waiting, task, return_exceptions=True)
