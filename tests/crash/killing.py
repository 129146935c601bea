"""Kills drivers at random moments, and checks what each left; one experiment goes on through many deaths."""

from __future__ import annotations

import asyncio
import collections
import random
import signal
import subprocess
import sys
from pathlib import Path

from tests.crash.checking import check_after_crash, promises
from tests.killing import ROOT

__all__ = ["kill_many"]


async def kill_many(
    directory: Path, rng: random.Random, count: int, *, small: int = 20_000
) -> dict[str, int]:
    """Start, kill and check `count` drivers, a new experiment after every ten; how often what was found."""
    outcomes: collections.Counter[str] = collections.Counter()
    for number in range(count):
        home = directory / f"home{number // 10}"
        home.mkdir(exist_ok=True)
        log = home / "log"
        known = len(promises(log))
        await kill_one(home, log, rng, known, small)
        entries = promises(log)[known:]
        outcomes["acknowledged"] += sum(entry["kind"] in {"flushed", "saved"} for entry in entries)
        outcomes[await check_after_crash(home / "exp", log)] += 1
    return dict(outcomes)


async def kill_one(home: Path, log: Path, rng: random.Random, known: int, small: int) -> None:
    """Kill a driver some milliseconds after it has told some more."""
    lines, seconds = rng.choice([0, 1, 2, 10, 40]), rng.uniform(0, 0.1)
    arguments = [str(home / "exp"), str(log), str(rng.getrandbits(32)), str(small)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.crash.driver", *arguments, cwd=ROOT, stderr=subprocess.PIPE
    )
    try:
        # it is another process that is waited for
        while process.returncode is None and len(promises(log)) < known + lines:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        if lines == 0:
            seconds += 0.25  # importing takes that long: perhaps in the middle of the opening
        await asyncio.sleep(seconds)
    finally:
        if process.returncode is None:
            process.kill()
        _, errors = await process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
