"""The scripts of Ray Tune's storage guide that need no bucket: what they leave where, and that a kill costs nothing."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from asynctune import ResultGrid, TrialStatus
from tests.examples.storage_scripts import ITERATIONS, Left, newest_checkpoint, run, start, until


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Left:
    path = tmp_path_factory.mktemp("undisturbed")
    run("storage_best_five.py", path, cwd=path)
    return Left(path / "my-tune-exp")


@pytest.mark.parametrize("script", ["storage_auto.py", "storage_shared.py"])
def test_everything_is_where_the_guide_says(script, tmp_path, undisturbed):
    run(script, tmp_path / "results", cwd=tmp_path)  # which is made
    left = Left(tmp_path / "results" / "experiment_name")
    assert left.trial.name.startswith("my_trainable_")
    assert [row["training_iteration"] for row in left.rows] == list(range(1, ITERATIONS + 1))
    assert left.checkpoints == list(range(1, ITERATIONS + 1)), "without a CheckpointConfig all are kept"
    assert left.aucs == undisturbed.aucs
    saved = json.loads((left.trial / "checkpoint_000007" / "model.json").read_text("ascii"))
    assert saved["iteration"] == 7
    header, *lines = (left.trial / "progress.csv").read_text("utf-8").splitlines()
    assert "max-auc" in header.split(",")
    assert len(lines) == ITERATIONS
    assert json.loads((left.trial / "params.json").read_text("utf-8")) == {}


def test_the_five_best_checkpoints_and_the_newest_are_kept(undisturbed):
    best = undisturbed.best(5)
    assert best != set(range(ITERATIONS - 4, ITERATIONS + 1)), "the newest are not the best here"
    assert undisturbed.checkpoints == sorted(best | {ITERATIONS})


def test_the_best_checkpoint_is_a_directory_for_what_comes_after(undisturbed):
    [result] = asyncio.run(ResultGrid.load(undisturbed.experiment))
    assert result.status is TrialStatus.TERMINATED
    best, metrics = max(result.best_checkpoints, key=lambda pair: pair[1]["max-auc"])
    assert metrics["max-auc"] == max(undisturbed.aucs)
    with best.as_directory() as directory:
        model = json.loads((directory / "model.json").read_text("ascii"))
    assert model["iteration"] == best.step
    assert len(model["weights"]) == 8


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("script", "name", "kills"),
    [
        ("storage_auto.py", "experiment_name", 1),
        ("storage_shared.py", "experiment_name", 1),
        ("storage_best_five.py", "my-tune-exp", 3),
    ],
    ids=["auto", "shared", "best-five"],
)
def test_a_killed_script_is_resumed_where_it_was(script, name, kills, tmp_path, undisturbed):
    left = Left(tmp_path / name)
    begun = {}  # the first iteration of each process
    for life in range(kills):
        command = ("storage_resume.py", left.experiment) if life else (script, tmp_path)
        killed = start(*command, cwd=tmp_path)
        with killed:
            for _ in until(left, 15 * (life + 1)):
                assert killed.poll() is None, killed.communicate()[0]
            killed.send_signal(signal.SIGKILL)
        assert killed.returncode == -signal.SIGKILL
        newest = asyncio.run(newest_checkpoint(left.experiment))
        assert newest.step is not None
        # The directory is there a moment before its record, which is what counts.
        assert 15 * (life + 1) - 1 <= newest.step < ITERATIONS
        begun[newest.step + 1] = life + 1
    run("storage_resume.py", left.experiment, cwd=tmp_path)

    assert [row["training_iteration"] for row in left.rows] == list(range(1, ITERATIONS + 1))
    # What was trained before a checkpoint was not trained again, and nothing after it was skipped.
    changes = [
        row["training_iteration"]
        for before, row in zip(left.rows, left.rows[1:], strict=False)
        if row["pid"] != before["pid"]
    ]
    assert changes == list(begun)
    assert left.aucs == undisturbed.aucs
    keeps_all = script != "storage_best_five.py"
    assert left.checkpoints == (list(range(1, ITERATIONS + 1)) if keeps_all else undisturbed.checkpoints)


def test_a_finished_experiment_runs_nothing_more(undisturbed):
    before = (undisturbed.trial / "result.json").stat()
    run("storage_resume.py", undisturbed.experiment, cwd=undisturbed.experiment.parent)
    after = (undisturbed.trial / "result.json").stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)


def test_the_same_name_is_refused_and_both_ways_on_are_named(undisturbed):
    with start(
        "storage_best_five.py", undisturbed.experiment.parent, cwd=undisturbed.experiment.parent
    ) as again:
        output, _ = again.communicate()
    assert again.returncode == 1
    assert "Tuner.restore(" in output
    assert "RunConfig(name=" in output
