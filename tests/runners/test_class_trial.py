"""The life of a `Trainable` object."""

from __future__ import annotations

import pytest

from asynctune import ConfigError, TrialTask
from asynctune.runners.class_trial import ClassTrial
from asynctune.trial import Checkpoint
from tests.runners import trials


class Driver:
    """Takes what is delivered."""

    def __init__(self, answers=()):
        self.answers = dict(answers)
        self.rows = []
        self.checkpoints = []

    def __call__(self, metrics, checkpoint, *, move):
        assert move
        if checkpoint is not None:
            self.checkpoints.append((len(self.rows) + (metrics is not None), checkpoint))
        if metrics is not None:
            self.rows.append(metrics)
        return self.answers.get(len(self.rows), "CONTINUE")


@pytest.fixture
def run(tmp_path):
    def run(life, driver=None, *, trial_id="t1", iteration=0, checkpoint=None, **config):
        directory = tmp_path / trial_id
        directory.mkdir(exist_ok=True)
        driver = driver or Driver()
        task = TrialTask(
            trial_id=trial_id,
            trial_name=trial_id,
            trial_dir=str(directory),
            config=config,
            iteration=iteration,
            checkpoint=checkpoint,
        )
        life.run(task, driver)
        return driver

    return run


@pytest.fixture
def said(tmp_path):
    return lambda trial_id="t1": (tmp_path / trial_id / "said").read_text("ascii").split("\n")[:-1]


def test_an_object_that_takes_no_other_config_ends_with_its_trial(run, said):
    life = ClassTrial(trials.Watched)
    first = run(life).rows[0]["object"]
    assert said() == ["setup", "cleanup"]
    assert run(life, trial_id="t2").rows[0]["training_iteration"] == 1
    assert said("t2") == ["setup", "cleanup"]
    life.close()
    assert said("t2") == ["setup", "cleanup"], "once for each object"
    assert first


def test_one_that_does_is_used_again_and_ends_with_its_worker(run, said):
    life = ClassTrial(trials.Reused)
    objects = [run(life, trial_id=each).rows[0]["object"] for each in ("t1", "t2")]
    assert objects[0] == objects[1]
    assert (said("t1"), said("t2")) == (["setup"], ["reset"])
    life.close()
    assert said("t2") == ["reset", "cleanup"]


def test_one_that_refuses_a_config_makes_place_for_another(run, said):
    life = ClassTrial(trials.Reused)
    run(life)
    run(life, trial_id="t2", refuse=True)
    assert said("t1") == ["setup", "cleanup"], "the old object cleans up after its own trial"
    assert said("t2") == ["reset", "setup"]


@pytest.mark.parametrize("fail", ["setup", "step", "save", "reset"])
def test_an_object_that_failed_is_cleaned_up_and_not_used_again(run, said, fail):
    life = ClassTrial(trials.Reused, checkpoint_frequency=1)
    if fail == "reset":
        run(life)
    with pytest.raises(ValueError, match=fail):
        run(life, fail=fail)
    assert said()[-1] == "cleanup"
    run(life)
    assert said()[-2:] == ["cleanup", "setup"]


def test_a_cleanup_that_fails_fails_no_trial(run, capsys):
    assert run(ClassTrial(trials.Watched), fail="cleanup").rows
    assert "Watched.cleanup() failed" in capsys.readouterr().err


def test_an_iteration_goes_on_from_the_tasks(run, tmp_path):
    private = tmp_path / "private"
    private.mkdir()
    driver = run(ClassTrial(trials.Watched), iteration=4, until=6, checkpoint=Checkpoint(path=private))
    assert [row["training_iteration"] for row in driver.rows] == [5, 6]


@pytest.mark.parametrize(
    ("returns", "loaded"), [("file", "model True"), ("directory", "private False"), (None, "private False")]
)
def test_what_save_returned_is_what_load_gets(run, said, tmp_path, returns, loaded):
    driver = run(ClassTrial(trials.Watched, checkpoint_at_end=True), returns=returns)
    ((_, checkpoint),) = driver.checkpoints
    checkpoint.path.rename(tmp_path / "private")
    run(ClassTrial(trials.Watched), trial_id="t2", checkpoint=Checkpoint(path=tmp_path / "private"))
    assert said("t2")[1] == f"load {loaded}"


@pytest.mark.parametrize(
    ("returns", "text"),
    [
        ("elsewhere", "'/tmp', which is not in the directory that it was given"),
        ("nothing there", "where nothing is"),
        ("number", "3, which is neither a dict nor a path"),
        ("list", "neither a dict nor a path"),
        ("bytes", "neither a dict nor a path"),
        ("checkpoint", "neither a dict nor a path"),
    ],
)
def test_what_save_must_not_return(run, tmp_path, returns, text):
    driver = Driver()
    with pytest.raises(ConfigError, match=rf"^Watched\.save_checkpoint\(\) returned .*{text}"):
        run(ClassTrial(trials.Watched, checkpoint_at_end=True), driver, returns=returns)
    assert (driver.rows, driver.checkpoints) == ([], [])
    assert [path.name for path in (tmp_path / "t1").iterdir()] == ["said"], "nothing half made is left"


@pytest.mark.parametrize(
    ("answers", "at_end", "every", "expected"),
    [
        ({2: "STOP"}, False, 0, []),
        ({2: "STOP"}, True, 0, [2]),
        ({2: "STOP"}, True, 2, [2]),
        ({2: "PAUSE"}, False, 0, [2]),
        ({2: "PAUSE"}, False, 2, [2]),
        ({}, True, 2, [2, 3]),
        ({}, True, 3, [3]),
        ({3: "STOP"}, True, 0, [3]),
    ],
    ids=["stop", "stop-end", "stop-once", "pause", "pause-once", "done", "done-once", "done-and-stop"],
)
def test_when_it_saves(run, answers, at_end, every, expected):
    life = ClassTrial(trials.Watched, checkpoint_frequency=every, checkpoint_at_end=at_end)
    driver = run(life, Driver(answers), until=3)
    assert [number for number, _ in driver.checkpoints] == expected


def test_a_step_returns_a_mapping(run):
    class Bad(trials.Watched):
        def step(self):
            return 3

    with pytest.raises(ConfigError, match=r"Bad\.step\(\) must return a mapping of metrics, not int"):
        run(ClassTrial(Bad))
