"""Two drivers on one experiment with a copy, each on a machine of its own: exactly one goes on, nothing is damaged."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tests.crash.mirror_child import Settings
from tests.crash.mirror_places import Place
from tests.crash.mirror_steady import Task
from tests.crash.sharing import Driver
from tests.killing import ROOT

__all__ = ["SCENES", "Machines", "Scene", "Scenes", "ends_well", "goes_on", "said", "started"]

QUIET_S: Final = 1.5
"""For those who take over from one that sleeps or is dead."""
LONG_S: Final = 10.0
"""Longer than a driver that works rests between two swaps, also on a busy computer."""

_NUMBERS: Final = itertools.count(1)


class Machines:
    """Machines that have an experiment in common, which is nowhere yet.

    Args:
        directory: What is below it is theirs.
        place: Where the copy is.
        rng: What moments are drawn from.
    """

    def __init__(self, directory: Path, place: Place, rng: random.Random) -> None:
        self.directory = directory
        self.place = place
        self.rng = rng
        self.name = f"exp-{next(_NUMBERS)}-{rng.getrandbits(32):08x}"
        self.drivers: list[Driver] = []

    def local(self, machine: int) -> Path:
        """The experiment's directory on one of them."""
        return self.directory / f"machine{machine}" / self.name

    @property
    def last_words(self) -> list[dict[str, Any]]:
        """What each driver told last."""
        return [driver.told[-1] for driver in self.drivers if driver.told]

    @asynccontextmanager
    async def at(
        self,
        machine: int,
        *,
        by_uri: bool = False,
        direct: bool = False,
        quiet_s: float = QUIET_S,
        piece_bytes: int = 8 << 20,
        **task: Any,
    ) -> AsyncGenerator[Driver, None]:
        """A driver on one of them, killed at the end if it still runs.

        Args:
            machine: Which.
            by_uri: By the URI of the copy, and not by the directory.
            direct: Past the door.
            quiet_s: Of `Settings`.
            piece_bytes: Likewise.
            task: Of `Task`.
        """
        local = self.local(machine)
        local.parent.mkdir(exist_ok=True)
        settings = Settings(
            machine=f"machine{machine}", quiet_s=quiet_s, part_bytes=256 << 10, piece_bytes=piece_bytes
        )
        made = Task(
            location=self.place.uri(self.name, machine) if by_uri else str(local),
            local_dir=str(local.parent) if by_uri else None,
            upload_dir=None if by_uri else self.place.uri("", machine).rstrip("/"),
            settings=settings.text(),
            **task,
        )
        async with started(made, self.place.direct if direct else self.place.env) as driver:
            self.drivers.append(driver)
            yield driver

    async def check(self) -> None:
        """All that was promised by those that went on is in the copy, once; its checkpoints verify."""
        async with self.place.read(self.name) as reader:
            trials = {trial.trial_id: trial for trial in reader.trials}
            promised = [line for driver in self.drivers for line in driver.told if line["kind"] == "flushed"]
            for trial_id, lines in itertools.groupby(promised, key=lambda line: str(line["trial"])):
                flushed = list(lines)
                rows = [row["mark"] for row in await reader.history(trial_id)]
                assert rows == sorted(set(rows)), rows
                assert len(rows) == trials[trial_id].num_results
                missing = {line["mark"] for line in flushed} - set(rows)
                assert not missing, sorted(missing)
                steps = [checkpoint.step for checkpoint in trials[trial_id].checkpoints]
                assert flushed[-1]["steps"][-1:] <= steps[-1:], (flushed[-1], steps)
            assert (reader.metadata.get("tick") or "") >= max((each["mark"] for each in promised), default="")
            for trial in trials.values():
                for checkpoint in trial.checkpoints:
                    if checkpoint.mirrored:
                        await reader.fetch(checkpoint)


