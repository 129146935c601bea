"""Owns the part of a store that works in every mode: what the experiment is, its trials, checkpoints, figures."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from asynctune.checkpoints.catalog import TrialCheckpoints
from asynctune.clock import Clock
from asynctune.config import CheckpointConfig
from asynctune.errors import CheckpointNotFoundError, CorruptStateError, StorageError
from asynctune.files import LocalFiles
from asynctune.results.backlog import Backlog
from asynctune.results.history import read_history
from asynctune.results.rows import TrialInfo
from asynctune.store.best import best_trial_id
from asynctune.store.engine import Engine
from asynctune.store.events import EventStream, StoreEvent
from asynctune.store.guarded import Guarded
from asynctune.store.log import Log
from asynctune.store.opening import Mode, Opening
from asynctune.store.place import Place
from asynctune.store.reader import Reader
from asynctune.store.runs import known_rows
from asynctune.store.sink import RecordSink
from asynctune.store.sources import CopySource
from asynctune.store.stats import StoreStats
from asynctune.store.supervisor import Supervisor
from asynctune.store.view import TrialsView
from asynctune.trial import Checkpoint, Trial

__all__ = ["ReadableStore"]

_TRIALS_PER_SLICE = 20  # one with checkpoints takes up to 100 µs


class ReadableStore(Guarded):
    """What can be asked of an open experiment. `ExperimentStore` adds what changes it."""

    def __init__(
        self,
        place: Place,
        mode: Mode,
        *,
        engine: Engine | None,
        reader: Reader | None,
        events: EventStream,
        clock: Clock,
        files: LocalFiles,
    ) -> None:
        # Not for users: `open` does what must be awaited.
        source = engine or reader
        assert source is not None
        super().__init__(place, engine, reader)
        self._mode: Mode = mode
        self._events = events
        self._clock = clock
        self._records = source.records
        self._table = source.table
        self._added: set[str] = set()
        if engine is not None:
            self._checkpoints = engine.checkpoints
        else:
            assert reader is not None
            self._checkpoints = TrialCheckpoints(
                reader.source.experiment_dir,
                sink=RecordSink(reader.records, reader.refuse, reader.refuse),
                config=CheckpointConfig(),
                files=files,
                clock=clock,
                emit=events.emit,
                epoch=reader.opening.epoch,
                scratch_dir=reader.source.scratch_dir,
                bucket=reader.source.bucket,
                local=self.copy_source is None,
            )
            self._reading = Supervisor([self._checkpoints.run], lambda _error: None)
            self._reading.start()

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def location(self) -> Path | str:
        """The experiment's directory; for one that is read from its copy, the URI."""
        return Path(self._path) if self._path else self._where.shown

    @property
    def name(self) -> str:
        """The experiment's name: that of its directory."""
        return self._where.name

    @property
    def upload_uri(self) -> str | None:
        """Where the experiment's copy is, `<upload_dir>/<name>`; `None`: there is none (that this opening knows of)."""
        if self._reader is not None:
            return self._reader.source.copy_uri
        remote = None if self._engine is None else self._engine.remote
        return None if remote is None else str(remote)

    @property
    def copy_source(self) -> CopySource | None:
        """For a reader of a copy, and asynctune's own tools: what it reads from. `None`: this is no such reader."""
        source = None if self._reader is None else self._reader.source
        return source if isinstance(source, CopySource) else None

    def checkpoint_uri(self, checkpoint: Checkpoint) -> str | None:
        """Where a committed checkpoint's copy is; `None`: there is none, or not all of it. No look at it."""
        value = self._records.get(f"checkpoint/{checkpoint.trial_id}/{checkpoint.step}")
        if self.upload_uri is None or value is None or not value["mirrored"]:
            return None
        return f"{self.upload_uri}/{value['dir']}"

    @property
    def mode(self) -> Mode:
        """As it was opened; `"auto"` has become `"create"` or `"resume"`."""
        return self._mode

    @property
    def experiment_id(self) -> str:
        """Unique, made with the experiment."""
        return self._source.experiment_id

    @property
    def created_at(self) -> float:
        """When the experiment was made, seconds since the Unix epoch."""
        return float(self._source.experiment.get("created_at", 0.0))

    @property
    def checkpoint_config(self) -> CheckpointConfig:
        """How many checkpoints are kept, as the experiment was made or last opened for writing."""
        return CheckpointConfig(**(self._source.experiment.get("checkpoint_config") or {}))

    @property
    def opening(self) -> Opening:
        """How it was opened and what was found, such as a commit that a crash had cut short."""
        return self._source.opening

    @property
    def writer_info(self) -> dict[str, Any] | None:
        """For a reader: `pid`, `hostname`, `since` and `alive` of the writer, `None` after its clean close."""
        return self._reader.writer_info if self._reader is not None else None

    @property
    def _source(self) -> Engine | Reader:
        source = self._engine or self._reader
        assert source is not None
        return source

    def __repr__(self) -> str:
        state = "closed" if self._closing is not None else self._mode
        return f"<ExperimentStore {self._where.shown!r} {state}, {len(self._records.trial_ids)} trials>"

    # -- trials ---------------------------------------------------------------------------------------------

    @property
    def trials(self) -> Sequence[Trial]:
        """All trials in the order they were added, each built when asked for; those started over are left out."""
        return TrialsView(self._table.listed(), self.get_trial)

    def get_trial(self, trial_id: str) -> Trial:
        """One trial, as it stands.

        Raises:
            TrialNotFoundError: No such trial.
        """
        return self._table.get(
            trial_id,
            self._checkpoints.list(trial_id)
            if isinstance(trial_id, str) and self._records.steps(trial_id)
            else (),
        )

    def best_trial(self, metric: str, mode: str) -> Trial | None:
        """The trial with the best last value of `metric` (`"a/b"` for nested ones), `mode` `"min"` or `"max"`.

        `None` where no trial has reported it; NaN never is best. Looks at every trial.

        Raises:
            ConfigError: Another mode.
        """
        trial_id = best_trial_id(self._table, metric, mode)
        return None if trial_id is None else self.get_trial(trial_id)

    @property
    def started_over(self) -> dict[str, str]:
        """Ids of the trials that `requeue(restart_errored=True)` started over, each with the id of the new one."""
        return {old: str(self._records.get(f"replaced/{old}")) for old in self._records.named("replaced")}

    async def iterate(self, *, with_replaced: bool = False) -> AsyncIterator[Trial]:
        """All trials like `trials`, letting the event loop run in between; for experiments of any size.

        Args:
            with_replaced: Those that were started over, too.
        """
        listed = list(self._records.trial_ids) if with_replaced else self._table.listed()
        for number, trial_id in enumerate(listed):
            yield self.get_trial(trial_id)
            if number % _TRIALS_PER_SLICE == _TRIALS_PER_SLICE - 1:
                await asyncio.sleep(0)

    @property
    def tracked_metric(self) -> tuple[str | None, str | None]:
        """Name and mode of the metric that `track_metric` named; `(None, None)` if none was."""
        metric, mode, _ = self._source.experiment.get("tracked") or (None, None, 0)
        return metric, mode

    def metric_summary(self, trial_id: str) -> dict[str, float]:
        """`min`, `max`, `avg` and `last-10-avg` of the tracked metric over a trial's rows; empty without any.

        Raises:
            TrialNotFoundError: No such trial.
        """
        return self._table.summary(trial_id)

    async def history(self, trial_id: str) -> list[dict[str, Any]]:
        """Every committed result row of a trial, oldest first, those included that its file lacks.

        A reader gets none after the last one that it knows of, though a writer has added some: `refresh` first.

        Raises:
            TrialNotFoundError: No such trial.
            CorruptStateError, StorageError: They cannot be read.
        """
        name, _, config, _ = self._table.given(trial_id)
        # those of a commit to come are in no file yet
        run = self._table.run(trial_id)  # as of now: the files have at least that
        has_rows = run.num_results > 0 and not self.stats().dirty_keys
        if self._engine is not None:
            await self._engine.projections.written()
        try:
            if self._reader is not None:
                trial = TrialInfo(trial_id=trial_id, trial_name=name, config=config)
                return known_rows(await self._reader.source.history(trial, has_rows=has_rows), run)
            return await read_history(os.path.join(self._path, name), has_rows=has_rows)
        except OSError as error:
            raise StorageError(
                f"cannot read the results of trial {trial_id}: {error}", operation="read", key=error.filename
            ) from error

    async def unwritten(self) -> Backlog:
        """For asynctune's own tools: committed rows that the result files may lack, as a reader finds them.

        Raises CorruptStateError, StorageError.
        """
        return Backlog() if self._reader is None else await self._reader.source.unwritten()

    def logged_events(self, start: int = 0) -> Iterator[tuple[int, Any]]:
        """Number and value of what `append_event` added, in order, from number `start` on."""
        yield from Log(self._records).entries(start)

    def saved_state(self, name: str) -> tuple[int, Any] | None:
        """What was last saved of an attached object: the seq of the commit whose events it knows, and the state.

        Args:
            name: `"searcher"`, `"scheduler"`, or the name it was attached under.

        Returns:
            `None` where nothing was saved. A state that did not change since is not saved again.

        Raises:
            CorruptStateError: The record makes no sense.
        """
        key = name if name in {"searcher", "scheduler"} else f"state/{name}"
        try:
            saved = self._records.get(key)
            return None if saved is None else (int(saved["seq"]), saved["state"])
        except (TypeError, KeyError, ValueError) as error:
            msg = (
                f"the saved state of the {name} cannot be read: {error}; was it written by a newer asynctune?"
            )
            raise CorruptStateError(msg) from error

    @property
    def metadata(self) -> dict[str, Any]:
        """What `set_metadata` stored, unpacked afresh."""
        return {name: self._records.get(f"meta/{name}") for name in self._records.named("meta")}

    # -- checkpoints ----------------------------------------------------------------------------------------

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

    # -- figures and events ---------------------------------------------------------------------------------

    async def refresh(self) -> int:
        """Let a reader catch up with the writer; the seq of the last commit it knows then. For a writer: its own.

        Raises:
            ExperimentNotFoundError: The experiment was removed or replaced.
            CorruptStateError: It cannot be read any more.
        """
        self._check_open()
        if self._reader is not None:
            return await self._reader.refresh()
        return self._writable().writer.committed_seq

    def events(self) -> AsyncIterator[StoreEvent]:
        """What happens from this call on, until the close. Bounded: who lags gets a `lagged` event instead."""
        self._check_open()
        return self._events.subscribe()

    def stats(self) -> StoreStats:
        """Figures since the opening."""
        trials = len(self._records.trial_ids) - len(self._records.named("replaced"))
        uploads = self._checkpoints.uploads
        mirroring = None if self._engine is None else self._engine.mirroring
        common: dict[str, Any] = {
            "mirrored_seq": None if mirroring is None else mirroring.mirror.mirrored_seq,
            "uploads_pending": uploads.pending,
            "uploads_done": uploads.done,
            "uploads_failed": uploads.failed,
            "upload_bytes": uploads.sent_bytes,
            "trials": trials,
        }
        if self._reader is not None:
            return StoreStats.of_reader(
                self._reader.seq, self._reader.journal_bytes, self._reader.snapshot_bytes, **common
            )
        assert self._engine is not None
        elapsed = self._clock.monotonic() - self._engine.opened_mono
        return StoreStats.of_writer(self._engine.writer.stats(), elapsed, **common)
