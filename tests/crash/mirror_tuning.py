"""A Tuner with a copy, whose trials make checkpoints without end.

`python -m tests.crash.mirror_tuning NAME DIRECTORY UPLOAD_DIR LOG SETTINGS [finish]`: LOG gets a line for each
committed checkpoint, SETTINGS is `Settings.text()`; with `finish` the trials end after their next checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any, Final

import asynctune.tuning.running
from asynctune import (
    Checkpoint,
    CheckpointConfig,
    ExperimentNotFoundError,
    RunConfig,
    SyncConfig,
    TuneConfig,
    Tuner,
    session,
    uniform,
)
from tests.crash.mirror_child import Settings, become

__all__ = ["CHECKPOINT_BYTES"]

CHECKPOINT_BYTES: Final = 300_000


def _tell(log: str, **fields: Any) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, (json.dumps(fields) + "\n").encode())
    finally:
        os.close(fd)


async def train(config: dict[str, Any]) -> None:
    checkpoint = session.get_checkpoint()
    start = 0 if checkpoint is None else (await asyncio.to_thread(checkpoint.to_dict))["iteration"]
    iteration = start
    while True:
        iteration += 1
        state = {"iteration": iteration, "weights": os.urandom(CHECKPOINT_BYTES)}
        await session.areport({"loss": config["x"] / iteration}, Checkpoint.from_dict(state))
        await asyncio.to_thread(_tell, config["log"], iteration=iteration)
        if config_of_run["finish"]:
            return
        await asyncio.sleep(0.02)


config_of_run = {"finish": False}


async def main(name: str, directory: str, upload_dir: str, log: str, settings: str, *finish: str) -> None:
    given = Settings.of(settings)
    become(given)
    asynctune.tuning.running._DRAIN_S = given.drain_s  # type: ignore[misc]
    config_of_run["finish"] = bool(finish)
    run = RunConfig(
        name=name,
        local_dir=directory,
        verbose=0,
        sync_config=SyncConfig(upload_dir=upload_dir, sync_period=0.2),
        checkpoint_config=CheckpointConfig(num_to_keep=2),
    )
    tune = TuneConfig(metric="loss", mode="min", num_samples=2)
    try:
        tuner = await Tuner.restore(os.path.join(directory, name), train)
    except ExperimentNotFoundError:
        space = {"x": uniform(0, 1), "log": log}
        tuner = Tuner(train, param_space=space, tune_config=tune, run_config=run)
    await tuner.fit()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
