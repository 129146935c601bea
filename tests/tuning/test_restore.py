"""An experiment goes on after whatever ended it: the restore table, moved directories, damage, kills."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from asynctune import (
    CheckpointConfig,
    ConfigError,
    CorruptStateError,
    ExperimentNotFoundError,
    ExperimentStore,
    FailureConfig,
    OptunaSearcher,
    ResultGrid,
    RunConfig,
    TrialStatus,
    TuneConfig,
    Tuner,
    choice,
    grid_search,
    sample_from,
    session,
)
from tests.tuning import trainables

STATUSES = ("TERMINATED", "ERROR", "RUNNING", "PENDING", "PAUSED")


def iterations(result):
    path = result.path / "result.json"
    if not path.exists():
        return []
    return [json.loads(line)["training_iteration"] for line in path.read_text("utf-8").splitlines()]


async def made(tmp_path, trainable=trainables.coroutine, **run):
    """An experiment with a trial of each status; the last three have a checkpoint at iteration 4 and a fifth row."""
    tuner = Tuner(
        trainable,
        param_space={"x": grid_search([1])},
        run_config=RunConfig(name="exp", local_dir=tmp_path, verbose=0, **run),
    )
    results = await tuner.fit()
    assert results.num_terminated == 1
    async with ExperimentStore.open(tmp_path / "exp", mode="resume") as store:
        store.set_metadata("asynctune.progress", {"finished": False})
        for status in STATUSES[1:]:
            trial = store.add_trial({"x": 2}, trial_name=f"coroutine_{status}")
            if status == "PENDING":
                continue
            store.set_status(trial.trial_id, "RUNNING")
            for iteration in range(1, 6):
                store.report(trial.trial_id, {"loss": 1.0, "training_iteration": iteration})
                if iteration == 4:
                    await store.clone_checkpoint(results[0].trial_id, 4, to_trial=trial.trial_id)
            if status != "RUNNING":
                store.set_status(trial.trial_id, status, error="it failed" if status == "ERROR" else None)
    return tmp_path / "exp"


@pytest.mark.parametrize(
    ("flags", "expected", "restarted"),
    [
        ({}, "TERMINATED ERROR TERMINATED TERMINATED TERMINATED", 0),
        ({"resume_errored": True}, "TERMINATED TERMINATED TERMINATED TERMINATED TERMINATED", 0),
        ({"restart_errored": True}, "TERMINATED TERMINATED TERMINATED TERMINATED TERMINATED", 1),
        (
            {"resume_errored": True, "restart_errored": True},
            "TERMINATED TERMINATED TERMINATED TERMINATED TERMINATED",
            0,
        ),
        ({"resume_unfinished": False}, "TERMINATED ERROR TERMINATED TERMINATED TERMINATED", 0),
        (
            {"resume_unfinished": False, "resume_errored": True},
            "TERMINATED TERMINATED TERMINATED TERMINATED TERMINATED",
            0,
        ),
    ],
    ids=["default", "resume", "restart", "both", "unfinished", "errored-only"],
)
async def test_the_restore_table(tmp_path, flags, expected, restarted):
    path = await made(tmp_path)
    tuner = await Tuner.restore(path, **flags)
    results = await tuner.fit()
    assert not (flags.get("resume_errored") and results.errors), results.errors
    by_name = {Path(result.path).name.removeprefix("coroutine_"): result for result in results}
    assert len(results) == 5
    first = results[0]
    assert iterations(first) == list(range(1, 11))
    unfinished = flags.get("resume_unfinished", True)
    whole, cut = list(range(1, 11)), list(range(1, 6))
    if restarted:
        [new] = [result for name, result in by_name.items() if name not in STATUSES and result is not first]
        assert iterations(new) == whole
    else:
        errored = by_name["ERROR"]
        assert iterations(errored) == (whole if flags.get("resume_errored") else cut)
        assert errored.status == (
            TrialStatus.TERMINATED if flags.get("resume_errored") else TrialStatus.ERROR
        )
    assert iterations(by_name["RUNNING"]) == (whole if unfinished else cut)
    assert iterations(by_name["PAUSED"]) == (whole if unfinished else cut)
    assert iterations(by_name["PENDING"]) == (whole if unfinished else [])
    assert sorted(expected.split()) == sorted(result.status for result in results)


async def test_from_a_moved_directory_and_a_relative_path(tmp_path, monkeypatch):
    path = await made(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path.rename(elsewhere / "exp")
    monkeypatch.chdir(elsewhere)
    tuner = await Tuner.restore("exp", resume_errored=True)
    results = await tuner.fit()
    assert results.num_terminated == 5
    assert not path.exists()
    assert all(Path(result.path).is_relative_to(elsewhere) for result in results)


def corrupt(checkpoint):
    file = next(each for each in checkpoint.path.iterdir() if each.name != ".manifest.json")
    file.write_bytes(b"X" * file.stat().st_size)


def remove(checkpoint):
    shutil.rmtree(checkpoint.path)


@pytest.mark.parametrize("harm", [corrupt, remove], ids=["damaged", "missing"])
@pytest.mark.parametrize("count", [1, 2], ids=["newest", "all"])
async def test_checkpoints_that_cannot_be_used_are_told_of_and_passed_over(tmp_path, caplog, harm, count):
    path = await made(tmp_path)
    async with ExperimentStore.open(path, mode="resume") as store:
        running = next(trial for trial in store.trials if trial.status == "RUNNING")
        store.report(running.trial_id, {"loss": 1.0, "training_iteration": 6})
        await store.clone_checkpoint(store.trials[0].trial_id, 6, to_trial=running.trial_id)
        for checkpoint in store.checkpoints(running.trial_id)[-count:]:
            harm(checkpoint)
    results = await (await Tuner.restore(path)).fit()
    result = next(each for each in results if each.trial_id == running.trial_id)
    assert result.status == "TERMINATED", result.error
    assert iterations(result) == list(range(1, 11)), "rows after the checkpoint that was used were cut off"
    assert f"checkpoint 6 of trial {running.trial_id}" in caplog.text
    if count == 2:
        assert f"trial {running.trial_id} starts over" in caplog.text


async def test_what_is_not_there_or_not_whole_never_starts_over(tmp_path):
    with pytest.raises(ExperimentNotFoundError):
        await Tuner.restore(tmp_path / "nothing")
    path = await made(tmp_path)
    for file in (path / ".asynctune").glob("wal-*"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with pytest.raises(CorruptStateError):
        await Tuner.restore(path)


async def test_another_trainable_is_refused(tmp_path):
    path = await made(tmp_path)
    with pytest.raises(ConfigError, match=r"coroutine.*failing"):
        await Tuner.restore(path, trainables.failing)

    def coroutine(config):
        """Likewise."""

    with pytest.raises(
        ConfigError, match="made with the coroutine coroutine, and this is the function coroutine"
    ):
        await Tuner.restore(path, coroutine)
    searcher = await asyncio.to_thread(OptunaSearcher, {})  # which imports Optuna
    other = TuneConfig(search_alg=searcher, metric="loss", mode="min")
    with pytest.raises(
        ConfigError, match="made with the searcher BasicSearcher, and OptunaSearcher was given"
    ):
        await Tuner.restore(path, tune_config=other)
    with pytest.raises(ConfigError, match="called exp"):
        await Tuner.restore(path, run_config=RunConfig(name="other"))


class Fifo:
    """A scheduler with a state."""

    def __init__(self):
        self.seen = 0

    def on_trial_result(self, trial_id, result):
        self.seen += 1
        return "CONTINUE"

    def choose_trial_to_run(self, trial_ids):
        return trial_ids[0] if trial_ids else None

    def get_state(self):
        return self.seen

    def set_state(self, state):
        self.seen = state


def stops_never(trial_id, result):
    return False


async def test_objects_that_are_not_given_again_are_named(tmp_path):
    async def local(config):
        await session.areport({"loss": config["y"], "done": True})

    tuner = Tuner(
        local,
        param_space={"x": choice([1]), "y": sample_from(lambda spec: spec.x)},
        tune_config=TuneConfig(scheduler=Fifo(), num_samples=2),
        run_config=RunConfig(
            name="exp",
            local_dir=tmp_path,
            verbose=0,
            stop=stops_never,
            callbacks=[],
            failure_config=FailureConfig(max_failures=2),
        ),
    )
    await tuner.fit()
    async with ExperimentStore.open(tmp_path / "exp", mode="resume") as store:
        store.set_metadata("asynctune.progress", {"finished": False})
    with pytest.raises(ConfigError) as failed:
        await Tuner.restore(tmp_path / "exp")
    for word in ("the trainable local", "Fifo", "stops_never", "functions of y"):
        assert word in str(failed.value)
    scheduler = Fifo()
    restored = await Tuner.restore(
        tmp_path / "exp",
        local,
        param_space={"x": choice([1]), "y": sample_from(lambda spec: spec.x)},
        tune_config=TuneConfig(scheduler=scheduler, num_samples=3),
        run_config=RunConfig(verbose=0, stop=stops_never),
    )
    results = await restored.fit()
    assert len(results) == 3, "it was extended"
    assert scheduler.seen == 3, "its state went on"


async def test_a_config_that_is_given_for_one_field_drops_no_other(tmp_path):
    tuner = Tuner(
        trainables.coroutine,
        param_space={"x": choice([1, 2])},
        tune_config=TuneConfig(metric="loss", mode="min", num_samples=4, max_concurrent_trials=1),
        run_config=RunConfig(
            name="exp",
            local_dir=tmp_path,
            verbose=0,
            stop={"training_iteration": 3},
            failure_config=FailureConfig(fail_fast=True),
        ),
    )
    await tuner.fit()
    async with ExperimentStore.open(tmp_path / "exp", mode="resume") as store:
        store.set_metadata("asynctune.progress", {"finished": False})
    restored = await Tuner.restore(
        tmp_path / "exp",
        tune_config=TuneConfig(num_samples=6),
        run_config=RunConfig(stop={"training_iteration": 5}),
    )
    results = await restored.fit()
    assert [result.metrics["training_iteration"] for result in results] == [3, 3, 3, 3, 5, 5]
    assert results.get_best_result().metrics["loss"] <= 1, "the metric is known"
    async with ExperimentStore.open(tmp_path / "exp", mode="read") as store:
        settings = store.metadata["asynctune.tuner"]
    assert settings["failure"] == {"max_failures": 0, "fail_fast": True}
    assert settings["max_concurrent_trials"] == 1
    assert settings["verbose"] == 0


async def test_classes_run_in_processes_and_resume(tmp_path):
    tuner = Tuner(
        trainables.Counting,
        param_space={"until": grid_search([3, 5])},
        run_config=RunConfig(
            name="exp",
            local_dir=tmp_path,
            verbose=0,
            checkpoint_config=CheckpointConfig(checkpoint_frequency=2, checkpoint_at_end=True),
        ),
    )
    results = await tuner.fit()
    assert results.num_terminated == 2, results.errors
    assert [result.metrics["count"] for result in results] == [3, 5]
    assert [[c.step for c, _ in result.best_checkpoints] for result in results] == [[2, 3], [2, 4, 5]]


async def test_a_killed_worker_is_retried_from_its_checkpoint(tmp_path):
    tuner = Tuner(
        trainables.with_directory,
        param_space={"iterations": 5, "die_at": 3, "signal": "SIGKILL"},
        run_config=RunConfig(
            name="exp", local_dir=tmp_path, verbose=0, failure_config=FailureConfig(max_failures=1)
        ),
    )
    results = await tuner.fit()
    assert results.num_terminated == 1, results.errors
    assert iterations(results[0]) == [1, 2, 3, 4, 5]


SCRIPT = """
import asyncio, os, sys
from asynctune import *
from tests.tuning import trainables

