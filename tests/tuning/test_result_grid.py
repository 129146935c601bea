"""What an experiment came to: best by every scope, tables, files, from anywhere."""

from __future__ import annotations

import asyncio
import builtins
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from asynctune import (
    Checkpoint,
    CheckpointConfig,
    CheckpointNotFoundError,
    ConfigError,
    ExperimentExistsError,
    ExperimentNotFoundError,
    ExperimentStore,
    FailureConfig,
    MissingExtraError,
    Result,
    ResultGrid,
    RunConfig,
    StorageError,
    SyncConfig,
    TrialStatus,
    TuneConfig,
    Tuner,
    grid_search,
    session,
)
from asynctune.storage.memory import MemoryStorage
from asynctune.store import access, lazy_copies
from asynctune.store.summary import as_named, updated
from tests.tuning import trainables

NAN = math.nan


def result(trial_id, rows, *, metric="loss", status=TrialStatus.TERMINATED, **more):
    """A trial that has reported these values of `metric`, or whole rows."""
    rows = [row if isinstance(row, dict) else {metric: row} for row in rows]
    summary: list = []
    for row in rows:
        value = row.get(metric)
        summary = updated(summary, 1, value if isinstance(value, int | float) else None)
    return Result(
        **{
            "trial_id": trial_id,
            "status": status,
            "config": {"x": trial_id},
            "metrics": rows[-1] if rows else {},
            "checkpoint": None,
            "best_checkpoints": (),
            "error": None,
            "path": Path("/nowhere", trial_id),
            "summary": as_named(summary, 1),
            **more,
        }
    )


def grid(*results, metric="loss", mode="min"):
    return ResultGrid(results, location="/nowhere", metric=metric, mode=mode)


ROWS = {
    "low-once": [5.0, 0.0, 9.0],
    "low-last": [6.0, 6.0, 2.0],
    "low-avg": [4.0, 4.0, 4.0],
    "high-once": [5.0, 12.0, 5.0],
    "low-ten": [50.0] + [3.5] * 10,
}


@pytest.mark.parametrize(
    ("mode", "scope", "expected"),
    [
        ("min", "last", "low-last"),
        ("min", "all", "low-once"),
        ("min", "avg", "low-avg"),
        ("min", "last-10-avg", "low-ten"),
        ("max", "last", "low-once"),
        ("max", "all", "low-ten"),
        ("max", "avg", "low-ten"),
        ("max", "last-10-avg", "high-once"),
    ],
)
def test_the_best_by_every_scope(mode, scope, expected):
    found = grid(*(result(name, rows) for name, rows in ROWS.items()))
    assert found.get_best_result("loss", mode, scope).trial_id == expected
    assert grid(*found, mode=mode).get_best_result(scope=scope).trial_id == expected


@pytest.mark.parametrize("scope", ["last", "all", "avg", "last-10-avg"])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_is_no_number_is_never_best(mode, scope):
    found = grid(
        result("nan", [NAN, NAN]),
        result("none", []),
        result("text", ["0"]),
        result("other", [{"acc": 1}]),
        result("good", [1.0, NAN, 1.0]),
        result("tie", [1.0]),
    )
    assert found.get_best_result(mode=mode, scope=scope).trial_id == "good", "of equal ones the first"
    with pytest.raises(ConfigError, match=r"none of 4 trials has a number for 'loss'; there are acc"):
        grid(*found[:4]).get_best_result(mode=mode, scope=scope)


def test_nan_in_the_last_row_only():
    found = grid(result("a", [0.0, NAN]), result("b", [1.0]))
    assert found.get_best_result().trial_id == "b"
    assert found.get_best_result(scope="all").trial_id == "a"


def test_infinite_huge_and_true_are_numbers():
    found = grid(
        result("a", [math.inf]), result("b", [10**400]), result("c", [True]), result("d", [-(10**400)])
    )
    assert found.get_best_result(mode="max").trial_id == "a"
    assert found.get_best_result(mode="min").trial_id == "d"
    assert grid(*found[1:3]).get_best_result(mode="max").trial_id == "b"


