"""Checkpoints of trials become the store's, also when the disk is full for a while."""

from __future__ import annotations

import errno

import pytest

from asynctune import (
    Checkpoint,
    ExperimentStore,
    RunConfig,
    StorageError,
    SyncConfig,
    TrialReport,
    Tuner,
    UploadError,
)
from asynctune.storage.memory import MemoryStorage
from asynctune.store import reconcile
from asynctune.tuning import checkpointing
from tests.tuning import trainables


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["full", "quota"])
async def test_a_trial_waits_for_space(tmp_path, monkeypatch, caplog, number):
    monkeypatch.setattr(checkpointing, "_BETWEEN_S", 0.01)
    save, left = ExperimentStore.save_checkpoint, 3

    async def save_later(store, *args, **how):
        nonlocal left
        left -= 1
        if left >= 0:
            raise StorageError("cannot stage", operation="write") from OSError(number, "no space")
        return await save(store, *args, **how)

    monkeypatch.setattr(ExperimentStore, "save_checkpoint", save_later)
    run = RunConfig(name="exp", local_dir=tmp_path, verbose=0)
    [result] = await Tuner(trainables.coroutine, param_space={"x": 1}, run_config=run).fit()
    assert result.status == "TERMINATED"
    assert [checkpoint.step for checkpoint, _ in result.best_checkpoints] == [2, 4, 6, 8, 10]
    assert caplog.text.count("waits for space: cannot stage") == 1


async def test_another_failure_of_the_disk_ends_the_experiment(tmp_path, monkeypatch):
    async def fails(store, *args, **how):
        raise StorageError("cannot stage", operation="write") from OSError(errno.EIO, "broken")

    monkeypatch.setattr(ExperimentStore, "save_checkpoint", fails)
    run = RunConfig(name="exp", local_dir=tmp_path, verbose=0)
    tuner = Tuner(trainables.coroutine, param_space={"x": 1}, run_config=run)
    with pytest.raises(StorageError, match="cannot stage"):
        await tuner.fit()
    assert [result.status for result in tuner.get_results()] == ["PENDING"]


async def test_steps_rise_where_iterations_begin_anew(tmp_path):
    async with ExperimentStore.open(tmp_path / "exp") as store:
        trial_id = store.add_trial({}).trial_id
        store.set_status(trial_id, "RUNNING")
        for iteration in (3, 9):
            store.report(trial_id, {"training_iteration": iteration})
            made = await checkpointing.commit_checkpoint(
                store, trial_id, TrialReport(metrics=None, checkpoint=Checkpoint.from_dict({"i": iteration}))
            )
            assert made is not None
            assert made.step == iteration
        made = await checkpointing.commit_checkpoint(
            store, trial_id, TrialReport(metrics=None, checkpoint=Checkpoint.from_dict({}))
        )
        assert made is not None
        assert made.step == 10
        task = await checkpointing.task_of(store, trial_id)
        assert task.iteration == 9
        assert task.checkpoint is not None
        assert task.checkpoint.step == 10


async def test_steps_rise_above_one_that_was_lost_with_a_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(reconcile, "QUIET_S", 0.05)
    bucket = f"memory://{tmp_path.name}/prefix"

    async def commit(store, iteration):
        store.report("t", {"training_iteration": iteration})
        report = TrialReport(metrics=None, checkpoint=Checkpoint.from_dict({"i": iteration}))
        return await checkpointing.commit_checkpoint(store, "t", report)

    sync = SyncConfig(upload_dir=bucket, sync_on_checkpoint=False)  # the second one stays here until the end
    store = await ExperimentStore.open(tmp_path / "exp", sync_config=sync)
    store.add_trial({}, trial_id="t")
    store.set_status("t", "RUNNING")
    await commit(store, 1)
    await store.flush(mirror=True)
    events = store.events()
    await commit(store, 2)
    seq = store.stats().committed_seq
    while (store.stats().mirrored_seq or 0) < seq:
        await anext(events)
    with pytest.raises(UploadError):
        await store.aclose(drain_timeout_s=0)

    async with ExperimentStore.open(f"{bucket}/exp", local_dir=tmp_path / "new") as store:
        assert [made.step for made in store.checkpoints("t")] == [1]
        assert store.last_step("t") == 2
        store.requeue()
        store.set_status("t", "RUNNING")
        assert (await commit(store, 2)).step == 3
    MemoryStorage.forget(tmp_path.name)
