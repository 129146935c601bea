"""What the tests tune."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

from asynctune import Checkpoint, Trainable, session


async def coroutine(config):
    """Ten iterations, a checkpoint with each second one; goes on from its checkpoint."""
    start = 0
    if (checkpoint := session.get_checkpoint()) is not None:
        start = (await asyncio.to_thread(checkpoint.to_dict))["iteration"]
    for iteration in range(start + 1, 11):
        await asyncio.sleep(config.get("pause", 0))
        checkpoint = Checkpoint.from_dict({"iteration": iteration}) if iteration % 2 == 0 else None
        await session.areport({"loss": config["x"] / iteration, "training_iteration": iteration}, checkpoint)


async def failing_once(config):
    """Fails at iteration five in its first life."""
    checkpoint = session.get_checkpoint()
    start = 0 if checkpoint is None else (await asyncio.to_thread(checkpoint.to_dict))["iteration"]
    for iteration in range(start + 1, 8):
        if iteration == 5 and start == 0:
            raise RuntimeError("half way")
        made = Checkpoint.from_dict({"iteration": iteration}) if iteration == 3 else None
        await session.areport({"training_iteration": iteration}, made)


async def failing(config):
    """Fails if its config says so."""
    await session.areport({"loss": config["x"]})
    if config["x"] in (1, 3):
        raise ValueError(f"no {config['x']}")


def function(config):
    """Three reports, the last by returning it."""
    for iteration in range(1, 3):
        session.report({"loss": config["x"] + iteration, "pid": os.getpid()})
    return {"loss": config["x"], "pid": os.getpid()}


def generator(config):
    """Reports what it yields."""
    for iteration in range(3):
        yield {"loss": iteration}


def with_directory(config):
    """Writes a checkpoint directory again and again, which it may as soon as a report returned."""
    path = Path(session.get_trial_dir(), "mine")
    start = 0
    if (checkpoint := session.get_checkpoint()) is not None:
        start = json.loads(Path(checkpoint, "state.json").read_text("ascii"))["iteration"]
    for iteration in range(start + 1, config["iterations"] + 1):
        time.sleep(config.get("pause", 0))
        path.mkdir(exist_ok=True)
        Path(path, "state.json").write_text(json.dumps({"iteration": iteration}), "ascii")
        session.report({"training_iteration": iteration}, Checkpoint.from_directory(path))
        if config.get("die_at") == iteration and start == 0:
            os.kill(os.getpid(), getattr(signal, config["signal"]))


class Counting(Trainable):
    """Counts; a checkpoint is a file with the count."""

    def setup(self, config):
        self.count = 0
        self.made_in = os.getpid()

    def step(self):
        self.count += 1
        return {"count": self.count, "done": self.count >= self.config["until"]}

    def save_checkpoint(self, checkpoint_dir):
        Path(checkpoint_dir, "count").write_text(str(self.count), "ascii")

    def load_checkpoint(self, checkpoint):
        self.count = int(Path(checkpoint, "count").read_text("ascii"))


class Dictionary(Counting):
    """The same with a dict, and one object for all trials."""

    resets = 0

    def step(self):
        return {**super().step(), "resets": self.resets}

    def save_checkpoint(self, checkpoint_dir):
        return {"count": self.count}

    def load_checkpoint(self, checkpoint):
        self.count = checkpoint["count"]

    def reset_config(self, new_config):
        self.count = 0
        self.resets += 1
        return True
