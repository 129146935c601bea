"""Owns the workloads on the store: an experiment of N trials with six hyperparameters and one result each.

Uses the public door of the package alone, as a user's driver would.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from pathlib import Path
from typing import Any

from _peers import hyperparameters

from asynctune import ExperimentStore, TrialStatus

__all__ = [
    "Builder",
    "StoreCommits",
    "add_trials",
    "journal_bytes",
    "resident_bytes",
    "state_files",
    "trial_id",
]

_BATCH = 500


def trial_id(index: int) -> str:
    """The id of the N-th trial of a benchmark."""
    return f"3f9ac_{index:05d}"


async def add_trials(store: ExperimentStore, count: int) -> None:
    """Add `count` trials that run and have one result each; durable afterwards."""
    rng = random.Random(7)
    for index in range(count):
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


def resident_bytes() -> int:
    """Bytes of memory that this process keeps resident, after a full garbage collection."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class StoreCommits:
    """One durable commit of a store with N trials: one trial reports, and `flush()` returns."""

    async def prepare(self, directory: str, trials: int) -> dict[str, Any]:
        self._location = Path(directory) / "experiment"
        self._store = await ExperimentStore.open(self._location, mode="create")
        self._trials = trials
        self._reports = 1
        await add_trials(self._store, trials)
        before = await asyncio.to_thread(journal_bytes, self._location)
        count = 20
        await self.measure(count)
        after = await asyncio.to_thread(journal_bytes, self._location)
        return {"bytes": max(1, (after - before) // count)}

    async def measure(self, count: int) -> dict[str, Any]:
        store, seconds = self._store, []
        snapshots = store.stats().snapshots
        for _ in range(count):
            ident = trial_id(self._reports * 7919 % self._trials)
            self._reports += 1
            start = time.perf_counter()
            store.report(ident, {"loss": 1 / self._reports})
            await store.flush()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds, "snapshots": store.stats().snapshots - snapshots}

    async def close(self) -> None:
        await self._store.aclose()


class Builder:
    """Makes an experiment of N trials and closes it; says how much memory that took."""

    async def prepare(self, location: str, trials: int) -> dict[str, Any]:
        before = await asyncio.to_thread(resident_bytes)
        start = time.perf_counter()
        async with ExperimentStore.open(location, mode="create") as store:
            await add_trials(store, trials)
            seconds = time.perf_counter() - start
            after = await asyncio.to_thread(resident_bytes)
        return {"resident_bytes": after - before, "seconds": seconds}

    async def measure(self) -> dict[str, Any]:
        raise NotImplementedError

    async def close(self) -> None:
        pass
