from __future__ import annotations

from pathlib import Path
from typing import Any

from asynctune.demo.telling import before_it_runs, best_checkpoint, elsewhere_line, what_came_out
from asynctune.trial import Checkpoint, TrialStatus
from asynctune.tuning.result_grid import Result, ResultGrid


def made(epoch: int, accuracy: float, step: int | None = None) -> Checkpoint:
    metrics = {"training_iteration": epoch, "accuracy": accuracy}
    return Checkpoint(trial_id="t", step=step or epoch, metrics=metrics)


def result(name: str, status: TrialStatus, *checkpoints: Checkpoint, **config: Any) -> Result:
    return Result(
        trial_id=name,
        status=status,
        config=config,
        metrics=checkpoints[-1].metrics if checkpoints else {},
        checkpoint=checkpoints[-1] if checkpoints else None,
        best_checkpoints=[(each, each.metrics) for each in checkpoints],
        error=None,
        path=Path("d", name),
    )


def test_a_new_experiment_invites_to_kill_it():
    text = " ".join(before_it_runs(None, 24))
    assert text.startswith("24 trials of a neural network")
    assert "Kill this at any moment" in text


def test_a_restart_says_what_is_kept_and_where_each_trial_goes_on():
    before = [
        result("a", TrialStatus.TERMINATED, made(7, 0.9), made(8, 0.8)),
        result("b", TrialStatus.ERROR),
        result("c", TrialStatus.RUNNING, made(1, 0.5)),
        result("d", TrialStatus.PENDING),
    ]
    assert before_it_runs(before, 12) == [
        "Going on with 9 epochs in checkpoints; 2 of 12 trials ended before.",
        "  c goes on from its checkpoint of epoch 1",
        "  d goes on from the beginning",
    ]


def test_a_copy_is_named_before_and_after():
    copy = "s3://b/my demo"
    assert f"A copy is kept in {copy}." in before_it_runs(None, 24, None, copy)
    assert "delete its directory" in before_it_runs(None, 24, None, copy)[-1]
    from_copy, at_home = (before_it_runs([], 3, found_at, copy) for found_at in (copy, "/home/demo"))
    assert from_copy == [
        "Going on from s3://b/my demo, with 0 epochs in checkpoints; 0 of 3 trials ended before."
    ]
    assert at_home == ["Going on with 0 epochs in checkpoints; 0 of 3 trials ended before."]
    assert elsewhere_line([copy]) == "elsewhere:    python -m asynctune.demo 's3://b/my demo'"


def test_the_best_checkpoint_need_not_be_the_newest():
    best = result("a", TrialStatus.TERMINATED, made(6, 0.9), made(7, 0.9), made(8, 0.8))
    assert best_checkpoint(best, "accuracy").step == 7


def test_the_end_tells_what_to_do_next_in_80_columns():
    best = result("db464_00017", TrialStatus.TERMINATED, made(16, 0.98), layers=2, learning_rate=0.00123456)
    others = [result("b", TrialStatus.TERMINATED, made(3, 0.4)), result("c", TrialStatus.ERROR, made(3, 0.4))]
    grid = ResultGrid([best, *others], location="/d/my demo")
    lines = what_came_out(grid, best, made(9, 0.99, step=10), 0.97, "my demo")
    assert lines == [
        "",
        "best: trial db464_00017, accuracy 0.9800 on the validation images",
        "  layers=2, learning_rate=0.00123",
        "  its checkpoint of epoch 9: 0.9700 on test images that the search never saw",
        "  1 of 3 trials was stopped early",
        "",
        "look closer:  python -m asynctune.inspect 'my demo'",
        "search on:    python -m asynctune.demo 'my demo' --trials 15",
        "start anew:   rm -r 'my demo'",
    ]
    assert max(map(len, lines)) <= 80
    assert "rm " not in what_came_out(grid, best, made(9, 0.99, step=10), 0.97, "my demo", has_copy=True)[-1]
