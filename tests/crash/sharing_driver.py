"""A driver that commits without end, and tells what was promised.

`python -m tests.crash.sharing_driver LOCATION [no-locks]`
With `no-locks` every `flock` succeeds, as on a filesystem that pretends to have them. A line on standard input ends it.
What it tells is one JSON line each: `refused` or `opened`, `flushed` with what is durable, and `ended`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from asynctune import AsynctuneError, ExperimentStore, TrialStatus

__all__: list[str] = []


def tell(kind: str, **fields: Any) -> None:
    os.write(1, (json.dumps({"kind": kind, **fields}) + "\n").encode())


async def work(store: Any, closing: asyncio.Event) -> None:
    trial = store.add_trial({"epoch": store.opening.epoch})
    store.set_status(trial.trial_id, TrialStatus.RUNNING)
    number = 0
    while not closing.is_set():
        number += 1
        mark = f"{store.opening.epoch:06d}.{number:08d}"
        store.set_metadata("tick", mark)
        store.report(trial.trial_id, {"mark": mark})
        if number % 7 == 0:
            with tempfile.TemporaryDirectory() as directory:
                Path(directory, "mark").write_text(mark, "ascii")
                await store.save_checkpoint(trial.trial_id, directory)
        await store.flush()
        tell("flushed", mark=mark, trial=trial.trial_id)
        await asyncio.sleep(0.002)


async def main(location: str) -> None:
    closing = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(0, closing.set)
    try:
        async with ExperimentStore.open(location) as store:
            tell("opened", epoch=store.opening.epoch, pid=os.getpid())
            await work(store, closing)
    except AsynctuneError as error:
        tell("ended", error=type(error).__name__, text=str(error))
    else:
        tell("ended", error=None)


if __name__ == "__main__":
    if "no-locks" in sys.argv[2:]:
        fcntl.flock = lambda fd, operation: None
    asyncio.run(main(sys.argv[1]))
