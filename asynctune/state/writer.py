"""Owns the way from a changed record to the disk: what is dirty, when it is committed, who waits for it.

Mutators only mark; commits are cut on the loop, written by the journal's thread, one at a time, everything dirty
in one. Waits out a full disk, and turns any other failure into a failed state that every later call sees. Knows
keys and bytes, not what they mean.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol

from asynctune.clock import Clock
from asynctune.errors import AsynctuneError, FencedError, StorageError, StoreClosedError
from asynctune.state.codec import FrameError
from asynctune.state.generations import Generations
from asynctune.state.journal import Batch, CommitDone, DiskFullError, Journal
from asynctune.state.pacing import CommitPacing
from asynctune.state.thread import WorkThread

__all__ = ["Observer", "StateWriter", "WriterStats"]

logger = logging.getLogger("asynctune")

_RETRY_FIRST_S: Final = 0.1
_RETRY_MAX_S: Final = 2.0


class Observer(Protocol):
    """What the writer tells, and asks, the store above. All on the loop, all quick."""

    def before_cut(self, seq: int, *, explicit: bool) -> float | None:
        """Commit `seq` is about to be cut: the last moment to put records for it.

        Returns the monotonic time at which the writer should ask again, even with nothing dirty, or `None`.
        """
        ...

    def committed(self, seq: int, rows: list[bytes], done: CommitDone) -> None:
        """Commit `seq` is durable, with these result rows."""
        ...

    def happened(self, kind: str, message: str, **data: Any) -> None:
        """Something that people should know: `disk_full`, `disk_recovered`, `write_failed`, `snapshot_written`."""
        ...

    async def before_prune(self, seq: int) -> bool:
        """The journal up to commit `seq` is about to be dropped; whether nothing else needs it any more."""
        ...


@dataclass(frozen=True, slots=True)
class WriterStats:
    """Counts and seconds since the opening."""

    commits: int
    committed_seq: int
    dirty_keys: int
    checkpoint_seconds: float
    interval_s: float
    oldest_dirty_age_s: float
    journal_bytes: int
    snapshot_bytes: int
    snapshots: int


class StateWriter:
    """Collects what changed and commits it, by itself at the pace of `pacing`, or at once for `flush`.

    Args:
        journal: The journal of this opening, its first segment begun.
        pacing: The 5 % rule or a fixed period.
        clock: Time.
        observer: The store above.
        snapshots: Seqs of the snapshots on the disk, rising.
        snapshot_bytes: Size of the newest.
        journal_bytes: Size of the journal after it.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        pacing: CommitPacing,
        clock: Clock,
        observer: Observer,
        snapshots: list[int],
        snapshot_bytes: int,
        journal_bytes: int,
    ) -> None:
        self._journal = journal
        self._pacing = pacing
        self._clock = clock
        self._observer = observer
        self._thread = WorkThread("asynctune-journal")
        self._generations = Generations(
            journal,
            self._thread,
            clock,
            snapshots=snapshots,
            snapshot_bytes=snapshot_bytes,
            journal_bytes=journal_bytes,
        )
        self._wake = asyncio.Event()
        self._snapshot_wanted = asyncio.Event()
        self._failure: BaseException | None = None
        self._failed_at: TracebackType | None = None
        self._closing = False
        # what is dirty, and the one commit under way
        self._batch = Batch(journal.seq + 1)
        self._dirty_since: float | None = None
        self._in_flight: Batch | None = None
        self._in_flight_since: float | None = None
        self._retry_at: float | None = None
        self._retry_s = _RETRY_FIRST_S
        self._ask_again_at: float | None = None
        # who waits: versions count mutations
        self._version = 0
        self._cut_version = 0
        self._durable_version = 0
        self._waiters: list[tuple[int, asyncio.Future[int]]] = []
        # figures
        self._commits = 0
        self._warned = False
        self._seconds = 0.0

    # -- marking (loop, no I/O) ----------------------------------------------------------------------------

    def put(self, key: str, value: bytes) -> None:
        """Mark a record as set."""
        batch = self._batch
        batch.puts[key] = value
        if batch.deletes:
            batch.deletes.pop(key, None)
        self._mark()

    def delete(self, key: str) -> None:
        """Mark a record as removed."""
        self._batch.puts.pop(key, None)
        self._batch.deletes[key] = None
        self._mark()

    def add_row(self, row: bytes) -> None:
        """Let a result row ride in the next commit."""
        self._batch.rows.append(row)
        self._mark()

    def _mark(self) -> None:
        self._version += 1
        if self._dirty_since is None:
            self._dirty_since = self._clock.monotonic()
            self._wake.set()

    def check(self) -> None:
        """Raise the failure that stopped the writer, if there was one."""
        if self._failure is not None:
            # each raise adds to the error's own traceback: a driver that tries again and again would grow it
            raise self._failure.with_traceback(self._failed_at)

    def expect_snapshot(self, cost_s: float) -> None:
        """Pay in advance for the next snapshot, which is expected to take so long."""
        self._pacing.expect_snapshot(cost_s, self._generations.bytes_to_next)

    def add_cost(self, seconds: float) -> None:
        """Count time that somebody else spent on a commit."""
        self._seconds += seconds

    @property
    def committed_seq(self) -> int:
        """The last durable commit."""
        return self._batch.seq - (1 if self._in_flight is None else 2)

    @property
    def next_seq(self) -> int:
        """The commit that what is marked from here on will be in."""
        return self._batch.seq

    def stats(self) -> WriterStats:
        """Figures as of the present moment."""
        since = self._in_flight_since if self._in_flight_since is not None else self._dirty_since
        in_flight = self._in_flight
        return WriterStats(
            commits=self._commits,
            committed_seq=self.committed_seq,
            dirty_keys=len(self._batch.puts)
            + len(self._batch.deletes)
            + (len(in_flight.puts) + len(in_flight.deletes) if in_flight is not None else 0),
            checkpoint_seconds=self._seconds,
            interval_s=self._pacing.interval_s,
            oldest_dirty_age_s=max(0.0, self._clock.monotonic() - since) if since is not None else 0.0,
            journal_bytes=self._generations.journal_bytes,
            snapshot_bytes=self._generations.snapshot_bytes,
            snapshots=self._generations.count,
        )

    # -- commits -------------------------------------------------------------------------------------------

    async def flush(self) -> int:
        """Return the seq of the commit that made everything marked so far durable.

        A cancelled caller stops waiting; the commit goes on.

        Raises:
            FencedError, StorageError: The writer failed.
        """
        self.check()
        if self._durable_version >= self._version:
            return self.committed_seq
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiters.append((self._version, future))
        self._pump()
        return await future

    def _pump(self) -> None:
        """Start a commit if one is due and none is under way."""
        if self._in_flight is not None or self._failure is not None:
            return
        now = self._clock.monotonic()
        explicit = self._waits()
        due = self._due_at()
        if not (explicit or (due is not None and now >= due)):
            return
        self._ask_again_at = self._observer.before_cut(self._batch.seq, explicit=explicit)
        if self._dirty_since is None:
            return
        batch = self._in_flight = self._batch
        self._in_flight_since, self._dirty_since = self._dirty_since, None
        self._cut_version = self._version
        self._batch = Batch(batch.seq + 1)
        self._seconds += self._clock.monotonic() - now
        self._thread.call(self._on_done, self._journal.commit, batch)

    def _waits(self) -> bool:
        # a caller that was cancelled waits no more
        self._waiters = [w for w in self._waiters if not w[1].done()]
        return bool(self._waiters)

    def _on_done(self, done: CommitDone | None, error: BaseException | None) -> None:
        try:
            if isinstance(error, DiskFullError):
                self._wait_for_space(error)
            elif error is not None:
                self.fail(error)
            elif done is not None:
                self._acknowledge(done)
        except BaseException as failure:  # noqa: BLE001 - an observer's error must not vanish in a callback
            self.fail(failure)

    def _acknowledge(self, done: CommitDone) -> None:
        batch, self._in_flight, self._in_flight_since = self._in_flight, None, None
        assert batch is not None
        assert batch.seq == done.seq
        cost = done.cost_s
        self._commits += 1
        self._seconds += cost
        self._generations.grew(done.size_bytes)
        self._pacing.committed(done.started_at, done.ended_at, cost, done.size_bytes)
        if self._pacing.exceeds_target and not self._warned:
            self._warned = True
            message = "max_interval_s makes commits take more than 5 % of the time; stats() has the fraction"
            logger.warning("%s", message)
            self._observer.happened("pacing_exceeded", message)
        self._durable_version = self._cut_version
        if self._retry_s != _RETRY_FIRST_S:
            self._retry_s = _RETRY_FIRST_S
            self._observer.happened("disk_recovered", "there is space on the disk again; commits go on")
        if done.overcame is not None:
            message = (
                f"the disk refused a write ({done.overcame}); the commit went into a new journal segment"
            )
            self._observer.happened("write_failed", message)
        self._observer.committed(batch.seq, batch.rows, done)
        ready = [future for version, future in self._waiters if version <= self._durable_version]
        self._waiters = [w for w in self._waiters if w[0] > self._durable_version]
        for future in ready:
            if not future.done():
                future.set_result(batch.seq)
        if self._generations.due:
            self._snapshot_wanted.set()
        self._pump()
        self._wake.set()

    def _wait_for_space(self, error: DiskFullError) -> None:
        if self._retry_s == _RETRY_FIRST_S:
            message = (
                f"no space for the experiment state in {self._journal.directory} ({error}); everything is kept in "
                "memory and committed when there is space"
            )
            logger.warning("%s", message)
            self._observer.happened("disk_full", message)
        self._retry_at = self._clock.monotonic() + self._retry_s
        self._retry_s = min(_RETRY_MAX_S, 2 * self._retry_s)
        self._wake.set()

    def fail(self, error: BaseException) -> None:
        """Enter the failed state: every waiter and every later call gets `error`."""
        if self._failure is None:
            if not isinstance(error, AsynctuneError):
                wrapped = StorageError(
                    f"the writer of the experiment state failed: {error!r}", operation="commit"
                )
                wrapped.__cause__ = error
                error = wrapped
            self._failure, self._failed_at = error, error.__traceback__
        for _, future in self._waiters:
            if not future.done():
                future.set_exception(self._failure)
        self._waiters.clear()
        self._wake.set()
        self._snapshot_wanted.set()

    # -- the task ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit what is dirty when it is due, until cancelled. Owned by the store's TaskGroup.

        Raises:
            FencedError, StorageError: The writer failed.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write_snapshots(), name="asynctune-snapshots")
            while True:
                self.check()
                self._wake.clear()
                await self._clock.wait(self._wake, self._rest_s())
                self.check()
                if self._retry_at is not None and self._clock.monotonic() >= self._retry_at:
                    self._retry_at = None
                    assert self._in_flight is not None
                    self._thread.call(self._on_done, self._journal.commit, self._in_flight)
                self._pump()

    def _rest_s(self) -> float | None:
        """How long there is nothing to do, or `None` for until something happens."""
        due = self._retry_at if self._in_flight is not None else self._due_at()
        return None if due is None else max(0.0, due - self._clock.monotonic())

    def _due_at(self) -> float | None:
        """When the next commit should start by itself, or `None` if there is nothing to commit, or to ask for."""
        if self._dirty_since is not None:
            return self._pacing.next_start
        if self._ask_again_at is not None:
            return max(self._ask_again_at, self._pacing.next_start)
        return None

    async def _write_snapshots(self) -> None:
        while True:
            await self._snapshot_wanted.wait()
            self._snapshot_wanted.clear()
            self.check()
            try:
                await self._write_snapshot()
            except (OSError, FrameError) as error:
                message = (
                    f"a snapshot of the experiment state could not be written ({error}); it is tried again"
                )
                logger.warning("%s", message)
                self._observer.happened("write_failed", message)
            except FencedError as error:
                self.fail(error)

    async def _write_snapshot(self) -> None:
        generations = self._generations
        done = await generations.write()
        self._seconds += done.cost_s
        self._pacing.snapshot_written(done.cost_s, done.bytes_to_next)
        message = f"snapshot of commit {done.seq}, {done.size_bytes:,} bytes"
        self._observer.happened(
            "snapshot_written", message, snapshot_seq=done.seq, size_bytes=done.size_bytes
        )
        keep_from = generations.droppable
        if keep_from is not None and await self._observer.before_prune(keep_from):
            await generations.prune(keep_from)

    def forget(self) -> None:
        """Let the thread and the descriptor go without waiting; from any thread, and after the loop has ended."""
        # no future is told: nobody waits for a store that nobody holds, and the loop is not ours to call here
        self._failure = self._failure or StoreClosedError("the store was dropped without being closed")
        self._generations.forget()
        self._thread.stop(self._journal.close)

    async def aclose(self) -> None:
        """Let the threads end, after `run` was cancelled; what is dirty still is not written by this."""
        self.fail(StoreClosedError("the store is closed; what was not committed by then is not on the disk"))
        try:
            await self._generations.aclose()
            await self._thread.run(self._journal.close)
        finally:
            self._thread.stop()
