"""Owns the part of a store that works in every mode: what the experiment is, its trials, events, figures."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from asynctune.checkpoints.catalog import TrialCheckpoints
from asynctune.clock import Clock
from asynctune.config import CheckpointConfig
from asynctune.errors import CorruptStateError, StorageError
from asynctune.files import LocalFiles
from asynctune.results.backlog import Backlog
from asynctune.results.history import read_history
from asynctune.results.rows import TrialInfo
from asynctune.store.best import best_trial_id
from asynctune.store.engine import Engine
from asynctune.store.events import EventStream, StoreEvent
from asynctune.store.log import Log
from asynctune.store.opening import Mode, Opening
from asynctune.store.place import Place
from asynctune.store.reader import Reader
from asynctune.store.restoring import RestoringStore
from asynctune.store.runs import known_rows
from asynctune.store.sink import RecordSink
from asynctune.store.sources import CopySource
from asynctune.store.stats import StoreStats
from asynctune.store.supervisor import Supervisor
from asynctune.store.view import TrialsView
from asynctune.trial import Trial

__all__ = ["ReadableStore"]

logger = logging.getLogger("asynctune")

_TRIALS_PER_SLICE = 20  # one with checkpoints takes up to 100 µs


class ReadableStore(RestoringStore):
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
    def copy_source(self) -> CopySource | None:
        """For a reader of a copy, and asynctune's own tools: what it reads from. `None`: this is no such reader."""
        source = None if self._reader is None else self._reader.source
        return source if isinstance(source, CopySource) else None

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
                rows = known_rows(await self._reader.source.history(trial, has_rows=has_rows), run)
                if len(rows) < run.num_results:
                    logger.warning(
                        "trial %s has had %d rows, and %d are left", trial_id, run.num_results, len(rows)
                    )
                return rows
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
