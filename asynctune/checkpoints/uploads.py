"""Owns the uploads of an experiment's checkpoints: what is sent when, how often it is tried, and how it ends.

What is pending is what the records say: live, and not `mirrored`. What is kept here besides is an index of that, and
may be lost at any time. The order is `upload_plan`'s, the bytes are the `TreeCopies`'.

- Nothing of a checkpoint is sent before its record is durable here; the record says `mirrored` when all of it is there.
- The source of an upload that has begun is leased until its end, so retention gives it up only afterwards. One that
  has not begun is dropped when it is retired.
- What fails is an event, counted, and tried again, later each time. `drain` tries at once, and raises it.
- After the close, and after a crash, the next opening goes on: with what the bucket has already, nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from asynctune.checkpoints.bucket import Bucket
from asynctune.checkpoints.context import Context, logger
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.checkpoints.turns import Leases
from asynctune.checkpoints.upload_plan import Key, UploadPlan, backoff_s
from asynctune.checkpoints.upload_reasons import reasons_told
from asynctune.checkpoints.upload_wishes import Wishes, uploads_ended
from asynctune.errors import ConfigError, CorruptStateError, StorageError, StoreClosedError, UploadError

__all__ = ["UploadLeft", "UploadQueue", "UploadStats"]

_SLICE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadStats:
    """Figures since the opening.

    Attributes:
        pending: Checkpoints that are to be uploaded, those under way included.
        done: Uploads finished.
        failed: How many of the pending have failed at least once, and are tried again.
        sent_bytes: Bytes that the bucket has acknowledged.
    """

    pending: int = 0
    done: int = 0
    failed: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class UploadLeft:
    """A checkpoint that was not uploaded before the close. It stays recorded as pending: the next opening goes on.

    Attributes:
        trial_id: Whose.
        step: Which.
        reason: Why, in words.
    """

    trial_id: str
    step: int
    reason: str


@dataclass(slots=True)
class _Failure:
    """How often an upload has failed in a row, and how the last time."""

    times: int = 0
    error: str = ""


class UploadQueue:
    """Works off the pending uploads of one opening.

    Args:
        context: What the room shares.
        bucket: Where to, and how.
        leases: Keep what is being sent.
        mirrored: Told a trial when a checkpoint of it has come to the bucket, before that is committed.
        rng: Where the jitter comes from.
    """

    def __init__(
        self,
        context: Context,
        bucket: Bucket,
        leases: Leases,
        mirrored: Callable[[str], None],
        rng: random.Random | None = None,
    ) -> None:
        self._context = context
        self._bucket = bucket
        self._leases = leases
        self._mirrored = mirrored
        self._rng = random.Random() if rng is None else rng  # noqa: S311 - jitter is no secret
        self._plan = UploadPlan(hold=not bucket.sync_on_checkpoint)
        self._failures: dict[Key, _Failure] = {}
        self._begun: set[Key] = set()
        self._under_way: set[Key] = set()
        self._wishes = Wishes()
        self._done = 0
        self._sent_bytes = 0
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self._claimed = False
        self._running = False
        self._ended = asyncio.Event()
        self._ended.set()

    @property
    def stats(self) -> UploadStats:
        """How things stand."""
        return UploadStats(
            pending=len(self._plan.pending),
            done=self._done,
            failed=len(self._failures),
            sent_bytes=self._sent_bytes,
        )

    # -- telling, on the loop, no I/O ----------------------------------------------------------------

    def add(self, trial_id: str, step: int) -> None:
        """A live checkpoint is not in the bucket yet."""
        self._plan.add((trial_id, step))
        self._wake.set()

    def drop(self, trial_id: str, step: int) -> None:
        """A checkpoint was retired: it is not uploaded, unless that has begun."""
        if self._plan.drop((trial_id, step)):
            self._settle((trial_id, step), None)

    def may_have_begun(self, record: CheckpointRecord) -> bool:
        """Whether the bucket may hold some of a checkpoint that is not `mirrored`."""
        return record.epoch != self._context.epoch or (record.trial_id, record.step) in self._begun

    def forget(self, trial_id: str, step: int) -> None:
        """The bucket holds nothing of it any more."""
        self._begun.discard((trial_id, step))

    # -- waiting -------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Return when what is pending now is in the bucket, or was retired meanwhile.

        Raises:
            UploadError: Some failed.
            StoreClosedError: The uploads have ended.
        """
        failed = await self._try_all()
        if failed:
            told = reasons_told((trial_id, step, why) for (trial_id, step), why in failed.items())
            raise UploadError(
                f"{len(failed)} of the pending checkpoints could not be uploaded to {self._bucket.copies.location}, "
                f"and are tried again: {told}"
            )

    async def _try_all(self) -> dict[Key, str]:
        """Try all that are pending at once; those that failed, and why."""
        if not self._plan.pending:
            return {}
        if self._stop.is_set():
            raise uploads_ended()
        with self._wishes.make(self._plan.pending) as wish:
            await self._release()
            self._plan.hurry(self._context.clock.monotonic())
            self._wake.set()
            return await wish.granted()

    async def _release(self) -> None:
        """Let begin what waits for the next period."""
        more = True
        while more:
            more = self._plan.release(_SLICE)
            await asyncio.sleep(0)

    def _settle(self, key: Key, error: str | None) -> None:
        if error is None:
            self._failures.pop(key, None)
        self._wishes.settle(key, error)

    # -- working -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Upload until closed. The store's TaskGroup owns this call, and gets what stops it.

        Raises:
            StorageError: The journal's disk failed for good.
            FencedError: Another opening owns the experiment.
        """
        self._ended.clear()
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                work = group.create_task(self._work())
                await self._stop.wait()
                work.cancel()
        finally:
            self._running = False
            self._stop.set()
            self._ended.set()
            self._wishes.end()

    async def close(self, timeout_s: float | None) -> tuple[UploadLeft, ...]:
        """Try all that are pending once, for so long, and end `run`; what is left stays recorded as pending.

        When the time is over `run` may go on for some seconds: what it sends then only frees what it had begun.
        """
        in_time = True
        if self._running and self._claimed and not self._stop.is_set():
            try:
                async with self._context.clock.timeout(timeout_s):
                    await self._try_all()
            except TimeoutError:
                in_time = False
            except StoreClosedError:
                pass  # told below
        self._stop.set()
        if in_time:
            await self._ended.wait()
        left = tuple(
            UploadLeft(trial_id, step, self._why_left((trial_id, step)))
            for trial_id, step in sorted(self._plan.pending)
        )
        if left:
            told = reasons_told((each.trial_id, each.step, each.reason) for each in left)
            message = (
                f"{len(left)} checkpoints are not in {self._bucket.copies.location} yet, and the next opening "
                f"goes on with them: {told}"
            )
            logger.warning("%s", message)
            self._context.emit("uploads_left", message=message, count=len(left))
        return left

    def _why_left(self, key: Key) -> str:
        if key in self._failures:
            return self._failures[key].error
        if not self._claimed:
            return "the bucket was not reached by this opening"
        return "its upload had not ended" if key in self._begun else "its upload had not begun"

    async def _work(self) -> None:
        await self._bucket.claimed()
        self._claimed = True
        clock, period_s = self._context.clock, self._bucket.sync_period_s
        tick = clock.monotonic() + period_s
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                now = clock.monotonic()
                if now >= tick:
                    tick = now + period_s
                    await self._release()
                while (
                    len(self._under_way) < self._bucket.max_concurrency
                    and (key := self._plan.next(now)) is not None
                ):
                    self._under_way.add(key)
                    group.create_task(self._upload(key))
                await clock.wait(self._wake, self._pause_s(now, tick))

    def _pause_s(self, now: float, tick: float) -> float | None:
        """Until when nothing has to be done, unless something happens; `None`: for ever."""
        moments = [] if self._bucket.sync_on_checkpoint else [tick]
        due = self._plan.next_time()
        if due is not None and len(self._under_way) < self._bucket.max_concurrency:
            moments.append(due)
        return max(0.0, min(moments) - now) if moments else None

    async def _upload(self, key: Key) -> None:
        try:
            record = self._pending_record(key)
            if record is None:
                self._plan.done(key)
                self._settle(key, None)
                return
            with self._leases.hold(*key):
                # Before anything of it is in the bucket, the record has to be durable here: it alone names it.
                await self._context.records.commit()
                sent_bytes = await self._send(record)
                if sent_bytes is None:
                    return
                self._context.records.put(replace(self._context.records.get(*key) or record, mirrored=True))
                self._mirrored(record.trial_id)
            await self._context.records.commit()
            self._plan.done(key)
            self._begun.discard(key)
            self._done += 1
            self._tell("checkpoint_mirrored", key, "is in the bucket", sent_bytes=sent_bytes)
            self._settle(key, None)
        finally:
            self._under_way.discard(key)
            self._wake.set()

    def _pending_record(self, key: Key) -> CheckpointRecord | None:
        """The record, if it is still to be uploaded."""
        try:
            record = self._context.records.get(*key)
        except CorruptStateError as error:
            logger.warning("checkpoint %d of trial %s is not uploaded: %s", key[1], key[0], error)
            return None
        return None if record is None or record.mirrored or record.deleting else record

    async def _send(self, record: CheckpointRecord) -> int | None:
        """How many bytes were sent; `None`: it failed, which has been told."""
        key = record.trial_id, record.step
        new = not self.may_have_begun(record)
        self._begun.add(key)
        self._tell("upload_started", key, "is being uploaded", size_bytes=record.size_bytes)
        try:
            return await self._bucket.copies.put_tree(
                record, self._context.path_of(record), new=new, progress=self._count
            )
        except (StorageError, UploadError, ConfigError) as error:
            self._fail(key, error)
            return None

    def _count(self, size_bytes: int) -> None:
        self._sent_bytes += size_bytes

    def _fail(self, key: Key, error: Exception) -> None:
        failure = self._failures.setdefault(key, _Failure())
        failure.times += 1
        failure.error = str(error)
        retry_after_s = error.retry_after_s if isinstance(error, StorageError) else None
        wait_s = backoff_s(failure.times, self._rng, retry_after_s)
        self._plan.failed(key, self._context.clock.monotonic() + wait_s)
        message = f"checkpoint {key[1]} of trial {key[0]} could not be uploaded: {error}"
        # The first time aloud: a bucket that is away for an hour says nothing new every minute.
        log = logger.warning if failure.times == 1 else logger.info
        log("%s; it is tried again", message)
        self._context.emit(
            "upload_failed",
            trial_id=key[0],
            step=key[1],
            message=message,
            failures=failure.times,
            again_in_s=wait_s,
        )
        self._settle(key, str(error))

    def _tell(self, kind: str, key: Key, what: str, **data: int) -> None:
        message = f"checkpoint {key[1]} of trial {key[0]} {what}"
        self._context.emit(kind, trial_id=key[0], step=key[1], message=message, **data)
