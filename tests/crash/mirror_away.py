"""The bucket is away: in the middle of a run, at an opening, while another machine goes on, when a signal comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from asynctune import ResultGrid
from tests.crash.mirror_child import Settings
from tests.crash.mirror_places import Door, Place
from tests.crash.mirror_sharing import Machines, Scenes, ends_well, goes_on, said
from tests.crash.sharing import Driver
from tests.killing import ROOT

__all__ = ["SCENES", "stopped_while_uploads_hang"]

FILLER: Final = 400_000
COMMITS: Final = 140
PIECE_BYTES: Final = 1 << 20
MOST_MORE_BYTES: Final = 32 << 20
"""By how much a driver may grow while it commits 56 MB, of which it mirrors `PIECE_BYTES` at a time."""


def _door(machines: Machines) -> Door:
    assert machines.place.door is not None
    return machines.place.door


async def _commits(driver: Driver, count: int) -> dict[str, Any]:
    """It commits so many times more on its disk."""
    known = sum(line["kind"] == "committed" for line in driver.told)
    last = await driver.until("committed", "ended", count=known + count)
    assert last["kind"] == "committed", last
    return last


async def away_for_a_while(machines: Machines) -> str:
    """The bucket is away in the middle of a run, which writes more than it could hold in memory."""
    rng, door = machines.rng, _door(machines)
    small = machines.place.kind != "gs"  # which takes one piece a second
    piece_bytes = PIECE_BYTES if small else 8 * PIECE_BYTES
    async with machines.at(0, piece_bytes=piece_bytes, filler=FILLER, pause_s=0.0) as one:
        await goes_on(one)
        before = await _commits(one, 20)  # as large as it is at work
        await (door.shut() if rng.random() < 0.7 else door.hang())
        last = await _commits(one, COMMITS if small else COMMITS // 5)
        assert not small or last["rss"] - before["rss"] < MOST_MORE_BYTES, (before, last)
        await (door.shut() if door.hangs else asyncio.sleep(0))
        await door.open()
        await ends_well(one)
    assert one.marks[-1] >= last["mark"]
    await machines.check()
    return "caught up"


async def opened_offline(machines: Machines) -> str:
    """The bucket is away when the experiment is opened again, and back later."""
    door = _door(machines)
    async with machines.at(0) as one:
        await goes_on(one)
        await ends_well(one)
    await door.shut()
    async with machines.at(0) as one:
        last = await _commits(one, machines.rng.randint(1, 20))
        assert said(one, "cannot be reached")
        await door.open()
        while not one.marks or one.marks[-1] < last["mark"]:
            await goes_on(one, 1)
        await ends_well(one)
    await machines.check()
    return "caught up"


async def went_on_elsewhere(machines: Machines) -> str:
    """One is opened offline, and before the bucket is back for it another machine went on."""
    door = _door(machines)
    async with machines.at(0) as one:
        await goes_on(one)
        await ends_well(one)
    await door.shut()
    async with machines.at(0, flushes=False) as offline:
        await _commits(offline, 5)
        async with machines.at(1, by_uri=True, direct=True) as other:
            await goes_on(other)
            if machines.rng.random() < 0.5:
                await ends_well(other)
                await door.open()
                last = await offline.until("ended")
            else:
                await door.open()
                last = await offline.until("ended")
                await goes_on(other)
                await ends_well(other)
    await _comes_back(machines, other)
    return str(last["error"])


async def came_back_ahead(machines: Machines) -> str:
    """One is cut off from the bucket, works on, and dies; another machine goes on; then the first comes back."""
    door = _door(machines)
    async with machines.at(0) as one:
        await goes_on(one)
        await door.shut()
        await _commits(one, machines.rng.randint(5, 20))
        one.signal(signal.SIGKILL)
        await one.process.wait()
    await door.open()
    async with machines.at(1, by_uri=True) as other:
        await goes_on(other)
        await ends_well(other)
    await _comes_back(machines, other)
    return "set aside"


async def _comes_back(machines: Machines, other: Driver) -> None:
    """The machine that was left behind goes on from what the other did; what only it had is set aside, aloud."""
    async with machines.at(0) as back:
        await goes_on(back)
        await ends_well(back)
    opened = next(line for line in back.told if line["kind"] == "opened")
    assert opened["tick"] >= other.marks[-1], opened
    assert said(back, "had parted"), [line for line in back.told if line["kind"] == "said"]
    aside = machines.local(0) / ".asynctune" / "quarantine"
    assert any(name.startswith("wal-") for _, _, names in os.walk(aside) for name in names)
    await machines.check()


SCENES: Final[Scenes] = {
    "away for a while": (away_for_a_while, ("caught up",)),
    "opened offline": (opened_offline, ("caught up",)),
    "went on elsewhere": (went_on_elsewhere, ("FencedError",)),
    "came back ahead": (came_back_ahead, ("set aside",)),
}
"""As those of `mirror_sharing`, for places with a door."""


# -- a Tuner -----------------------------------------------------------------------------------------------------


async def stopped_while_uploads_hang(directory: Path, place: Place, rng: Any) -> str:
    """A Tuner gets SIGTERM while the bucket does not answer; the next start brings there what is left."""
    assert place.door is not None
    name = f"tuner-{rng.getrandbits(32):08x}"
    log = directory / "log"
    settings = Settings(drain_s=1.5, part_bytes=64 << 10)
    command = [name, str(directory), place.upload_dir, str(log), settings.text()]
    async with _tuner(command, place) as tuner:
        await _told(log, tuner, 4)
        await place.door.hang()
        await _told(log, tuner, 12)
        tuner.send_signal(signal.SIGTERM)
        async with asyncio.timeout(40):
            _, errors = await tuner.communicate()
    assert tuner.returncode == 128 + signal.SIGTERM, errors.decode()
    assert "not everything is in" in errors.decode(), errors.decode()
    assert "Tuner.restore" in errors.decode(), errors.decode()
    await place.door.shut()
    await place.door.open()
    async with _tuner([*command, "finish"], place) as tuner:
        async with asyncio.timeout(40):
            _, errors = await tuner.communicate()
        assert tuner.returncode == 0, errors.decode()
    grid = await ResultGrid.load(place.uri(name), storage_options=place.options)
    for result in grid:
        rows = [row["training_iteration"] for row in await result.history()]
        assert rows == list(range(1, rows[-1] + 1))
        assert result.checkpoint is not None
        assert result.checkpoint.step == rows[-1]
        assert result.checkpoint.mirrored
    assert grid.num_terminated == len(grid)
    return "said what was left, and brought it there"


@asynccontextmanager
async def _tuner(command: list[str], place: Place) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.crash.mirror_tuning", *command),
        cwd=ROOT,
        env=os.environ | place.env,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _told(log: Path, process: asyncio.subprocess.Process, count: int) -> list[dict[str, Any]]:
    """So many checkpoints were committed."""
    while True:
        lines = log.read_text().splitlines() if log.exists() else []
        if len(lines) >= count:
            return [json.loads(line) for line in lines]
        assert process.returncode is None
        await asyncio.sleep(0.01)
