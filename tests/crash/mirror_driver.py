"""A driver that works an experiment with a copy as hard as it can, and tells what it was promised; made to be killed.

`python -m tests.crash.mirror_driver WORK`: WORK is JSON, see `Work`. What it finds when it opens, what it does and what
it was promised goes to a log, one JSON line each, written at once, so that the log outlives the process. A line about
something that is done stands next to doing it, without an `await` between: no commit can come between the two.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asynctune.config import CheckpointConfig, SyncConfig
from asynctune.store.store import ExperimentStore
from asynctune.trial import TrialStatus
from tests.crash.mirror_child import Settings, become

__all__ = ["Work"]

PERIODS: list[float | str] = ["auto", 0, 0.02]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done.

    Attributes:
        location: The experiment: its directory, or the URI of its copy.
        local_dir: Where it is staged, with a URI.
        upload_dir: Where it is copied to, with a directory; `None`: as it knows by itself.
        log: Where promises are told.
        seed: Of what is drawn.
        settings: `Settings.text()`.
        keep: How many checkpoints are kept of each trial.
        scored: Whether the best are kept, and not the newest.
        large: Size of the largest files.
        trials: How many.
        finish: Look, and end in order.
    """

    location: str
    log: str
    seed: int
    settings: str
    local_dir: str | None = None
    upload_dir: str | None = None
    keep: int = 2
    scored: bool = False
    large: int = 400_000
    trials: int = 3
    finish: bool = False

    def text(self) -> str:
        """As an argument of the program."""
        return json.dumps(asdict(self))


