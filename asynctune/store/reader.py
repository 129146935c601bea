"""Owns one experiment opened for reading: the records as of the last refresh; no lock, no writing, no tasks."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

from asynctune.clock import Clock
from asynctune.errors import ConfigError, ExperimentNotFoundError
from asynctune.files import LocalFiles
from asynctune.state.epochs import Claim
from asynctune.state.recovered import Position
from asynctune.state.segments import Commit
from asynctune.store.opening import OpenedForReading, Opening
from asynctune.store.place import Place
from asynctune.store.sources import Source, open_source
from asynctune.store.trials import TrialTable

__all__ = ["Reader"]

_KEYS_AT_ONCE = 2000


class Reader:
    """What a reader knows of the experiment, and how it catches up."""

    def __init__(self, place: Place, source: Source, opened: OpenedForReading, *, clock: Clock) -> None:
        self.source = source
        self._shown = place.shown
        self._turn = asyncio.Lock()
        self.records = opened.records
        self.experiment: dict[str, Any] = opened.records.get("experiment") or {}
        self.experiment_id: str = opened.recovered.experiment_id or ""
        self.table = TrialTable(self.records, clock, str(self.experiment.get("prefix", "")))
        self._track()
        self._take(opened)

    def _track(self) -> None:
        self.experiment = self.records.get("experiment") or {}
        if (tracked := self.experiment.get("tracked")) is not None:
            self.table.track(tracked[0], tracked[2])

    def _take(self, opened: OpenedForReading) -> None:
        position = opened.recovered.position
        assert position is not None
        self.opening: Opening = opened.opening
        self.seq = opened.recovered.seq
        self.journal_bytes = opened.recovered.journal_bytes
        self.snapshot_bytes = opened.recovered.snapshot_bytes
        self._position: Position = position
        self._claim, self._alive = opened.claim, opened.alive

    @classmethod
    async def start(cls, place: Place, *, clock: Clock, files: LocalFiles) -> Reader:
        """Read the experiment. Errors: as for `open_for_reading`; of a copy, what the bucket says."""
        source = await open_source(place, clock=clock, files=files)
        try:
            return cls(place, source, await source.open(), clock=clock)
        except BaseException:
            await source.aclose()
            raise

    async def refresh(self) -> int:
        """Catch up with the writer; returns the seq of the last commit now known.

        Raises:
            ExperimentNotFoundError: The experiment was removed, or replaced by another one.
            CorruptStateError: It cannot be read any more.
            StorageError: The bucket refused.
        """
        async with self._turn:
            found = await self.source.look(self._position)
            if found is None:
                opened = await self.source.open()
                if opened.recovered.experiment_id != self.experiment_id:
                    msg = f"the experiment at {self._shown} was replaced by another one; open it anew"
                    raise ExperimentNotFoundError(msg)
                self.records.become(opened.records)
                self._take(opened)
            else:
                self._position, self._claim, self._alive = found.position, found.claim, found.alive
                await self._replay(found.commits)
            self._track()
            return self.seq

    async def _replay(self, commits: list[Commit]) -> None:
        done = 0
        cancelled: asyncio.CancelledError | None = None
        for commit in commits:
            for ops in commit.ops:
                self.records.replay(ops.puts, ops.deletes)
                done += len(ops.puts)
            self.seq = commit.seq
            self.journal_bytes += commit.end - commit.start
            if done > _KEYS_AT_ONCE and cancelled is None:
                done = 0
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError as error:
                    cancelled = error  # what was read is replayed to its end: it is not read again
        if cancelled is not None:
            raise cancelled

    @property
    def writer_info(self) -> dict[str, Any] | None:
        """Who has the experiment open for writing, or had it last without closing; `None` after a clean close.

        As of the last refresh, whether it is alive included: that takes a look at files.
        """
        last = self.records.get("opening") or {}
        claim: Claim | None = self._claim
        if claim is None:
            return None
        if last.get("epoch") == claim.epoch and last.get("closed_at") is not None:
            return None
        return {
            "pid": claim.pid,
            "hostname": claim.hostname,
            "since": claim.opened_at,
            "alive": self._alive,
        }

    async def aclose(self) -> None:
        """Let go of what is open."""
        await self.source.aclose()

    def refuse(self) -> NoReturn:
        """A reader changes nothing.

        Raises:
            ConfigError: Always.
        """
        msg = f'the experiment at {self._shown} was opened with mode="read"; open it with mode="resume" to change it'
        raise ConfigError(msg)
