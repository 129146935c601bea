from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from asynctune.inspect.fields import duration_s, field_value, iteration
from asynctune.inspect.scan import Order, Scan
from asynctune.trial import Trial, TrialStatus
from tests.inspect_cli.examples import NOW, START, a_checkpoint, a_trial

P, R, H, T, E = (
    TrialStatus.PENDING,
    TrialStatus.RUNNING,
    TrialStatus.PAUSED,
    TrialStatus.TERMINATED,
    TrialStatus.ERROR,
)


def scanned(trials: Sequence[Trial], **options) -> Scan:
    scan = Scan(as_of=NOW, **options)
    for trial in trials:
        scan.add(trial)
    return scan


def numbers(scan: Scan) -> list[int]:
    return [int(trial_id.rpartition("_")[2]) for trial_id in scan.chosen()]


def with_losses(*losses: object) -> list[Trial]:
    return [a_trial(n, last_result={} if loss is None else {"loss": loss}) for n, loss in enumerate(losses)]


def test_trials_stay_in_creation_order():
    assert numbers(scanned([a_trial(n) for n in range(5)])) == [0, 1, 2, 3, 4]


def test_when_there_is_no_room_for_all_what_runs_and_what_failed_is_kept_then_the_newest():
    statuses = [T, R, T, E, P, T, R, H]
    trials = [a_trial(n, status=status) for n, status in enumerate(statuses)]
    assert numbers(scanned(trials, limit=5)) == [1, 3, 5, 6, 7]
    assert numbers(scanned(trials, limit=1)) == [6]
    assert numbers(scanned(trials, limit=0)) == list(range(8))


def test_counts_are_of_all_trials_and_matches_of_those_with_the_status():
    scan = scanned([a_trial(0, status=R), a_trial(1, status=E), a_trial(2, status=R)], statuses=[R])
    assert scan.counts == {R: 2, E: 1}
    assert scan.matched == {R: 2}
    assert numbers(scan) == [0, 2]


@pytest.mark.parametrize(
    ("descending", "expected"), [(False, [3, 0, 5, 1, 2, 4]), (True, [1, 5, 0, 3, 2, 4])]
)
def test_trials_without_a_value_come_last_in_either_direction(descending, expected):
    trials = with_losses(0.5, 2, math.nan, -math.inf, None, 1.5)
    assert numbers(scanned(trials, order=Order("loss", descending))) == expected


def test_of_equal_values_the_older_trial_comes_first_in_either_direction():
    trials = with_losses(1, 1, 1)
    assert numbers(scanned(trials, order=Order("loss", descending=True), limit=2)) == [0, 1]


def test_values_of_different_kinds_can_be_sorted():
    trials = with_losses("b", 1, ["x"], "a", True, {"k": 1})
    assert numbers(scanned(trials, order=Order("loss"))) == [1, 4, 3, 0, 2, 5]


def test_a_ranking_leaves_out_what_is_no_number():
    scan = scanned(with_losses(0.5, "low", math.nan, None, 0.25), order=Order("loss", numbers_only=True))
    assert numbers(scan) == [4, 0]
    assert scan.with_value == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("trial", "3f9ac_00002"),
        ("iteration", 8),
        ("results", 8),
        ("checkpoint", 8),
        ("duration", 100.0),
        ("created", START),
        ("config/lr", 0.01),
        ("config/nested/deep", 7),
        ("loss", 0.7),
        ("eval/acc", 0.8),
        ("with/slash", 3),
        ("eval/none", None),
        ("nothing", None),
    ],
)
def test_a_trial_is_asked_by_name(name, expected):
    trial = a_trial(
        2,
        config={"lr": 0.01, "nested": {"deep": 7}},
        last_result={"loss": 0.7, "eval": {"acc": 0.8}, "with/slash": 3, "training_iteration": 8},
        checkpoints=(a_checkpoint(4, 2), a_checkpoint(8, 2)),
    )
    assert field_value(trial, name, NOW) == expected


def test_without_training_iteration_results_are_counted():
    assert iteration(a_trial(last_result={"loss": 1}, num_results=3)) == 3
    assert iteration(a_trial(last_result={"training_iteration": "x"}, num_results=3)) == 3


def test_a_trial_that_runs_has_been_running_until_now():
    assert duration_s(a_trial(ended_at=None), NOW) == 3599
    assert duration_s(a_trial(ended_at=None, started_at=None), NOW) is None
    assert duration_s(a_trial(started_at=NOW + 5, ended_at=None), NOW) == 0


def test_names_are_remembered_for_messages():
    scan = scanned([a_trial(0), a_trial(1, last_result={"eval": {"f1": 1}}, config={})])
    assert list(scan.metrics) == ["loss", "acc", "eval/f1"]
    assert list(scan.settings) == ["config/lr", "config/units"]
