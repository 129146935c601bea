"""When a trial, or an experiment, has done enough."""

from __future__ import annotations

import math

import pytest

from asynctune import UserCodeError
from asynctune.tuning.stopping import StopRule


@pytest.mark.parametrize(
    ("stop", "result", "expected"),
    [
        (None, {"loss": 1}, False),
        (None, {"done": True}, True),
        (None, {"done": False}, False),
        ({"acc": 0.9}, {"acc": 0.89}, False),
        ({"acc": 0.9}, {"acc": 0.9}, True),
        ({"acc": 0.9}, {"acc": 0.91}, True),
        ({"acc": 0.9}, {"acc": math.nan}, False),
        ({"acc": 0.9}, {"acc": math.inf}, True),
        ({"acc": 0.9}, {"acc": 10**400}, True),
        ({"acc": 0.9}, {"acc": "1.0"}, False),
        ({"acc": 0.9}, {}, False),
        ({"acc": 0.9}, {"done": True}, True),
        ({"eval/acc": 0.9}, {"eval": {"acc": 1}}, True),
        ({"eval/acc": 0.9}, {"eval/acc": 1}, True),
        ({"eval/acc": 0.9}, {"eval": 1}, False),
        ({"flag": 1}, {"flag": True}, True),
        ({"a": 1, "b": 1}, {"a": 0, "b": 1}, True),
        ({}, {"a": 0}, False),
        (lambda trial_id, result: trial_id == "t" and result["a"] > 1, {"a": 2}, True),
        (lambda trial_id, result: None, {"a": 2}, False),
    ],
)
def test_a_trial_has_done_enough(stop, result, expected):
    assert StopRule(stop).should_stop("t", result) is expected


class Patience:
    """Ends all after three results."""

    def __init__(self, *, fails: bool = False) -> None:
        self.seen = 0
        self.fails = fails

    def __call__(self, trial_id, result):
        self.seen += 1
        return result["bad"]

    def stop_all(self):
        if self.fails:
            raise RuntimeError("no idea")
        return self.seen >= 3


def test_an_object_stops_trials_and_all():
    rule = StopRule(Patience())
    assert [rule.should_stop("t", {"bad": bad}) for bad in (False, True)] == [False, True]
    assert not rule.should_stop_all()
    rule.should_stop("u", {"bad": False})
    assert rule.should_stop_all()
    assert not StopRule(lambda trial_id, result: True).should_stop_all()
    assert not StopRule({"a": 1}).should_stop_all()


def test_what_a_function_raises_is_told_of():
    with pytest.raises(UserCodeError, match=r"trial t: KeyError\('bad'\)"):
        StopRule(Patience()).should_stop("t", {})
    with pytest.raises(UserCodeError, match=r"stop_all.*no idea"):
        StopRule(Patience(fails=True)).should_stop_all()


async def test_an_async_function_would_always_stop():
    async def stop(trial_id, result):
        return False

    with pytest.raises(UserCodeError, match="plain function"):
        StopRule(stop).should_stop("t", {})  # type: ignore[arg-type]


def test_a_metric_that_nobody_reports_is_told_of_once(caplog):
    rule = StopRule({"accurcy": 0.9, "training_iteration": 100})
    for iteration in range(30):
        rule.should_stop("t", {"accuracy": 0.1, "eval": {"f1": 0.5}, "training_iteration": iteration})
    [record] = caplog.records
    assert "'accurcy'" in record.message
    assert "accuracy, eval/f1, training_iteration" in record.message


def test_a_metric_that_is_reported_now_and_then_is_not(caplog):
    rule = StopRule({"acc": 0.9})
    for iteration in range(30):
        rule.should_stop("t", {"acc": 0.5} if iteration == 7 else {"loss": 1})
    assert not caplog.records
