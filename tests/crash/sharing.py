"""Two drivers on one experiment, each through a mount of its own: exactly one goes on, and nothing is damaged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from asynctune.store.store import ExperimentStore
from tests.crash.checking import check_experiment, leftovers
from tests.killing import ROOT
from tests.store.scenes import result_rows

__all__ = ["Driver", "kill_and_go_on", "open_at_once", "pause_and_take_over", "started"]

WITHIN_S = 40.0


class Driver:
    """A `tests.crash.sharing_driver` that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.told: list[dict[str, Any]] = []
        self._more = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            async with self._more:
                self.told.append(json.loads(line))
                self._more.notify_all()
        async with self._more:
            self._more.notify_all()

    async def until(self, *kinds: str, count: int = 1) -> dict[str, Any]:
        """The `count`-th line of these kinds; the last line of all, if the driver ended before."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.told if line["kind"] in kinds]

        async with asyncio.timeout(WITHIN_S), self._more:
            await self._more.wait_for(lambda: len(found()) >= count or self._over)
        assert self.told, "the driver ended before it told anything"
        return found()[count - 1] if len(found()) >= count else self.told[-1]

    @property
    def _over(self) -> bool:
        return self._reading.done() or bool(self.told and self.told[-1]["kind"] == "ended")

    @property
    def marks(self) -> list[str]:
        """What was promised."""
        return [line["mark"] for line in self.told if line["kind"] == "flushed"]

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def close(self) -> dict[str, Any]:
        """Let it end by itself; its last words."""
        assert self.process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self.process.stdin.write(b"\n")
            await self.process.stdin.drain()
        return await self.until("ended")


@asynccontextmanager
async def started(location: Path, *, locks: bool = True) -> AsyncGenerator[Driver, None]:
    """A driver, killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.crash.sharing_driver", str(location), "" if locks else "no-locks"),
        cwd=ROOT,
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


async def check(location: Path, drivers: Sequence[Driver]) -> None:
    """All that any driver was promised is there, once; checkpoints verify; nothing else lies about."""
    async with ExperimentStore.open(location) as store:
        await store.flush()
        await check_experiment(store)
        trials = {trial.trial_id: trial for trial in store.trials}
        tick = store.metadata.get("tick", "")
    promised: dict[str, set[str]] = {}
    for driver in drivers:
        for line in driver.told:
            if line["kind"] == "flushed":
                promised.setdefault(line["trial"], set()).add(line["mark"])
    for trial_id, marks in promised.items():
        rows = [row["mark"] for row in result_rows(location / trials[trial_id].trial_name)]
        assert rows == sorted(set(rows)), rows
        assert len(rows) == trials[trial_id].num_results
        assert marks <= set(rows), sorted(marks - set(rows))
    assert tick >= max((mark for marks in promised.values() for mark in marks), default="")
    assert not leftovers(location)


async def open_at_once(mounts: Sequence[Path], rounds: int, *, locks: bool = True) -> Counter[str]:
    """One driver for each mount, started in the same moment, `rounds` times; how often each ending came."""
    endings: Counter[str] = Counter()
    for _ in range(rounds):
        async with AsyncExitStack() as stack:
            drivers = [
                await stack.enter_async_context(started(mount / "exp", locks=locks)) for mount in mounts
            ]
            # Without locks two may have opened it: the last to claim goes on, and the others find out.
            await asyncio.gather(*(driver.until("ended", "flushed", count=3) for driver in drivers))
            running = [driver for driver in drivers if driver.told[-1]["kind"] != "ended"]
            if len(running) > 1:
                await asyncio.gather(*(driver.until("flushed", "ended", count=20) for driver in running))
                running = [driver for driver in drivers if driver.told[-1]["kind"] != "ended"]
            assert len(running) == 1, [driver.told[-1] for driver in drivers]
            (winner,) = running
            count = len(winner.marks)
            assert (await winner.until("flushed", count=count + 3))["kind"] == "flushed"
            for driver in drivers:
                if driver is not winner:
                    endings[driver.told[-1]["error"]] += 1
            assert (await winner.close())["error"] is None
            endings["goes on"] += 1
        for mount in mounts:
            await check(mount / "exp", drivers)
    return endings


async def pause_and_take_over(mounts: Sequence[Path], rng: random.Random) -> str:
    """One driver is stopped in its work, the other takes over, the first wakes up; how the first ended."""
    first_at, second_at = (mount / "exp" for mount in mounts)
    async with started(first_at, locks=False) as first:
        await first.until("flushed", count=rng.randint(1, 30))
        await asyncio.sleep(rng.uniform(0, 0.02))
        first.signal(signal.SIGSTOP)
        async with started(second_at, locks=False) as second:
            assert (await second.until("flushed", count=rng.randint(1, 10)))["kind"] == "flushed"
            before = len(first.marks)
            first.signal(signal.SIGCONT)
            last = await first.until("ended")
            # what it had flushed before the claim it may tell only now; nothing that it flushed after
            assert len(first.marks) <= before + 1
            assert (await second.until("flushed", count=len(second.marks) + 3))["kind"] == "flushed"
            assert (await second.close())["error"] is None
        for mount in mounts:
            await check(mount / "exp", [first, second])
    return str(last["error"])


async def kill_and_go_on(mounts: Sequence[Path], rng: random.Random) -> None:
    """One driver is killed, and the experiment goes on through the other mount."""
    first_at, second_at = (mount / "exp" for mount in mounts)
    async with started(first_at) as first:
        await first.until("flushed", count=rng.randint(1, 30))
        await asyncio.sleep(rng.uniform(0, 0.02))
        first.signal(signal.SIGKILL)
        await first.process.wait()
    async with started(second_at) as second:
        assert (await second.until("flushed", count=3))["kind"] == "flushed", second.told[-1]
        assert (await second.close())["error"] is None
    for mount in mounts:
        await check(mount / "exp", [first, second])
