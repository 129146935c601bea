"""A driver that commits without end into an experiment with a copy, and tells what was promised.

`python -m tests.crash.mirror_steady TASK`: TASK is JSON, see `Task`. What it tells is one JSON line each on standard
output: `said` for each warning, `opened`, `committed` (on this disk), `flushed` (in the copy) and `ended`. A line on
standard input ends it.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asynctune import AsynctuneError, ExperimentStore, SyncConfig, TrialStatus
from asynctune.config import CheckpointConfig
from tests.crash.mirror_child import Settings, become, say_warnings

__all__ = ["Task"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be done.

    Attributes:
        location: The experiment: its directory, or the URI of its copy.
        settings: `Settings.text()`.
        local_dir: Where it is staged, with a URI.
        upload_dir: Where it is copied to, with a directory; `None`: as it knows by itself.
        flushes: Whether it waits for the copy, now and then.
        filler: So many bytes are in each commit.
        pause_s: Between two rounds.
        checkpoint_bytes: Size of each fifth round's checkpoint.
    """

    location: str
    settings: str
    local_dir: str | None = None
    upload_dir: str | None = None
    flushes: bool = True
    filler: int = 0
    pause_s: float = 0.002
    checkpoint_bytes: int = 1000

    def text(self) -> str:
        """As an argument of the program."""
        return json.dumps(asdict(self))


def tell(kind: str, **fields: Any) -> None:
    os.write(1, (json.dumps({"kind": kind, **fields}) + "\n").encode())


async def work(store: Any, task: Task, closing: asyncio.Event) -> None:
    trial = store.add_trial({"epoch": store.opening.epoch})
    store.set_status(trial.trial_id, TrialStatus.RUNNING)
    number, mark = 0, ""
    flushing: asyncio.Task[None] | None = None
    while not closing.is_set():
        number += 1
        mark = f"{store.opening.epoch:06d}.{number:08d}"
        store.set_metadata("tick", mark)
        store.set_metadata("filler", os.urandom(task.filler))
        store.report(trial.trial_id, {"mark": mark})
        if number % 5 == 0:
            directory = Path(await asyncio.to_thread(tempfile.mkdtemp))
            await asyncio.to_thread((directory / "mark").write_bytes, os.urandom(task.checkpoint_bytes))
            await store.save_checkpoint(trial.trial_id, directory, move=True)
        await store.flush()
        tell("committed", mark=mark, trial=trial.trial_id, rss=_rss_bytes())
        if flushing is not None and flushing.done():
            flushing.result()
            flushing = None
        if task.flushes and number % 3 == 0 and flushing is None:
            flushing = asyncio.create_task(flush(store, trial.trial_id, mark))
            flushing.add_done_callback(_look_at)
        await asyncio.sleep(task.pause_s)
    if flushing is not None:
        await flushing
    if task.flushes:
        await flush(store, trial.trial_id, mark)


async def flush(store: Any, trial_id: str, mark: str) -> None:
    """Wait for the copy, beside the work."""
    steps = [checkpoint.step for checkpoint in store.checkpoints(trial_id)]
    await store.flush(mirror=True)
    tell("flushed", mark=mark, trial=trial_id, steps=steps)


def _look_at(task: asyncio.Task[None]) -> None:
    """What ends it may end the store before anybody asks for it; the store says the same."""
    if not task.cancelled() and (error := task.exception()) is not None:
        tell("flush failed", error=type(error).__name__)


def _rss_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def main(task: Task) -> None:
    closing = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, closing.set)
    try:
        async with ExperimentStore.open(
            task.location,
            local_dir=task.local_dir,
            sync_config=None
            if task.upload_dir is None
            else SyncConfig(upload_dir=task.upload_dir, sync_period=0.2),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ) as store:
            last = store.metadata.get("tick")
            tell("opened", epoch=store.opening.epoch, pid=os.getpid(), tick=last, path=str(store.location))
            await work(store, task, closing)
    except AsynctuneError as error:
        tell("ended", error=type(error).__name__, text=str(error))
    else:
        tell("ended", error=None)


if __name__ == "__main__":
    given = Task(**json.loads(sys.argv[1]))
    become(Settings.of(given.settings))
    say_warnings(tell)
    asyncio.run(main(given))
