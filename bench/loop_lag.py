"""Loop lag under load: 100 000 trials, 1 000 reports a second, snapshots, a 1.5 GiB checkpoint being staged.

A probe on the event loop sleeps one millisecond, again and again, and notes by how much it overslept. It runs
through three phases, round after round, in one process on one open store:

- `idle`: nothing else happens; the control.
- `reports`: every millisecond one of 1 000 running trials reports. Ten times a second a value of 256 KiB is
  set and flushed, so that the journal outgrows the snapshot every few seconds and snapshots are written.
- `reports + staging`: the same while `save_checkpoint(move=False)` copies, hashes and syncs 1.5 GiB.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Awaitable
from pathlib import Path

from _children import child
from _common import Cell, Column, Options, Report, Target, options, percentile, probed, progress, run, scratch
from _load import Reporter, trial_id

from asynctune import CheckpointConfig, ExperimentStore

_REST_S = 3.0
_BALLAST_BYTES, _BALLAST_PERIOD_S = 256 * 1024, 0.1
_CHUNK_BYTES = 16 * 1024 * 1024

_STAGING = "reports + staging"


async def measure(settings: Options) -> Report:
    trials = settings.trials[0]
    size = (256 if settings.quick else 1536) * 1024 * 1024
    seconds = 4.0 if settings.quick else 12.0
    async with scratch(settings) as directory:
        source, location = directory / "source", directory / "experiment"
        progress(f"{size / 2**30:.2f} GiB to stage, an experiment of {trials:,} trials")
        await asyncio.to_thread(_make_source, source, size)
        async with child("_load:Builder") as builder:
            await builder.prepare(location=str(location), trials=trials)
        async with ExperimentStore.open(
            location, mode="resume", checkpoint_config=CheckpointConfig(num_to_keep=1)
        ) as store:
            return await _measure(settings, store, source, size, seconds)


def _make_source(source: Path, size: int) -> None:
    source.mkdir()
    chunk = os.urandom(_CHUNK_BYTES)
    with open(source / "weights.bin", "wb") as file:
        file.writelines(chunk for _ in range(size // _CHUNK_BYTES))
        os.fsync(file.fileno())


async def _measure(
    settings: Options, store: ExperimentStore, source: Path, size: int, seconds: float
) -> Report:
    reporter = Reporter(store)
    staged: list[float] = []

    async def idle() -> None:
        await asyncio.sleep(seconds)

    async def reports() -> None:
        async with reporter.reporting():
            await _set_ballast(store, asyncio.sleep(seconds))

    async def staging() -> None:
        start = time.perf_counter()
        async with reporter.reporting():
            await _set_ballast(store, store.save_checkpoint(trial_id(0), source))
        staged.append(time.perf_counter() - start)

    phases = {"idle": idle, "reports": reports, _STAGING: staging}
    lags: dict[str, list[float]] = defaultdict(list)
    spent: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    snapshots: dict[str, int] = defaultdict(int)
    for turn in range(settings.rounds):
        progress(f"round {turn + 1} of {settings.rounds}")
        for name, phase in phases.items():
            await store.flush()
            await asyncio.sleep(_REST_S)  # what is written behind belongs to the phase before
            before, snapshots_before, start = reporter.count, store.stats().snapshots, time.perf_counter()
            lags[name] += await probed(phase())
            spent[name] += time.perf_counter() - start
            counts[name] += reporter.count - before
            snapshots[name] += store.stats().snapshots - snapshots_before

    rows: list[dict[str, Cell]] = []
    for name in phases:
        values = [lag * 1e3 for lag in lags[name]]
        rows.append(
            {
                "phase": name,
                "p50": percentile(values, 50),
                "p99": percentile(values, 99),
                "p99_9": percentile(values, 99.9),
                "max": max(values),
                "probes": len(values),
                "seconds": spent[name],
                "reports": counts[name] / spent[name],
                "snapshots": snapshots[name],
                "staging": size / 2**20 * len(staged) / sum(staged) if name == _STAGING else None,
            }
        )
    loaded = [row for row in rows if row["phase"] != "idle"]
    return Report(
        name="loop_lag",
        title=f"Loop lag with {len(store.trials):,} trials (milliseconds)",
        columns=(
            Column(key="phase", title="phase"),
            Column(key="p50", title="p50"),
            Column(key="p99", title="p99"),
            Column(key="p99_9", title="p99.9"),
            Column(key="max", title="max"),
            Column(key="probes", title="probes"),
            Column(key="seconds", title="seconds", decimals=1),
            Column(key="reports", title="reports/s", decimals=0),
            Column(key="snapshots", title="snapshots"),
            Column(key="staging", title="staged MiB/s", decimals=0),
        ),
        rows=rows,
        targets=(
            Target(what="loop lag under load, p99", measured=_worst(loaded, "p99"), limit=5, unit="ms"),
            Target(what="loop lag under load, maximum", measured=_worst(loaded, "max"), limit=30, unit="ms"),
        ),
        notes=("A selector wakes up to a millisecond late by itself: see the idle control of the same run.",),
        settings={"rounds": settings.rounds, "staged_bytes": size},
    )


def _worst(rows: list[dict[str, Cell]], key: str) -> float:
    return max(value for row in rows if isinstance(value := row[key], float))


async def _set_ballast(store: ExperimentStore, work: Awaitable[object]) -> None:
    """Await `work`, and make a large value durable again and again meanwhile."""
    task = asyncio.ensure_future(work)
    value = os.urandom(_BALLAST_BYTES)
    while not task.done():
        store.set_metadata("ballast", value)
        await store.flush()
        await asyncio.wait([task], timeout=_BALLAST_PERIOD_S)
    await task


if __name__ == "__main__":
    run(measure, options(__doc__, trials=(100_000,), quick_trials=(100_000,), rounds=3, quick_rounds=1))
