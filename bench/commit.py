"""One durable commit with N trials known: asynctune, a bare write + fdatasync, Ray Tune, Optuna's journal.

One trial of N reports a result, and the time until `await store.flush()` returns is taken. Beside it, in
turn:

- `bare`: `write` + `fdatasync` of as many bytes, appended to a file on the same disk; after each of asynctune's
  commits, in its process, so that both meet the same caches.
- `ray`: `TuneController.save_to_dir` with one of N trials changed. It syncs nothing.
- `optuna`: ask, set an attribute, tell, through the journal file.

Each other subject runs in a process of its own. All have their turn in each round, twenty commits at a time, the
order of the N rotated; a row shows the medians over all rounds. Between rounds the disk is synced, so that nobody pays
for what another left in the page cache. The peers need the extra: `pip install '.[bench]'`.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

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
    percentile,
    progress,
    ratio,
    run,
    scratch,
)

_TURNS, _COMMITS, _SAVES, _ASKS = 5, 20, 2, 10
_WARM_UP = 2  # not counted: the process was asleep until its turn
_PAUSE_S = 0.3


async def measure(settings: Options) -> Report:
    async with scratch(settings) as directory, AsyncExitStack() as stack:
        return await _measure(settings, directory, stack)


async def _measure(settings: Options, directory: Path, stack: AsyncExitStack) -> Report:
    stores: dict[int, Child] = {}
    peers: dict[tuple[str, int], Child] = {}
    sizes: dict[tuple[str, int], int] = {}
    for trials in settings.trials:
        subjects = {"asynctune": "_load:StoreCommits"}
        if installed("ray"):
            subjects["ray"] = "_peers:RayTune"
        if installed("optuna"):
            subjects["optuna"] = "_peers:OptunaJournal"
        for name, subject in subjects.items():
            progress(f"{name} with {trials:,} trials")
            place = directory / f"{name}-{trials}"
            place.mkdir()
            made = await stack.enter_async_context(child(subject))
            sizes[name, trials] = (await made.prepare(directory=str(place), trials=trials))["bytes"]
            if name == "asynctune":
                stores[trials] = made
            else:
                peers[name, trials] = made

    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    snapshots: dict[int, int] = defaultdict(int)
    for turn in range(settings.rounds):
        progress(f"round {turn + 1} of {settings.rounds}")
        await asyncio.to_thread(os.sync)
        for part in range(_TURNS):
            await asyncio.sleep(_PAUSE_S)
            first = part % len(settings.trials)
            for trials in settings.trials[first:] + settings.trials[:first]:
                answer = await stores[trials].measure(count=_COMMITS, warm_up=_WARM_UP)
                seconds["asynctune", trials] += answer["seconds"]
                seconds["bare", trials] += answer["bare"]
                snapshots[trials] += answer["snapshots"]
        for (name, trials), peer in peers.items():
            answer = await peer.measure(count=_SAVES if name == "ray" else _ASKS)
            seconds[name, trials] += answer["seconds"]
    return _report(settings, seconds, sizes, snapshots)


def _report(
    settings: Options,
    seconds: dict[tuple[str, int], list[float]],
    sizes: dict[tuple[str, int], int],
    snapshots: dict[int, int],
) -> Report:
    half = {key: median(values) * 1e3 for key, values in seconds.items()}
    first = half["asynctune", settings.trials[0]]
    rows: list[dict[str, Cell]] = []
    for trials in settings.trials:
        ours, values = half["asynctune", trials], seconds["asynctune", trials]
        row: dict[str, Cell] = {
            "trials": trials,
            "bare": half["bare", trials],
            "p50": ours,
            "p99": percentile(values, 99) * 1e3,
            "max": max(values) * 1e3,
            "to_bare": ratio(ours, half["bare", trials]),
            "to_first": ratio(ours, first),
            "bytes": sizes["asynctune", trials],
            "snapshots": snapshots[trials],
        }
        for name in ("ray", "optuna"):
            p50 = half.get((name, trials))
            row[name] = NOT_INSTALLED if p50 is None else p50
            row[f"to_{name}"] = ratio(p50, ours)
        rows.append(row)

    ray = {trials: ratio(half.get(("ray", trials)), half["asynctune", trials]) for trials in settings.trials}
    few, many = settings.trials[0], settings.trials[-1]
    return Report(
        name="commit",
        title="One durable commit, N trials known (milliseconds, p50 unless named)",
        columns=(
            Column(key="trials", title="trials"),
            Column(key="bare", title="bare", decimals=3),
            Column(key="p50", title="asynctune", decimals=3),
            Column(key="p99", title="p99"),
            Column(key="max", title="max"),
            Column(key="to_bare", title="× bare"),
            Column(key="to_first", title=f"× N={few}"),
            Column(key="bytes", title="bytes"),
            Column(key="snapshots", title="snapshots"),
            Column(key="ray", title="Ray Tune"),
            Column(key="to_ray", title="Ray / ours", decimals=1),
            Column(key="optuna", title="Optuna"),
            Column(key="to_optuna", title="Optuna / ours", decimals=1),
        ),
        rows=rows,
        targets=(
            Target(
                what="one-trial commit, p50, worst N, against the bare write + fdatasync",
                measured=max(half["asynctune", n] / half["bare", n] for n in settings.trials),
                limit=2.5,
                unit="×",
            ),
            Target(
                what=f"flat in N: p50 at {many:,} against {few:,}",
                measured=half["asynctune", many] / first if many > few else None,
                limit=1.3,
                unit="×",
            ),
            Target(
                what="faster than Ray's save_to_dir at 10,000 trials",
                measured=ray.get(10_000),
                limit=100,
                at_least=True,
                unit="×",
            ),
        ),
        notes=(
            "bare: write + fdatasync of as many bytes, appended to one file on the same disk.",
            "Ray Tune: save_to_dir, a result of four fields per trial; no cluster, fsync or copy to storage.",
            "Optuna: journal file; ask, attribute and tell (three or more synced appends); random sampling.",
        ),
        settings={
            "rounds": settings.rounds,
            "commits_per_round": _TURNS * _COMMITS,
            "ray_saves_per_round": _SAVES,
            "optuna_asks_per_round": _ASKS,
            "peer_state_bytes": {f"{name}/{trials}": size for (name, trials), size in sizes.items()},
        },
    )


if __name__ == "__main__":
    run(
        measure,
        options(
            __doc__,
            trials=(100, 1_000, 10_000, 50_000, 100_000),
            quick_trials=(100, 1_000, 10_000),
            rounds=5,
        ),
    )
