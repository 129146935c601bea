"""Owns one experiment opened for writing: joins journal, results and checkpoints, and the tasks that serve them.

The front room (`store.store`) checks arguments and calls in here. What a record means is `store.trials`'; how bytes
become durable is the rooms' below.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

from asynctune.checkpoints.catalog import TrialCheckpoints
from asynctune.clock import Clock
from asynctune.config import CheckpointConfig
from asynctune.errors import (
    FencedError,
    StorageError,
    StoreClosedError,
)
from asynctune.files import LocalFiles
from asynctune.protocols import Stateful
from asynctune.results.projector import ResultFiles
from asynctune.results.rows import OpeningInfo
from asynctune.state.journal import CommitDone
from asynctune.state.pacing import CommitPacing
from asynctune.state.writer import StateWriter
from asynctune.store.attached import AttachedState, CaptureError
from asynctune.store.events import EventStream
from asynctune.store.identity import experiment_record, opening_record
from asynctune.store.log import Log
from asynctune.store.mirroring import Mirroring
from asynctune.store.opened import Opened
from asynctune.store.order import CheckpointOrder
from asynctune.store.place import Place
from asynctune.store.projections import Projections
from asynctune.store.reconcile import open_place
from asynctune.store.sink import RecordSink
from asynctune.store.supervisor import Supervisor
from asynctune.store.trials import TrialTable

__all__ = ["Engine"]

logger = logging.getLogger("asynctune")

_GRACE_S: Final = 1.0


class Engine:
    """One opening for writing. Made by `start`, ended by `close`."""

    def __init__(
        self,
        where: Opened,
        *,
        events: EventStream,
        pacing: CommitPacing,
        checkpoint_config: CheckpointConfig | None,
        tensorboard: bool,
        clock: Clock,
        files: LocalFiles,
    ) -> None:
        opened, path = where.directory, where.path
        self.opening = opened.opening
        self.experiment_id = opened.experiment_id
        self.records = opened.records
        self.events = events
        self._clock = clock
        self._lock = opened.lock
        self._pid = os.getpid()
        self._failure: BaseException | None = None
        self._failed_at: TracebackType | None = None
        self.opened_mono = clock.monotonic()
        recovered = opened.recovered
        self.writer = StateWriter(
            opened.journal,
            pacing=pacing,
            clock=clock,
            observer=self,
            snapshots=recovered.snapshots,
            snapshot_bytes=recovered.snapshot_bytes,
            journal_bytes=recovered.journal_bytes,
        )
        self.writer.expect_snapshot(
            2 * opened.recovery_s
        )  # writing a state takes about twice as long as reading
        self.records.sink = self.writer
        self.experiment = experiment_record(self.records, opened, path, checkpoint_config)
        self.checkpoint_config = CheckpointConfig(**self.experiment["checkpoint_config"])
        self.table = TrialTable(self.records, clock, self.experiment["prefix"])
        if (tracked := self.experiment.get("tracked")) is not None:
            self.table.track(tracked[0], tracked[2])
        self.log = Log(self.records)
        self.attached: dict[str, AttachedState] = {}
        self.sink = RecordSink(self.records, self.check, self.writer.flush)
        self.remote = where.remote
        self._notes = where.notes
        self.projections = Projections(
            ResultFiles(
                path,
                files=files,
                clock=clock,
                tensorboard=tensorboard,
                emit=events.emit,
                written=self._written,
            ),
            self.table,
            events,
            OpeningInfo(hostname=opened.opening.hostname, node_ip=opened.node_ip, pid=opened.opening.pid),
            recovered.rows,
        )
        self.mirroring = (
            None
            if where.remote is None
            else Mirroring(where, self.projections, files=files, clock=clock, emit=events.emit)
        )
        self.checkpoints = TrialCheckpoints(
            path,
            sink=self.sink,
            config=self.checkpoint_config,
            files=files,
            clock=clock,
            emit=events.emit,
            epoch=self.opening.epoch,
            bucket=None if self.mirroring is None else self.mirroring.bucket,
        )
        self._order = CheckpointOrder(
            self.checkpoints, self.mirroring, self.records, events, from_copy=where.from_copy
        )
        runs = [self.writer.run, self.projections.run, self.checkpoints.run, self._order.run]
        if self.mirroring is not None:
            runs += self.mirroring.runs
        self._supervisor = Supervisor(runs, self._on_failure)

    @classmethod
    async def start(
        cls, place: Place, mode: str, *, clock: Clock, files: LocalFiles, events: EventStream, **settings: Any
    ) -> Engine:
        """Open the experiment and start its tasks.

        A caller that is cancelled meanwhile leaves no lock behind. Errors: as for `open_place`.
        """

        def waiting(message: str) -> None:
            events.emit("waiting_for_quiet", message=message)

        where = await open_place(place, mode, files=files, clock=clock, waiting=waiting)
        engine: Engine | None = None
        try:
            engine = cls(where, clock=clock, files=files, events=events, **settings)
            await engine._begin()
        except BaseException:
            if engine is not None:
                await engine._abandon(give_back=True)
            else:
                await where.let_go()
            raise
        return engine

    async def _begin(self) -> None:
        self.records.put("opening", opening_record(self.opening, None))
        self._supervisor.start()
        await self.projections.prepare()
        if self.mirroring is not None:
            await self.mirroring.begin(self.records)
        await self._order.begin()
        await self.writer.flush()
        if self.mirroring is not None:
            self.mirroring.reconciled()
        for kind, message in self._notes:
            self.events.emit(kind, message=message)
        opening = self.opening
        if opening.tear is not None:
            logger.warning("%s", opening.tear)
            self.events.emit("recovered_tear", message=opening.tear)
        for message in opening.damage:
            logger.warning("%s", message)
            self.events.emit("recovered_damage", message=message)

    # -- state ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise what keeps this opening from changing anything.

        Raises:
            StoreClosedError: In a forked child.
            FencedError, StorageError: The failure that ended this opening.
        """
        if os.getpid() != self._pid:
            msg = (
                f"this store belongs to process {self._pid} and this is its forked child {os.getpid()}; open "
                'the experiment with mode="read" here, and write from the parent'
            )
            raise StoreClosedError(msg)
        if self._failure is not None:
            raise self._failure.with_traceback(self._failed_at)
        self.writer.check()

    def attach(self, name: str, value: Stateful) -> int | None:
        """Keep the state of an object of the driver's own; see `ExperimentStore.attach_state`."""
        if name not in self.attached:
            key = name if name in {"searcher", "scheduler"} else f"state/{name}"
            self.attached[name] = AttachedState(name, self.records, self._clock, key=key)
        return self.attached[name].attach(value)

    @property
    def failure(self) -> BaseException | None:
        """What ended this opening early, or `None`."""
        return self._failure

    def _on_failure(self, error: BaseException) -> None:
        if self._failure is None:
            logger.error("the store of %s failed: %s", self.experiment.get("name"), error)
            self._failure, self._failed_at = error, error.__traceback__
        self.writer.fail(error)
        self._order.give_up()

    def journal_rows(self, rows: Sequence[bytes]) -> None:
        """Let result rows ride in the next commit."""
        for row in rows:
            self.writer.add_row(row)

    async def flush(self) -> int:
        """Make everything durable, attached states included.

        Raises:
            CaptureError: A `get_state()` failed; everything else is durable then.
            FencedError, StorageError: Nothing can be made durable any more.
        """
        failed: CaptureError | None = None
        for attached in self.attached.values():
            try:
                self.writer.add_cost(attached.capture(self.writer.next_seq))
            except CaptureError as error:
                failed = error
        seq = await self.writer.flush()
        if failed is not None:
            raise failed
        return seq

    async def drain(self) -> None:
        """Return when all checkpoints of this moment are in the bucket. Errors: as for `TrialCheckpoints.drain`."""
        await self._order.drain(self.check)

    async def flush_mirror(self) -> int:
        """Make everything durable in the copy too, checkpoints included; the seq that it names then.

        Raises:
            UploadError: A checkpoint cannot be copied, or the state not for `sync_timeout`.
            CaptureError, FencedError, StorageError: As for `flush`; or the bucket refused for good.
        """
        assert self.mirroring is not None
        await self.flush()
        await self.drain()
        return await self.mirroring.flush(await self.writer.flush())

    # -- what the writer asks and tells (`state.writer.Observer`) --------------------------------------------

    def before_cut(self, seq: int, *, explicit: bool) -> float | None:
        """Capture attached states if their budget allows, unless a checkpoint forces this commit."""
        again: list[float] = []
        for attached in self.attached.values():
            start = attached.next_start
            if start is None:
                continue
            if explicit or self._clock.monotonic() < start:
                again.append(start)
                continue
            try:
                attached.capture(seq)
            except CaptureError as error:
                if attached.is_news(error):
                    logger.warning("%s; it is tried again with later commits", error)
                    self.events.emit("searcher_failed", message=str(error))
        return min(again, default=None)

    def committed(self, seq: int, rows: list[bytes], done: CommitDone) -> None:
        """Hand committed rows to the result files."""
        self.projections.committed(seq, rows)
        if self.mirroring is not None:
            self.mirroring.committed(seq, done.size_bytes)
        self.events.emit("committed", seq=seq, rows=len(rows), seconds=done.ended_at - done.started_at)

    def happened(self, kind: str, message: str, **data: Any) -> None:
        """Publish what the writer met."""
        if kind == "snapshot_written" and self.mirroring is not None:
            self.mirroring.mirror.snapshot_written(data["snapshot_seq"], data["size_bytes"])
        self.events.emit(kind, message=message, **data)

    def _written(self, trial_name: str) -> None:
        if self.mirroring is not None:
            self.mirroring.results.changed(trial_name)

    async def before_prune(self, seq: int) -> bool:
        """Make the result files durable up to `seq`, and record that they are, before the journal forgets."""
        if self.mirroring is not None and not self.mirroring.may_forget(seq):
            return False
        covered = await self.projections.sync()
        if covered is None:
            return False
        self.records.put("projected", covered)
        await self.writer.flush()
        return covered >= seq

    # -- the end -------------------------------------------------------------------------------------------

    async def close(self, timeout_s: float | None) -> None:
        """Make everything durable, end the tasks, and let go of the experiment.

        Raises:
            StorageError, FencedError, CaptureError: Something is not durable; the experiment is let go all the same.
        """
        # with a bucket, the parts below have deadlines of their own, which end before
        limit_s = timeout_s if timeout_s is None or self.mirroring is None else timeout_s + _GRACE_S
        inner: TimeoutError | None = None
        try:
            self.check()
            async with self._clock.timeout(limit_s):
                try:
                    await self._finish(timeout_s)
                except TimeoutError as error:
                    inner = error
                    raise
        except TimeoutError as error:
            if error is inner:  # of the disk, say
                raise
            stats = self.writer.stats()
            msg = (
                f"the store was closed after {timeout_s} s, while a save, a deletion or the disk was still waited for; "
                f"{stats.dirty_keys} changed records are not on the disk (the last durable commit is "
                f"{stats.committed_seq})"
            )
            self._failure = StorageError(msg, operation="close", hint="allow more time, or free some space")
            raise self._failure from error
        finally:
            await self._abandon()

    async def _finish(self, timeout_s: float | None) -> None:
        failed: CaptureError | None = None
        try:
            await self.flush()  # first: what is changed by now does not wait for saves and deletions
        except CaptureError as error:
            failed = error
        mirroring = self.mirroring
        uploads_s = timeout_s
        if mirroring is not None:
            timeout_s, uploads_s = mirroring.times_for_close(timeout_s)
        began = self._clock.monotonic()
        ends = None if timeout_s is None else began + timeout_s
        await self._order.before_close(uploads_s)
        if uploads_s is not None:
            uploads_s = max(0.0, began + uploads_s - self._clock.monotonic())
        left = await self.checkpoints.aclose(drain_timeout_s=uploads_s)
        if (covered := await self.projections.sync()) is not None:
            self.records.put("projected", covered)
        self.records.put("opening", opening_record(self.opening, self._clock.time()))
        await self.writer.flush()
        if mirroring is not None:
            await mirroring.finish(left, None if ends is None else max(0.0, ends - self._clock.monotonic()))
        if failed is not None:
            raise failed

    async def _abandon(self, *, give_back: bool = False) -> None:
        try:
            await self._supervisor.stop()
            await self.writer.aclose()
            await self.checkpoints.abandon()
            # after a takeover the files belong to whoever fenced this opening
            await self.projections.aclose(write=not isinstance(self._failure, FencedError))
            if self.mirroring is not None:
                await self.mirroring.aclose(give_back=give_back)
        finally:
            self._lock.release()
            self.events.emit("closed")
            self.events.close()

    @property
    def is_owner(self) -> bool:
        """Whether this is the process that opened it, and not a forked child."""
        return os.getpid() == self._pid

    def forget(self) -> None:
        """End everything at once, for a store that was never closed: what is not committed is lost. Any thread."""
        self._failure = StoreClosedError("the store was dropped without being closed")
        self._supervisor.cancel_soon()
        self.writer.forget()
        if self.mirroring is not None:
            self.mirroring.forget()
        self._lock.release()