async def main():
    path = sys.argv[1]
    if os.path.exists(path):
        tuner = await Tuner.restore(path)
    else:
        tuner = Tuner(
            trainables.coroutine,
            param_space={"x": uniform(0, 1), "pause": float(sys.argv[2])},
            tune_config=TuneConfig(num_samples=12, max_concurrent_trials=3),
            run_config=RunConfig(name=os.path.basename(path), local_dir=os.path.dirname(path)),
        )
    await tuner.fit()

asyncio.run(main())
"""


def start(path, pause=0.01, script=SCRIPT):
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path), str(pause)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def wait_for(path, pattern):
    end = time.monotonic() + 30
    while not list(path.glob(pattern)):
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.01)


async def check_finished(path):
    results = await ResultGrid.load(path)
    assert (len(results), results.num_terminated) == (12, 12)
    assert len({result.config["x"] for result in results}) == 12, "no suggestion came twice"
    for result in results:
        assert iterations(result) == list(range(1, 11))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)], ids=["int", "term"]
)
async def test_a_signal_stops_it_well(tmp_path, number, code):
    path = tmp_path / "exp"
    process = await asyncio.to_thread(start, path, 0.2)
    await asyncio.to_thread(wait_for, path, "*/result.json")
    process.send_signal(number)
    _, errors = await asyncio.to_thread(process.communicate)
    assert f"Tuner.restore({str(path)!r})" in errors
    assert process.returncode in {code, 130 if number == signal.SIGINT else code}
    async with ExperimentStore.open(path, mode="read") as store:
        assert {trial.status for trial in store.trials} <= {"PENDING", "TERMINATED"}
    process = await asyncio.to_thread(start, path)
    _, errors = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, errors
    await check_finished(path)
    assert os.path.exists(path)


TERMINATED_AS_A_WHOLE = """
import asyncio, os, sys
from asynctune import *
from tests.tuning import trainables

