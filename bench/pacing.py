"""The 5 % rule: what commits cost, and how old unsaved changes get, under one report a millisecond.

Nobody calls `flush()`: the store commits when its rule lets it. Every 10 ms `stats()` is read. Two figures
come from elsewhere, as a check on what the store says of itself: `disk` is the time spent in the writes and
syncs of the state's files, counted around the operating system's calls; `process CPU` is that of the whole
process, the reporting included.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from statistics import median

from _children import child
from _common import Cell, Column, Options, Report, Target, options, percentile, progress, run, scratch
from _load import Reporter

from asynctune import ExperimentStore
from asynctune.files import LocalFiles

_SAMPLE_S = 0.01


class _TimedFiles(LocalFiles):
    """The operating system, with a stopwatch on what touches the state's files."""

    def __init__(self, state: str) -> None:
        self.seconds = 0.0
        self._state = state
        self._descriptors: set[int] = set()

    def create(self, path: str, mode: int = 0o600) -> int:
        fd = super().create(path, mode)
        if path.startswith(self._state):
            self._descriptors.add(fd)
        return fd

    def close(self, fd: int) -> None:
        self._descriptors.discard(fd)
        super().close(fd)

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> int:
        start = time.perf_counter()
        try:
            return super().write(fd, data)
        finally:
            self._spent(fd, start)

    def sync_data(self, fd: int) -> None:
        start = time.perf_counter()
        try:
            super().sync_data(fd)
        finally:
            self._spent(fd, start)

    def sync(self, fd: int) -> None:
        start = time.perf_counter()
        try:
            super().sync(fd)
        finally:
            self._spent(fd, start)

    def _spent(self, fd: int, start: float) -> None:
        if fd in self._descriptors:
            self.seconds += time.perf_counter() - start


async def measure(settings: Options) -> Report:
    seconds = 6.0 if settings.quick else 30.0
    samples: dict[int, list[dict[str, float]]] = {trials: [] for trials in settings.trials}
    ages: dict[int, list[float]] = {trials: [] for trials in settings.trials}
    async with scratch(settings) as directory:
        for trials in settings.trials:
            progress(f"an experiment of {trials:,} trials")
            async with child("_load:Builder") as builder:
                await builder.prepare(location=str(directory / str(trials)), trials=trials)
        for turn in range(settings.rounds):
            for trials in settings.trials:
                progress(f"round {turn + 1} of {settings.rounds}: {trials:,} trials, {seconds:.0f} s")
                found = await _one_run(directory / str(trials), seconds, ages[trials])
                samples[trials].append(found)

    rows: list[dict[str, Cell]] = []
    for trials in settings.trials:
        runs = samples[trials]
        row: dict[str, Cell] = {key: median(found[key] for found in runs) for key in runs[0]}
        row |= {"trials": trials, "fraction": max(found["fraction"] for found in runs)}
        row |= {
            "age_p50": percentile(ages[trials], 50) * 1e3,
            "age_p99": percentile(ages[trials], 99) * 1e3,
            "age_max": max(ages[trials]) * 1e3,
        }
        rows.append(row)
    every = [age for found in ages.values() for age in found]
    worst = max(percentile(found, 99) for found in ages.values()) if every else None
    return Report(
        name="pacing",
        title="The 5 % rule under one report a millisecond",
        columns=(
            Column(key="trials", title="trials"),
            Column(key="reports", title="reports/s", decimals=0),
            Column(key="fraction", title="checkpoint fraction %"),
            Column(key="disk", title="disk %"),
            Column(key="process", title="process CPU %", decimals=1),
            Column(key="age_p50", title="oldest unsaved p50 ms", decimals=1),
            Column(key="age_p99", title="p99 ms", decimals=1),
            Column(key="age_max", title="max ms", decimals=1),
            Column(key="commits", title="commits/s", decimals=1),
            Column(key="cost", title="ms per commit"),
            Column(key="snapshots", title="snapshots", decimals=0),
        ),
        rows=rows,
        targets=(
            Target(
                what="checkpoint fraction, worst run",
                measured=max(found["fraction"] for runs in samples.values() for found in runs),
                limit=5,
                unit="%",
            ),
            Target(
                what="oldest unsaved change, p99",
                measured=None if worst is None else worst * 1e3,
                limit=250,
                unit="ms",
            ),
        ),
        notes=(f"Each run takes {seconds:.0f} s from the opening; nothing of it is left out.",),
        settings={"rounds": settings.rounds, "seconds": seconds},
    )


async def _one_run(location: Path, seconds: float, ages: list[float]) -> dict[str, float]:
    files = _TimedFiles(os.fspath(location / ".asynctune"))
    async with ExperimentStore.open(location, mode="resume", files=files) as store:
        reporter = Reporter(store)
        async with reporter.reporting():
            before, reports, disk = store.stats(), reporter.count, files.seconds
            start, cpu = time.perf_counter(), time.process_time()
            while (elapsed := time.perf_counter() - start) < seconds:
                await asyncio.sleep(_SAMPLE_S)
                ages.append(store.stats().oldest_dirty_age_s)
            after, cpu, disk = store.stats(), time.process_time() - cpu, files.seconds - disk
    commits = after.commits - before.commits
    cost = after.checkpoint_seconds - before.checkpoint_seconds
    return {
        "reports": (reporter.count - reports) / elapsed,
        "fraction": 100 * cost / elapsed,
        "disk": 100 * disk / elapsed,
        "process": 100 * cpu / elapsed,
        "commits": commits / elapsed,
        "cost": 1e3 * cost / max(1, commits),
        "snapshots": after.snapshots - before.snapshots,
    }


if __name__ == "__main__":
    run(
        measure,
        options(__doc__, trials=(1_000, 100_000), quick_trials=(1_000,), rounds=2, quick_rounds=1),
    )
