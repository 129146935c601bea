"""Owns how a command gets its answer: opens stores in read mode, and looks for files in threads, or for their records.

Takes no lock and writes nothing, so it may run beside a driver at any time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from asynctune.clock import Clock, SystemClock
from asynctune.errors import ConfigError, CorruptStateError, ExperimentNotFoundError, TrialNotFoundError
from asynctune.inspect.buckets import experiments_at, open_to_read
from asynctune.inspect.building import build_head, check_names, find_trial, no_such_name, trial_row
from asynctune.inspect.places import as_recorded, last_change, look_for, missing_problems
from asynctune.inspect.report import (
    BestReport,
    CheckpointEntry,
    CheckpointsReport,
    Head,
    Mode,
    Problem,
    SavedState,
    TrialReport,
    TrialRow,
    TrialsReport,
)
from asynctune.inspect.scan import Order, Scan
from asynctune.inspect.text import count, path_text, printable
from asynctune.inspect.tuned import objective, saved_states
from asynctune.store.sources import CopySource
from asynctune.store.store import ExperimentStore
from asynctune.trial import Checkpoint, Trial, TrialStatus

__all__ = [
    "Inspection",
    "ManyExperimentsError",
    "Query",
    "experiment",
    "follow_trials",
]

_TRIALS_BETWEEN_YIELDS: Final = 500
_NAMES_LISTED: Final = 10
_REST: Final = 4  # seconds of rest for each second of looking


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which trials are wanted, and in which order.

    Attributes:
        statuses: Only trials with one of these; empty: all.
        order: Sort order; `None`: as created.
        limit: At most so many; 0: all.
        names: Columns and metrics that the reader named, which must exist.
        metric: Metric by which to name the best trial; `None`: the experiment's own, if it has one.
        mode: Which end of it is best; `None`: as the experiment says.
    """

    statuses: tuple[TrialStatus, ...] = ()
    order: Order | None = None
    limit: int = 0
    names: tuple[str, ...] = ()
    metric: str | None = None
    mode: Mode | None = None


