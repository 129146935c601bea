"""A Tuner's program that is killed again and again: `python -m tests.crash.tuning EXPERIMENT WORK KIND`.

WORK is a file with a line for each thing that a trial did, written before anything is reported: what was worked can
be counted, whatever the experiment remembers of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

from asynctune import (
    Checkpoint,
    ExperimentNotFoundError,
    FailureConfig,
    OptunaSearcher,
    RunConfig,
    TuneConfig,
    Tuner,
    session,
    uniform,
)

__all__ = ["AT_ONCE", "ITERATIONS", "KINDS", "TRIALS"]

TRIALS: Final = 8
ITERATIONS: Final = 12
RUNGS: Final = (4, 7)  # where trials pause; the second has no checkpoint: what was worked since is lost

AT_ONCE: Final = 2
KINDS: Final = ("coroutine", "process", "optuna")


class Counting:
    """A searcher that proposes each number once, and remembers all it was told."""

    def __init__(self, work: str) -> None:
        self._work = work
        self.given = 0
        self.rows: dict[str, int] = {}  # by trial, the highest iteration
        self.ended: list[str] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if self.given == TRIALS:
            return None
        self.given += 1
        return {"x": random.Random(self.given).random(), "work": self._work}

    def on_trial_result(self, trial_id: str, result: Any) -> None:
        before, now = self.rows.get(trial_id, 0), result["training_iteration"]
        assert now <= before + 1, f"trial {trial_id}: {now} was told after {before}"
        self.rows[trial_id] = max(before, now)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        assert trial_id not in self.ended, f"trial {trial_id} ended twice"
        assert result["training_iteration"] == ITERATIONS
        self.ended.append(trial_id)

    def get_state(self) -> Any:
        return {"given": self.given, "rows": dict(self.rows), "ended": list(self.ended)}

    def set_state(self, state: Any) -> None:
        self.given, self.rows, self.ended = state["given"], state["rows"], state["ended"]


class Rungs:
    """A scheduler that pauses each trial once at each rung, and goes on with the one that is least far."""

    def __init__(self) -> None:
        self.paused: dict[str, list[int]] = {}

    def on_trial_result(self, trial_id: str, result: Any) -> Any:
        at = result["training_iteration"]
        known = self.paused.setdefault(trial_id, [])
        if at in RUNGS and at not in known:
            known.append(at)
            return "PAUSE"
        return "CONTINUE"

    def choose_trial_to_run(self, trial_ids: Any) -> str | None:
        return min(trial_ids, key=lambda each: (len(self.paused.get(each, ())), each), default=None)

    def get_state(self) -> Any:
        return {key: list(value) for key, value in self.paused.items()}

    def set_state(self, state: Any) -> None:
        self.paused = {key: list(value) for key, value in state.items()}


def _worked(config: dict[str, Any], what: str, iteration: int) -> None:
    line = json.dumps([what, config["x"], iteration, os.getpid()]) + "\n"
    fd = os.open(config["work"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode("ascii"))
    finally:
        os.close(fd)


async def coroutine(config: dict[str, Any]) -> None:
    """Reports each iteration, every second one with a checkpoint."""
    checkpoint = session.get_checkpoint()
    start = 0 if checkpoint is None else (await asyncio.to_thread(checkpoint.to_dict))["iteration"]
    for iteration in range(start + 1, ITERATIONS + 1):
        await asyncio.sleep(0.004)
        await asyncio.to_thread(_worked, config, "iteration", iteration)
        made = Checkpoint.from_dict({"iteration": iteration}) if iteration % 2 == 0 else None
        await session.areport(_row(config, iteration), made)
        if made is not None:
            await asyncio.to_thread(_worked, config, "committed", iteration)


def process(config: dict[str, Any]) -> None:
    """The same as a function, with a directory that it uses again and again."""
    checkpoint = session.get_checkpoint()
    start = 0
    if checkpoint is not None:
        start = int(Path(checkpoint, "iteration").read_text("ascii"))
    directory = Path(session.get_trial_dir(), "mine")
    for iteration in range(start + 1, ITERATIONS + 1):
        _worked(config, "iteration", iteration)
        made = None
        if iteration % 2 == 0:
            directory.mkdir(exist_ok=True)
            Path(directory, "iteration").write_text(str(iteration), "ascii")
            made = Checkpoint.from_directory(directory)
        session.report(_row(config, iteration), made)
        if made is not None:
            _worked(config, "committed", iteration)


def _row(config: dict[str, Any], iteration: int) -> dict[str, Any]:
    return {"loss": config["x"] / iteration, "training_iteration": iteration}


def searching(kind: str, work: str) -> tuple[Any, dict[str, Any] | None]:
    """A searcher, and its space if it has none of its own."""
    if kind == "optuna":
        import optuna  # noqa: PLC0415 - slow, and the others start often

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(n_startup_trials=3, seed=7)
        return OptunaSearcher(sampler=sampler), {"x": uniform(0, 1), "work": work}
    return Counting(work), None


async def main(path: str, work: str, kind: str) -> None:
    # Where this runs in the background of a shell, it was started with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    (searcher, space), scheduler = searching(kind, work), Rungs()
    trainable = process if kind == "process" else coroutine
    tune = TuneConfig(
        metric="loss",
        mode="min",
        num_samples=TRIALS,
        max_concurrent_trials=AT_ONCE,
        search_alg=searcher,
        scheduler=scheduler,
    )
    run = RunConfig(
        name=os.path.basename(path),
        local_dir=os.path.dirname(path),
        failure_config=FailureConfig(max_failures=-1),
    )
    try:
        tuner = await Tuner.restore(path, trainable, tune_config=tune, run_config=run)
    except ExperimentNotFoundError:
        tuner = Tuner(trainable, param_space=space, tune_config=tune, run_config=run)
    results = await tuner.fit()
    assert results.num_terminated == TRIALS, results
    if not scheduler.paused:
        return  # it was finished before
    assert set(map(tuple, scheduler.paused.values())) == {RUNGS}, scheduler.paused
    if kind == "optuna":
        states = Counter(trial.state.name for trial in searcher._study.trials)
        assert states == {"COMPLETE": TRIALS}, states
        rows = {len(trial.intermediate_values) for trial in searcher._study.trials}
        assert rows == {ITERATIONS}, rows
    else:
        assert searcher.rows == dict.fromkeys(searcher.ended, ITERATIONS), searcher.rows
        assert len(searcher.ended) == TRIALS, searcher.ended


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
