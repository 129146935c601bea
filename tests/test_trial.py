"""The values users hold: what they say, what they read and write, and that their types are as documented."""

from __future__ import annotations

import asyncio
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, assert_type

import pytest

from asynctune import Checkpoint, ExperimentStore, StoreStats, Trial, TrialStatus
from asynctune.errors import CheckpointNotFoundError, ConfigError
from asynctune.trial import ALLOWED_TRANSITIONS, DICT_FILE, MANIFEST_FILE


def a_directory(path: Path) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "model.bin").write_bytes(b"weights")
    (path / "sub" / "x").write_text("y")
    (path / MANIFEST_FILE).write_text("{}")
    return path


@pytest.mark.parametrize("status", TrialStatus)
def test_statuses_are_their_names_and_finished_ones_only_start_again(status):
    assert status == status.name == str(status)
    assert status.is_finished == (status in {"TERMINATED", "ERROR"})
    assert (ALLOWED_TRANSITIONS[status] == {TrialStatus.PENDING}) == status.is_finished
    assert status not in ALLOWED_TRANSITIONS[status]


def test_a_checkpoint_of_a_directory_is_copied_out_without_its_manifest(tmp_path):
    checkpoint = Checkpoint.from_directory(a_directory(tmp_path / "d"))
    assert os.fspath(checkpoint) == str(tmp_path / "d")
    copy = checkpoint.to_directory(tmp_path / "copy")
    assert sorted(p.name for p in copy.rglob("*")) == ["model.bin", "sub", "x"]
    with checkpoint.as_directory() as there:
        assert there == tmp_path / "d"
    with pytest.raises(ConfigError, match="not made by from_dict"):
        checkpoint.to_dict()


def test_a_checkpoint_of_a_value_is_that_value_and_a_directory_when_asked(tmp_path):
    value = {"epoch": 3, "shape": (2, 3), "raw": b"\0"}
    checkpoint = Checkpoint.from_dict(value)
    assert checkpoint.to_dict() == value
    with pytest.raises(TypeError, match="to_directory"):
        os.fspath(checkpoint)
    written = Checkpoint.from_directory(checkpoint.to_directory(tmp_path / "d"))
    assert written.to_dict() == value
    with checkpoint.as_directory() as there:
        assert [p.name for p in there.iterdir()] == [DICT_FILE]
    assert not there.exists()


def test_what_is_not_there_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="no directory at"):
        Checkpoint.from_directory(tmp_path / "no")
    with pytest.raises(ConfigError, match="is code"):
        Checkpoint.from_dict({"f": print})
    gone = Checkpoint(path=tmp_path / "gone")
    for use in (gone.to_directory, gone.to_dict, lambda: gone.as_directory().__enter__()):
        with pytest.raises(CheckpointNotFoundError, match="fetch"):
            use()


def test_a_damaged_value_is_a_clear_error(tmp_path):
    directory = Checkpoint.from_dict([1]).to_directory(tmp_path / "d")
    (directory / DICT_FILE).write_bytes(b"\xc1")
    with pytest.raises(CheckpointNotFoundError, match="is damaged"):
        Checkpoint.from_directory(directory).to_dict()


async def test_values_travel_to_workers_and_have_the_types_that_are_documented(tmp_path):
    async with ExperimentStore.open(tmp_path / "exp") as store:
        trial = store.add_trial({"lr": 0.1})
        saved = await store.save_checkpoint(trial.trial_id, Checkpoint.from_dict({"epoch": 1}))
        restored = await store.restore_checkpoint(trial.trial_id)
        travelled = pickle.loads(pickle.dumps(restored))
        assert await asyncio.to_thread(travelled.to_dict) == {"epoch": 1}
        assert pickle.loads(pickle.dumps(store.get_trial(trial.trial_id))) == store.get_trial(trial.trial_id)
        # read by mypy too: what a user's own type checker is told
        assert_type(store, ExperimentStore)
        assert_type(trial, Trial)
        assert_type(trial.status, TrialStatus)
        assert_type(trial.config, Mapping[str, Any])
        assert_type(trial.checkpoints, tuple[Checkpoint, ...])
        assert_type(saved, Checkpoint)
        assert_type(saved.step, int | None)
        assert_type(store.trials, Sequence[Trial])
        assert_type(store.best_trial("loss", "min"), Trial | None)
        assert_type(store.checkpoints(trial.trial_id), tuple[Checkpoint, ...])
        assert_type(store.metadata, dict[str, Any])
        assert_type(store.stats(), StoreStats)
        assert_type(await store.flush(), int)
        assert_type(await store.fetch(saved), Path)
        async with store.lease(trial.trial_id) as leased:
            assert_type(leased, Checkpoint)
