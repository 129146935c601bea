"""`RayRunner` by itself: what it reserves, where it connects to, what it refuses, and what it leaves as it was."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from asynctune import ConfigError, MissingExtraError, RayRunner
from tests.killing import ROOT
from tests.runners.cluster import why_no_cluster
from tests.runners.ray_checking import (
    Place,
    eventually,
    experiment,
    runner_for,
)
from tests.runners.ray_driver import DriverSettings
from tests.runners.ray_trials import Fresh, train

pytestmark = pytest.mark.timeout(120)

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@needs_ray
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param({"address": "ray://10.0.0.1:10001"}, "of Ray's client", id="client"),
        pytest.param({"resources_per_trial": ["cpu"]}, "must be a mapping", id="no-mapping"),
        pytest.param({"resources_per_trial": {"cpu": -1}}, "amounts are numbers from 0", id="negative"),
        pytest.param({"resources_per_trial": {"cpu": True}}, "amounts are numbers from 0", id="truth"),
        pytest.param({"resources_per_trial": {"cpu": "2"}}, "amounts are numbers from 0", id="text"),
        pytest.param({"resources_per_trial": {"cpu": float("nan")}}, "amounts are numbers", id="nan"),
        pytest.param({"resources_per_trial": {3: 1}}, "amounts are numbers from 0", id="no-name"),
        pytest.param({"resources_per_trial": {"CPU": 1}}, "it is called 'cpu' here", id="rays-name"),
        pytest.param({"resources_per_trial": {"num_gpus": 1}}, "it is called 'gpu' here", id="rays-option"),
        pytest.param({"max_concurrent": 0}, "max_concurrent must be", id="none-at-once"),
        pytest.param({"address": 5}, "address must be that of a Ray cluster", id="no-address"),
        pytest.param({"runtime_env": ["x"]}, "runtime_env must be a mapping", id="runtime-env"),
        pytest.param({"lost_after_s": 0}, "lost_after_s must be", id="lost-at-once"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(arguments, told):
    with pytest.raises(ConfigError, match=told):
        RayRunner(**arguments)


async def test_without_ray_the_extra_is_named(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"asynctune\[ray\]"):
        await RayRunner().start(train, {})


@needs_ray
async def test_an_address_that_nobody_answers_is_said_soon():
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"cannot reach Ray at 127\.0\.0\.1:9: "):
        await RayRunner("127.0.0.1:9").start(train, {})
    assert time.monotonic() - began < 5


async def seen(place, names=(), **options):
    """What a trial sees around it."""
    tuner = experiment(place, Fresh, trials=1, runner=runner_for(place, **options), names=list(names))
    (result,) = await tuner.fit()
    assert result.error is None, result.error
    return {**json.loads(result.metrics["seen"]), "where": result.metrics["where"]}


async def test_runtime_env_and_resources_reach_the_trial(cluster):
    place = Place(cluster, "around")
    around = await seen(
        place,
        ["GIVEN", "CUDA_VISIBLE_DEVICES", "RAY_AUTH_TOKEN"],
        runtime_env={"env_vars": {"GIVEN": "to-the-trial"}},
        resources_per_trial={"cpu": 1, "gpu": 0, "node_c": 1},
    )
    assert (around["GIVEN"], around["CUDA_VISIBLE_DEVICES"], around["where"]) == (
        "to-the-trial",
        "",
        "node_c",
    )


async def test_trials_are_spread_when_that_is_asked_for(cluster):
    place = Place(cluster, "spread")
    tuner = experiment(
        place, train, trials=2, runner=runner_for(place, scheduling_strategy="SPREAD"), n=3, s=0.4
    )
    assert {result.metrics["where"] for result in await tuner.fit()} == {"node_b", "node_c"}


async def test_capacity_is_what_fits(cluster):
    asked = {
        1: {"cpu": 2, "node_b": 1},
        2: {"cpu": 1.5},
        3: {"node_b": 0.6},
        4: None,
        8: {"cpu": 0.5},
        40: {"cpu": 0.1},  # 2 // 0.1 is 19
    }
    found = {}
    for expected, resources in asked.items():
        runner = runner_for(Place(cluster, "room"), resources_per_trial=resources)
        await runner.start(train, {})
        found[expected] = runner.capacity
        await runner.aclose()
    assert found == {key: key for key in asked}


async def test_more_trials_than_room_wait_for_those_that_have_it(cluster, caplog):
    place = Place(cluster, "crowded")
    tuner = experiment(place, train, trials=6, runner=runner_for(place, max_concurrent=6), n=2, s=0.1)
    results = await tuner.fit()
    assert [result.metrics["training_iteration"] for result in results] == [2] * 6
    assert len({result.metrics["me"] for result in results}) <= 4


async def test_ray_of_this_process_is_left_running(cluster):
    import ray  # noqa: PLC0415

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    await asyncio.to_thread(ray.init, cluster.address, log_to_driver=False, configure_logging=False)
    try:
        runner = RayRunner(worker_dir=Place(cluster, "joined").work)
        await runner.start(train, {})
        await runner.aclose()
        assert ray.is_initialized()
    finally:
        await asyncio.to_thread(ray.shutdown)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


async def test_it_leaves_the_cluster_that_it_joined(cluster):
    import ray  # noqa: PLC0415

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    place = Place(cluster, "left")
    figures = []
    for _ in range(3):
        runner = runner_for(place)
        await runner.start(train, {})
        assert ray.is_initialized()
        await runner.aclose()
        assert not ray.is_initialized()
        await runner.aclose()
        others = [each for each in threading.enumerate() if not each.name.startswith("asyncio_")]
        figures.append((len(others), psutil.Process().num_fds()))
    assert figures[2][0] <= figures[0][0]
    assert figures[2][1] <= figures[0][1] + 2, figures
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert len([node for node in cluster.nodes if cluster.processes(node)]) == 3


async def test_resources_that_no_node_has_are_told_and_ctrl_c_ends_the_wait(cluster):
    place = Place(cluster, "infeasible")
    settings = DriverSettings(
        address=cluster.address,
        local_dir=str(place.local_dir),
        name=place.name,
        config=place.config(n=1),
        runner={"worker_dir": place.work, "resources_per_trial": {"cpu": 1, "unobtainium": 1}},
    )
    driver = subprocess.Popen(
        settings.command(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    with driver:
        try:
            await eventually(place.directory.exists)
            await asyncio.sleep(1)
            asked_at = time.monotonic()
            driver.send_signal(signal.SIGINT)
            _, said = await asyncio.to_thread(driver.communicate, timeout=40)
        finally:
            driver.kill()
    assert time.monotonic() - asked_at < 20
    assert "no node of the Ray cluster has {'CPU': 1, 'unobtainium': 1}" in said
    assert "to go on: Tuner.restore" in said
    assert driver.returncode in {130, -signal.SIGINT}


ALONE = """
import asyncio, os, signal, sys
os.environ.pop("RAY_ADDRESS", None)
import asynctune
from asynctune import RayRunner, Tuner, TuneConfig, RunConfig

def train(config):
    import ray
    return {"loss": 1.0, "alone": os.environ.get("RAY_NODE_ID") is not None}

async def main():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    runner = RayRunner(resources_per_trial={"cpu": 1}, max_concurrent=1)
    results = await Tuner(train, tune_config=TuneConfig(num_samples=2), runner=runner,
        run_config=RunConfig(name="alone", local_dir=sys.argv[1], verbose=0)).fit()
    import ray
    assert not ray.is_initialized()
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    print(len(results), results.num_errors, flush=True)

asyncio.run(main())
"""


@pytest.mark.skipif(why_no_cluster() is not None, reason=str(why_no_cluster()))
async def test_ray_that_it_starts_ends_with_it(tmp_path):
    token = f"token-{os.urandom(8).hex()}"
    # in namespaces of its own: another Ray of this machine would be found, and joined
    command = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
    results = tmp_path / "results"
    results.mkdir()
    inner = f'ip link set lo up; "{sys.executable}" -c "$0" "{results}"; echo left: $(pgrep -c "raylet|gcs_server")'
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, inner, ALONE],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": token},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 0" in done.stdout, done.stderr[-3000:]
    assert "left: 0" in done.stdout