@asynccontextmanager
async def started(task: Task, env: dict[str, str]) -> AsyncGenerator[Driver, None]:
    """A `tests.crash.mirror_steady`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.crash.mirror_steady", task.text()),
        cwd=ROOT,
        env=os.environ | env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    driver = Driver(process)
    try:
        yield driver
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()
        await driver._reading


async def goes_on(driver: Driver, rounds: int = 2) -> None:
    """It flushes more."""
    last = await driver.until("flushed", "ended", count=len(driver.marks) + rounds)
    assert last["kind"] == "flushed", last


async def ends_well(driver: Driver) -> None:
    """It closes, and nothing is said against it."""
    last = await driver.close()
    assert last["error"] is None, last


def said(driver: Driver, words: str) -> bool:
    """Whether it warned of something."""
    return any(line["kind"] == "said" and words in line["text"] for line in driver.told)


# -- scenes; each returns how the one that did not go on ended -------------------------------------------------------


async def at_once(machines: Machines) -> str:
    """Two open it in the same moment."""
    async with machines.at(0) as one, machines.at(1) as other:
        pair = [one, other]
        await asyncio.gather(*(driver.until("ended", "flushed", count=2) for driver in pair))
        # Both may have opened it: who claimed last goes on, and the other finds out.
        await asyncio.gather(*(driver.until("ended", "flushed", count=12) for driver in pair))
        running = [driver for driver in pair if driver.told[-1]["kind"] != "ended"]
        assert len(running) == 1, [driver.told[-1] for driver in pair]
        (loser,) = (driver for driver in pair if driver not in running)
        await goes_on(running[0])
        await ends_well(running[0])
        await machines.check()
        return str(loser.told[-1]["error"])


async def at_work(machines: Machines) -> str:
    """One works, and another machine wants it too."""
    async with machines.at(0) as one:
        await one.until("flushed", count=machines.rng.randint(1, 5))
        async with machines.at(1, by_uri=machines.rng.random() < 0.5, quiet_s=LONG_S) as other:
            last = await other.until("ended", "opened")
        await goes_on(one)
        await ends_well(one)
    await machines.check()
    return str(last.get("error"))


async def same_directory(machines: Machines) -> str:
    """One works, and another process of the same machine wants it by the copy's URI."""
    async with machines.at(0) as one:
        await one.until("flushed", count=machines.rng.randint(1, 5))
        async with machines.at(0, by_uri=True) as other:
            last = await other.until("ended", "opened")
        await goes_on(one)
        await ends_well(one)
    await machines.check()
    return str(last.get("error"))


async def slept(machines: Machines) -> str:
    """One is stopped in its work; another machine goes on and ends in order; then the first wakes up."""
    rng = machines.rng
    async with machines.at(0) as one:
        await one.until("flushed", count=rng.randint(1, 8))
        await asyncio.sleep(rng.uniform(0, 0.05))
        one.signal(signal.SIGSTOP)
        async with machines.at(1, by_uri=rng.random() < 0.5) as other:
            await goes_on(other, rng.randint(1, 4))
            await ends_well(other)
        before = await machines.place.listing(machines.name)
        one.signal(signal.SIGCONT)
        last = await one.until("ended")
        after = await machines.place.listing(machines.name)
        check_unharmed(before, after)
    await machines.check()
    return str(last["error"])


def check_unharmed(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Whoever woke up has changed nothing that was there; what it was sending just then may have come as well."""
    for key, info in before.items():
        now = after.get(key)
        assert now is not None, f"{key} is gone"
        # the same bytes may have another version
        assert (now.size_bytes, now.crc32c) == (info.size_bytes, info.crc32c), f"{key} is another"
        assert info.crc32c is not None or now.version == info.version, f"{key} was replaced"


async def woke_early(machines: Machines) -> str:
    """One is stopped, and wakes up while another machine waits, claims or has just gone on."""
    rng = machines.rng
    async with machines.at(0) as one:
        await one.until("flushed", count=rng.randint(1, 8))
        one.signal(signal.SIGSTOP)
        async with machines.at(1, by_uri=rng.random() < 0.5) as other:
            waiting = asyncio.create_task(other.until("said", "opened", "ended"))
            await asyncio.wait([waiting])
            await asyncio.sleep(rng.uniform(0, 1.4 * QUIET_S))
            one.signal(signal.SIGCONT)
            await other.until("ended", "flushed", count=3)
            if other.told[-1]["kind"] == "ended":
                last = other.told[-1]
                await goes_on(one)
                await ends_well(one)
            else:
                last = await one.until("ended")
                await goes_on(other)
                await ends_well(other)
    await machines.check()
    return str(last["error"])


async def killed(machines: Machines) -> str:
    """One is killed, and another machine goes on."""
    rng = machines.rng
    async with machines.at(0) as one:
        await one.until("flushed", count=rng.randint(1, 8))
        await asyncio.sleep(rng.uniform(0, 0.05))
        one.signal(signal.SIGKILL)
        await one.process.wait()
    async with machines.at(1, by_uri=True) as other:
        await goes_on(other)
        await ends_well(other)
    await machines.check()
    return "killed"


Scene = Callable[[Machines], Coroutine[Any, Any, str]]
Scenes = Mapping[str, tuple[Scene, Sequence[str]]]

SCENES: Final[Scenes] = {
    "at once": (at_once, ("ExperimentLockedError", "FencedError")),
    "at work": (at_work, ("ExperimentLockedError",)),
    "one directory": (same_directory, ("ExperimentLockedError",)),
    "slept": (slept, ("FencedError",)),
    "woke early": (woke_early, ("ExperimentLockedError", "FencedError")),
    "killed": (killed, ("killed",)),
}
"""By name: what happens, and how the one that does not go on may end."""
