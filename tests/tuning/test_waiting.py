"""Which trial is started next, and how long a failed one rests."""

from __future__ import annotations

import pytest

from asynctune.trial import Trial, TrialStatus
from asynctune.tuning.waiting import DECIDED, Rests, Waiting, decided


def trial(trial_id, status="PENDING", mark=None):
    return Trial(
        trial_id=trial_id,
        trial_name=trial_id,
        status=TrialStatus(status),
        config={},
        metadata={} if mark is None else {DECIDED: mark},
        last_result={},
        num_results=0,
        error=None,
        num_failures=0,
        created_at=0.0,
        started_at=None,
        ended_at=None,
        checkpoints=(),
    )


def first(ids):
    return next(iter(ids), None)


def test_in_the_order_they_came():
    waiting = Waiting()
    assert waiting.take(first) is None
    for each in "abc":
        waiting.add(trial(each))
    assert len(waiting) == 3
    assert waiting.has_pending
    assert [waiting.take(first) for _ in range(4)] == ["a", "b", "c", None]
    assert not waiting.has_pending
    assert len(waiting) == 0


def test_the_scheduler_picks():
    waiting = Waiting()
    for each in "abc":
        waiting.add(trial(each))
    assert waiting.take(lambda ids: list(ids)[1]) == "b"
    assert waiting.take(lambda ids: None) is None
    assert len(waiting) == 2


def test_paused_ones_are_not_pending():
    waiting = Waiting()
    waiting.add(trial("a", "PAUSED", ["PAUSE", 3]))
    assert not waiting.has_pending
    assert waiting.take(first) == "a"


@pytest.mark.parametrize("decision", ["STOP", "PAUSE"])
def test_those_that_are_owed_an_end_are_not_for_the_scheduler(decision):
    waiting = Waiting()
    waiting.add(trial("a"))
    waiting.add(trial("b", mark=[decision, 3]))
    assert len(waiting) == 2
    asked: list[object] = []
    assert waiting.take(asked.append) == "b"
    assert not asked
    assert waiting.take(first) == "a"


def test_what_was_decided():
    assert decided(trial("a")) is None
    assert decided(trial("a", mark=["STOP", 7])) == ("STOP", 7)


def test_one_that_fails_at_once_rests_longer_and_longer():
    rests = Rests()
    assert [rests.after_failure("a", has_reported=False) for _ in range(5)] == [0, 0.05, 0.1, 0.2, 0.4]
    assert rests.after_failure("b", has_reported=False) == 0
    assert rests.after_failure("a", has_reported=True) == 0
    assert [rests.after_failure("a", has_reported=False) for _ in range(2)] == [0, 0.05]
    assert max(rests.after_failure("a", has_reported=False) for _ in range(100)) == 30
