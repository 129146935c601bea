"""What a trial takes: bytes of state on disk after closing, and resident bytes, with six hyperparameters.

Resident: growth of the process, after a full garbage collection, between an open store with ten trials (or the
moment before opening) and the same with N trials that have one result each; in a fresh process. After adding it
is taken twice: at once, and when the last trial's result files have been written.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from _children import child
from _common import Cell, Column, Options, Report, Target, options, progress, run, scratch
from _load import add_trials, state_files, trial_id

from asynctune import ExperimentStore

_FEW = 10  # an experiment that small is opened first, so that code and buffers are there


class Grow:
    """Adds N trials to a store."""

    async def prepare(self, location: str) -> dict[str, Any]:
        self._location = location
        self._store = await ExperimentStore.open(location, mode="create")
        await add_trials(self._store, _FEW)
        return {}

    async def measure(self, trials: int) -> dict[str, Any]:
        before = await asyncio.to_thread(_resident_bytes)
        await add_trials(self._store, trials, start=_FEW)
        at_once = await asyncio.to_thread(_resident_bytes) - before
        last = os.path.join(self._location, trial_id(_FEW + trials - 1), "progress.csv")
        await asyncio.to_thread(_wait_for, last)
        return {"at_once": at_once, "settled": await asyncio.to_thread(_resident_bytes) - before}

    async def close(self) -> None:
        await self._store.aclose()


class Reopen:
    """Opens an experiment of N trials."""

    async def prepare(self, small: str) -> dict[str, Any]:
        async with ExperimentStore.open(small, mode="resume"):
            return {}

    async def measure(self, location: str, mode: Any) -> dict[str, Any]:
        before = await asyncio.to_thread(_resident_bytes)
        async with ExperimentStore.open(location, mode=mode) as store:
            after = await asyncio.to_thread(_resident_bytes)
            return {"resident": after - before, "trials": len(store.trials)}

    async def close(self) -> None:
        pass


def _wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.5)


def _resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def measure(settings: Options) -> Report:
    trials = settings.trials[0]
    async with scratch(settings) as directory:
        return await _measure(settings, directory, trials)


async def _measure(settings: Options, directory: Path, trials: int) -> Report:
    resident: dict[str, list[float]] = defaultdict(list)
    small = str(directory / "small")
    async with child("memory:Grow") as grow:
        await grow.prepare(location=small)
    sizes: dict[str, int] = {}
    for turn in range(settings.rounds):
        progress(f"round {turn + 1} of {settings.rounds}")
        location = directory / f"experiment-{turn}"
        async with child("memory:Grow") as grow:
            await grow.prepare(location=str(location))
            found = await grow.measure(trials=trials)
            resident["trials added, result files still to be written"].append(found["at_once"])
            resident["trials added"].append(found["settled"])
        sizes = await asyncio.to_thread(state_files, location)
        for mode in ("resume", "read"):
            async with child("memory:Reopen") as reopen:
                await reopen.prepare(small=small)
                resident[f"opened with mode={mode}"].append(
                    (await reopen.measure(location=str(location), mode=mode))["resident"]
                )
    snapshots = {name: size for name, size in sizes.items() if "/snap-" in name}
    disk = {
        "state on disk, all files": sum(sizes.values()),
        "one snapshot": max(snapshots.values(), default=0),
        "all snapshots": sum(snapshots.values()),
        "journal segments": sum(size for name, size in sizes.items() if "/wal-" in name),
    }
    per_trial = {name: size / (trials + _FEW) for name, size in disk.items()}
    memory = {f"resident, {name}": median(values) / trials for name, values in resident.items()}
    rows: list[dict[str, Cell]] = [
        {"what": name, "bytes": value} for name, value in (per_trial | memory).items()
    ]
    return Report(
        name="memory",
        title=f"Bytes per trial, {trials:,} trials with 6 hyperparameters and one result",
        columns=(Column(key="what", title=""), Column(key="bytes", title="bytes per trial", decimals=0)),
        rows=rows,
        targets=(
            Target(
                what="state on disk per trial, all files, closed",
                measured=per_trial["state on disk, all files"],
                limit=600,
                unit="bytes",
            ),
            Target(
                what="resident per trial, worst of the four",
                measured=max(memory.values()),
                limit=2000,
                unit="bytes",
            ),
        ),
        notes=(f"{len(sizes)} files of state, of which {len(snapshots)} snapshots.",),
        settings={"rounds": settings.rounds, "trials": trials, "files": sizes},
    )


if __name__ == "__main__":
    run(measure, options(__doc__, trials=(100_000,), quick_trials=(20_000,), rounds=1, quick_rounds=1))