class Driver:
    """One process's worth of work."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.rng = random.Random(work.seed)
        self.fd = os.open(work.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.store: Any = None
        self.count = 0

    def tell(self, kind: str, **fields: Any) -> None:
        os.write(self.fd, (json.dumps({"kind": kind, **fields}) + "\n").encode())

    async def run(self) -> None:
        work = self.work
        location, local_dir = work.location, work.local_dir
        while True:
            upload_dir = work.upload_dir if location == work.location else None
            self.store = await ExperimentStore.open(
                location,
                local_dir=local_dir,
                sync_config=None
                if upload_dir is None
                else SyncConfig(upload_dir=upload_dir, sync_period=0.3),
                checkpoint_config=CheckpointConfig(
                    num_to_keep=work.keep, checkpoint_score_attribute="score" if work.scored else None
                ),
                checkpoint_period=self.rng.choice(PERIODS),
            )
            await self.look()
            if work.finish:
                await self.store.aclose()
                self.tell("closed")
                return
            if self.rng.random() < 0.7:
                self.store.requeue()
                self.cut(*self.store.trials)
            for _ in range(self.rng.randint(5, 50)):
                await self.step()
            await self.store.aclose()
            self.tell("closed")
            # the next time by the directory alone
            location, local_dir = str(self.store.location), None

    # -- telling -----------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Tell all that is there, and see whether every checkpoint is whole, wherever its files are."""
        rows = {
            trial.trial_id: [[row["training_iteration"], row["mark"]] for row in await self.history(trial)]
            for trial in self.store.trials
        }
        self.tell(
            "found",
            epoch=self.store.opening.epoch,
            location=str(self.store.location),
            tick=self.store.metadata.get("tick"),
            rows=rows,
            steps=self.steps(),
        )
        for trial in self.store.trials:
            for checkpoint in trial.checkpoints:
                restored = await self.store.restore_checkpoint(trial.trial_id, checkpoint.step)
                await asyncio.to_thread(shutil.rmtree, restored.path)
        self.tell("verified")

    async def history(self, trial: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = await self.store.history(trial.trial_id)
        last = trial.last_result
        assert trial.num_results == len(rows), (trial.trial_id, trial.num_results, len(rows))
        assert not rows or rows[-1]["mark"] == last["mark"], (rows[-1], last)
        return rows

    def steps(self) -> dict[str, list[list[float]]]:
        """The checkpoints of each trial, with what they are ranked by."""
        return {
            trial.trial_id: [[c.step, c.metrics.get("score", -1)] for c in trial.checkpoints]
            for trial in self.store.trials
        }

    def cut(self, *trials: Any) -> None:
        """Rows may have been cut off."""
        for trial in trials:
            last = self.store.get_trial(trial.trial_id).last_result
            self.tell("cut", trial=trial.trial_id, after=last["training_iteration"] if last else 0)

    # -- doing -------------------------------------------------------------------------------------------------

    async def step(self) -> None:
        if len(self.store.trials) < self.work.trials:
            made = self.store.add_trial({"x": self.rng.random()})
            self.tell("trial", trial=made.trial_id)
        trial = self.rng.choice(list(self.store.trials))
        choice = self.rng.random()
        if choice < 0.4:
            self.report(trial)
        elif choice < 0.6:
            await self.tick()
        elif choice < 0.7:
            self.status(trial)
        elif choice < 0.95:
            await self.save(trial)
        else:
            await asyncio.gather(*(self.save(each) for each in self.store.trials))

    async def tick(self) -> None:
        self.count += 1
        value = f"{self.store.opening.epoch:06d}.{self.count:08d}"
        self.store.set_metadata("tick", value)
        self.store.set_metadata(f"big{self.count % 5}", "x" * self.rng.randint(0, 8000))
        self.tell("tick", value=value)
        choice = self.rng.random()
        if choice < 0.35:
            await self.store.flush()
            self.tell("flushed", steps=self.steps())
        elif choice < 0.8:
            await self.store.flush(mirror=True)
            self.tell("mirrored", steps=self.steps())
        elif choice < 0.9:
            await self.store.drain()
        else:
            await asyncio.sleep(self.rng.uniform(0, 0.1))

    def report(self, trial: Any) -> None:
        if trial.status in {TrialStatus.PENDING, TrialStatus.PAUSED}:
            self.store.set_status(trial.trial_id, TrialStatus.RUNNING)
        if trial.status.is_finished:
            return
        for _ in range(self.rng.randint(1, 3)):
            self.count += 1
            mark = f"{self.store.opening.epoch}.{self.count}"
            self.store.report(trial.trial_id, {"mark": mark, "score": self.rng.randint(0, 9)})
            number = self.store.get_trial(trial.trial_id).last_result["training_iteration"]
            self.tell("row", trial=trial.trial_id, iteration=number, mark=mark)

    def status(self, trial: Any) -> None:
        if trial.status is TrialStatus.RUNNING:
            target = self.rng.choice(["PAUSED", "ERROR", "PENDING", "TERMINATED"])
        elif trial.status in {TrialStatus.PENDING, TrialStatus.PAUSED}:
            target = "RUNNING"
        else:
            target = "PENDING"
        self.store.set_status(trial.trial_id, target)
        self.cut(trial)

    async def save(self, trial: Any) -> None:
        above = Path(self.work.log).parent / "work"
        directory = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=above))
        await asyncio.to_thread(self.fill, directory)
        saved = await self.store.save_checkpoint(trial.trial_id, directory, move=self.rng.random() < 0.5)
        self.tell("saved", trial=trial.trial_id, step=saved.step)
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    def fill(self, directory: Path) -> None:
        sizes = [self.rng.choice([0, 100, 20_000]) for _ in range(self.rng.randint(1, 3))]
        if self.rng.random() < 0.4:
            sizes.append(self.work.large)
        for name, size in enumerate(sizes):
            (directory / "sub").mkdir(exist_ok=True)
            (directory / "sub" / f"f{name}").write_bytes(self.rng.randbytes(size))


def main() -> None:
    work = Work(**json.loads(sys.argv[1]))
    become(Settings.of(work.settings))
    Path(work.log).parent.joinpath("work").mkdir(exist_ok=True)
    asyncio.run(Driver(work).run())


if __name__ == "__main__":
    main()
