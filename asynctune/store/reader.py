"""Owns one experiment opened for reading: the records as of the last refresh; no lock, no writing, no tasks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import tempfile
from typing import Any, NoReturn

from asynctune.clock import Clock
from asynctune.errors import ConfigError, ExperimentNotFoundError
from asynctune.files import LocalFiles
from asynctune.state.epochs import Claim, is_alive
from asynctune.state.recovered import Position
from asynctune.state.recovery import follow
from asynctune.state.segments import Commit
from asynctune.state.thread import WorkThread
from asynctune.store.finding import STATE_DIR
from asynctune.store.opening import OpenedForReading, Opening, newest_claim, open_for_reading
from asynctune.store.trials import TrialTable

__all__ = ["Reader"]

_KEYS_AT_ONCE = 2000


class Reader:
    """What a reader knows of the experiment, and how it catches up."""

    def __init__(
        self, path: str, opened: OpenedForReading, temporary: str, *, clock: Clock, files: LocalFiles
    ) -> None:
        self.scratch_dir = os.path.join(temporary, f"asynctune-{os.getpid()}-{secrets.token_hex(8)}")
        self._path = path
        self._clock = clock
        self._files = files
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
    async def start(cls, path: str, *, clock: Clock, files: LocalFiles) -> Reader:
        """Read the experiment at `path`. Errors: as for `open_for_reading`."""
        opened, temporary = await _in_thread(_open, path, files)
        return cls(path, opened, temporary, clock=clock, files=files)

    async def refresh(self) -> int:
        """Catch up with the writer; returns the seq of the last commit now known.

        Raises:
            ExperimentNotFoundError: The experiment was removed, or replaced by another one.
            CorruptStateError: It cannot be read any more.
        """
        async with self._turn:
            state_dir = f"{self._path}/{STATE_DIR}"
            try:
                found = await _in_thread(_look, state_dir, self._files, self._position)
            except OSError:
                found = None
            if found is None:
                opened = await _in_thread(open_for_reading, self._path, self._files)
                if opened.recovered.experiment_id != self.experiment_id:
                    msg = f"the experiment at {self._path} was replaced by another one; open it anew"
                    raise ExperimentNotFoundError(msg)
                self.records.become(opened.records)
                self._take(opened)
            else:
                commits, self._position, self._claim, self._alive = found
                await self._replay(commits)
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
        """Remove the directory of private copies, which are gone by now."""
        await _in_thread(_remove, self.scratch_dir, self._files)

    def refuse(self) -> NoReturn:
        """A reader changes nothing.

        Raises:
            ConfigError: Always.
        """
        msg = f'the experiment at {self._path} was opened with mode="read"; open it with mode="resume" to change it'
        raise ConfigError(msg)


def _open(path: str, files: LocalFiles) -> tuple[OpenedForReading, str]:
    # the first look for the directory of temporary files tries to write one
    return open_for_reading(path, files), tempfile.gettempdir()


def _remove(path: str, files: LocalFiles) -> None:
    # not empty: a copy could not be removed, which was said already
    with contextlib.suppress(OSError):
        files.remove_dir(path)


def _look(
    state_dir: str, files: LocalFiles, since: Position
) -> tuple[list[Commit], Position, Claim | None, bool | None] | None:
    found = follow(state_dir, files, since)
    if found is None:
        return None
    claim = newest_claim(state_dir, files)
    return *found, claim, is_alive(claim) if claim is not None else False


async def _in_thread(function: Any, *args: Any) -> Any:
    thread = WorkThread("asynctune-read")
    try:
        return await thread.run(function, *args)
    finally:
        thread.stop()
