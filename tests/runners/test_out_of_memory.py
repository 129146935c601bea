"""Memory runs out: the kernel kills a worker, whose trial starts again from its latest checkpoint; or Ray an actor."""

from __future__ import annotations

import os
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from asynctune import CheckpointConfig, FailureConfig, RunConfig, Tuner
from asynctune.runners import ray as ray_module
from asynctune.runners.ray import _RayEngine
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


# -- Ray itself kills actors when a node runs low ----------------------------------------------------------------

RAY_SAYS = """\
1 worker(s) were killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.2, ID: 5e4d) was 7.70GB / 8.00GB (0.9625), which exceeds the threshold of 0.95.
"""


class Reference:
    """What Ray answers."""

    def __init__(self, answer):
        self.answer = answer

    def future(self):
        answered: Future[Any] = Future()
        if isinstance(self.answer, Exception):
            answered.set_exception(self.answer)
        else:
            answered.set_result(self.answer)
        return answered


@pytest.mark.parametrize("when", ["while-placed", "while-running", "out-of-reach"])
async def test_an_actor_that_ray_has_ended_for_want_of_memory_says_so(monkeypatch, when):
    exceptions = pytest.importorskip("ray.exceptions")
    monkeypatch.setattr(ray_module, "_BETWEEN_S", 0.0)
    killed = Reference(exceptions.OutOfMemoryError(RAY_SAYS))
    silent = Reference(exceptions.ActorUnavailableError("no answer", None))
    ready = killed if when == "while-placed" else Reference(True)
    running = silent if when == "out-of-reach" else killed
    started = []

    def call(answer):
        return SimpleNamespace(remote=lambda *_: answer)

    def remote():
        started.append(SimpleNamespace(__ray_ready__=call(ready), run=call(running), is_there=call(killed)))
        return started[-1]

    placing: Any = SimpleNamespace(check_group=lambda: None, has_group=False)
    engine = _RayEngine("10.0.0.1:6379", placing)
    engine._ray = SimpleNamespace(check=lambda: None, leave=lambda: None)  # type: ignore[assignment]
    engine._actor = SimpleNamespace(remote=remote)
    placement = await engine.launch(b"")
    text = await placement.ended()
    assert text == await placement.ended(), "for good"
    assert "OutOfMemoryError: 1 worker(s) were killed due to the node running low on memory." in text
    assert "10.0.0.2" in text
    assert "\n" not in text
    assert len(started) == 1, "it is the trial that is tried again, as often as it may fail"
    await engine.aclose()
