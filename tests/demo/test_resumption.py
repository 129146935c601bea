from __future__ import annotations

from dataclasses import replace
from typing import Any

from asynctune.demo.heartbeat import LastWords, Unsaved
from asynctune.demo.resumption import examine, tell
from asynctune.trial import Checkpoint, Trial, TrialStatus

NOW = 1_800_000_000.0


def trial(index: int, status: TrialStatus, steps: tuple[int, ...] = (), **fields: Any) -> Trial:
    values: dict[str, Any] = {
        "trial_id": f"ab_{index:05}",
        "trial_name": f"trial_{index:02}",
        "status": status,
        "config": {},
        "metadata": {},
        "last_result": {},
        "num_results": len(steps),
        "error": None,
        "num_failures": 0,
        "created_at": NOW - 100,
        "started_at": None,
        "ended_at": None,
        "checkpoints": tuple(
            Checkpoint(step=step, metrics={"epoch": step}, committed_at=NOW - 20) for step in steps
        ),
    }
    return Trial(**values | fields)


TRIALS = [
    trial(0, TrialStatus.TERMINATED, (4, 5)),
    trial(1, TrialStatus.RUNNING, (6, 7)),
    trial(2, TrialStatus.RUNNING),
    trial(3, TrialStatus.PAUSED, (5,)),
    trial(4, TrialStatus.PENDING),
    trial(5, TrialStatus.ERROR, (1,)),
]
WORDS = LastWords(
    opening=1,
    at=NOW - 10,
    dirty_s=0.003,
    training={"ab_00001": Unsaved(7, NOW - 10.061), "ab_00002": Unsaved(0, NOW - 10.25)},
)


def test_a_killed_driver_is_accounted_for():
    found = examine(TRIALS, WORDS, 2)
    assert (found.finished, found.paused) == (2, 1)
    assert found.resumed == [("trial_01", "ab_00001", 7), ("trial_02", "ab_00002", 0)]
    assert found.died_at == NOW - 10
    assert found.lost_ms is not None
    assert {name: round(ms) for name, ms in found.lost_ms.items()} == {"ab_00001": 61, "ab_00002": 250}
    text = "\n".join(tell(found, 6, NOW))
    assert "died at" in text
    assert "10.0 s ago" in text
    assert "2 of 6 trials finished before" in text
    assert "trial_01 from its checkpoint of epoch 7" in text
    assert "trial_02 from the beginning" in text
    assert "311 ms of training" in text
    assert "trial_01 61 ms" in text
    assert "3 ms of records" in text
    assert max(len(line) for line in text.splitlines()) <= 110


def test_a_driver_that_stopped_by_itself_is_not_called_killed():
    trials = [
        replace(each, status=TrialStatus.PENDING) if each.trial_id == "ab_00001" else each for each in TRIALS
    ]
    found = examine(trials, replace(WORDS, closed=True), 2)
    assert ("trial_01", "ab_00001", 7) in found.resumed
    text = "\n".join(tell(found, 6, NOW))
    assert "was stopped at" in text
    assert "died" not in text
    assert "heartbeat" not in text


def test_without_a_heartbeat_the_loss_is_not_known():
    found = examine(TRIALS, None, 2)
    assert found.lost_ms is None
    assert "not known" in "\n".join(tell(found, 6, NOW))


def test_a_heartbeat_older_than_the_newest_checkpoint_is_not_believed():
    # After a power loss the journal is there, and the heartbeat may be of long before.
    found = examine(TRIALS, replace(WORDS, at=NOW - 25), 2)
    assert found.lost_ms is None
    assert "not known" in "\n".join(tell(found, 6, NOW))


def test_a_driver_that_died_before_its_first_beat_has_lost_nothing():
    found = examine(TRIALS, WORDS, 3)
    assert found.lost_ms == {}
    assert found.died_at is None
    text = "\n".join(tell(found, 6, NOW))
    assert "0 ms of training" in text
    assert "before it trained anything" in text


def test_nothing_in_training_is_said_so():
    found = examine([TRIALS[0], TRIALS[3]], replace(WORDS, training={}), 2)
    assert "nothing was being trained" in "\n".join(tell(found, 2, NOW))