class Inspection:
    """One experiment, open for reading; each method answers one command, as of its call."""

    def __init__(self, store: ExperimentStore, clock: Clock | None = None) -> None:
        self._store = store
        self._clock = clock or SystemClock()

    @property
    def path(self) -> str:
        """Directory of the experiment, or the URI of its copy."""
        return str(self._store.location)

    @property
    def copy(self) -> CopySource | None:
        """What is read, where that is a copy."""
        return self._store.copy_source

    async def head(self) -> Head:
        """What is said of the experiment whatever was asked."""
        copy = self.copy
        changed = copy.changed_at if copy is not None else await asyncio.to_thread(last_change, self.path)
        states, driver = await saved_states(self._store), self._store.writer_info
        return build_head(self._store, driver, states, as_of=self._clock.time(), last_change_at=changed)

    async def catch_up(self) -> None:
        """Take over what was committed meanwhile."""
        await self._store.refresh()

    async def still_has(self, trial_id: str, step: int) -> bool:
        """Whether the checkpoint is recorded now: a driver beside us records a deletion before it deletes."""
        await self._store.refresh()
        return self._has(trial_id, step)

    def _has(self, trial_id: str, step: int) -> bool:
        try:
            return any(checkpoint.step == step for checkpoint in self._store.checkpoints(trial_id))
        except TrialNotFoundError:
            return False

    async def unreadable_records(self) -> AsyncIterator[Problem]:
        """A problem for each trial, and each saved state, whose records have valid checksums and make no sense."""
        listed = self._store.trials
        for index in range(len(listed)):
            if index % _TRIALS_BETWEEN_YIELDS == 0:
                await asyncio.sleep(0)
            try:
                _ = listed[index]
            except CorruptStateError as error:
                yield Problem("state", printable(str(error)))
        for problem in _unreadable(await saved_states(self._store)):
            yield problem

    async def trials(self, query: Query) -> TrialsReport:
        """The trials that match.

        Raises:
            MetricNotFoundError: No trial has a name that was asked for.
            ConfigError: A metric without a mode, or the reverse, that the experiment does not name itself.
        """
        head = await self.head()
        metric, mode = objective(head, query.metric, query.mode) or (None, None)
        as_of = head.trials_as_of
        scan = Scan(statuses=query.statuses, order=query.order, limit=query.limit, as_of=as_of)
        ranking = None if metric is None else _ranking(metric, mode, 1, head)
        async for trial in self._each_trial():
            scan.add(trial)
            if ranking is not None:
                ranking.add(trial)
        rows = await self._rows(scan.chosen(), head)
        check_names(query.names, scan, rows)
        left_out = _left_out(scan, rows)
        best = [] if ranking is None else await self._rows(ranking.chosen(), head)
        return TrialsReport(
            head=head,
            counts=scan.counts,
            matching=scan.matched.total(),
            left_out=left_out,
            rows=tuple(rows),
            best=best[0] if best else None,
            metric=metric,
            mode=mode,
            failures=scan.failures,
            failed_trials=scan.failed_trials,
            retries=scan.retries,
            problems=(*_damage(head), *missing_problems(_newest(rows), head)),
        )

    async def trial(self, trial_id: str) -> TrialReport:
        """One trial.

        Raises:
            TrialNotFoundError: There is none with this id.
        """
        head = await self.head()
        trial = find_trial(self._store, trial_id)
        entries = await self._entries(trial.checkpoints)
        return TrialReport(
            head=head,
            row=trial_row(trial, head, entries[-1].presence if entries else None),
            directory=path_text(f"{self._store.location}/{trial.trial_name}"),
            checkpoints=entries,
            problems=(*_damage(head), *missing_problems(entries, head)),
        )

    async def checkpoints(self, trial_id: str | None, limit: int) -> CheckpointsReport:
        """The checkpoints of one trial, or of all in the order they were saved, the newest `limit` of them.

        Raises:
            TrialNotFoundError: There is none with this id.
        """
        head = await self.head()
        if trial_id is not None:
            trial = find_trial(self._store, trial_id)
            trial_id, kept = trial.trial_id, list(trial.checkpoints)
        else:
            kept = [c async for trial in self._each_trial() for c in trial.checkpoints]
            kept.sort(key=lambda checkpoint: checkpoint.committed_at or 0.0)
        entries = await self._entries(kept)
        return CheckpointsReport(
            head=head,
            trial_id=trial_id,
            total=len(kept),
            size_bytes=sum(checkpoint.size_bytes for checkpoint in kept),
            entries=entries[-limit:] if limit else entries,
            problems=(*_damage(head), *missing_problems(entries, head)),
        )

    async def best(self, metric: str | None, mode: Mode | None, limit: int) -> BestReport:
        """The trials with the best last value of `metric`, best first; of equal ones the older.

        Raises:
            MetricNotFoundError: No trial has reported a number for it.
            ConfigError: Metric or mode was left out, and the experiment does not name its own.
        """
        head = await self.head()
        asked = objective(head, metric, mode)
        if asked is None:
            raise ConfigError(
                "best by what? The experiment names no metric: give --metric NAME and --mode min|max"
            )
        metric, mode = asked
        scan = _ranking(metric, mode, limit, head)
        async for trial in self._each_trial():
            scan.add(trial)
        if not scan.with_value:
            raise no_such_name(metric, scan)
        rows = await self._rows(scan.chosen(), head)
        entries = await self._entries(rows[0].trial.checkpoints)
        return BestReport(
            head=head,
            metric=metric,
            mode=mode,
            ranked=scan.with_value,
            ranking=tuple(rows),
            checkpoints=entries,
            problems=(*_damage(head), *missing_problems(entries, head)),
        )

    # -- one step each -------------------------------------------------------------------------------------

    async def _each_trial(self) -> AsyncIterator[Trial]:
        for index, trial in enumerate(self._store.trials):
            if index % _TRIALS_BETWEEN_YIELDS == 0:
                await asyncio.sleep(0)
            yield trial

    async def _rows(self, trial_ids: Sequence[str], head: Head) -> list[TrialRow]:
        trials = [self._store.get_trial(trial_id) for trial_id in trial_ids]
        newest = [trial.checkpoints[-1] for trial in trials if trial.checkpoints]
        presence = {entry.checkpoint.trial_id: entry.presence for entry in await self._entries(newest)}
        return [trial_row(trial, head, presence.get(trial.trial_id)) for trial in trials]

    async def _entries(self, checkpoints: Sequence[Checkpoint]) -> tuple[CheckpointEntry, ...]:
        """Each checkpoint with where its files are; what is gone only counts if it is still recorded."""
        found: list[tuple[Checkpoint, str | None]] = []
        for index, checkpoint in enumerate(checkpoints):
            if index % _TRIALS_BETWEEN_YIELDS == 0:
                await asyncio.sleep(0)
            uri = self._store.checkpoint_uri(checkpoint)
            found.append((checkpoint, None if uri is None else path_text(uri)))
        if self.copy is not None:
            driver = self._store.writer_info
            driven = driver is not None and driver["alive"] is not False
            return tuple(as_recorded(checkpoint, uri, driven=driven) for checkpoint, uri in found)
        entries = await asyncio.to_thread(look_for, found)
        if any(entry.presence == "missing" for entry in entries):
            await self._store.refresh()
            entries = [self._confirmed(entry) for entry in entries]
        return tuple(entries)

    def _confirmed(self, entry: CheckpointEntry) -> CheckpointEntry:
        if entry.presence != "missing":
            return entry
        trial_id, step = entry.checkpoint.trial_id, entry.checkpoint.step
        if trial_id is None or step is None or self._has(trial_id, step):
            return entry
        return replace(entry, presence="deleted")