def test_another_metric_than_the_tuned_one():
    found = grid(
        result("a", [{"loss": 1, "eval": {"acc": 0.5, "name": "x"}}]),
        result("b", [{"loss": 2, "eval/acc": 0.9, "pid": 7}]),
    )
    assert found.get_best_result("eval/acc", "max").trial_id == "b"
    with pytest.raises(ConfigError, match=r"scope='avg' is kept for the tuned metric \('loss'\) only"):
        found.get_best_result("eval/acc", "max", "avg")
    with pytest.raises(ConfigError, match=r"number for 'acc'; there are eval/acc, loss$"):
        found.get_best_result("acc", "max")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("loss", "minimum"), "mode must be 'min' or 'max', not 'minimum'"),
        (("loss", "min", "worst"), "scope must be last, all, avg or last-10-avg, not 'worst'"),
        ((), "name a metric and a mode"),
        (("loss",), "name a metric and a mode"),
    ],
    ids=["mode", "scope", "nothing", "metric"],
)
def test_what_makes_no_sense_is_refused(arguments, text):
    with pytest.raises(ConfigError, match=text):
        ResultGrid([result("a", [1])], location="").get_best_result(*arguments)


def test_an_empty_one_and_one_with_very_many_metrics():
    with pytest.raises(ConfigError, match=r"none of 0 trials .* no metrics at all"):
        grid().get_best_result()
    with pytest.raises(ConfigError, match=r"m19, \.\.\.$"):
        grid(result("a", [{f"m{number:02}": 1 for number in range(30)}])).get_best_result()


def test_it_is_a_sequence():
    found = grid(
        result("a", [1]),
        result("b", [], status=TrialStatus.ERROR, error="Traceback: no"),
        result("c", [], status=TrialStatus.PENDING),
    )
    assert [each.trial_id for each in found] == ["a", "b", "c"]
    assert (found[0].trial_id, found[-1].trial_id) == ("a", "c")
    assert [each.trial_id for each in found[1:]] == ["b", "c"]
    with pytest.raises(IndexError):
        found[3]
    assert (found.errors, found.num_errors, found.num_terminated) == (["Traceback: no"], 1, 1)
    assert repr(found) == "<ResultGrid of 3 trials, 1 terminated, 1 with errors>"


def test_as_a_table():
    table = grid(
        result(
            "a", [{"loss": 1.0, "eval": {"acc": 0.5}, "config": {"x": 1}, "status": "mine", "trial_id": "t"}]
        ),
        result(
            "b", [], status=TrialStatus.ERROR, config={"model": {"depth": 2, "empty": {}}, "layers": [1, 2]}
        ),
    ).get_dataframe()
    assert list(table.columns) == [
        "trial_id",
        "status",
        "loss",
        "eval/acc",
        "config/x",
        "config/model/depth",
        "config/model/empty",
        "config/layers",
    ]
    assert list(table["trial_id"]) == ["a", "b"]
    assert list(table["status"]) == ["TERMINATED", "ERROR"]
    assert table["eval/acc"][0] == 0.5
    assert pd.isna(table["loss"][1])
    assert table["config/layers"][1] == [1, 2]
    assert list(grid().get_dataframe().columns) == ["trial_id", "status"]


def test_a_table_without_pandas(monkeypatch):
    plain = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "pandas")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'asynctune\[dataframe\]'"):
        grid().get_dataframe()


# -- of an experiment ----------------------------------------------------------------------------------------


async def run(tmp_path, trainable=trainables.coroutine, space=None, **more):
    return await Tuner(
        trainable,
        param_space=space or {"x": grid_search([2, 1])},
        tune_config=TuneConfig(metric="loss", mode="min"),
        run_config=RunConfig(name="exp", local_dir=tmp_path, verbose=0, **more),
    ).fit()


