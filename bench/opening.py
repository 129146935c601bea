"""Opening and listing an experiment of 100 000 trials, beside unpacking the same records into Python objects.

Each trial has six hyperparameters and one result. Each line is measured in a fresh process, in turn with the
others, with the files in the page cache:

- `full unpack`: `msgpack.unpackb` of every record, the objects kept. Reading the files is not counted.
- `resume`, `read`: until `ExperimentStore.open(mode=...)` returns, after a clean close.
- `resume after kill -9`: the same of an experiment whose driver was killed, with a journal to be replayed.
- `... + every Trial`: opening, and then each `Trial` of `store.trials` made and kept, its status read.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import msgpack
from _children import child
from _common import Cell, Column, Options, Report, Target, options, progress, ratio, run, scratch

from asynctune import ExperimentStore, TrialStatus
from asynctune.files import LocalFiles
from asynctune.state.recovery import recover

_UNPACK = "full unpack"
_LINES: dict[str, tuple[str, str, dict[str, Any]]] = {
    _UNPACK: ("Unpack", "closed", {}),
    "resume": ("Open", "closed", {"mode": "resume"}),
    "read": ("Open", "closed", {"mode": "read"}),
    "resume after kill -9": ("Open", "killed", {"mode": "resume"}),
    "read + every Trial": ("Open", "closed", {"mode": "read", "every": True}),
}


class Unpack:
    """Unpacks every record of an experiment."""

    async def prepare(self, location: str) -> dict[str, Any]:
        state = await asyncio.to_thread(recover, f"{location}/.asynctune", LocalFiles(), live=True)
        self._records = list(state.records.values())
        return {"records": len(self._records), "bytes": sum(map(len, self._records))}

    async def measure(self) -> dict[str, Any]:
        start = time.perf_counter()
        kept = [msgpack.unpackb(record, strict_map_key=False, timestamp=3) for record in self._records]
        return {"seconds": time.perf_counter() - start, "trials": len(kept)}

    async def close(self) -> None:
        pass


class Open:
    """Opens an experiment once."""

    async def prepare(self, location: str) -> dict[str, Any]:
        self._location = location
        return {}

    async def measure(self, mode: Any, *, every: bool = False) -> dict[str, Any]:
        start = time.perf_counter()
        self._store = store = await ExperimentStore.open(self._location, mode=mode)
        trials = list(store.trials) if every else []
        running = sum(trial.status == TrialStatus.RUNNING for trial in trials)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "trials": len(store.trials), "running": running}

    async def close(self) -> None:
        await self._store.aclose()


async def measure(settings: Options) -> Report:
    trials = settings.trials[0]
    async with scratch(settings) as directory:
        return await _measure(settings, directory, trials)


async def _measure(settings: Options, directory: Path, trials: int) -> Report:
    progress(f"an experiment of {trials:,} trials, twice")
    async with child("_load:Builder") as builder:
        await builder.prepare(location=str(directory / "closed"), trials=trials)
    async with child("_load:StoreCommits") as driver:
        await driver.prepare(directory=str(directory), trials=trials)
        await driver.measure(count=1000)
        await driver.kill()
    os.rename(directory / "experiment", directory / "killed")

    seconds: dict[str, list[float]] = defaultdict(list)
    records: dict[str, Any] = {}
    for turn in range(settings.rounds):
        progress(f"round {turn + 1} of {settings.rounds}")
        for name, (subject, source, arguments) in _LINES.items():
            async with child(f"opening:{subject}") as made:
                records = await made.prepare(location=str(directory / source)) or records
                answer = await made.measure(**arguments)
                if source == "killed":
                    await made.kill()  # so that the next round finds a journal to replay, too
            if subject == "Open" and answer["trials"] != trials:
                msg = f"{name}: {answer['trials']} trials instead of {trials}"
                raise RuntimeError(msg)
            seconds[name].append(answer["seconds"])
    return _report(settings, seconds, records, trials)


def _report(
    settings: Options, seconds: dict[str, list[float]], records: dict[str, Any], trials: int
) -> Report:
    half = {name: median(values) * 1e3 for name, values in seconds.items()}
    unpack = half[_UNPACK]
    rows: list[dict[str, Cell]] = [
        {
            "line": name,
            "p50": half[name],
            "max": max(seconds[name]) * 1e3,
            "to_unpack": ratio(half[name], unpack),
        }
        for name in _LINES
    ]
    return Report(
        name="opening",
        title=f"Opening an experiment of {trials:,} trials (milliseconds)",
        columns=(
            Column(key="line", title=""),
            Column(key="p50", title="p50", decimals=0),
            Column(key="max", title="max", decimals=0),
            Column(key="to_unpack", title="× full unpack"),
        ),
        rows=rows,
        targets=tuple(
            Target(
                what=f"opening ({name}) against the full unpack",
                measured=ratio(half[name], unpack),
                limit=0.5,
                unit="×",
            )
            for name in ("resume", "read")
        ),
        notes=(f"{records['records']:,} records, {records['bytes']:,} bytes.",),
        settings={"rounds": settings.rounds, "trials": trials} | records,
    )


if __name__ == "__main__":
    run(measure, options(__doc__, trials=(100_000,), quick_trials=(100_000,), rounds=5, quick_rounds=2))
