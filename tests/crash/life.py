"""A small life of a store on a disk with faults, and what must hold after it; for tests and for the lab.

`python -m tests.crash.life LOCATION LOG PART NTH` lives it in a process that ends itself with SIGKILL at the n-th
operation of the disk on a path that holds PART.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import asynctune.state.generations
from asynctune.config import CheckpointConfig
from asynctune.errors import AsynctuneError
from asynctune.store.store import ExperimentStore
from asynctune.testing import FaultyFiles
from asynctune.testing.files import CHANGES
from tests.crash.checking import check_experiment, leftovers
from tests.killing import ROOT
from tests.store.scenes import directory_with, result_rows

__all__ = ["FAULTS", "SMALL", "count_operations", "kill_at", "run_with_fault"]

SMALL = 2500
"""Bytes of journal after which a snapshot is written in these lives."""

FAULTS = {
    "EIO": lambda files, nth: files.fail(errno.EIO, on=CHANGES, nth=nth),
    "ENOSPC": lambda files, nth: files.fail(errno.ENOSPC, on=CHANGES, nth=nth),
    "EIO, done all the same": lambda files, nth: files.fail(errno.EIO, on=CHANGES, nth=nth, applied=True),
    "half a write, then EIO": lambda files, nth: files.fail(errno.EIO, on="write", nth=nth, after_bytes=20),
    "half a write, then ENOSPC": lambda files, nth: files.fail(
        errno.ENOSPC, on="write", nth=nth, after_bytes=1
    ),
    "a short write": lambda files, nth: files.cut(7, nth=nth),
    "two in a row": lambda files, nth: (
        files.fail(errno.EIO, on=CHANGES, nth=nth),
        files.fail(errno.EIO, on=CHANGES, nth=nth + 1),
    ),
    "EIO from then on": lambda files, nth: files.fail(errno.EIO, on=CHANGES, nth=nth, lasting=True),
}


class Promised:
    """What was acknowledged before it went wrong."""

    def __init__(self, log: str | None = None) -> None:
        self._log = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.tick = -1
        self.rows = 0
        self.saved: list[int] = []
        self.asked_rows = 0
        self.asked_tick = -1

    def keep(self) -> None:
        """Write it where it outlives the process."""
        if self._log is not None:
            numbers = [self.tick, self.rows, self.asked_rows, self.asked_tick, *self.saved]
            os.write(self._log, (" ".join(map(str, numbers)) + "\n").encode())

    @classmethod
    def read(cls, log: Path) -> Promised:
        made = cls()
        lines = log.read_text().splitlines() if log.exists() else []
        if lines:
            numbers = [int(number) for number in lines[-1].split()]
            made.tick, made.rows, made.asked_rows, made.asked_tick, *made.saved = numbers
        return made


def small_snapshots() -> AbstractContextManager[object]:
    """Snapshots after a few commits, in this process."""
    return mock.patch.object(asynctune.state.generations, "_MIN_JOURNAL_BYTES", SMALL)


async def work(location: Path, work_dir: Path, files: FaultyFiles, promised: Promised) -> None:
    """A small life with everything in it; errors are the caller's."""
    with small_snapshots():
        await _work(location, work_dir, files, promised)


async def _work(location: Path, work_dir: Path, files: FaultyFiles, promised: Promised) -> None:
    config = CheckpointConfig(num_to_keep=2)
    async with ExperimentStore.open(
        location, files=files, checkpoint_config=config, checkpoint_period=3600
    ) as store:
        if len(store.trials) == 0:
            store.add_trial({"x": 1}, "t")
            store.set_status("t", "RUNNING")
        for number in range(promised.asked_tick + 1, promised.asked_tick + 6):
            store.set_metadata("tick", number)
            store.set_metadata("filler", "x" * 900)
            store.report("t", {"mark": number})
            promised.asked_tick, promised.asked_rows = number, promised.asked_rows + 1
            promised.keep()
            await store.flush()
            promised.tick, promised.rows = number, promised.asked_rows
            promised.keep()
            try:
                saved = await store.save_checkpoint("t", directory_with(work_dir / "d", data=str(number)))
            except AsynctuneError:
                continue  # it may fail alone
            promised.saved.append(saved.step or 0)
            promised.keep()


async def run_with_fault(directory: Path, name: str, nth: int) -> str:
    """One life with a fault at its n-th operation, and what must hold afterwards."""
    location, files, promised = directory / "exp", FaultyFiles(), Promised()
    fault: Any = FAULTS[name](files, nth)
    outcome = "nothing noticed"
    try:
        async with asyncio.timeout(30):
            await work(location, directory, files, promised)
    except AsynctuneError as error:
        outcome = type(error).__name__
    except BaseExceptionGroup as group:
        raise AssertionError(f"{name} at {nth} came out as a group") from group
    first = fault[0] if isinstance(fault, tuple) else fault
    if first.hits == 0:
        return "not reached"
    files.heal()
    await check_promised(location, promised)
    return outcome


async def check_promised(location: Path, promised: Promised) -> None:
    """What was acknowledged is there, nothing that was never asked for is, and all of it is whole."""
    async with ExperimentStore.open(location, checkpoint_config=CheckpointConfig(num_to_keep=2)) as store:
        tick = store.metadata.get("tick", -1)
        assert promised.tick <= tick <= promised.asked_tick
        if promised.tick >= 0:
            trial = store.get_trial("t")
            assert promised.rows <= trial.num_results <= promised.asked_rows
            steps = [checkpoint.step or 0 for checkpoint in trial.checkpoints]
            for step in promised.saved[-2:]:
                assert step in steps or min(steps) > step, (promised.saved, steps)
        await store.flush()
        await check_experiment(store)
        count = store.get_trial("t").num_results if promised.tick >= 0 else 0
    if promised.tick >= 0:
        rows = result_rows(location / "t")
        assert [row["training_iteration"] for row in rows] == list(range(1, count + 1))
    assert not leftovers(location)


async def count_operations(directory: Path, name: str) -> int:
    """How many operations there are in this life that the fault may strike."""
    files = FaultyFiles()
    await work(directory / "exp", directory, files, Promised())
    return files.count("write" if "write" in name else CHANGES)


async def kill_at(directory: Path, part: str, nth: int) -> str:
    """Let a process live it and die at an operation of the disk; what must hold afterwards."""
    location, log = directory / "exp", directory / "log"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.crash.life", str(location), str(log), part, str(nth), cwd=ROOT
    )
    code = await process.wait()
    assert code in {0, -signal.SIGKILL}, code
    await check_promised(location, Promised.read(log))
    return "killed" if code else "not reached"


def main() -> None:
    location, log, part, left = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])

    def strike(operation: Any) -> None:
        nonlocal left
        left -= part in operation.path
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    files = FaultyFiles()
    files.call(strike, on=CHANGES, lasting=True)
    asyncio.run(work(location, location.parent, files, Promised(log)))


if __name__ == "__main__":
    main()