async def test_the_best_checkpoint_is_a_directory_also_after_a_move(tmp_path):
    await run(tmp_path, checkpoint_config=CheckpointConfig(num_to_keep=2))
    shutil.move(tmp_path / "exp", tmp_path / "elsewhere")
    found = await ResultGrid.load(tmp_path / "elsewhere")
    assert (found.location, len(found)) == (str(tmp_path / "elsewhere"), 2)
    best = found.get_best_result()
    assert best.config == {"x": 1}
    assert best.checkpoint is not None
    assert [(checkpoint.step, metrics["loss"]) for checkpoint, metrics in best.best_checkpoints] == [
        (8, 1 / 8),
        (10, 1 / 10),
    ]
    assert await asyncio.to_thread(best.checkpoint.to_dict) == {"iteration": 10}
    copy = await asyncio.to_thread(best.checkpoint.to_directory, tmp_path / "copy")
    again = await asyncio.to_thread(Checkpoint.from_directory, copy)
    assert await asyncio.to_thread(again.to_dict) == {"iteration": 10}
    for kept, _ in best.best_checkpoints:
        assert await asyncio.to_thread(kept.to_dict) == {"iteration": kept.step}
    assert [row["training_iteration"] for row in await best.history()] == list(range(1, 11))


async def test_histories_after_a_rewind_and_of_trials_that_failed(tmp_path):
    found = await run(
        tmp_path, trainables.failing_once, {"x": 0}, failure_config=FailureConfig(max_failures=1)
    )
    assert [row["training_iteration"] for row in await found[0].history()] == [1, 2, 3, 4, 5, 6, 7]
    found = await run(tmp_path / "other", trainables.failing, {"x": grid_search([1, 2])})
    assert [each.status for each in found] == ["ERROR", "TERMINATED"]
    assert "ValueError: no 1" in found.errors[0]
    assert found[0].metrics["loss"] == 1, "its last row is there"
    assert found[0].checkpoint is None
    assert len(await found[0].history()) == 1


async def test_one_that_never_reported(tmp_path):
    async with ExperimentStore.open(tmp_path / "exp", mode="create") as store:
        store.add_trial({"x": 1})
    [only] = await ResultGrid.load(tmp_path / "exp")
    assert (only.metrics, only.checkpoint, only.error, only.status) == ({}, None, None, "PENDING")
    assert await only.history() == []


async def test_a_history_that_cannot_be_read(tmp_path):
    found = await run(tmp_path, space={"x": 1})
    file = found[0].path / "result.json"
    file.unlink()
    file.mkdir()
    with pytest.raises(StorageError, match=r"results of trial .* cannot be read"):
        await found[0].history()


@pytest.mark.parametrize("gone", ["exp", "trial", "file"])
async def test_a_history_that_is_not_where_it_was(tmp_path, gone):
    found = await run(tmp_path, space={"x": 1})
    trial = found[0].path
    {"exp": trial.parent, "trial": trial, "file": trial / "result.json"}[gone].rename(tmp_path / "moved")
    with pytest.raises(StorageError, match=r"results of trial .* cannot be read.*moved or removed"):
        await found[0].history()


def stamps(path):
    return {each: (each.stat().st_mtime_ns, each.stat().st_size) for each in path.rglob("*")}


async def test_of_an_experiment_that_runs(tmp_path):
    """Nothing is written, and nothing but the state is read."""
    path = tmp_path / "exp"
    async with ExperimentStore.open(path, mode="create") as store:
        store.track_metric("loss", "min")
        trials = [store.add_trial({"x": number}) for number in range(3)]
        for trial in trials:
            store.set_status(trial.trial_id, "RUNNING")
            store.report(trial.trial_id, {"loss": trial.config["x"]})
        made = tmp_path / "made"
        made.mkdir()
        (made / "weights").write_bytes(b"w")
        await store.save_checkpoint(trials[2].trial_id, made)
        await store.flush()
        before = stamps(path / ".asynctune")
        while_open = await ResultGrid.load(path)
        assert stamps(path / ".asynctune") == before
    for trial in trials:
        shutil.rmtree(path / trial.trial_name)
    for found in (while_open, await ResultGrid.load(path)):
        assert [each.status for each in found] == ["RUNNING"] * 3
        assert found.get_best_result().config == {"x": 0}
        assert found.get_best_result(scope="avg", mode="max").config == {"x": 2}
        assert found[2].checkpoint is not None


async def test_where_there_is_none(tmp_path):
    with pytest.raises(ExperimentNotFoundError):
        await ResultGrid.load(path_or_uri=tmp_path / "nothing", storage_options=None)


