from __future__ import annotations

import random
from typing import Any

import pytest

from asynctune.demo.scheduler import Plan, SuccessiveHalving, sample_config
from asynctune.packing import pack, unpack
from asynctune.protocols import TrialScheduler


def names(count: int) -> list[str]:
    return [f"t{i:02}" for i in range(count)]


def accuracy(trial_id: str, epoch: int) -> float:
    return random.Random(f"{trial_id}:{epoch}").randrange(20) / 20


class World:
    """Trials that train as the scheduler says, in any order, some of them failing."""

    def __init__(self, plan: Plan, failing: dict[str, int] | None = None) -> None:
        self.plan = plan
        self.failing = failing or {}
        self.trials = names(plan.trials)
        self.epochs = dict.fromkeys(self.trials, 0)
        self.scheduler = SuccessiveHalving(plan.rungs)
        self.scheduler.add_trials(self.trials)

    def ready(self) -> list[str]:
        return [each for each in self.trials if self.scheduler.verdict(each) == "RUN"]

    def train(self, trial_id: str) -> None:
        until = self.scheduler.next_rung(trial_id)
        for epoch in range(self.epochs[trial_id] + 1, until + 1):
            if self.failing.get(trial_id) == epoch:
                self.scheduler.on_trial_error(trial_id)
                return
            self.epochs[trial_id] = epoch
            result = {"training_iteration": epoch, "accuracy": accuracy(trial_id, epoch)}
            decision = self.scheduler.on_trial_result(trial_id, result)
            last = epoch == self.plan.epochs
            assert decision == ("STOP" if last else "PAUSE" if epoch == until else "CONTINUE")


@pytest.mark.parametrize("trials", [1, 2, 3, 7, 24])
@pytest.mark.parametrize("epochs", [1, 3, 8, 40])
def test_everything_ends_after_exactly_the_planned_epochs(trials, epochs):
    world = World(Plan(trials=trials, epochs=epochs))
    while ready := world.ready():
        world.train(ready[0])
    assert {world.scheduler.verdict(each) for each in world.trials} == {"STOP"}
    assert sum(world.epochs.values()) == world.plan.epochs_in_all
    assert max(world.epochs.values()) == epochs


def test_the_better_half_goes_on():
    scheduler = SuccessiveHalving([1, 2])
    scheduler.add_trials("abcd")
    for trial_id, score in zip("abcd", [0.5, 0.7, 0.5, 0.1], strict=True):
        scheduler.on_trial_result(trial_id, {"training_iteration": 1, "accuracy": score})
    assert [scheduler.verdict(each) for each in "abcd"] == ["RUN", "RUN", "STOP", "STOP"]  # a tie: the first
    assert scheduler.choose_trial_to_run(["d", "c", "b"]) == "b"
    assert scheduler.choose_trial_to_run(["d", "c"]) is None


def test_nobody_is_judged_before_the_rung_is_complete():
    scheduler = SuccessiveHalving([1, 2])
    scheduler.add_trials("abc")
    for trial_id in "ab":
        scheduler.on_trial_result(trial_id, {"training_iteration": 1, "accuracy": 0.5})
    assert [scheduler.verdict(each) for each in "abc"] == ["WAIT", "WAIT", "RUN"]
    scheduler.on_trial_error("c")
    assert [scheduler.verdict(each) for each in "abc"] == ["RUN", "STOP", "STOP"]


@pytest.mark.parametrize(
    "failing", [{}, {"t03": 1}, {"t00": 2, "t05": 9, "t11": 20}, dict.fromkeys(names(12), 3)]
)
def test_the_outcome_depends_on_no_order_and_on_no_restart(failing, rng):
    plan = Plan(trials=12, epochs=16)
    expected: Any = None
    for _ in range(20):
        world = World(plan, failing)
        while ready := world.ready():
            world.train(rng.choice(ready))
            if rng.random() < 0.3:
                state = unpack(pack(world.scheduler.get_state()))
                world.scheduler = SuccessiveHalving([1])
                world.scheduler.set_state(state)
        expected = expected or world.epochs
        assert world.epochs == expected


def test_a_state_that_is_older_than_the_trials_is_caught_up():
    world = World(Plan(trials=6, epochs=8))
    for trial_id in world.trials[:4]:
        world.train(trial_id)
    old = SuccessiveHalving([8])
    old.set_state(SuccessiveHalving(world.plan.rungs).get_state())
    old.add_trials(world.trials)
    for trial_id in world.trials:
        old.add_scores(trial_id, world.scheduler.scores(trial_id))
    assert old.get_state() == world.scheduler.get_state()


def test_it_is_a_trial_scheduler():
    assert isinstance(SuccessiveHalving([1]), TrialScheduler)


def test_configs_follow_from_seed_and_index_alone():
    configs = [sample_config(1, index) for index in range(50)]
    assert configs == [sample_config(1, index) for index in range(50)]
    assert sample_config(2, 0) != configs[0]
    assert len({pack(config) for config in configs}) == 50
    assert unpack(pack(configs)) == configs
