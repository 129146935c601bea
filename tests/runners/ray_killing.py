"""Whatever may die under trials on Ray is killed at random moments: worker, actor, node, driver, several in a row.

What must hold: the experiment ends with every row once, what was acknowledged is there, no two processes ever took
turns in a trial, and nothing that ran for a dead driver runs on.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from asynctune import ResultGrid
from tests.killing import ROOT
from tests.runners.cluster import Cluster
from tests.runners.ray_checking import Place, actors, eventually, holds, workers
from tests.runners.ray_driver import DriverSettings

__all__ = ["NODES", "kill_once_more", "kill_round"]

NODES: Final = ("node_b", "node_c")
WITHIN_S: Final = 90.0
VICTIMS: Final = ("worker", "actor", "node", "driver")

_TRIALS: Final = 4
_ITERATIONS: Final = 10


class _Driver:
    """A process that runs an experiment, and what it says."""

    def __init__(self, place: Place, *, restore: bool) -> None:
        self.process = subprocess.Popen(
            _settings(place, restore=restore).command(),
            cwd=ROOT,
            env=os.environ | place.cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[dict[str, Any]] = []
        self.complained = ""
        self._threads = [threading.Thread(target=self._listen), threading.Thread(target=self._hear)]
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with suppress(ValueError):  # half a line, or Ray's
                self.said.append(json.loads(line))

    def _hear(self) -> None:
        assert self.process.stderr is not None
        self.complained = self.process.stderr.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


async def kill_round(cluster: Cluster, rng: random.Random, name: str, kills: int) -> Counter[str]:
    """One experiment, during which so many are killed; what died, and `failures`: how many starts of trials that cost.

    Args:
        cluster: With `NODES`; as many run at the end.
        name: Of the experiment, which is new.
    """
    place = Place(cluster, name)
    outcomes: Counter[str] = Counter()
    driver = _Driver(place, restore=False)
    failures: list[str] = []
    try:
        if rng.random() < 0.9:  # else it is killed while it starts
            await eventually(place.log.exists)
        for _ in range(kills):
            await asyncio.sleep(rng.uniform(0.0, 2.5))
            if driver.process.poll() is not None:
                break
            victim = rng.choice(VICTIMS)
            outcome = await kill_once_more(place, rng, victim, driver.process)
            outcomes[outcome] += 1
            if outcome == "driver":
                failures += _failures(driver)
                driver.close()
                driver = _Driver(place, restore=True)
        ends = time.monotonic() + WITHIN_S
        while driver.process.poll() is None:
            assert time.monotonic() < ends, f"{name} did not end: {driver.said}"
            await asyncio.sleep(0.1)
    finally:
        driver.close()
        for node in set(NODES) - set(cluster.nodes):
            await asyncio.to_thread(cluster.add_node, node)
    assert driver.process.returncode == 0, driver.complained
    outcomes["failures"] = len(failures + _failures(driver))
    try:
        await _holds(place)
    except AssertionError as error:
        kept = tempfile.mkdtemp(prefix="asynctune-kept-")
        shutil.copytree(place.directory, kept, dirs_exist_ok=True)
        shutil.copy(place.log, Path(kept, "log-of-the-trials"))
        error.add_note(f"killed: {dict(outcomes)}; failures: {failures + _failures(driver)}; kept in {kept}")
        raise
    return outcomes


def _settings(place: Place, *, restore: bool) -> DriverSettings:
    return DriverSettings(
        address=place.cluster.address,
        local_dir=str(place.local_dir),
        name=place.name,
        restore=restore,
        config=place.config(n=_ITERATIONS, s=0.1),
        trials=_TRIALS,
        max_failures=20,
        tells=True,
        runner={"worker_dir": place.work, "lost_after_s": 20.0},
    )


def _failures(driver: _Driver) -> list[str]:
    return [said["error"] for said in driver.said if "error" in said]


async def kill_once_more(place: Place, rng: random.Random, victim: str, driver: subprocess.Popen[str]) -> str:
    """Kill one of this kind; what became of it."""
    cluster = place.cluster
    if victim == "driver":
        if not place.log.exists():
            return "driver spared: no trial had begun"
        there = [each for node in NODES for each in (*workers(cluster, node), *actors(cluster, node))]
        driver.kill()
        driver.wait()
        await eventually(lambda: not any(process.is_running() for process in there))
        return "driver"
    node = rng.choice(NODES)
    if victim == "node":
        await asyncio.to_thread(cluster.kill_node, node)
        await asyncio.sleep(rng.choice([0.0, 2.0]))
        await asyncio.to_thread(cluster.add_node, node)
        cluster.run_in(node, ["sh", "-c", f"echo {node} > {place.me}"])
        return "node"
    processes = (workers if victim == "worker" else actors)(cluster, node)
    if not processes:
        return f"{victim} spared: none ran"
    with suppress(psutil.NoSuchProcess):
        rng.choice(processes).kill()
    return victim


async def _holds(place: Place) -> None:
    results = await ResultGrid.load(place.directory)
    assert results.num_terminated == len(results) == _TRIALS
    await holds(place, results, _ITERATIONS)