async def test_the_table_of_an_experiment(tmp_path, blockbuster):
    blockbuster.deactivate()  # a plain call, which the user makes where it may block
    table = (await run(tmp_path)).get_dataframe()
    assert list(table["config/x"]) == [2, 1]
    assert list(table["training_iteration"]) == [10, 10]
    assert json.loads(table.to_json())["loss"] == {"0": 0.2, "1": 0.1}


@pytest.fixture
def bucket(tmp_path):
    name = f"bucket-{tmp_path.name}"
    yield f"memory://{name}/some/where"
    MemoryStorage.forget(name)


async def with_one_checkpoint(config):
    made = Checkpoint.from_dict({"x": config["x"]})
    await session.areport({"loss": config["x"]}, checkpoint=made)
    if config["x"] == 2:
        raise RuntimeError("stops here")


def value_in(directory):
    return Checkpoint.from_directory(directory).to_dict()


async def test_a_checkpoint_that_is_in_the_copy_only_is_brought_from_there(tmp_path, bucket, monkeypatch):
    await Tuner(
        with_one_checkpoint,
        param_space={"x": grid_search([1, 2])},
        tune_config=TuneConfig(metric="loss", mode="min"),
        run_config=RunConfig(
            name="e", local_dir=tmp_path, verbose=0, sync_config=SyncConfig(upload_dir=bucket)
        ),
    ).fit()
    tuner = await Tuner.restore(
        f"{bucket}/e", with_one_checkpoint, resume_errored=True, local_dir=tmp_path / "elsewhere"
    )
    results = await tuner.fit()
    best = results.get_best_result()
    assert best.checkpoint is not None
    assert best.checkpoint.path is None, "nothing has asked for it"
    files = await best.fetch_checkpoint(tmp_path / "best")
    assert await asyncio.to_thread(value_in, files) == {"x": 1}
    [best, _] = await ResultGrid.load(tmp_path / "elsewhere" / "e")  # a reader, which knows of the copy too
    files = await best.fetch_checkpoint(tmp_path / "again")
    assert await asyncio.to_thread(value_in, files) == {"x": 1}
    asked = []
    real = access.open_access

    async def watched(remote, *arguments, **settings):
        asked.append((str(remote), dict(remote.options)))
        return await real(replace(remote, options={}), *arguments, **settings)

    monkeypatch.setattr(lazy_copies, "open_access", watched)
    [best, _] = await ResultGrid.load(tmp_path / "elsewhere" / "e", storage_options={"key": "k"})
    assert len(await best.history()) == 1
    assert asked == [], "the bucket is for what is only there"
    files = await best.fetch_checkpoint(tmp_path / "with options")
    assert await asyncio.to_thread(value_in, files) == {"x": 1}
    assert asked == [(f"{bucket}/e", {"key": "k"})]


async def test_a_new_experiment_is_refused_where_only_the_copy_of_another_one_is(tmp_path, bucket):
    def tuner(local_dir):
        return Tuner(
            with_one_checkpoint,
            param_space={"x": 1},
            run_config=RunConfig(
                name="e", local_dir=tmp_path / local_dir, verbose=0, sync_config=SyncConfig(upload_dir=bucket)
            ),
        )

    await tuner("here").fit()
    with pytest.raises(ExperimentExistsError, match="there is an experiment at ") as refused:
        await tuner("elsewhere").fit()
    assert f"at {bucket}/e already" in str(refused.value)
    assert f"Tuner.restore('{bucket}/e', local_dir='{tmp_path}/elsewhere')" in str(refused.value)


async def test_without_a_copy_a_checkpoint_that_is_gone_is_an_error(tmp_path):
    results = await Tuner(
        with_one_checkpoint,
        param_space={"x": 1},
        run_config=RunConfig(name="e", local_dir=tmp_path, verbose=0),
    ).fit()
    assert results[0].checkpoint is not None
    files = await results[0].fetch_checkpoint(tmp_path / "1")
    assert await asyncio.to_thread(value_in, files) == {"x": 1}
    shutil.rmtree(results[0].checkpoint)
    with pytest.raises(CheckpointNotFoundError):
        await results[0].fetch_checkpoint(tmp_path / "2")
