"""Owns the workloads on the store: an experiment of N trials with six hyperparameters and one result each.

Uses the public door of the package alone, as a user's driver would.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from _peers import hyperparameters

from asynctune import ExperimentStore, TrialStatus

__all__ = [
    "Builder",
    "Reporter",
    "StoreCommits",
    "add_trials",
    "journal_bytes",
    "state_files",
    "trial_id",
]

_BATCH = 500
_PERIOD_S = 0.001
_MAX_BURST = 20


def trial_id(index: int) -> str:
    """The id of the N-th trial of a benchmark."""
    return f"3f9ac_{index:05d}"


async def add_trials(store: ExperimentStore, count: int, *, start: int = 0) -> None:
    """Add `count` trials that run and have one result each; durable afterwards."""
    rng = random.Random(7)
    for index in range(start, start + count):
        trial = store.add_trial(hyperparameters(rng), trial_id=trial_id(index))
        store.set_status(trial.trial_id, TrialStatus.RUNNING)
        store.report(trial.trial_id, {"loss": rng.random()})
        if index % _BATCH == _BATCH - 1:
            await store.flush()
    await store.flush()


def state_files(location: Path) -> dict[str, int]:
    """Size in bytes of each file of the experiment's state, by name."""
    return {
        path.relative_to(location).as_posix(): path.stat().st_size
        for path in (location / ".asynctune").rglob("*")
        if path.is_file()
    }


def journal_bytes(location: Path) -> int:
    """Bytes in the segments of the journal."""
    return sum(size for name, size in state_files(location).items() if "/wal-" in name)


class StoreCommits:
    """One durable commit of a store with N trials: one trial reports, and `flush()` returns.

    After each, in the same process, `write` + `fdatasync` of as many bytes to a file beside: what the disk takes.
    """

    async def prepare(self, directory: str, trials: int) -> dict[str, Any]:
        path = Path(directory) / "bare"
        self._bare = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._bytes = 1
        self._location = Path(directory) / "experiment"
        self._trials = trials
        self._reports = 1
        # Closed and opened again: the N trials' result files are not being written beside the measurement.
        async with ExperimentStore.open(self._location, mode="create") as store:
            await add_trials(store, trials)
        self._store = await ExperimentStore.open(self._location, mode="resume")
        before = await asyncio.to_thread(journal_bytes, self._location)
        count = 20
        await self.measure(count)
        after = await asyncio.to_thread(journal_bytes, self._location)
        self._bytes = max(1, (after - before) // count)
        return {"bytes": self._bytes, "saves": trials + count}

    async def measure(self, count: int, warm_up: int = 0) -> dict[str, Any]:
        store, seconds, bare = self._store, [], []
        data = os.urandom(self._bytes)
        snapshots = store.stats().snapshots
        for _ in range(warm_up + count):
            ident = trial_id(self._reports * 7919 % self._trials)
            self._reports += 1
            start = time.perf_counter()
            store.report(ident, {"loss": 1 / self._reports})
            await store.flush()
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
            os.write(self._bare, data)
            os.fdatasync(self._bare)
            bare.append(time.perf_counter() - start)
        return {
            "seconds": seconds[warm_up:],
            "bare": bare[warm_up:],
            "snapshots": store.stats().snapshots - snapshots,
        }

    async def close(self) -> None:
        await self._store.aclose()
        os.close(self._bare)


class Builder:
    """Makes an experiment of N trials and closes it."""

    async def prepare(self, location: str, trials: int) -> dict[str, Any]:
        async with ExperimentStore.open(location, mode="create") as store:
            await add_trials(store, trials)
        return {}

    async def measure(self) -> dict[str, Any]:
        raise NotImplementedError

    async def close(self) -> None:
        pass


class Reporter:
    """A driver with `running` trials, one of which reports each millisecond.

    Attributes:
        count: How many reports there were.
    """

    def __init__(self, store: ExperimentStore, *, running: int = 1_000) -> None:
        self.count = 0
        self._store = store
        self._running = min(running, len(store.trials))

    @asynccontextmanager
    async def reporting(self) -> AsyncIterator[None]:
        """Reports go on while the block is entered."""
        task = asyncio.create_task(self._drive())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()  # a report that was refused ends the benchmark

    async def _drive(self) -> None:
        start, due_before = time.perf_counter(), 0
        while True:
            now = time.perf_counter()
            due = int((now - start) / _PERIOD_S)
            # what a stall held up beyond a burst is not made up for
            for _ in range(min(due - due_before, _MAX_BURST)):
                self._store.report(trial_id(self.count % self._running), {"loss": now - start})
                self.count += 1
            due_before = due
            await asyncio.sleep(_PERIOD_S)
