"""A Tuner under load: 2 000 trials in one event loop, 200 at the same time; is memory flat, is the loop on time?

Each trial awaits short sleeps, reports twenty times, and hands over a small checkpoint with every tenth report, of
which one is kept. Two subjects, round after round, each in a process of its own:

- `lag`: a probe on the event loop sleeps one millisecond, again and again, and notes by how much it overslept;
  before the trials, for a control, while nothing else happens.
- `memory`: resident bytes after a full garbage collection, each time another fiftieth of the trials has ended.
  Collecting holds up the loop, so nobody looks at the lag here.

Flat means: from the moment when a quarter of the trials have ended to the end, the process grows by no more than
what the state of a trial takes.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

from _children import child
from _common import Cell, Column, Options, Report, Target, options, percentile, probed, progress, run, scratch

from asynctune import (
    Checkpoint,
    CheckpointConfig,
    InlineRunner,
    RunConfig,
    TuneConfig,
    Tuner,
    session,
    uniform,
)

_CONCURRENT, _REPORTS, _REPORTS_PER_CHECKPOINT = 200, 20, 10
_SLEEP_S = 0.1
_IDLE_S = 5.0
_SAMPLES = 50
_WARM_UP = 50  # trials
_BYTES_PER_TRIAL = 4096

_IDLE, _LOAD = "idle", f"{_CONCURRENT} trials at a time"


async def _train(config: dict[str, Any]) -> None:
    rng = random.Random(config["x"])
    for iteration in range(1, _REPORTS + 1):
        await asyncio.sleep(rng.uniform(0, 2 * _SLEEP_S))
        made = Checkpoint.from_dict({"weights": [rng.random() for _ in range(16)], "iteration": iteration})
        due = iteration % _REPORTS_PER_CHECKPOINT == 0
        await session.areport({"loss": config["x"] / iteration}, made if due else None)


class _Subject:
    """One experiment in this process; a small one has been run before, so that code and buffers are there."""

    async def prepare(self, directory: str) -> dict[str, Any]:
        self._directory = directory
        await self._fit("warm-up", _WARM_UP)
        return {}

    async def _fit(self, name: str, trials: int, *callbacks: Any) -> None:
        tuner = Tuner(
            _train,
            param_space={"x": uniform(0, 1)},
            tune_config=TuneConfig(metric="loss", mode="min", num_samples=trials),
            run_config=RunConfig(
                name=name,
                local_dir=self._directory,
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                callbacks=callbacks,
                verbose=0,
            ),
            runner=InlineRunner(_CONCURRENT),
        )
        results = await tuner.fit()
        self.stats = tuner.stats()
        if results.num_terminated != trials:
            raise RuntimeError(
                f"{trials - results.num_terminated} trials did not end well: {results.errors[:1]}"
            )

    async def close(self) -> None:
        pass


class Lag(_Subject):
    """How late the loop is, idle and under load."""

    async def measure(self, trials: int) -> dict[str, Any]:
        idle = await probed(asyncio.sleep(_IDLE_S))
        start, cpu = time.perf_counter(), time.process_time()
        load = await probed(self._fit("experiment", trials))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        assert self.stats is not None
        stats = self.stats
        return {
            _IDLE: idle,
            _LOAD: load,
            "seconds": seconds,
            "cpu": cpu,
            "fraction": 100 * stats.checkpoint_seconds / stats.elapsed_seconds,
            "commits": stats.commits,
        }


class _Watcher:
    """A callback that looks at the memory now and then."""

    def __init__(self, trials: int) -> None:
        self.seen: list[tuple[int, int]] = []
        self._ended = 0
        self._every = max(1, trials // _SAMPLES)

    def on_trial_complete(self, _trial: Any) -> None:
        self._ended += 1
        if self._ended % self._every == 0:
            self.seen.append((self._ended, _resident_bytes()))


class Memory(_Subject):
    """How the process grows as trials end."""

    async def measure(self, trials: int) -> dict[str, Any]:
        watcher = _Watcher(trials)
        await self._fit("experiment", trials, watcher)
        return {"seen": watcher.seen, "closed": _resident_bytes()}


def _resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def measure(settings: Options) -> Report:
    trials = settings.trials[0]
    lag: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    async with scratch(settings) as directory:
        for turn in range(settings.rounds):
            progress(f"round {turn + 1} of {settings.rounds}")
            for name, found in (("Lag", lag), ("Memory", memory)):
                place = directory / f"{name}-{turn}"
                place.mkdir()
                async with child(f"tuner_load:{name}") as made:
                    await made.prepare(directory=str(place))
                    await asyncio.to_thread(os.sync)
                    found.append(await made.measure(trials=trials))
    return _report(settings, trials, lag, memory)


def _report(
    settings: Options, trials: int, lag: list[dict[str, Any]], memory: list[dict[str, Any]]
) -> Report:
    rows: list[dict[str, Cell]] = []
    for name in (_IDLE, _LOAD):
        values = [1e3 * value for each in lag for value in each[name]]
        rows.append(
            {
                "what": f"loop lag, {name}, ms",
                "p50": percentile(values, 50),
                "p99": percentile(values, 99),
                "max": max(values),
            }
        )
    p99 = rows[-1]["p99"]
    begin, end, slope = (statistics.median(each) for each in zip(*map(_growth, memory), strict=True))
    rows += [
        {"what": "resident MiB, a quarter of the trials ended", "p50": begin / 2**20},
        {"what": "resident MiB, all trials ended", "p50": end / 2**20},
        {"what": "resident MiB, closed", "p50": statistics.median(m["closed"] for m in memory) / 2**20},
        {"what": "growth in between, bytes per trial", "p50": slope},
        _spread("trials per second", [trials / each["seconds"] for each in lag]),
        _spread("reports per second", [trials * _REPORTS / each["seconds"] for each in lag]),
        _spread("process CPU %", [100 * each["cpu"] / each["seconds"] for each in lag]),
        _spread("checkpoint fraction %", [each["fraction"] for each in lag]),
    ]
    return Report(
        name="tuner_load",
        title=f"A Tuner with {trials:,} trials in the event loop, {_CONCURRENT} at a time",
        columns=(
            Column(key="what", title=""),
            Column(key="p50", title="median"),
            Column(key="p99", title="p99"),
            Column(key="max", title="max"),
        ),
        rows=rows,
        targets=(
            Target(
                what=f"loop lag with {_CONCURRENT} trials at a time, p99",
                measured=p99 if isinstance(p99, float) else None,
                limit=10,
                unit="ms",
            ),
            Target(
                what="growth of a Tuner's process per trial, from a quarter to the end",
                measured=slope,
                limit=_BYTES_PER_TRIAL,
                unit="bytes",
            ),
        ),
        notes=(
            f"Each trial: {_REPORTS} reports, a checkpoint with each {_REPORTS_PER_CHECKPOINT}th, one kept.",
            "A selector wakes up to a millisecond late by itself: see the idle control of the same process.",
            "Checkpoints commit at once, whatever the 5 % rule says; that is why their share is higher here.",
        ),
        settings={"rounds": settings.rounds, "resident": [each["seen"] for each in memory]},
    )


def _spread(what: str, values: list[float]) -> dict[str, Cell]:
    return {"what": what, "p50": statistics.median(values), "max": max(values)}


def _growth(found: dict[str, Any]) -> tuple[float, float, float]:
    """Resident bytes when a quarter of the trials have ended, at the end, and the growth per trial in between."""
    seen = [(count, size) for count, size in found["seen"] if 4 * count >= found["seen"][-1][0]]
    counts, sizes = zip(*seen, strict=True)
    return sizes[0], sizes[-1], statistics.linear_regression(counts, sizes).slope


if __name__ == "__main__":
    run(measure, options(__doc__, trials=(2_000,), quick_trials=(400,), rounds=3, quick_rounds=1))
