"""The connection of a process to Ray: shared by its runners, ended by the last one, and never another one unasked."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util

import pytest

from asynctune import ConfigError, RayRunner, TrialFailedError
from asynctune.runners.ray_connection import join
from tests.runners.ray_checking import Place, experiment, runner_for
from tests.runners.ray_trials import train

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]


def test_an_empty_address_is_refused():
    with pytest.raises(ConfigError, match="not empty"):
        RayRunner("")


async def test_the_first_runner_to_end_leaves_the_connection_to_the_other(cluster):
    ray = importlib.import_module("ray")
    short, long = Place(cluster, "short"), Place(cluster, "long")
    tuners = [
        experiment(short, train, trials=1, runner=runner_for(short), n=2, s=0.05),
        experiment(long, train, trials=3, runner=runner_for(long), n=4, s=0.4),
    ]
    ended = await asyncio.gather(*(tuner.fit() for tuner in tuners))
    assert [result.error for results in ended for result in results] == [None] * 4
    assert not ray.is_initialized()


async def test_another_cluster_than_the_one_there_is_is_refused(cluster):
    there = await asyncio.to_thread(join, cluster.address)
    try:
        with pytest.raises(ConfigError, match=r"connected to Ray at .* already"):
            await RayRunner("10.1.2.3:6379").start(train, {})
        again = await asyncio.to_thread(join, None)
        await asyncio.to_thread(again.leave)
        there.check()
    finally:
        await asyncio.to_thread(there.leave)
    with pytest.raises(TrialFailedError, match="disconnected from Ray"):
        there.check()
