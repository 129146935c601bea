"""Trials per second of a trainable that does nothing but report five times: asynctune, Ray Tune, Optuna.

The time is that of one whole experiment, from the call of `fit()` to its return: the store is opened and closed, and
all result files are written. Four subjects take their turn in each round, each in a process of its own:

- `asynctune, inline`: coroutines in the driver's event loop, up to 64 at the same time.
- `asynctune, 2 processes`: a function in two worker processes, which are started within that time.
- `Ray Tune, 2 CPUs`: two actors, which are used again for one trial after the other.
- `Optuna, 2 threads`: `n_jobs=2` on a journal file.

What each of them writes, and what is left out of the peers' time, is told in `_tuners.py`. The faster ones run more
trials, so that all run for about as long. Nothing is deleted between rounds: some filesystems make new files slowly for
minutes after many were deleted. The peers need the extra: `pip install '.[bench]'`.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

from _children import Child, child
from _common import (
    NOT_INSTALLED,
    Cell,
    Column,
    Options,
    Report,
    Target,
    installed,
    options,
    progress,
    ratio,
    run,
    scratch,
)
from _tuners import REPORTS, WORKERS

_INLINE, _PROCESSES = "asynctune, inline", f"asynctune, {WORKERS} processes"
_RAY, _OPTUNA = f"Ray Tune, {WORKERS} CPUs", f"Optuna, {WORKERS} threads"
_SHARES = {_INLINE: 1.0, _PROCESSES: 0.6, _RAY: 0.06, _OPTUNA: 0.2}  # of the trials
_PAUSE_S = 1.0


async def measure(settings: Options) -> Report:
    trials = settings.trials[0]
    counts = {name: max(1, round(share * trials)) for name, share in _SHARES.items()}
    subjects = {
        _INLINE: ("_tuners:Inline", counts[_INLINE], "asynctune"),
        _PROCESSES: ("_tuners:Processes", counts[_PROCESSES], "asynctune"),
        _RAY: ("_tuners:RayTune", counts[_RAY], "ray"),
        _OPTUNA: ("_tuners:OptunaThreads", counts[_OPTUNA], "optuna"),
    }
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    async with scratch(settings) as directory, AsyncExitStack() as stack:
        children: dict[str, Child] = {}
        for name, (subject, _, module) in subjects.items():
            if not installed(module):
                continue
            progress(name)
            place = directory / subject.partition(":")[2]
            place.mkdir()
            children[name] = await stack.enter_async_context(child(subject))
            await children[name].prepare(directory=str(place))
        for turn in range(settings.rounds):
            progress(f"round {turn + 1} of {settings.rounds}")
            for name, made in children.items():
                await asyncio.to_thread(os.sync)
                await asyncio.sleep(_PAUSE_S)
                found[name].append(await _one(made, directory, subjects[name], turn))
    return _report(settings, counts, found)


async def _one(made: Child, directory: Path, subject: tuple[str, int, str], turn: int) -> dict[str, Any]:
    place = directory / subject[0].partition(":")[2] / f"round-{turn + 1}"
    return await made.measure(place=str(place), trials=subject[1])


def _report(settings: Options, counts: dict[str, int], found: dict[str, list[dict[str, Any]]]) -> Report:
    rates = {name: [counts[name] / each["seconds"] for each in runs] for name, runs in found.items()}
    half = {name: median(values) for name, values in rates.items()}
    rows: list[dict[str, Cell]] = []
    worst: list[float] = []
    for name, count in counts.items():
        row: dict[str, Cell] = {"subject": name, "trials": count}
        if name not in found:
            rows.append(row | {"rate": NOT_INSTALLED})
            continue
        runs = found[name]
        row |= {
            "rate": half[name],
            "slowest": min(rates[name]),
            "fastest": max(rates[name]),
            "to_ray": ratio(half[name], half.get(_RAY)),
            "to_optuna": ratio(half[name], half.get(_OPTUNA)),
            "files": runs[0]["files"],
        }
        if "store_seconds" in runs[0]:
            shares = [100 * each["checkpoint_seconds"] / each["store_seconds"] for each in runs]
            worst.append(max(shares))
            row |= {
                "fraction": max(shares),
                "commits": median([each["commits"] / each["store_seconds"] for each in runs]),
            }
        rows.append(row)
    return Report(
        name="tuner",
        title=f"Trials per second, {REPORTS} reports each (median of the rounds)",
        columns=(
            Column(key="subject", title=""),
            Column(key="trials", title="trials"),
            Column(key="rate", title="trials/s", decimals=1),
            Column(key="slowest", title="slowest", decimals=1),
            Column(key="fastest", title="fastest", decimals=1),
            Column(key="to_ray", title="× Ray Tune", decimals=1),
            Column(key="to_optuna", title="× Optuna"),
            Column(key="files", title="files"),
            Column(key="fraction", title="checkpoint fraction %, worst"),
            Column(key="commits", title="commits/s", decimals=1),
        ),
        rows=rows,
        targets=(
            Target(
                what=f"trials per second with {WORKERS} processes, against Ray Tune",
                measured=ratio(half[_PROCESSES], half.get(_RAY)),
                limit=10,
                at_least=True,
                unit="×",
            ),
            Target(
                what="trials per second, inline",
                measured=half[_INLINE],
                limit=500,
                at_least=True,
                unit="per second",
            ),
            Target(what="checkpoint fraction of a Tuner, worst run", measured=max(worst), limit=5, unit="%"),
        ),
        notes=(
            "files: params.json, result.json, progress.csv of each trial, counted afterwards; Optuna has a journal.",
            "asynctune's files are synced when fit() returns; Ray Tune syncs nothing.",
            "Ray Tune: warm processes, results in batches of five, JSON and CSV loggers only, no output.",
            "The checkpoint fraction counts all commits from the opening to the close of the store.",
        ),
        settings={"rounds": settings.rounds, "reports": REPORTS, "workers": WORKERS},
    )


if __name__ == "__main__":
    run(
        measure,
        options(__doc__, trials=(15_000,), quick_trials=(1_000,), rounds=3, quick_rounds=2),
    )
