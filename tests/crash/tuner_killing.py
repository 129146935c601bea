"""Ends Tuners at random moments, and checks what each left; an experiment goes on through many deaths."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from asynctune import ExperimentNotFoundError, ExperimentStore, ResultGrid
from asynctune.inspect.verifying import verify
from tests.crash.checking import leftovers
from tests.crash.tuning import ITERATIONS, TRIALS
from tests.killing import ROOT

__all__ = ["Tally", "kill_tuners"]

MINIMUM: Final = TRIALS * ITERATIONS
MOST: Final = 2.5
"""How often the minimum may be worked in all: what was worked since a checkpoint is worked again."""

_KILLS_EACH: Final = 12
"""Of one experiment: each loses a few iterations of those trials that run, so that the bound can be kept."""
_SIGNALS: Final = (signal.SIGKILL,) * 8 + (signal.SIGTERM, signal.SIGINT)
_ENDS: Final = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {-signal.SIGTERM, 128 + signal.SIGTERM},
    signal.SIGINT: {-signal.SIGINT, 128 + signal.SIGINT},
}


@dataclass
class Tally:
    """What came of it.

    Attributes:
        kills: How often a driver was ended, by signal.
        workers: How many workers were killed under a driver.
        experiments: How many were finished in the end.
        restores: How often one went on.
        worked: Iterations worked, in all.
    """

    kills: Counter[str] = field(default_factory=Counter)
    workers: int = 0
    experiments: int = 0
    restores: int = 0
    worked: int = 0

    @property
    def killed(self) -> int:
        """How often by SIGKILL."""
        return self.kills[signal.SIGKILL.name]

    @property
    def ratio(self) -> float:
        """Of what was worked to the minimum."""
        return self.worked / (self.experiments * MINIMUM)


@dataclass
class _Seen:
    """What an experiment has shown, and must not take back."""

    steps: dict[str, int] = field(default_factory=dict)
    proposed: dict[str, float] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)


async def kill_tuners(directory: Path, rng: random.Random, kills: int, kind: str) -> Tally:
    """Start Tuners of this kind, kill them `kills` times at moments that are drawn, and check what each leaves.

    Now and then one is ended by another signal, too.

    Args:
        directory: Where the experiments are made; a new one when one is finished.
        rng: What is drawn from.
        kills: How many times by SIGKILL.
        kind: One of `tests.crash.tuning.KINDS`.
    """
    tally = Tally()
    while tally.killed < kills:
        home = directory / f"{kind}{tally.experiments}"
        home.mkdir()
        await _one_experiment(home, rng, min(kills, tally.killed + _KILLS_EACH), kind, tally)
        tally.experiments += 1
    return tally


async def _one_experiment(home: Path, rng: random.Random, until: int, kind: str, tally: Tally) -> None:
    path, work = home / "exp", home / "work"
    seen = _Seen()
    while True:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.crash.tuning",
            str(path),
            str(work),
            kind,
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        try:
            number = None
            if tally.killed < until:
                number = await _end(process, work, rng, kind, tally)
            _, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode == 0:
            break
        assert number is not None, errors.decode()
        assert process.returncode in _ENDS[number], errors.decode()
        tally.kills[number.name] += 1
        _, alive = await asyncio.to_thread(psutil.wait_procs, _workers(_works(work)), timeout=20)
        assert not alive, "workers outlive their driver"
        if await _check(path, work, seen):
            tally.restores += 1
    await _check(path, work, seen)
    await _check_finished(path)
    worked = sum(what == "iteration" for what, *_ in _works(work))
    assert worked <= MOST * MINIMUM, f"{worked} iterations were worked, and {MINIMUM} were to be"
    tally.worked += worked


async def _end(
    process: asyncio.subprocess.Process, work: Path, rng: random.Random, kind: str, tally: Tally
) -> signal.Signals:
    """Send a signal when some more was worked, or some milliseconds later; perhaps a worker is killed before."""
    known = len(_works(work))
    # none at all: perhaps in the middle of the start, which takes that long
    lines, seconds = rng.randint(0, 40), rng.uniform(0, 0.03)
    await _worked(process, work, known + lines)
    await asyncio.sleep(seconds if lines else rng.uniform(0, 0.8))
    if kind == "process" and rng.random() < 0.3:
        workers = _workers(_works(work)[known:])
        if workers and process.returncode is None:
            workers[-1].kill()
            tally.workers += 1
            await _worked(process, work, len(_works(work)) + rng.randint(0, 5))
    number: signal.Signals = rng.choice(_SIGNALS)
    if process.returncode is None:
        process.send_signal(number)
    return number


async def _worked(process: asyncio.subprocess.Process, work: Path, lines: int) -> None:
    # it is another process that is waited for
    while process.returncode is None and len(_works(work)) < lines:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def _workers(works: list[Any]) -> list[psutil.Process]:
    """Those worker processes that still live, of those that did this."""
    found = []
    for pid in dict.fromkeys(pid for _, _, _, pid in works):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if "asynctune.runners.worker" in process.cmdline():
                found.append(process)
    return found


def _works(work: Path) -> list[Any]:
    if not work.exists():
        return []
    return [
        json.loads(line) for line in work.read_text("ascii").splitlines(keepends=True) if line.endswith("\n")
    ]


async def _check(path: Path, work: Path, seen: _Seen) -> bool:
    """Nothing went back since it was looked at before; whether there is an experiment."""
    try:
        report = await verify(str(path))
        async with ExperimentStore.open(path, mode="read") as store:
            trials = list(store.trials)
    except ExperimentNotFoundError:
        assert not seen.proposed, "it was there before"
        assert not work.exists(), "a trial has run"
        return False
    assert not report.problems, report.problems
    for trial in trials:
        step = max((checkpoint.step or 0 for checkpoint in trial.checkpoints), default=0)
        assert step >= seen.steps.get(trial.trial_id, 0), f"{trial.trial_id} went back"
        seen.steps[trial.trial_id] = step
        assert trial.config["x"] == seen.proposed.setdefault(trial.trial_id, trial.config["x"])
        assert trial.status != "ERROR", trial.error
        if trial.status == "TERMINATED":
            seen.ended.add(trial.trial_id)
        assert trial.trial_id not in seen.ended or trial.status == "TERMINATED", (
            f"{trial.trial_id} is not ended"
        )
    assert set(seen.proposed) == {trial.trial_id for trial in trials}, "a trial is gone"
    assert len(set(seen.proposed.values())) == len(trials) <= TRIALS, "a suggestion came twice"
    by_x = {x: seen.steps[trial_id] for trial_id, x in seen.proposed.items()}
    for what, x, iteration, _ in _works(work):
        if what == "committed":
            assert by_x[x] >= iteration, f"the trial with {x=} was told that {iteration} is committed"
    return True


async def _check_finished(path: Path) -> None:
    """Every trial has every iteration exactly once."""
    results = await ResultGrid.load(path)
    assert results.num_terminated == TRIALS, results
    for result in results:
        expected = list(range(1, ITERATIONS + 1))
        assert [row["training_iteration"] for row in await result.history()] == expected, result.path
        table = await asyncio.to_thread(Path(result.path, "progress.csv").read_text, "utf-8")
        assert len(table.splitlines()) == 1 + ITERATIONS, result.path
        assert result.checkpoint is not None
        assert result.checkpoint.step == ITERATIONS
    assert not leftovers(path), leftovers(path)
