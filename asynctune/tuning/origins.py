"""Owns where results were read from, for whoever asks more of them later: rows and files. Changes nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from asynctune.config import SyncConfig
from asynctune.errors import AsynctuneError, CorruptStateError
from asynctune.results.backlog import Backlog
from asynctune.results.history import read_history
from asynctune.results.rows import TrialInfo
from asynctune.store.finding import STATE_DIR
from asynctune.store.pending import PendingStore
from asynctune.store.store import ExperimentStore

__all__ = ["Origin"]

_Seen = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an experiment is that results were read from, or its copy.

    Attributes:
        location: Its directory, or the place of the copy.
        is_copy: Which of them.
        options: Credentials and endpoint of the bucket.
        sync: With the `Syncer` that keeps the copy, where one does.
        unwritten: Rows that the result files may lack, for their driver was killed; `None`: not known, ask again.
        seen: The state as it was when those were read.
    """

    location: str
    is_copy: bool = False
    options: Mapping[str, Any] | None = field(default=None, repr=False)
    sync: SyncConfig | None = None
    unwritten: Backlog | None = field(default_factory=Backlog, repr=False, compare=False)
    seen: _Seen = field(default=(), repr=False, compare=False)

    @classmethod
    async def of(
        cls, store: ExperimentStore, options: Mapping[str, Any] | None, sync: SyncConfig | None
    ) -> Self:
        """That of an open store; the settings as it was opened with."""
        location, writer = store.location, store.writer_info
        origin = cls(str(location), isinstance(location, str), options, sync)
        if isinstance(location, str) or writer is None or writer["alive"]:
            return origin  # who is alive brings them there within a second
        # looked at first: what is added meanwhile makes it another one
        seen = await asyncio.to_thread(_look, location)
        try:
            unwritten = await store.unwritten()
        except CorruptStateError:  # who asks for rows is told
            unwritten = None
        return replace(origin, unwritten=unwritten, seen=seen)

    def open(self) -> PendingStore[ExperimentStore]:
        """Open it to read more of it."""
        return ExperimentStore.open(
            self.location, mode="read", storage_options=self.options, sync_config=self.sync
        )

    async def history(self, trial: TrialInfo, *, last: int | None) -> list[dict[str, Any]]:
        """Every result row of a trial, oldest first.

        Args:
            trial: Which.
            last: The iteration of the last one that is known; `None`: there was none.

        Raises:
            OSError, CorruptStateError, StorageError: They cannot be read.
        """
        directory = Path(self.location)
        if self.is_copy or self.unwritten is None:
            return await self._read(trial)
        unwritten = self.unwritten.of_one(trial.trial_id)
        if (
            unwritten and await asyncio.to_thread(_look, directory) != self.seen
        ):  # somebody has gone on with it
            return await self._read(trial)
        path = directory / trial.trial_name
        try:
            rows = await read_history(path, has_rows=last is not None, trial=trial, unwritten=unwritten)
        except FileNotFoundError as error:
            try:
                return await self._read(trial)  # its driver was killed before it had written it
            except AsynctuneError:
                raise error from None
        if last is not None and rows and rows[-1].get("training_iteration", last) < last:
            return await self._read(trial)  # nor had it completed it
        return rows

    async def _read(self, trial: TrialInfo) -> list[dict[str, Any]]:
        async with self.open() as store:
            return await store.history(trial.trial_id)


def _look(path: Path) -> _Seen:
    """In a thread: what the state consists of; it is appended to, or has new files, whenever it changes."""
    try:
        with os.scandir(path / STATE_DIR) as entries:
            return tuple(sorted((each.name, each.stat().st_size) for each in entries if each.is_file()))
    except OSError:
        return ()
