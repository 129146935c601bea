"""Where trials on Ray go: placement groups and single nodes of a real cluster; what is told of those that are gone."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
import importlib.util
import secrets
import time

import pytest

from asynctune import ConfigError, RayRunner
from asynctune.runners import ray as ray_runner
from asynctune.runners.ray_connection import RayConnection
from asynctune.runners.ray_placing import RayPlacing
from tests.runners.ray_checking import Place, checked, eventually, experiment, fitting, left_on, runner_for
from tests.runners.ray_trials import beginnings, train

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
]


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        pytest.param("FAST", "must be one of 'DEFAULT', 'SPREAD', .* not 'FAST'", id="unknown"),
        pytest.param("spread", "must be one of 'DEFAULT', 'SPREAD'", id="small-letters"),
        pytest.param({"node": "b"}, ".* or an object of Ray's", id="mapping"),
        pytest.param(3, ".* or an object of Ray's", id="number"),
    ],
)
def test_a_strategy_that_ray_does_not_know_is_refused_when_the_runner_is_made(strategy, told):
    with pytest.raises(ConfigError, match=f"scheduling_strategy {told}"):
        RayRunner(scheduling_strategy=strategy)


def test_a_group_by_itself_is_refused_with_what_to_write_instead():
    from ray.util.placement_group import PlacementGroup  # noqa: PLC0415

    with pytest.raises(ConfigError, match=r"such as PlacementGroupSchedulingStrategy\(group\)"):
        RayRunner(scheduling_strategy=PlacementGroup.empty())


@pytest.mark.parametrize("strategy", [None, "DEFAULT", "SPREAD"])
def test_what_actors_ask_for(strategy):
    placing = RayPlacing({"cpu": 2, "memory": 5, "own": 0.5}, {"env_vars": {}}, strategy)
    expected = {
        "num_cpus": 2,
        "memory": 5,
        "resources": {"own": 0.5},
        "max_restarts": 0,
        "max_task_retries": 0,
        "runtime_env": {"env_vars": {}},
    }
    assert placing.options == expected | ({} if strategy is None else {"scheduling_strategy": strategy})
    assert not placing.has_group


# -- on a cluster --------------------------------------------------------------------------------------------------


@pytest.fixture
async def joined(cluster):
    """This process belongs to the cluster, as that of who makes a placement group."""
    import ray  # noqa: PLC0415

    await asyncio.to_thread(ray.init, cluster.address, log_to_driver=False, configure_logging=False)
    return cluster


def group_of(*bundles):
    """A placement group that is there, and the strategy for it."""
    import ray  # noqa: PLC0415
    from ray.util.placement_group import placement_group  # noqa: PLC0415
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # noqa: PLC0415

    group = placement_group([dict(each) for each in bundles])
    ray.get(group.ready(), timeout=20)
    return group, PlacementGroupSchedulingStrategy(group)


def removed(group):
    import ray  # noqa: PLC0415
    from ray.util.placement_group import remove_placement_group  # noqa: PLC0415

    remove_placement_group(group)
    ends = time.monotonic() + 20
    while ray.util.placement_group_table(group)["state"] != "REMOVED":
        assert time.monotonic() < ends
        time.sleep(0.02)


async def test_trials_run_in_a_placement_group_and_nowhere_else(joined):
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # noqa: PLC0415

    place = Place(joined, "group")
    bundles = [{"CPU": 1, "node_c": 1}, {"CPU": 1, "node_c": 1}]
    group, strategy = await asyncio.to_thread(group_of, *bundles)
    runner = runner_for(place, scheduling_strategy=strategy)
    results = await experiment(place, train, trials=4, runner=runner, n=2, s=0.1).fit()
    assert runner.capacity == 2  # and not 4, as in the cluster
    rows = await checked(results, 2)
    assert {row["where"] for each in rows for row in each} == {"node_c"}
    assert left_on(place, "node_c") == []

    wrong = {
        r"names bundle 7 of a placement group that has 2": {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, 7)
        },
        r"leads to where no trial can run: .* asks for \{'CPU': 2\}": {
            "scheduling_strategy": strategy,
            "resources_per_trial": {"cpu": 2},
        },
    }
    for told, options in wrong.items():
        with pytest.raises(ConfigError, match=told):
            await runner_for(place, **options).start(train, {})
    one = runner_for(place, scheduling_strategy=PlacementGroupSchedulingStrategy(group, 1))
    await one.start(train, {})
    assert one.capacity == 1
    await one.aclose()

    await asyncio.to_thread(removed, group)
    with pytest.raises(ConfigError, match="was removed, or is of another cluster"):
        await runner_for(place, scheduling_strategy=strategy).start(train, {})


async def test_a_group_that_is_removed_ends_the_experiment_and_burns_no_retries(joined, monkeypatch):
    """Ray tells some of the actors that wait for it, and lets others wait for ever."""
    monkeypatch.setattr(ray_runner, "_LOOK_S", 0.3)
    place = Place(joined, "group-removed")
    group, strategy = await asyncio.to_thread(group_of, {"CPU": 1})
    runner = runner_for(place, scheduling_strategy=strategy, max_concurrent=2)  # the second waits
    tuner = experiment(place, train, trials=2, runner=runner, max_failures=5, n=100, s=0.1)
    async with fitting(tuner) as running:
        await eventually(lambda: beginnings(place.log))
        await asyncio.to_thread(removed, group)
        with pytest.raises(ConfigError, match=f"placement group {group.id.hex()} .*removed"):
            await asyncio.wait_for(running, 30)
    assert len(beginnings(place.log)) == 1


async def test_a_node_that_trials_are_bound_to_ends_the_experiment_when_it_dies(joined):
    import ray  # noqa: PLC0415
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    place = Place(joined, "bound")
    ids = {node["NodeName"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
    nowhere = NodeAffinitySchedulingStrategy(secrets.token_hex(28), soft=False)
    with pytest.raises(ConfigError, match="is dead or was never in this cluster"):
        await runner_for(place, scheduling_strategy=nowhere).start(train, {})
    bound = NodeAffinitySchedulingStrategy(ids["node_b"], soft=False)
    with pytest.raises(ConfigError, match=r"asks for \{'CPU': 3\}"):
        await runner_for(place, scheduling_strategy=bound, resources_per_trial={"cpu": 3}).start(train, {})

    runner = runner_for(place, scheduling_strategy=bound)
    tuner = experiment(place, train, trials=2, runner=runner, max_failures=5, n=100, s=0.1)
    async with fitting(tuner) as running:
        await eventually(lambda: len(beginnings(place.log)) == 2)
        assert runner.capacity == 2  # and not 4, as in the cluster
        await asyncio.to_thread(joined.kill_node, "node_b")
        with pytest.raises(ConfigError, match=r"scheduling_strategy leads nowhere: .*Tuner\.restore goes on"):
            await asyncio.wait_for(running, 40)


# -- runtime_env ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runtime_env", "told"),
    [
        pytest.param({"env_vars": {"A": 1}}, "env_vars", id="number-in-env-vars"),
        pytest.param({"working_dir": "/tmp"}, "only supported at the job level", id="directory"),
        pytest.param({"pip": "/nowhere/at/all.txt"}, "/nowhere/at/all.txt", id="no-such-file"),
    ],
)
async def test_a_runtime_env_that_ray_refuses_is_told_before_there_is_an_experiment(
    cluster, runtime_env, told
):
    place = Place(cluster, "refused")
    with pytest.raises(ConfigError, match=f"Ray refuses runtime_env.*{told}"):
        await experiment(place, train, trials=1, runner=runner_for(place, runtime_env=runtime_env), n=1).fit()
    assert not place.directory.exists()


async def test_a_runtime_env_that_cannot_be_set_up_ends_the_experiment_with_rays_reason(cluster):
    place = Place(cluster, "no-env")
    runner = runner_for(place, runtime_env={"working_dir": "file:///nowhere/at/all.zip"})
    tuner = experiment(place, train, trials=3, runner=runner, max_failures=3, n=1)
    with pytest.raises(ConfigError, match=r"cannot set up runtime_env: .*/nowhere/at/all\.zip"):
        await tuner.fit()
    assert [result.error for result in tuner.get_results()] == [None] * 3
    assert beginnings(place.log) == {}


class Asked:
    """What an actor is asked, and answers at once."""

    def __init__(self, error=None):
        self.error = error

    def future(self):
        answer: concurrent.futures.Future[None] = concurrent.futures.Future()
        answer.set_exception(self.error) if self.error is not None else answer.set_result(None)
        return answer


class Connected(RayConnection):
    """Without Ray."""

    def __init__(self):
        pass


async def test_a_runtime_env_that_has_worked_is_no_wrong_setting():
    """Another node may reach what this one could not."""
    exceptions = await asyncio.to_thread(importlib.import_module, "ray.exceptions")
    engine = ray_runner._RayEngine("10.0.0.1:6379", RayPlacing(None, None, None))
    failed = exceptions.RuntimeEnvSetupError("a trace\nand the reason")
    with pytest.raises(ConfigError, match=r"cannot set up runtime_env: .*and the reason"):
        await engine.placed(Asked(failed))
    await engine.placed(Asked())
    with pytest.raises(exceptions.RuntimeEnvSetupError):
        await engine.placed(Asked(failed))

    placement = ray_runner._Placement(
        lambda: ray_runner._Started(None, Asked(failed), Asked()), Connected(), engine
    )
    why = await placement.ended()
    assert why.startswith("was not started: Ray could not set up runtime_env: ")
    assert why.endswith("a trace and the reason")
