"""Owns the commit of a checkpoint that its worker brings: what is waited for and how long, and how it is recorded.

1. The step is promised at the call, and metrics and timeline are those of the call.
2. In the trial's turn, and where the bytes may go to the bucket when that is this opening's, `bring` is awaited. That
   may take minutes, so it holds up nothing but later checkpoints of the same trial: no slot, and not the close, which
   cancels it.
3. What came home is committed as if it had been staged here. What is in the bucket is looked for there, then recorded
   as `mirrored` and `bucket_only`, with the marks of what it replaces in both places in the same commit.

Whatever fails before the record takes back what was put into the bucket, as far as that can be done; also what a worker
that died had put there by then. Its step is not given again to this start of the trial: the name in the bucket may get
something yet, from a worker that is only out of reach.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Final

from asynctune.checkpoints.arriving import ArrivalPlace, ArrivingCheckpoint, InBucket
from asynctune.checkpoints.bucket_side import BucketSide
from asynctune.checkpoints.committing import Committer, Wanted
from asynctune.checkpoints.context import Context, logger
from asynctune.checkpoints.deletion import Deletions
from asynctune.checkpoints.disk import disk_errors, to_the_end
from asynctune.checkpoints.manifest import Manifest, ManifestError, digest_of
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.checkpoints.sizes import FileSizes
from asynctune.checkpoints.staging import STAGED_PREFIX, StagedCheckpoint, Staging
from asynctune.checkpoints.upload_plan import backoff_s
from asynctune.errors import AsynctuneError, ConfigError, StorageError, StoreClosedError, UploadError
from asynctune.trial import Checkpoint

__all__ = ["ArrivingCommits"]

_TAKE_BACK_S: Final = 30.0


class ArrivingCommits:
    """Commits what workers bring, for one opening.

    Args:
        context: What the room shares.
        committer: Keeps the turns, and commits what comes home.
        staging: Looks at it before.
        deletions: Applies retention with every commit.
        side: The bucket's part, if there is one.
        operation: What the close waits for.
    """

    def __init__(
        self,
        context: Context,
        committer: Committer,
        staging: Staging,
        deletions: Deletions,
        side: BucketSide | None,
        operation: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self._context = context
        self._committer = committer
        self._staging = staging
        self._deletions = deletions
        self._side = side
        self._operation = operation
        self._closing = asyncio.Event()
        self._coming: set[asyncio.Timeout] = set()
        self._rng = random.Random()  # noqa: S311 - jitter is no secret

    def end(self) -> None:
        """Cancel what has not come, with a `StoreClosedError`; what has is committed. Again: does nothing."""
        self._closing.set()
        coming, self._coming = self._coming, set()
        for each in coming:
            each.reschedule(asyncio.get_running_loop().time())

    async def adopt(
        self, wanted: Wanted, arriving: ArrivingCheckpoint, step: int | None = None
    ) -> Checkpoint | None:
        """Wait for a checkpoint, and commit it; `None`: it does not come, and its step is free.

        Args:
            wanted: What it is to be, as of the call.
            arriving: What brings it.
            step: As for `TrialCheckpoints.save`.

        Raises:
            CheckpointExistsError: As for `TrialCheckpoints.save`.
            ConfigError: What came is no such checkpoint, or nothing can be put into the bucket of this experiment.
            UploadError: It is not in the bucket, or that was not reached by this opening for `sync_timeout`.
            StorageError: The disk or the bucket said no.
            StoreClosedError: The close came first.
        """
        self._check_open(wanted)
        async with self._committer.order(wanted, step) as turn:
            self._check_open(wanted)  # while it waited for its turn
            try:
                place = await self._committer.arrival_place(wanted, turn)
                async with self._until_closed(wanted):
                    await self._reached()
                    came = await self._brought(place, arriving)
                if came is None:
                    return None
                async with self._operation():
                    return await self._commit(wanted, place, came)
            except BaseException:
                if self._is_direct:
                    self._committer.spend(wanted, turn)
                raise

    async def _brought(
        self, place: ArrivalPlace, arriving: ArrivingCheckpoint
    ) -> StagedCheckpoint | InBucket | None:
        try:
            return await arriving.bring(place)
        except Exception as error:
            if self._side is not None and self._side.bucket.direct and arriving.files:
                record = await self._context.threads.run(_half_sent, place, arriving.files)
                await to_the_end(self._take_back(self._side, record, error))
            raise

    # -- waiting -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _until_closed(self, wanted: Wanted) -> AsyncIterator[None]:
        self._check_open(wanted)
        coming = asyncio.timeout(None)
        try:
            async with coming:
                self._coming.add(coming)
                try:
                    yield
                finally:
                    self._coming.discard(coming)
        except TimeoutError:
            if not coming.expired():
                raise
            raise self._closed(wanted) from None

    def _check_open(self, wanted: Wanted) -> None:
        if self._closing.is_set():
            raise self._closed(wanted)

    def _closed(self, wanted: Wanted) -> StoreClosedError:
        return StoreClosedError(
            f"the store was closed before a checkpoint of trial {wanted.trial_id} had come from its worker: it is not "
            "recorded, and the trial goes on from the one before"
        )

    @property
    def _is_direct(self) -> bool:
        return self._side is not None and self._side.bucket.direct

    async def _reached(self) -> None:
        """Where workers put trees into the bucket themselves: return when it is this opening's, and compared with it.

        A driver that has not claimed it may use the same names as one that goes on elsewhere.
        """
        side = self._side
        if side is None or not side.bucket.direct:
            return
        limit_s = side.bucket.patience_s
        if not await self._context.clock.wait(side.reconciled, limit_s):
            raise UploadError(
                f"{side.bucket.copies.location} has not been reached since the opening, and not for {limit_s:g} s now, "
                "so a worker cannot bring a checkpoint there; the log says what it answered"
            )

    # -- committing ----------------------------------------------------------------------------------

    async def _commit(self, wanted: Wanted, place: ArrivalPlace, came: object) -> Checkpoint:
        if isinstance(came, StagedCheckpoint):
            return await self._commit_home(wanted, place, came)
        if isinstance(came, InBucket):
            return await self._commit_there(wanted, place, came)
        raise ConfigError(
            f"what came of checkpoint {place.step} of trial {place.trial_id} is a {type(came).__name__}, and neither a "
            "StagedCheckpoint nor InBucket"
        )

    async def _commit_home(self, wanted: Wanted, place: ArrivalPlace, staged: StagedCheckpoint) -> Checkpoint:
        doing = f"adopt checkpoint {place.step} of trial {place.trial_id}"
        threads = self._context.threads
        try:
            with disk_errors(doing, staged.path):
                if not await threads.run(self._is_beside, wanted, staged.path):
                    raise ConfigError(
                        f"what came of checkpoint {place.step} of trial {place.trial_id} is {staged.path}, which is no "
                        "staged directory beside the trial; it is left alone"
                    )
                async with self._committer.slots:
                    stage = await self._staging.of_staged(staged)
                    return await self._committer.commit(wanted, place.step, stage)
        except BaseException:
            # Nobody has announced it, so nobody adopts it; once it is recorded it is not there any more. Only what is
            # surely such a directory is removed: a node may have told the path.
            if await threads.run(self._is_beside, wanted, staged.path):
                self._deletions.remove_soon([staged.path])
            raise

    def _is_beside(self, wanted: Wanted, path: str) -> bool:
        """In a thread: whether a staged directory of this trial has this path, if it is there."""
        parent, name = os.path.split(path)
        trial_dir = os.path.join(self._context.experiment_dir, wanted.trial_name)
        if "\0" in path or not name.startswith(STAGED_PREFIX):
            return False
        return os.path.realpath(parent) == os.path.realpath(trial_dir)

    async def _commit_there(self, wanted: Wanted, place: ArrivalPlace, came: InBucket) -> Checkpoint:
        context, side = self._context, self._side
        if side is None or not side.bucket.direct:
            why = (
                "there is no upload_dir"
                if side is None
                else "a Syncer keeps upload_dir, which only it can reach"
            )
            raise ConfigError(
                f"checkpoint {place.step} of trial {place.trial_id} was put into a bucket by its worker, but {why}; "
                "let the worker send it here"
            )
        made: list[CheckpointRecord] = []
        try:
            await context.threads.run(lambda: made.append(self._record_of(wanted, place, came.manifest)))
            [record] = made
            if not await self._is_there(side, record):
                raise UploadError(
                    f"checkpoint {record.step} of trial {record.trial_id} is not complete in "
                    f"{side.bucket.copies.location}, though its worker said so; see what the worker's machine says"
                )
            context.records.put(record)
        except BaseException as error:
            for record in made:  # also where it was cancelled while this was made
                await to_the_end(self._take_back(side, record, error))
            raise
        # From here on it may be durable, even if the caller is cancelled: nothing of it is taken back.
        self._deletions.retire(record.trial_id)
        side.arrived(record.trial_id)
        await context.records.commit()
        which = f"checkpoint {record.step} of trial {record.trial_id}"
        context.emit(
            "checkpoint_saved",
            trial_id=record.trial_id,
            step=record.step,
            message=f"{which} was saved",
            path=f"{side.bucket.copies.location}/{record.directory}",
            size_bytes=record.size_bytes,
            files=len(record.files),
            how="bucket",
        )
        context.emit(
            "checkpoint_mirrored",
            trial_id=record.trial_id,
            step=record.step,
            message=f"{which} is in the bucket",
            sent_bytes=0,
        )
        return record.checkpoint(None)

    def _record_of(self, wanted: Wanted, place: ArrivalPlace, encoded: bytes) -> CheckpointRecord:
        """In a thread: with many files, the manifest takes a while."""
        try:
            manifest = Manifest.decode(encoded)
        except ManifestError as error:
            raise ConfigError(
                f"the manifest of checkpoint {place.step} of trial {place.trial_id} cannot be used: {error}"
            ) from error
        named = manifest.trial_id, manifest.step, manifest.epoch, manifest.attempt
        if named != (place.trial_id, place.step, place.epoch, place.attempt):
            raise ConfigError(
                f"the manifest of checkpoint {place.step} of trial {place.trial_id} is that of another one ({named}); "
                "name it after the place that was told"
            )
        return CheckpointRecord(
            trial_id=place.trial_id,
            step=place.step,
            directory=place.directory,
            manifest_sha256=digest_of(encoded),
            files=FileSizes.of(manifest.sizes),
            size_bytes=manifest.size_bytes,
            committed_at=self._context.clock.time(),
            metrics=wanted.metrics,
            timeline=wanted.timeline,
            epoch=place.epoch,
            attempt=place.attempt,
            mirrored=True,
            bucket_only=True,
        )

    async def _is_there(self, side: BucketSide, record: CheckpointRecord) -> bool:
        """Whether the bucket has all of it; one that is away is asked again, for as long as it is worth waiting for."""
        clock, failures = self._context.clock, 0
        ends = clock.monotonic() + side.bucket.patience_s
        while True:
            last = self._closing.is_set() or clock.monotonic() >= ends
            try:
                return await side.bucket.copies.is_complete(record)
            except StorageError as error:
                if last or not error.retryable:
                    raise
                failures += 1
                await clock.wait(self._closing, backoff_s(failures, self._rng, error.retry_after_s))

    async def _take_back(self, side: BucketSide, record: CheckpointRecord, error: BaseException) -> None:
        """Delete in the bucket what nothing is going to name; what stays is said, and `error` is told."""
        try:
            async with self._context.clock.timeout(_TAKE_BACK_S):
                await side.bucket.copies.delete_tree(replace(record, mirrored=False))
        except (AsynctuneError, OSError) as left:
            where = f"{side.bucket.copies.location}/{record.directory}"
            message = f"{where} could not be removed either ({left!r}); `inspect gc` finds it"
            error.add_note(message)
            logger.warning("%s", message)


def _half_sent(place: ArrivalPlace, files: Collection[str]) -> CheckpointRecord:
    """In a thread: what may be in the bucket of one that did not come, for its deletion."""
    return CheckpointRecord(
        trial_id=place.trial_id,
        step=place.step,
        directory=place.directory,
        manifest_sha256="",
        files=dict.fromkeys(files, 0),
        size_bytes=0,
        committed_at=0.0,
        metrics={},
        epoch=place.epoch,
        attempt=place.attempt,
    )