class ManyExperimentsError(ConfigError):
    """The location is a directory of experiments, and the command is about one."""


@asynccontextmanager
async def experiment(location: str, clock: Clock | None = None) -> AsyncIterator[Inspection]:
    """Open the experiment at `location` for reading.

    Raises:
        ManyExperimentsError: It is a directory of experiments.
        ExperimentNotFoundError: There is nothing of the kind.
        AsynctuneError: It cannot be read.
        OSError: The disk refused.
    """
    try:
        store = await open_to_read(location)
    except ExperimentNotFoundError as error:
        names = await experiments_at(location)
        if not names:
            raise
        listed = ", ".join(map(path_text, names[:_NAMES_LISTED])) + (
            ", ..." if len(names) > _NAMES_LISTED else ""
        )
        what = f"{path_text(location)} is a directory of {count(len(names), 'experiment')}"
        raise ManyExperimentsError(f"{what}; name one of them: {listed}") from error
    async with store:
        yield Inspection(store, clock)


async def follow_trials(
    location: str, query: Query, interval_s: float, clock: Clock | None = None
) -> AsyncGenerator[TrialsReport]:
    """The trials that match, again and again.

    Args:
        location: Of the experiment.
        query: Which trials.
        interval_s: Seconds between two looks; more if a look takes long, so that looking stays a small part.
        clock: Time.
    """
    clock = clock or SystemClock()
    async with experiment(location, clock) as opened:
        while True:
            began = clock.monotonic()
            yield await opened.trials(query)
            await clock.sleep(max(interval_s, _REST * (clock.monotonic() - began)))
            await opened.catch_up()


# -- small things ------------------------------------------------------------------------------------------


def _left_out(scan: Scan, rows: Sequence[TrialRow]) -> Mapping[TrialStatus, int]:
    shown = Counter(row.trial.status for row in rows)
    return {status: scan.matched[status] - shown[status] for status in TrialStatus}


def _ranking(metric: str, mode: Mode | None, limit: int, head: Head) -> Scan:
    order = Order(metric, descending=mode == "max", numbers_only=True)
    return Scan(order=order, limit=limit, as_of=head.trials_as_of)


def _damage(head: Head) -> list[Problem]:
    return [*(Problem("state", message) for message in head.damage), *_unreadable(head.states)]


def _unreadable(states: Mapping[str, SavedState]) -> list[Problem]:
    return [Problem("state", state.error) for state in states.values() if state.error is not None]


def _newest(rows: Iterable[TrialRow]) -> Iterator[CheckpointEntry]:
    for row in rows:
        if row.presence is not None:
            yield CheckpointEntry(row.trial.checkpoints[-1], row.presence)
