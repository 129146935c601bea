"""Kills drivers whose experiments have a copy, takes their disks away, and lets others go on; checks what they find."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from asynctune.errors import ExperimentNotFoundError
from tests.crash.checking import promises
from tests.crash.mirror_checking import State, check_bucket, check_log, lost_epochs
from tests.crash.mirror_child import Settings
from tests.crash.mirror_driver import Work
from tests.crash.mirror_places import PartsProxy, Place
from tests.killing import ROOT

__all__ = ["kill_mirrored"]

EACH = 10
"""How often one experiment's drivers are killed."""
SMALL_PARTS = {"s3": 64 << 10, "gs": 256 << 10, "file": 64 << 10}
LARGE = {"s3": 1 << 20, "gs": 3 << 20, "file": 1 << 20}


async def kill_mirrored(directory: Path, rng: random.Random, place: Place, count: int) -> Counter[str]:
    """Kill `count` drivers; how often what was met."""
    outcomes: Counter[str] = Counter()
    for start in range(0, count, EACH):
        home = directory / f"home{start // EACH}"
        home.mkdir()
        await _Life(home, rng, place, outcomes).run(min(EACH, count - start))
    return outcomes


class _Life:
    """One experiment, through many deaths."""

    def __init__(self, home: Path, rng: random.Random, place: Place, outcomes: Counter[str]) -> None:
        self.rng = rng
        self.place = place
        self.outcomes = outcomes
        self.name = f"exp-{home.name}-{rng.getrandbits(32):08x}"
        self.log = home / "log"
        self.home = home
        self.machine = 0
        self.scored = rng.random() < 0.5
        self.keep = rng.choice([1, 2, 3])

    async def run(self, kills: int) -> None:
        work = self._work(by_uri=False)
        for _ in range(kills):
            if self.place.proxy is not None:
                self.place.proxy.next_process()
            await self._kill(work)
            self._check()
            self.outcomes["killed"] += 1
            lost = self.rng.random() < 0.5
            if lost and not await self._is_there():
                # nothing was promised, and so it may be gone for good
                self.outcomes["nothing was in the bucket yet"] += 1
                lost = False
            if lost:
                self.outcomes["the disk was lost"] += 1
                await asyncio.to_thread(
                    shutil.rmtree, self.local, ignore_errors=True
                )  # it may not have come that far
                self.machine += self.rng.random() < 0.5
                self._append("lost")
            by_uri = lost or (self.rng.random() < 0.3 and await self._is_there())
            work = self._work(by_uri=by_uri)
        await self._finish(work)

    # -- one process -------------------------------------------------------------------------------------------

    @property
    def local(self) -> Path:
        """Where the experiment is on the present machine."""
        return self.home / f"machine{self.machine}" / self.name

    def _work(self, *, by_uri: bool) -> Work:
        rng = self.rng
        self.local.parent.mkdir(exist_ok=True)
        settings = Settings(
            machine=f"machine{self.machine}",
            quiet_s=0.5,
            part_bytes=SMALL_PARTS[self.place.kind],
            journal_bytes=rng.choice([300, 20_000]),
        )
        return Work(
            location=self.place.uri(self.name) if by_uri else str(self.local),
            local_dir=str(self.local.parent) if by_uri else None,
            upload_dir=None if by_uri else self.place.upload_dir,
            log=str(self.log),
            seed=rng.getrandbits(32),
            settings=settings.text(),
            keep=self.keep,
            scored=self.scored,
            large=LARGE[self.place.kind],
        )

    async def _start(self, work: Work) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.crash.mirror_driver", work.text()),
            cwd=ROOT,
            env=os.environ | self.place.env,
            stderr=subprocess.PIPE,
        )

    async def _kill(self, work: Work) -> None:
        """Kill a driver some milliseconds after it has told some more, or when some parts of an upload are there."""
        lines, seconds = self.rng.choice([0, 1, 2, 15, 40, 80]), self.rng.uniform(0, 0.15)
        known = len(promises(self.log))
        process = await self._start(work)
        try:
            # it is another process that is waited for
            while process.returncode is None and len(promises(self.log)) < known + lines:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            if lines == 0:
                seconds += self.rng.uniform(0.3, 1.2)  # importing takes a while: in the middle of the opening
            if self.place.proxy is not None and self.rng.random() < 0.5:
                await self._await_parts(self.place.proxy)
            else:
                await asyncio.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            _, errors = await process.communicate()
        assert process.returncode == -signal.SIGKILL, errors.decode()

    async def _await_parts(self, proxy: PartsProxy) -> None:
        """Wait for some parts; whatever the driver does, not for long."""
        proxy.wanted = proxy.sent + self.rng.randint(1, 6)
        proxy.reached.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                await proxy.reached.wait()

    async def _finish(self, work: Work) -> None:
        """Let one look, and end in order."""
        if self.place.proxy is not None:
            self.place.proxy.next_process()
        process = await self._start(_finishing(work))
        try:
            async with asyncio.timeout(60):
                _, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
        assert process.returncode == 0, errors.decode()
        self.outcomes["promises"] += self._check()
        told = promises(self.log)
        last = next(entry for entry in reversed(told) if entry["kind"] == "found")
        await check_bucket(self.place, self.name, State.of(last), last["steps"], lost_epochs(told))
        self.outcomes["experiments"] += 1
        self.outcomes["uploads left for gc"] += len(await self.place.uploads(self.name))

    # -- looking -----------------------------------------------------------------------------------------------

    def _append(self, kind: str, **fields: Any) -> None:
        with self.log.open("a") as log:
            log.write(json.dumps({"kind": kind, **fields}) + "\n")

    def _check(self) -> int:
        """How many promises there are, all kept."""
        return check_log(promises(self.log), self.keep, scored=self.scored)

    async def _is_there(self) -> bool:
        """Whether the copy has anything; when it has promised something, it has to."""
        try:
            async with self.place.read(self.name):
                return True
        except ExperimentNotFoundError:
            assert all(entry["kind"] != "mirrored" for entry in promises(self.log))
            return False


def _finishing(work: Work) -> Work:
    return Work(**{**json.loads(work.text()), "finish": True})
