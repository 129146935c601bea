from __future__ import annotations

import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from asynctune.checkpoints.upload_plan import Key, UploadPlan, backoff_s


def made(*keys: Key, hold: bool = False) -> UploadPlan:
    plan = UploadPlan(hold=hold)
    for key in keys:
        plan.add(key)
    return plan


def order(plan: UploadPlan, now: float = 0.0) -> list[Key]:
    """All that may go now, each finished before the next."""
    found = []
    while (key := plan.next(now)) is not None:
        found.append(key)
        plan.done(key)
    return found


def test_the_newest_of_a_trial_goes_first_and_trials_take_turns():
    plan = made(("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2), ("c", 9))
    assert order(plan) == [("a", 3), ("b", 2), ("c", 9), ("a", 2), ("b", 1), ("a", 1)]
    assert not plan.pending
    assert not plan._lines


def test_one_of_a_trial_is_under_way_at_a_time():
    plan = made(("a", 1), ("a", 2), ("b", 1))
    assert plan.next(0) == ("a", 2)
    assert plan.next(0) == ("b", 1)
    assert plan.next(0) is None
    plan.add(("a", 3))
    assert plan.next(0) is None
    plan.done(("a", 2))
    assert plan.next(0) == ("a", 3)


def test_a_busy_trial_does_not_keep_others_waiting():
    plan = made(("a", 1), ("b", 1), ("c", 1))
    served = []
    for step in range(2, 10):
        key = plan.next(0)
        assert key is not None
        served.append(key[0])
        plan.add(("a", step))
        plan.done(key)
    assert served == ["a", "b", "c", "a", "a", "a", "a", "a"]


def test_what_failed_waits_and_holds_up_nothing_else():
    plan = made(("a", 1), ("a", 2), ("b", 1))
    assert plan.next(0) == ("a", 2)
    plan.failed(("a", 2), 10.0)
    assert order(plan) == [("b", 1), ("a", 1)]
    assert plan.next_time() == 10.0
    assert plan.next(9.9) is None
    assert plan.pending == {("a", 2)}
    assert plan.next(10.0) == ("a", 2)
    assert plan.next_time() is None


def test_hurry_ends_the_waiting():
    plan = made(("a", 1), ("b", 1))
    for trial in ("a", "b"):
        assert plan.next(0) == (trial, 1)
        plan.failed((trial, 1), 100.0)
    plan.drop(("b", 1))
    plan.hurry(5.0)
    assert plan.next_time() == 5.0
    assert order(plan, 5.0) == [("a", 1)]


def test_what_has_not_begun_is_dropped_and_what_has_is_not():
    plan = made(("a", 1), ("a", 2), ("b", 1))
    assert plan.next(0) == ("a", 2)
    assert not plan.drop(("a", 2))
    assert plan.drop(("a", 1))
    assert not plan.drop(("a", 1))
    assert plan.drop(("b", 1))
    assert plan.next(0) is None
    plan.done(("a", 2))
    assert not plan.pending
    assert not plan._lines


def test_a_dropped_one_that_waited_does_not_come_back():
    plan = made(("a", 1))
    assert plan.next(0) == ("a", 1)
    plan.failed(("a", 1), 1.0)
    assert plan.drop(("a", 1))
    assert plan.next(2.0) is None
    plan.add(("a", 1))  # the same step again, as after a reopening
    assert plan.next(2.0) == ("a", 1)


def test_held_ones_wait_for_the_release():
    plan = made(("a", 1), ("a", 2), ("b", 1), hold=True)
    assert plan.next(0) is None
    assert len(plan.pending) == 3
    assert plan.drop(("a", 1))
    assert plan.release(1)
    assert plan.next(0) == ("a", 2)
    assert plan.next(0) is None
    assert not plan.release(10)
    assert plan.next(0) == ("b", 1)
    plan.add(("c", 1))
    assert plan.next(0) is None
    plan.failed(("b", 1), 3.0)
    assert plan.next(3.0) == ("b", 1)  # what has begun once does not wait for the period


def test_adding_twice_is_adding_once():
    plan = made(("a", 1), ("a", 1))
    assert order(plan) == [("a", 1)]


class AnyOrder(RuleBasedStateMachine):
    """Nothing is lost, begun twice, or begun beside another of its trial, whatever happens in whatever order."""

    keys = st.tuples(st.sampled_from("abc"), st.integers(0, 4))

    def __init__(self) -> None:
        super().__init__()
        self.plan = UploadPlan(hold=True)
        self.pending: set[Key] = set()
        self.under_way: set[Key] = set()
        self.now = 0.0

    @rule(key=keys)
    def add(self, key: Key) -> None:
        self.plan.add(key)
        self.pending.add(key)

    @rule(key=keys)
    def drop(self, key: Key) -> None:
        dropped = self.plan.drop(key)
        assert dropped == (key in self.pending - self.under_way)
        if dropped:
            self.pending.discard(key)

    @rule(seconds=st.floats(0, 2))
    def begin(self, seconds: float) -> None:
        self.now += seconds
        key = self.plan.next(self.now)
        if key is not None:
            assert key in self.pending
            assert key[0] not in {trial for trial, _ in self.under_way}
            self.under_way.add(key)

    @rule(choose=st.randoms(use_true_random=False), seconds=st.none() | st.floats(0, 3))
    def end(self, choose: random.Random, seconds: float | None) -> None:
        if not self.under_way:
            return
        key = choose.choice(sorted(self.under_way))
        self.under_way.discard(key)
        if seconds is None:
            self.plan.done(key)
            self.pending.discard(key)
        else:
            self.plan.failed(key, self.now + seconds)

    @rule()
    def hurry(self) -> None:
        self.plan.hurry(self.now)

    @rule(limit=st.integers(0, 3))
    def release(self, limit: int) -> None:
        self.plan.release(limit)

    @invariant()
    def what_is_pending_is_known(self) -> None:
        assert set(self.plan.pending) == self.pending

    def teardown(self) -> None:
        for key in sorted(self.under_way):
            self.plan.failed(key, self.now)
        self.plan.release(1000)
        assert set(order(self.plan, self.now + 10)) == self.pending
        assert not self.plan._lines


TestAnyOrder = AnyOrder.TestCase


@pytest.mark.parametrize(("failures", "limit"), [(1, 1.0), (2, 2.0), (6, 32.0), (7, 60.0), (1000, 60.0)])
def test_the_backoff_grows_to_a_minute_with_full_jitter(failures, limit):
    rng = random.Random(1)
    drawn = [backoff_s(failures, rng) for _ in range(300)]
    assert max(drawn) <= limit
    assert max(drawn) > 0.9 * limit
    assert min(drawn) < 0.1 * limit
    assert backoff_s(failures, rng, 100.0) >= 100.0
