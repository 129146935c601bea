"""Owns the way of row operations from the loop to the files: batches, one thread, retries, sync on request.

Holds what was added and is not written yet as packed bytes, without a limit of its own: the journal had
each of them before. A file that cannot be written delays its own trial; its rows are kept and tried again,
less and less often. What the files say is decided in `trial_files`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

from asynctune.breathing import breathe
from asynctune.clock import Clock
from asynctune.errors import StorageError, StoreClosedError
from asynctune.files import LocalFiles, is_disk_full
from asynctune.results.backlog import Backlog, PackedOperations
from asynctune.results.event_files import EventFiles
from asynctune.results.placing import Placer
from asynctune.results.rows import OpeningInfo, TrialInfo, decode
from asynctune.results.trial_files import Notice, TrialFiles

__all__ = ["Lookup", "ResultFiles"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

Lookup = Callable[[str], TrialInfo | None]
"""What the store knows of a trial now; None for an id that it does not know."""

_LOOKUPS_AT_ONCE: Final = 50
_DECODES_AT_ONCE: Final = 200
_TRIALS_AT_ONCE: Final = 1000  # whose configs are held at the same time
_MAX_FAILURES_IN_A_ROW: Final = 8  # then the disk is at fault, not a trial
_FIRST_RETRY_S: Final = 1.0
_LAST_RETRY_S: Final = 30.0


@dataclass(slots=True)
class _Batch:
    """Work handed to the thread.

    Attributes:
        groups: Operations by trial, in order.
        trials: What is known of each trial of `groups`.
        stop: Set to make the thread return between two trials.
        done: The trials that need nothing more.
        failures: The error of each trial whose files could not be written.
        gave_up: Whether trials were left for another time.
    """

    groups: dict[str, PackedOperations]
    trials: dict[str, TrialInfo] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    done: list[str] = field(default_factory=list)
    failures: dict[str, OSError] = field(default_factory=dict)
    gave_up: bool = False


class ResultFiles:
    """The result files of one experiment, as the store uses them.

    Args:
        experiment_dir: The experiment's directory; trials have theirs below it.
        files: The file operations.
        clock: For the pace of batches and retries.
        emit: Called on the loop as `emit(kind, trial_id=..., message=..., **data)`, with kind `write_failed`
            (once until writing works again), `results_incomplete` or `results_repaired`.
        tensorboard: Whether to write TensorBoard events; needs the extra `tensorboard`.
        interval_s: Seconds from the end of a batch to the next.
        written: Called on the loop with the name of each trial whose files were written, before what waits for that
            goes on.
    """

    def __init__(
        self,
        experiment_dir: str,
        *,
        files: LocalFiles,
        clock: Clock,
        emit: Callable[..., None],
        tensorboard: bool = False,
        interval_s: float = 1.0,
        written: Callable[[str], object] = lambda _trial_name: None,
    ) -> None:
        self._root = experiment_dir
        self._placer = Placer(experiment_dir, files)
        self._clock = clock
        self._emit = emit
        self._tensorboard = tensorboard
        self._interval_s = interval_s
        self._written = written
        self._trial_files: TrialFiles | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="asynctune-results")
        self._turn = asyncio.Lock()
        self._work = asyncio.Event()
        self._closing = asyncio.Event()

        self._seq = 0
        self._backlog = Backlog()
        self._failed: set[str] = set()  # trials of the backlog that wait for `_retry_at`
        self._lookup: Lookup = lambda _trial_id: None
        self._retry_at = 0.0
        self._retry_s = 0.0  # 0 while all is well

    @property
    def pending_rows(self) -> int:
        """How many operations were added and are not in the files yet."""
        return self._backlog.pending

    async def prepare(self) -> None:
        """Import in the thread what is needed; call it when opening. Without it the first batch does so.

        Raises:
            MissingExtraError: `tensorboard` was asked for and tensorboardX is not installed.
        """
        async with self._turn:
            await self._in_thread(self._ready)

    def add(self, seq: int, ops: Sequence[bytes], lookup: Lookup, opening: OpeningInfo) -> None:
        """Take over the row operations of commit `seq`, which is durable. Loop only; no I/O, O(len(ops)).

        Args:
            seq: The commit's.
            ops: Packed with `rows.encode`, in order.
            lookup: Asked on the loop, when the rows are written.
            opening: Who drives.

        Raises:
            StoreClosedError: After `aclose`.
        """
        if self._closing.is_set():
            msg = "the result files are closed; open the store again"
            raise StoreClosedError(msg)
        self._seq = max(self._seq, seq)
        self._lookup = lookup
        if ops:
            self._take(ops, opening)

    async def run(self) -> None:
        """Write what was added, batch after batch, until `aclose`. A failing disk does not end it."""
        async with asyncio.TaskGroup() as tasks:
            beat = tasks.create_task(self._beat())
            await self._closing.wait()
            beat.cancel()

    async def flush(self) -> None:
        """Return when everything added before the call is in the files. It is not synced.

        Raises:
            StorageError: A file could not be written. Nothing is lost, and it is tried again.
        """
        await self._write(everything=True)

    async def sync(self) -> int:
        """Return when everything added before the call is durable in the files; the highest seq this covers.

        Raises:
            StorageError: A file could not be written or synced, so that the journal must keep its frames.
        """
        covered = self._seq
        await self._write(everything=True)
        async with self._turn:
            stop = threading.Event()
            try:
                await self._in_thread(lambda: self._placer.sync(stop.is_set), stop)
            except OSError as error:
                raise self._storage_error("sync", error) from error
        return covered

    async def between_writes(self, work: Callable[[], T]) -> T:
        """Run `work` in the room's thread while no file is written; it should be short."""
        async with self._turn:
            return await self._in_thread(work)

    async def complete(self, ops: Iterable[tuple[int, bytes, OpeningInfo]], lookup: Lookup) -> None:
        """Bring the files to exactly the timeline that the journal tells; for recovery, before any `add`.

        Where a file cannot be written, that is retried like any other failed write, and `sync` says so.

        Args:
            ops: The row operations in the retained frames, in order, with their seq and opening.
            lookup: What the store knows of a trial.
        """
        last: OpeningInfo | None = None
        group: list[bytes] = []
        for index, (seq, data, opening) in enumerate(ops, 1):
            if last is not None and opening != last:
                self._take(group, last)
                group = []
            last = opening
            group.append(data)
            self._seq = max(self._seq, seq)
            if index % _DECODES_AT_ONCE == 0:
                await asyncio.sleep(0)
        if last is not None:
            self._take(group, last)
        self._lookup = lookup
        await self._write(everything=True, strict=False)

    async def aclose(self, *, write: bool = True) -> None:
        """Write and sync what is left, then let the thread go. `run` returns. Again: does nothing.

        Args:
            write: False leaves the files as they are, for an opening that was fenced: the next one completes
                them, or has done so.

        Raises:
            StorageError: Something could not be written or synced; the journal has it.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        try:
            if write:
                await self.sync()
        finally:
            with suppress(OSError):  # it was only read
                await self._in_thread(self._placer.close)
            self._executor.shutdown(wait=False)

    # -- batches ---------------------------------------------------------------------------------------

    def _take(self, ops: Sequence[bytes], opening: OpeningInfo) -> None:
        self._backlog.add(ops, opening)
        self._work.set()

    async def _beat(self) -> None:
        while True:
            if not self._backlog:
                await self._work.wait()
            await self._write(everything=False, strict=False)
            await self._clock.sleep(self._interval_s)

    async def _write(self, *, everything: bool, strict: bool = True) -> None:
        """Write what is there. `everything`: failed ones too, before their time. `strict`: raise for failures."""
        failures: dict[str, OSError] = {}
        async with self._turn:
            self._work.clear()
            trial_ids = await self._in_thread(self._backlog.sort_in)
            if not everything and self._clock.monotonic() < self._retry_at:
                trial_ids = [each for each in trial_ids if each not in self._failed]
            try:
                for start in range(0, len(trial_ids), _TRIALS_AT_ONCE):
                    if not await self._write_batch(trial_ids[start : start + _TRIALS_AT_ONCE], failures):
                        break
            finally:
                if trial_ids:
                    self._tell(failures)
        if strict and failures:
            raise self._storage_error("write", *failures.values())

    async def _write_batch(self, trial_ids: Sequence[str], failures: dict[str, OSError]) -> bool:
        """Write what these trials lack, and add the failures; whether it makes sense to go on."""
        batch = _Batch(await self._in_thread(lambda: self._backlog.of(trial_ids)))
        await self._look_up(batch)
        try:
            await self._in_thread(lambda: self._project(batch), batch.stop)
        finally:
            for trial_id in batch.done:
                self._backlog.done(trial_id)
                self._failed.discard(trial_id)
            for trial_id in batch.trials:  # those that failed too: some of their files may be written
                self._written(batch.trials[trial_id].trial_name)
            failures |= batch.failures
            self._tell_notices()
        return not batch.gave_up

    async def _look_up(self, batch: _Batch) -> None:
        for index, trial_id in enumerate(batch.groups, 1):
            trial = self._lookup(trial_id)
            if trial is not None:
                batch.trials[trial_id] = trial
            else:
                batch.done.append(trial_id)
                logger.error("result rows of an unknown trial %s cannot be written to files", trial_id)
            if index % _LOOKUPS_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _tell_notices(self) -> None:
        notices: list[Notice] = []
        if self._trial_files is not None:
            notices, self._trial_files.notices = self._trial_files.notices, []
        for notice in notices:
            logger.warning("%s", notice.message)
            self._emit(notice.kind, trial_id=notice.trial_id, message=notice.message, **notice.data)

    def _tell(self, failures: dict[str, OSError]) -> None:
        """Say that writing fails, or works again, and decide when it is tried again."""
        if failures:
            self._failed.update(failures)
            trial_id, error = next(iter(failures.items()))
            if self._retry_s == 0:
                message = str(self._storage_error("write", error))
                logger.warning("%s", message)
                self._emit(
                    "write_failed",
                    trial_id=trial_id,
                    message=message,
                    error=str(error),
                    errno=error.errno,
                    disk_full=is_disk_full(error),
                )
            self._retry_s = min(max(2 * self._retry_s, _FIRST_RETRY_S), _LAST_RETRY_S)
            self._retry_at = self._clock.monotonic() + self._retry_s
        elif self._retry_s and not self._failed:
            logger.warning("result files in %s are written again; nothing is missing", self._root)
            self._retry_s = self._retry_at = 0.0

    def _storage_error(self, operation: str, error: OSError, *more: OSError) -> StorageError:
        others = f" (and those of {len(more)} more trials)" if more else ""
        return StorageError(
            f"cannot {operation} result files in {self._root}{others}: {error}",
            operation=operation,
            key=error.filename if isinstance(error.filename, str) else self._root,
            retryable=True,
            hint="free some space: " * is_disk_full(error)
            + "the rows are safe in the journal, and tried again",
        )

    # -- in the thread -----------------------------------------------------------------------------------

    def _ready(self) -> TrialFiles:
        if self._trial_files is None:
            events = EventFiles(self._placer) if self._tensorboard else None
            self._trial_files = TrialFiles(self._root, self._placer, events)
        return self._trial_files

    def _project(self, batch: _Batch) -> None:
        files = self._ready()
        in_a_row = 0
        for trial_id, trial in batch.trials.items():
            if batch.stop.is_set() or in_a_row == _MAX_FAILURES_IN_A_ROW:
                batch.gave_up = True
                return
            try:
                operations = [(decode(data), opening) for data, opening in batch.groups[trial_id]]
                files.project(trial, operations)
            except OSError as error:
                batch.failures[trial_id] = error
                in_a_row += 1
            else:
                batch.done.append(trial_id)
                in_a_row = 0
            breathe()

    async def _in_thread(self, work: Callable[[], T], stop: threading.Event | None = None) -> T:
        """Run `work` in the room's thread; a cancelled caller waits for its end: no work goes on unowned."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if stop is not None:
                stop.set()
            while not future.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            if (error := future.exception()) is not None:
                logger.warning("a cancelled batch of result files failed too: %s", error)
            raise
