"""What dies or hangs under a trial on Ray, and that the trial goes on elsewhere, with no row lost or there twice."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from asynctune import TrialStatus
from tests.runners.ray_checking import (
    Failures,
    Place,
    actors,
    checked,
    eventually,
    experiment,
    fitting,
    left_on,
    runner_for,
    workers,
)
from tests.runners.ray_trials import beginnings, lines, train, train_slowly

pytestmark = pytest.mark.timeout(120)

NODES_IPS = "127.0.0."


def reported(place, count):
    return lambda: sum(line["event"] == "reported" for line in lines(place.log)) >= count


async def test_a_killed_node_costs_no_more_than_what_was_not_committed(cluster):
    place, failures = Place(cluster, "node-killed"), Failures()
    tuner = experiment(
        place, train, trials=4, max_failures=3, num_to_keep=None, callbacks=[failures], n=10, s=0.2
    )
    async with fitting(tuner) as running:
        await eventually(reported(place, 12))
        assert workers(cluster, "node_b")
        assert actors(cluster, "node_b")
        killed_at = time.monotonic()
        await asyncio.to_thread(cluster.kill_node, "node_b")
        await eventually(lambda: failures.told)
        noticed_s = time.monotonic() - killed_at
        results = await running
    rows = await checked(results, 10)
    assert noticed_s < 20
    moved = [each for each in rows if {row["where"] for row in each} == {"node_b", "node_c"}]
    assert 1 <= len(moved) <= 2
    for error in failures.told:
        assert "was lost with its node" in error
        assert NODES_IPS in error
    # each start went on from what was acknowledged, which `beginnings` has looked at
    starts = beginnings(place.log).values()
    assert len(failures.told) == sum(len(each) - 1 for each in starts)
    assert all(at > 0 for each in starts for _, at in each[1:])
    assert left_on(place, "node_c") == []


async def test_a_trial_that_may_not_fail_says_on_which_node_it_was_lost(cluster):
    place = Place(cluster, "node-killed-0")
    ip = cluster.nodes["node_b"].ip
    tuner = experiment(
        place, train, trials=1, runner=runner_for(place, resources_per_trial={"node_b": 1}), n=50, s=0.1
    )
    async with fitting(tuner) as running:
        await eventually(reported(place, 2))
        await asyncio.to_thread(cluster.kill_node, "node_b")
        (result,) = await running
    assert result.status is TrialStatus.ERROR
    assert result.error is not None
    assert "was lost with its node" in result.error
    assert ip in result.error
    assert result.checkpoint is not None


@pytest.mark.parametrize("victim", ["worker", "actor"])
async def test_a_killed_process_costs_one_start(cluster, victim):
    place, failures = Place(cluster, f"{victim}-killed"), Failures()
    tuner = experiment(
        place, train_slowly, trials=1, max_failures=1, num_to_keep=None, callbacks=[failures], n=7, s=0.2
    )

    def victims():
        find = workers if victim == "worker" else actors
        return find(cluster, "node_b") + find(cluster, "node_c")

    async with fitting(tuner) as running:
        await eventually(lambda: any(place.directory.glob("*/checkpoint_*")))
        (process,) = victims()
        process.kill()
        results = await running
    (rows,) = await checked_some(results, 7)
    assert len({row["me"] for row in rows}) == 2
    (error,) = failures.told
    assert NODES_IPS in error
    assert ("was killed by SIGKILL" if victim == "worker" else "was lost with its node") in error
    ((first, at_first), (second, at_second)) = next(iter(beginnings(place.log).values()))
    assert (at_first, first != second) == (0, True)
    assert at_second % 2 == 0
    assert at_second > 0


async def test_a_worker_that_hangs_is_ended(cluster):
    place, failures = Place(cluster, "hung"), Failures()
    tuner = experiment(
        place,
        train,
        trials=1,
        max_failures=1,
        callbacks=[failures],
        runner=runner_for(place, hung_after_s=1.5),
        n=6,
        s=0.1,
    )
    async with fitting(tuner) as running:
        await eventually(reported(place, 2))
        (process,) = workers(cluster, "node_b") + workers(cluster, "node_c")
        process.send_signal(signal.SIGSTOP)
        results = await running
    await checked(results, 6)
    (error,) = failures.told
    assert "gave no sign of life and used no CPU time for 1.5 s" in error
    assert NODES_IPS in error
    await eventually(lambda: not process.is_running())


class Pauses:
    """Pauses the first trial at its second row, and starts it again when nothing else is to be started."""

    def __init__(self):
        self.paused = None

    def on_trial_result(self, trial_id, result):
        if self.paused is None and result["training_iteration"] == 2:
            self.paused = trial_id
            return "PAUSE"
        return "CONTINUE"

    def choose_trial_to_run(self, trial_ids):
        others = [trial_id for trial_id in trial_ids if trial_id != self.paused]
        return others[0] if others else (self.released and self.paused) or None

    released = False

    def on_trial_complete(self, trial_id, result, error):
        self.released = True

    def get_state(self):
        return None

    def set_state(self, state):
        pass


async def test_a_paused_trial_goes_on_on_another_node(cluster):
    place, pauses, failures = Place(cluster, "paused"), Pauses(), Failures()
    runner = runner_for(place, resources_per_trial={"cpu": 2})  # one for each node
    tuner = experiment(
        place, train, trials=2, runner=runner, scheduler=pauses, callbacks=[failures], n=12, s=0.25
    )
    async with fitting(tuner) as running:
        paused = await eventually(lambda: pauses.paused)
        assert tuner._run is not None
        store = tuner._run._store
        assert store is not None
        await eventually(lambda: store.get_trial(paused).status is TrialStatus.PAUSED)
        was_on = store.get_trial(paused).last_result["where"]
        await asyncio.to_thread(cluster.kill_node, was_on)
        results = await running
    rows = await checked(results, 12)
    by_trial = dict(zip([result.trial_id for result in results], rows, strict=True))
    wheres = [row["where"] for row in by_trial[paused]]
    assert wheres[:2] == [was_on] * 2
    assert set(wheres[2:]) == {"node_b", "node_c"} - {was_on}
    assert failures.told == []


async def checked_some(results, n):
    """As `checked`, for trials that save not every time."""
    for result in results:
        assert result.error is None, result.error
        for checkpoint, metrics in result.best_checkpoints:
            assert metrics["training_iteration"] % 2 == 0, checkpoint
    return await checked(results, n)
