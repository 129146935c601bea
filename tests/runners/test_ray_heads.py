"""A driver that is killed while its trials run on Ray, and the one that goes on."""

from __future__ import annotations

import asyncio
import subprocess
import time

import pytest

from asynctune import ResultGrid, RunConfig, Tuner
from tests.killing import ROOT
from tests.runners.ray_checking import (
    Place,
    actors,
    eventually,
    holds,
    left_on,
    runner_for,
    workers,
)
from tests.runners.ray_driver import DriverSettings
from tests.runners.ray_trials import acknowledged, beginnings, lines, train
from tests.storage.moto import make_bucket, moto_server

pytestmark = pytest.mark.timeout(120)

NODES = ("node_b", "node_c")
N = 8
BUCKET = "of-a-killed-driver"


def start_driver(place, *, n=N, **settings):
    made = DriverSettings(
        address=place.cluster.address,
        local_dir=str(place.local_dir),
        name=place.name,
        config=place.config(n=n, s=0.2),
        runner={"worker_dir": place.work},
        **settings,
    )
    return subprocess.Popen(made.command(), cwd=ROOT, stdout=subprocess.PIPE, text=True)


async def killed_after(place, count, **settings):
    """A driver that is dead when so many reports were acknowledged; the processes that ran for it on the nodes."""
    with start_driver(place, **settings) as driver:
        try:
            await eventually(lambda: sum(line["event"] == "reported" for line in lines(place.log)) >= count)
            there = [
                process
                for node in NODES
                for process in (*workers(place.cluster, node), *actors(place.cluster, node))
            ]
            assert len(there) >= 8
        finally:
            driver.kill()
    return there


async def goes_on(place, **settings):
    tuner = await Tuner.restore(
        place.directory, train, runner=runner_for(place), run_config=RunConfig(verbose=0), **settings
    )
    return await tuner.fit()


async def holds_and_left_nothing(place, results, n=N, **settings):
    await holds(place, results, n, **settings)
    for node in NODES:
        assert left_on(place, node) == []


async def test_nothing_of_a_killed_driver_runs_on_beside_the_next(cluster):
    place = Place(cluster, "head-killed")
    there = await killed_after(place, 10)
    dead_at = time.monotonic()

    async def gone():
        await eventually(lambda: not any(process.is_running() for process in there))
        return time.monotonic() - dead_at

    going = asyncio.create_task(gone())
    results = await goes_on(place)
    assert await going < 15
    await holds_and_left_nothing(place, results)


async def test_it_goes_on_without_the_nodes_it_had(cluster):
    place = Place(cluster, "head-and-nodes-killed")
    await killed_after(place, 10)
    for node in NODES:
        await asyncio.to_thread(cluster.kill_node, node)
    loaded = await ResultGrid.load(place.directory)
    known = {result.trial_id: result.metrics["training_iteration"] for result in loaded}
    for trial_id, safe in acknowledged(place.log).items():
        assert known[trial_id] >= max(safe)
    await asyncio.to_thread(cluster.ensure, NODES)
    await holds_and_left_nothing(place, await goes_on(place))


async def test_a_killed_driver_leaves_the_next_what_is_in_the_bucket(cluster, tmp_path, monkeypatch, carried):
    """Trials go on from it, and it does not pass through the head."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    place = Place(cluster, "head-killed-bucket")
    with moto_server() as endpoint:
        await asyncio.to_thread(make_bucket, endpoint, BUCKET)
        options = {"endpoint_url": endpoint, "key": "its-key", "secret": "its-secret", "region": "us-east-1"}
        sync = {"upload_dir": f"s3://{BUCKET}/some", "storage_options": options}
        await killed_after(place, 6, sync=sync, n=5)
        safe = acknowledged(place.log)
        results = await goes_on(place, storage_options=options)
        await holds_and_left_nothing(place, results, 5, fetched=tmp_path / "fetched")
        starts = beginnings(place.log)  # which has looked at where they began
        assert [len(starts[trial_id]) for trial_id in safe] == [2] * len(safe)
        assert carried == [], "the driver carries nothing"
        assert not list(place.directory.glob("*/checkpoint_*"))
        assert [len(result.best_checkpoints) for result in results] == [5] * len(results)