path = sys.argv[1]
if os.path.exists(path):
    tuner = asyncio.run(Tuner.restore(path))
else:
    tuner = Tuner(
        trainables.with_directory,
        param_space={"iterations": 20, "pause": 0.05},
        tune_config=TuneConfig(num_samples=2),
        run_config=RunConfig(name=os.path.basename(path), local_dir=os.path.dirname(path)),
    )
tuner.run()
"""


async def test_the_end_of_a_whole_job_is_no_failure_of_its_trials(tmp_path):
    path = tmp_path / "exp"
    process = await asyncio.to_thread(start, path, script=TERMINATED_AS_A_WHOLE)
    await asyncio.to_thread(wait_for, path, "*/checkpoint_*")
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    for child in children:  # as a batch system does, workers first
        child.terminate()
    process.terminate()
    _, errors = await asyncio.to_thread(process.communicate)
    assert process.returncode == 143, errors
    async with ExperimentStore.open(path, mode="read") as store:
        assert [(trial.status, trial.num_failures) for trial in store.trials] == [("PENDING", 0)] * 2
    process = await asyncio.to_thread(start, path, script=TERMINATED_AS_A_WHOLE)
    _, errors = await asyncio.to_thread(process.communicate)
    assert process.returncode == 0, errors
    for result in await ResultGrid.load(path):
        assert iterations(result) == list(range(1, 21))
