"""A trial whose worker runs out of memory, for which the kernel kills it, starts again from its latest checkpoint."""

from __future__ import annotations

import os

import pytest

from asynctune import CheckpointConfig, FailureConfig, RunConfig, Tuner
from asynctune.runners.remote import RemoteRunner
from tests.runners.cgroups import memory_group
from tests.runners.local_engine import LocalEngine
from tests.runners.ray_checking import Failures, Place, checked, experiment
from tests.runners.ray_trials import beginnings, train_slowly

pytestmark = pytest.mark.timeout(120)

LIMIT_BYTES = 64 << 20
N = 6
STARVES_AT = 4  # its latest checkpoint is of iteration 2


@pytest.fixture
def group():
    with memory_group(LIMIT_BYTES, f"asynctune-test-{os.getpid()}") as made:
        yield made


async def holds(results, failures, log, node):
    """It has failed once, on this node, and gone on from iteration 2 in another process."""
    [rows] = await checked(results, N)
    first, *others = [row["me"] for row in rows]
    assert others[0] == first
    assert len({*others[1:]}) == 1
    assert others[1] != first
    [error] = failures.told
    assert node in error
    assert "was killed by SIGKILL, as the kernel does when memory runs out" in error
    assert list(beginnings(log).values()) == [[(first, 0), (others[1], 2)]]


async def test_a_worker_without_memory_costs_one_start(group, tmp_path):
    failures = Failures()
    tuner = Tuner(
        train_slowly,
        param_space={"n": N, "starves_at": STARVES_AT, "group": str(group), "log": str(tmp_path / "log")},
        run_config=RunConfig(
            name="e",
            local_dir=tmp_path / "exp",
            checkpoint_config=CheckpointConfig(num_to_keep=None),
            failure_config=FailureConfig(max_failures=1),
            callbacks=[failures],
            verbose=0,
        ),
        runner=RemoteRunner(LocalEngine(), worker_dir=str(tmp_path / "node")),
    )
    await holds(await tuner.fit(), failures, tmp_path / "log", "node-a")


async def test_a_worker_without_memory_on_ray_costs_one_start(cluster, group):
    place, failures = Place(cluster, "out-of-memory"), Failures()
    tuner = experiment(
        place, train_slowly, trials=1, max_failures=1, num_to_keep=None, callbacks=[failures],
        n=N, starves_at=STARVES_AT, group=str(group),
    )  # fmt: skip
    await holds(await tuner.fit(), failures, place.log, "127.0.0.")
