"""Trials on real Ray nodes that share no file with the head: everything comes home, byte for byte."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from asynctune import ProcessRunner, ResultGrid, RunConfig, Tuner
from tests.runners.ray_checking import (
    Place,
    actors,
    checked,
    experiment,
    inspected,
    left_on,
    rows_of,
    workers,
)
from tests.runners.ray_trials import Stepping, train, train_async, train_once_failing

pytestmark = pytest.mark.timeout(120)

KINDS = {"function": train, "class": Stepping, "coroutine": train_async}
TRIALS = 12
N = 4


@pytest.mark.parametrize("kind", KINDS)
async def test_twelve_trials_on_two_nodes_come_home_whole(cluster, kind):
    place = Place(cluster, f"home-{kind}")
    tuner = experiment(place, KINDS[kind], trials=TRIALS, frequency=int(kind == "class"), n=N)
    results = await tuner.fit()

    assert (len(results), results.num_terminated) == (TRIALS, TRIALS)
    rows = await checked(results, N)
    assert {row["where"] for each in rows for row in each} == {"node_b", "node_c"}
    processes = {row["me"] for each in rows for row in each}
    assert len(processes) <= 4, "they are used again, for as many as fit"
    assert [len(result.best_checkpoints) for result in results] == [2] * TRIALS
    for node in ("node_b", "node_c"):
        assert left_on(place, node) == []
        assert workers(cluster, node) == []
        assert actors(cluster, node) == []
    if kind == "class":
        objects = {row["object"] for each in rows for row in each}
        assert len(objects) <= 4
        assert {object_.rpartition(".")[2] for object_ in objects} == {"1"}  # each was set up once
        assert max(row["trials"] for each in rows for row in each) >= 3


async def test_nodes_are_not_needed_to_look_and_restore(cluster, tmp_path):
    """A trial that had failed in the middle goes on on the head alone, from the checkpoint that came home."""
    place = Place(cluster, "gone")
    before = await experiment(
        place, train_once_failing, trials=3, n=4, fails_at=3, flag=str(cluster.root / "failed-once")
    ).fit()
    [failed] = [result for result in before if result.error is not None]
    for node in ("node_b", "node_c"):
        await asyncio.to_thread(cluster.kill_node, node)

    moved = tmp_path / "gone"
    await asyncio.to_thread(shutil.move, place.directory, moved)
    assert "3" in await inspected(moved)
    await inspected(moved, "verify")
    loaded = await ResultGrid.load(moved)
    await checked([result for result in loaded if result.error is None], 4)
    (rows,) = [await rows_of(result, 2) for result in loaded if result.error is not None]
    restored = await Tuner.restore(
        moved,
        train_once_failing,
        resume_errored=True,
        run_config=RunConfig(verbose=0),
        runner=ProcessRunner(1),
    )
    again = await restored.fit()
    assert [result.trial_id for result in again] == [result.trial_id for result in before]
    assert all(str(result.checkpoint.path).startswith(str(moved)) for result in again if result.checkpoint)
    for result, after in zip(again, await checked(again, 4), strict=True):
        if result.trial_id == failed.trial_id:
            assert after[:2] == rows, "it did not begin again"
            assert [row["where"] for row in after[2:]] == ["head"] * 2
        else:
            assert "head" not in {row["where"] for row in after}
    await inspected(moved, "verify")


async def test_output_and_files_of_trials_come_home_too(cluster):
    place = Place(cluster, "files")
    tuner = experiment(place, writes_files, trials=2, n=2)
    for result in await tuner.fit():
        assert result.error is None
        assert Path(result.path, "notes.txt").read_text() == f"of {result.trial_id}\n"
    assert left_on(place, "node_b") + left_on(place, "node_c") == []


def writes_files(config):
    from asynctune import session  # noqa: PLC0415 - in the worker

    Path(session.get_trial_dir(), "notes.txt").write_text(f"of {session.get_trial_id()}\n")
    return {"loss": 1.0}
