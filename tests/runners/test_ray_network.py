"""The network between the head and a node is cut: for a while, and for good."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
import time
from contextlib import contextmanager, suppress

import psutil
import pytest

from asynctune import ResultGrid
from tests.killing import ROOT
from tests.runners.cluster import HEAD
from tests.runners.ray_checking import Place, checked, eventually, left_on, workers
from tests.runners.ray_driver import DriverSettings
from tests.runners.ray_trials import beginnings, lines

pytestmark = pytest.mark.timeout(150)

LOST_S = 5.0


class Driver:
    """One that runs on the head; its lines as they come."""

    def __init__(self, process):
        self.process = process
        self.said = []
        self.reads = threading.Thread(target=self._read)
        self.reads.start()

    def _read(self):
        for line in self.process.stdout:
            with suppress(ValueError):  # Ray says something of its own
                self.said.append((time.monotonic(), json.loads(line)))

    @property
    def errors(self):
        return [(at, said["error"]) for at, said in self.said if "error" in said]

    @property
    def ended(self):
        return [said for _, said in self.said if "ended" in said]


@contextmanager
def driving(place, **settings):
    made = DriverSettings(
        address=place.cluster.address, local_dir=str(place.local_dir), name=place.name, tells=True, **settings
    )
    process = subprocess.Popen(
        place.cluster.inside(HEAD, made.command()),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        driver = Driver(process)
        try:
            yield driver
        finally:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            driver.reads.join()


def reported(place):
    return sum(line["event"] == "reported" for line in lines(place.log))


async def test_a_network_that_comes_back_costs_nothing_but_time(far_cluster):
    place = Place(far_cluster, "cut-10s")
    with driving(
        place, trials=2, config=place.config(n=14, s=0.25), runner={"worker_dir": place.work}
    ) as driver:
        await eventually(lambda: reported(place) >= 6)
        far_cluster.cut("node_b")
        await asyncio.sleep(1)
        before = reported(place)
        await asyncio.sleep(9)
        assert reported(place) == before
        far_cluster.heal("node_b")
        healed_at = time.monotonic()
        await eventually(lambda: reported(place) > before)
        print(f"went on after {time.monotonic() - healed_at:.1f} s")
        await eventually(lambda: driver.ended, 60)
    assert driver.errors == []
    assert driver.ended == [{"ended": 2, "errors": 0}]
    await checked(await ResultGrid.load(place.directory), 14)
    assert [len(starts) for starts in beginnings(place.log).values()] == [1, 1]


async def test_a_network_that_stays_away_loses_the_trial_to_another_node(far_cluster):
    far_cluster.ensure(("node_b", "node_c"))
    place = Place(far_cluster, "cut")
    options = {"worker_dir": place.work, "lost_after_s": LOST_S, "resources_per_trial": {"cpu": 2}}
    with driving(
        place, trials=2, max_failures=1, config=place.config(n=12, s=0.25), runner=options
    ) as driver:
        await eventually(lambda: reported(place) >= 6)
        (worker,) = workers(far_cluster, "node_b")
        cut_at = time.monotonic()
        far_cluster.cut("node_b")
        await eventually(lambda: driver.errors)
        ((at, error),) = driver.errors
        assert "was lost with its node" in error
        assert far_cluster.nodes["node_b"].ip in error
        assert at - cut_at < LOST_S + 15
        await eventually(lambda: not worker.is_running())
        assert left_on(place, "node_b") == []
        await eventually(lambda: driver.ended, 90)
    assert driver.ended == [{"ended": 2, "errors": 0}]
    far_cluster.kill_node("node_b")  # Ray may give it up at any moment
    rows = await checked(await ResultGrid.load(place.directory), 12)
    (moved,) = [each for each in rows if {row["where"] for row in each} == {"node_b", "node_c"}]
    assert moved[-1]["where"] == "node_c"
    beginnings(place.log)
