"""The event file of a trial beside its result.json."""

from __future__ import annotations

from pathlib import Path

from asynctune.results.rows import Cut
from tests.results.world import project, row, the_events, trial_files


def event_file(root: Path) -> Path:
    (path,) = (root / "name_t1").glob("events.out.tfevents.*")
    return path


def test_one_file_for_a_trial_with_the_time_and_host_in_its_name(tmp_path):
    files, _ = trial_files(tmp_path, tensorboard=True)
    project(files, [row(1)])
    again, _ = trial_files(tmp_path, tensorboard=True)
    project(again, [row(2)])
    assert event_file(tmp_path).name == "events.out.tfevents.1767225601.oak.asynctune"
    assert [step for step, _ in the_events(tmp_path / "name_t1")] == [1, 2]


def test_a_rewind_is_appended_so_that_a_running_tensorboard_sees_it(tmp_path):
    files, _ = trial_files(tmp_path, tensorboard=True)
    project(files, [row(1), row(2), row(3)])
    path = event_file(tmp_path)
    before, inode = path.read_bytes(), path.stat().st_ino
    project(files, [Cut(trial_id="t1", keep=1), row(2, {"loss": 9.0}, at=20)])
    assert path.read_bytes().startswith(before)
    assert path.stat().st_ino == inode
    assert [(step, s.get("loss")) for step, s in the_events(tmp_path / "name_t1")] == [(1, 1.0), (2, 9.0)]


def test_iterations_that_do_not_rise_are_made_anew_after_a_rewind(tmp_path):
    files, _ = trial_files(tmp_path, tensorboard=True)
    iterations = {"training_iteration": 5}, {"training_iteration": 2}, {"training_iteration": 1}
    project(files, [row(n, metrics) for n, metrics in enumerate(iterations, 1)])
    assert [step for step, _ in the_events(tmp_path / "name_t1")] == [5, 2, 1]
    project(files, [Cut(trial_id="t1", keep=2), row(3, {"training_iteration": 3}, at=30)])
    assert [step for step, _ in the_events(tmp_path / "name_t1")] == [5, 2, 3]


def test_what_the_trial_itself_writes_for_tensorboard_is_left_alone(tmp_path):
    files, _ = trial_files(tmp_path, tensorboard=True)
    project(files, [row(1)])
    foreign = tmp_path / "name_t1/events.out.tfevents.9999999999.oak"
    foreign.write_bytes(b"its own")
    again, _ = trial_files(tmp_path, tensorboard=True)
    project(again, [row(2)])
    assert foreign.read_bytes() == b"its own"
