"""A driver that works a store as hard as it can, and tells what it was promised; made to be killed.

`python -m tests.crash.driver LOCATION LOG SEED [SMALL]`: opens the experiment, and in a loop adds trials, reports, sets
statuses and metadata, saves, clones and restores checkpoints, requeues, flushes, closes and opens again. It appends to
LOG what it is about to ask for, and what was promised: one JSON line each, in one write to an append-only descriptor,
which survives the process.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import asynctune.state.generations
from asynctune.config import CheckpointConfig
from asynctune.store.store import ExperimentStore
from asynctune.trial import TrialStatus

__all__ = ["KEEP", "Driver"]

KEEP = 3
TRIALS = 6
PERIODS: list[float | str] = ["auto", 0, 0.01]


class Log:
    """What is told to whoever looks after the death."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tell(self, kind: str, **fields: Any) -> None:
        os.write(self._fd, (json.dumps({"kind": kind, **fields}) + "\n").encode())


class Driver:
    """One process's worth of work."""

    def __init__(self, location: Path, log: Log, rng: random.Random) -> None:
        self.location, self.log, self.rng = location, log, rng
        self.store: Any = None
        self.count = 0

    async def run(self) -> None:
        while True:
            self.store = await ExperimentStore.open(
                self.location,
                checkpoint_config=CheckpointConfig(num_to_keep=KEEP),
                checkpoint_period=self.rng.choice(PERIODS),
            )
            self.log.tell("opened", epoch=self.store.opening.epoch)
            if self.rng.random() < 0.7:
                self.store.requeue(resume_errored=self.rng.random() < 0.5)
            for _ in range(self.rng.randint(5, 80)):
                await self.step()
            await self.store.aclose()
            self.log.tell("closed")

    async def step(self) -> None:
        choice = self.rng.random()
        if len(self.store.trials) < TRIALS:
            self.store.add_trial({"x": self.rng.random()})
        trial = self.rng.choice(list(self.store.trials))
        if choice < 0.45:
            self.report(trial)
        elif choice < 0.60:
            # a number that only rises, told before and after: the promise is easy to check
            self.count += 1
            value = f"{self.store.opening.epoch:06d}.{self.count:08d}"
            self.store.set_metadata("tick", value)
            self.store.set_metadata(f"big{self.count % 5}", "x" * self.rng.randint(0, 3000))
            self.log.tell("tick", value=value)
            if self.rng.random() < 0.7:
                seq = await self.store.flush()
                self.log.tell("flushed", value=value, seq=seq)
        elif choice < 0.75:
            self.status(trial)
        elif choice < 0.9:
            await self.save(trial)
        elif choice < 0.93:
            sources = [t for t in self.store.trials if t.checkpoints]
            if sources:
                made = await self.store.clone_checkpoint(
                    self.rng.choice(sources).trial_id, to_trial=trial.trial_id
                )
                self.log.tell("saved", trial=trial.trial_id, step=made.step, directory=str(made.path))
        elif choice < 0.96:
            if trial.checkpoints:
                await self.store.restore_checkpoint(trial.trial_id)
        else:
            await asyncio.gather(*(self.save(t) for t in list(self.store.trials)[:3]))

    def report(self, trial: Any) -> None:
        if trial.status is TrialStatus.PENDING:
            self.store.set_status(trial.trial_id, TrialStatus.RUNNING)
        if not trial.status.is_finished:
            for _ in range(self.rng.randint(1, 3)):
                # a row that no other timeline has
                self.count += 1
                self.store.report(trial.trial_id, {"mark": f"{self.store.opening.epoch}.{self.count}"})

    def status(self, trial: Any) -> None:
        if trial.status is TrialStatus.RUNNING:
            target = self.rng.choice(["PAUSED", "ERROR", "PENDING", "TERMINATED"])
        elif trial.status is TrialStatus.PENDING or trial.status is TrialStatus.PAUSED:
            target = "RUNNING"
        else:
            target = "PENDING"
        self.store.set_status(trial.trial_id, target)

    async def save(self, trial: Any) -> None:
        directory = Path(tempfile.mkdtemp(dir=self.location.parent / "work"))
        for name in range(self.rng.randint(1, 3)):
            (directory / f"f{name}").write_bytes(self.rng.randbytes(self.rng.choice([0, 100, 20_000])))
        results = self.store.get_trial(trial.trial_id).num_results
        saved = await self.store.save_checkpoint(trial.trial_id, directory, move=self.rng.random() < 0.5)
        self.log.tell(
            "saved", trial=trial.trial_id, step=saved.step, directory=str(saved.path), results=results
        )
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    location, log, seed = Path(sys.argv[1]), Log(sys.argv[2]), sys.argv[3]
    small = int(sys.argv[4]) if len(sys.argv) > 4 else 20_000
    (location.parent / "work").mkdir(exist_ok=True)
    with mock.patch.object(asynctune.state.generations, "_MIN_JOURNAL_BYTES", small):
        asyncio.run(Driver(location, log, random.Random(seed)).run())


if __name__ == "__main__":
    main()
