"""Openings that meet a copy: what the disk and the bucket hold becomes one experiment."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import shutil

import pytest

from asynctune.config import CheckpointConfig, SyncConfig
from asynctune.errors import (
    ConfigError,
    CorruptStateError,
    ExperimentExistsError,
    ExperimentNotFoundError,
    FencedError,
    StorageError,
)
from asynctune.state.mirror.swapping import Swapper
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.uri import open_storage
from asynctune.storage.values import ObjectInfo
from asynctune.store.replacing import _move as move
from asynctune.store.store import ExperimentStore
from asynctune.testing import FaultyStorage
from asynctune.trial import Checkpoint, TrialStatus
from tests.store.scenes import mirroring_of


@pytest.fixture
def bucket():
    """The URI of a bucket in this process's memory."""
    name = f"bucket-{os.urandom(6).hex()}"
    yield f"memory://{name}/some/where"
    MemoryStorage.forget(name)


def mirrored(bucket: str, **settings) -> SyncConfig:
    return SyncConfig(upload_dir=bucket, **settings)


async def rows(store: ExperimentStore, trial_id: str) -> list[float]:
    return [row["loss"] for row in await store.history(trial_id)]


async def run(store: ExperimentStore, *losses: float, trial_id: str = "t", checkpoint: bool = False) -> None:
    """A trial that reports, and saves after the last row."""
    if trial_id not in {trial.trial_id for trial in store.trials}:
        store.add_trial({"x": 1}, trial_id)
    store.set_status(trial_id, "RUNNING")
    for loss in losses:
        store.report(trial_id, {"loss": loss})
    if checkpoint:
        await store.save_checkpoint(trial_id, Checkpoint.from_dict({"losses": list(losses)}))


# -- from nothing ----------------------------------------------------------------------------------------------


async def test_a_new_experiment_is_in_the_bucket_when_it_is_flushed_there(location, bucket):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        assert store.upload_uri == f"{bucket}/{location.name}"
        await run(store, 3, 2, checkpoint=True)
        seq = await store.flush(mirror=True)
        assert (store.stats().mirrored_seq or 0) >= seq
        assert store.stats().uploads_done == 1
        async with ExperimentStore.open(f"{bucket}/{location.name}", "read") as reader:
            assert [t.trial_id for t in reader.trials] == ["t"]
            assert reader.trials[0].last_result is not None
            assert reader.trials[0].last_result["loss"] == 2
            assert [c.mirrored for c in reader.checkpoints("t")] == [True]
            assert await rows(reader, "t") == [3, 2]
            assert reader.name == location.name
            assert reader.location == f"{bucket}/{location.name}"


async def test_everything_survives_the_machine(location, bucket, tmp_path):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 3, 2, checkpoint=True)
        store.report("t", {"loss": 1})
        store.set_metadata("note", {"any": [1]})
    shutil.rmtree(location)
    async with ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "other") as store:
        assert store.location == tmp_path / "other" / location.name
        assert store.mode == "resume"
        assert store.metadata == {"note": {"any": [1]}}
        assert await rows(store, "t") == [3, 2, 1]
        store.requeue()
        assert store.get_trial("t").status is TrialStatus.PENDING
        restored = await store.restore_checkpoint("t")
        assert await asyncio.to_thread(restored.to_dict) == {"losses": [3, 2]}
        await run(store, 0.5, checkpoint=True)
        assert await rows(store, "t") == [3, 2, 0.5]
    async with ExperimentStore.open(f"{bucket}/{location.name}", "read") as reader:
        assert await rows(reader, "t") == [3, 2, 0.5]
        assert [c.step for c in reader.checkpoints("t")] == [1, 2]
        assert [c.mirrored for c in reader.checkpoints("t")] == [True, True]


async def test_result_files_are_as_they_were(location, bucket, tmp_path):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 3, 2)
    before = {
        name: (location / "t" / name).read_bytes() for name in ("result.json", "progress.csv", "params.json")
    }
    async with ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "other"):
        pass
    there = tmp_path / "other" / location.name / "t"
    assert {name: (there / name).read_bytes() for name in before} == before


async def test_a_late_upload_of_a_driver_that_was_taken_over_from_hits_nothing_that_lives(
    location, bucket, tmp_path, monkeypatch
):
    monkeypatch.setattr("asynctune.store.reconcile.QUIET_S", 0.0)
    swap, allowed = Swapper.swap, asyncio.Event()

    async def held(*arguments, **named):
        await allowed.wait()
        return await swap(*arguments, **named)

    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await store.flush(mirror=True)
    old = await ExperimentStore.open(location, sync_config=mirrored(bucket))
    monkeypatch.setattr(Swapper, "swap", held)
    # the bucket's state does not know this trial yet, so whoever takes over gives its id again
    trial = old.add_trial({"x": 1})
    theirs = await old.save_checkpoint(trial.trial_id, Checkpoint.from_dict("old"))
    await old.drain()
    new = await ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "other")
    assert new.add_trial({"x": 2}).trial_id == trial.trial_id
    ours = await new.save_checkpoint(trial.trial_id, Checkpoint.from_dict("new"))
    assert ours.path is not None
    assert theirs.path is not None
    assert ours.path.name != theirs.path.name
    allowed.set()
    await new.aclose()
    with pytest.raises(FencedError):
        await old.aclose()


async def test_a_name_without_an_epoch_is_for_the_first_opening_of_an_experiment_with_a_copy(
    location, bucket, tmp_path
):
    for copied, names in (
        (None, ["checkpoint_000001", "checkpoint_000001"]),
        (bucket, ["checkpoint_000001", "checkpoint_000001-2.0"]),
    ):
        place = tmp_path / f"exp-{copied is None}"
        found = []
        for _ in names:
            async with ExperimentStore.open(place, sync_config=SyncConfig(upload_dir=copied)) as store:
                trial = store.add_trial({})
                saved = await store.save_checkpoint(trial.trial_id, Checkpoint.from_dict(1))
                assert saved.path is not None
                found.append(saved.path.name)
        assert found == names


# -- modes -----------------------------------------------------------------------------------------------------


async def test_create_refuses_what_is_in_the_bucket(location, bucket, tmp_path):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 1)
    elsewhere = tmp_path / "other" / location.name
    elsewhere.parent.mkdir()
    with pytest.raises(ExperimentExistsError, match="memory://"):
        await ExperimentStore.open(elsewhere, "create", sync_config=mirrored(bucket))
    assert not elsewhere.exists()


async def test_create_refuses_what_is_on_the_disk_and_puts_nothing_into_the_bucket(location, bucket):
    async with ExperimentStore.open(location) as store:
        await run(store, 1)
    with pytest.raises(ExperimentExistsError, match=location.name):
        await ExperimentStore.open(location, "create", sync_config=mirrored(bucket))
    storage = await open_storage(f"{bucket}/{location.name}")
    assert [found async for found in storage.list_objects()] == []


@pytest.mark.parametrize("mode", ["auto", "resume"])
async def test_what_is_only_in_the_bucket_is_resumed(location, bucket, tmp_path, mode):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 1)
    elsewhere = tmp_path / "other" / location.name
    elsewhere.parent.mkdir()
    async with ExperimentStore.open(elsewhere, mode, sync_config=mirrored(bucket)) as store:
        assert store.opening.resumed
        assert await rows(store, "t") == [1]


@pytest.mark.parametrize("mode", ["auto", "resume", "read"])
async def test_a_uri_without_an_experiment_makes_nothing(bucket, tmp_path, mode):
    with pytest.raises(ExperimentNotFoundError, match="memory://"):
        await ExperimentStore.open(
            f"{bucket}/nobody", mode, local_dir=None if mode == "read" else tmp_path / "other"
        )
    assert not (tmp_path / "other").exists()


async def test_resume_needs_one_of_the_two(location, bucket):
    with pytest.raises(ExperimentNotFoundError):
        await ExperimentStore.open(location, "resume", sync_config=mirrored(bucket))


async def test_the_place_of_another_experiment_is_refused(location, bucket, tmp_path):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 1)
    other = tmp_path / "other" / location.name
    other.parent.mkdir()
    async with ExperimentStore.open(other) as store:
        await run(store, 2)
    with pytest.raises(ConfigError, match="choose another upload_dir"):
        await ExperimentStore.open(other, sync_config=mirrored(bucket))
    async with ExperimentStore.open(other, "read") as store:
        assert await rows(store, "t") == [2], "and nothing was changed"


# -- where the copy is, remembered -------------------------------------------------------------------------------


async def test_the_copy_is_remembered(location, bucket):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket, sync_period=77)) as store:
        await run(store, 1)
    async with ExperimentStore.open(location) as store:
        assert store.upload_uri == f"{bucket}/{location.name}"
        store.report("t", {"loss": 0})
        await store.flush(mirror=True)
    async with ExperimentStore.open(f"{bucket}/{location.name}", "read") as reader:
        assert await rows(reader, "t") == [1, 0]


async def test_a_copy_can_be_given_up_loudly(location, bucket, caplog):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 1)
    with caplog.at_level(logging.WARNING):
        async with ExperimentStore.open(location, sync_config=SyncConfig()) as store:
            assert store.upload_uri is None
            with pytest.raises(ConfigError, match="upload_dir"):
                await store.flush(mirror=True)
    assert "goes on without a copy" in caplog.text
    async with ExperimentStore.open(location) as store:
        assert store.upload_uri is None


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_copy_that_is_given_up_says_how_many_checkpoints_only_it_has(
    location, bucket, tmp_path, caplog, count
):
    former = f"{bucket}/{location.name}"
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 9)
        for loss in range(count):
            await run(store, loss, trial_id=f"t{loss}", checkpoint=True)
    staged = tmp_path / "staged" / location.name
    async with ExperimentStore.open(former, local_dir=tmp_path / "staged") as store:
        await run(store, 5, trial_id="here", checkpoint=True)
        if count == 3:
            await store.restore_checkpoint("t0")  # a private copy; what is kept stays in the bucket
    caplog.clear()
    async with ExperimentStore.open(staged, sync_config=SyncConfig()) as store:
        assert (await store.restore_checkpoint("here")).step == 1
    (told,) = [each.getMessage() for each in caplog.records if "goes on without a copy" in each.getMessage()]
    again = f"only, and out of reach until it is opened with that again (sync_config=SyncConfig(upload_dir={bucket!r}))"
    expected = {
        0: "",
        1: f"; 1 checkpoint is in {former} {again}",
        3: f"; 3 checkpoints are in {former} {again}",
    }
    assert told.endswith(f"as it was opened now{expected[count]}")
    caplog.clear()
    async with ExperimentStore.open(staged, sync_config=mirrored(bucket)) as store:
        for loss in range(count):
            assert (await store.restore_checkpoint(f"t{loss}")).step == 1


async def test_an_experiment_gets_a_copy_later(location, bucket):
    async with ExperimentStore.open(location, checkpoint_config=CheckpointConfig(num_to_keep=1)) as store:
        await run(store, 3, checkpoint=True)
        await run(store, 2, trial_id="u", checkpoint=True)
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await store.flush(mirror=True)
    async with ExperimentStore.open(f"{bucket}/{location.name}", "read") as reader:
        assert {t.trial_id: await rows(reader, t.trial_id) for t in reader.trials} == {"t": [3], "u": [2]}
        for trial_id in ("t", "u"):
            assert [c.mirrored for c in reader.checkpoints(trial_id)] == [True]
            assert (await reader.fetch(reader.checkpoints(trial_id)[0])).is_dir()


async def test_a_claim_and_the_directory_are_of_one_experiment(location, bucket):
    store = await ExperimentStore.open(location, sync_config=mirrored(bucket))
    mirroring = mirroring_of(store)
    assert mirroring._claimed is not None
    assert mirroring._claimed.named.current.experiment_id == store.experiment_id
    await store.aclose()


# -- two copies --------------------------------------------------------------------------------------------------


async def test_the_copy_is_ahead_and_the_disk_catches_up(location, bucket, tmp_path):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 3, checkpoint=True)
    async with ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "other") as store:
        await run(store, 2, checkpoint=True)
    async with ExperimentStore.open(location) as store:
        assert await rows(store, "t") == [3, 2]
        assert [c.step for c in store.checkpoints("t")] == [1, 2]
        restored = await store.restore_checkpoint("t")
        assert await asyncio.to_thread(restored.to_dict) == {"losses": [2]}


async def test_a_replacement_that_was_cut_short_is_refused_without_the_copy(
    location, bucket, tmp_path, monkeypatch
):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 3)
    async with ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "other") as store:
        await run(store, 2)

    async def cut_short(*_args):
        raise StorageError("the power went")

    with monkeypatch.context() as patched:
        patched.setattr("asynctune.store.replacing.fetch_result_files", cut_short)
        with pytest.raises(StorageError, match="the power went"):
            await ExperimentStore.open(location)
    for mode in ("read", "resume"):
        with pytest.raises(CorruptStateError, match="being replaced"):
            await ExperimentStore.open(location, mode, sync_config=SyncConfig())
    empty = f"{bucket}/where/nothing/is"
    with pytest.raises(CorruptStateError, match="being replaced") as failed:
        await ExperimentStore.open(location, sync_config=mirrored(empty))
    assert empty in failed.value.__notes__[0]
    with pytest.raises(ExperimentNotFoundError):
        await ExperimentStore.open(f"{empty}/{location.name}", "read")
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        assert await rows(store, "t") == [3, 2]


async def test_a_fork_is_set_aside_and_the_copy_wins(location, bucket, tmp_path, caplog):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 3)
    async with ExperimentStore.open(location, sync_config=SyncConfig()) as store:  # offline, so to say
        await run(store, 99)
        await run(store, 98, trial_id="only-here", checkpoint=True)
    async with ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "other") as store:
        await run(store, 2)
        await run(store, 1, trial_id="u")
    with caplog.at_level(logging.WARNING):
        async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
            assert "had parted" in caplog.text
            assert {t.trial_id for t in store.trials} == {"t", "u"}
            assert await rows(store, "t") == [3, 2]
            assert await rows(store, "u") == [1]
            assert not (location / "only-here").exists()
            await run(store, 0)
    aside = list((location / ".asynctune" / "quarantine").glob("*-trials/only-here/result.json"))
    assert len(aside) == 1
    assert json.loads(aside[0].read_text())["loss"] == 98
    async with ExperimentStore.open(f"{bucket}/{location.name}", "read") as reader:
        assert await rows(reader, "t") == [3, 2, 0]


@pytest.mark.parametrize("moved", [0, 1, 2], ids=["before the first", "after the first", "after the second"])
async def test_a_fork_whose_setting_aside_was_cut_short_is_set_aside_by_the_next_opening(
    location, bucket, tmp_path, monkeypatch, caplog, moved
):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 3)
    async with ExperimentStore.open(location, sync_config=SyncConfig()) as store:  # offline, so to say
        await run(store, 99)
        await run(store, 98, trial_id="only-here")
        await run(store, 97, trial_id="here-too")
    async with ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "other") as store:
        await run(store, 2)
    done: list[str] = []

    def cut_short(source, target, files):
        if len(done) == moved:
            raise OSError(errno.EIO, "the power went", source)
        done.append(source)
        move(source, target, files)

    with monkeypatch.context() as patched:
        patched.setattr("asynctune.store.replacing._move", cut_short)
        with pytest.raises(StorageError, match="the power went"):
            await ExperimentStore.open(location, sync_config=mirrored(bucket))
    assert "had parted" not in caplog.text
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        assert "had parted" in caplog.text
        assert await rows(store, "t") == [3, 2]
        for name in ("only-here", "here-too"):
            assert not (location / name).exists(), "its number may be given again"
        await run(store, 1, trial_id="only-here")
        await store.flush()
        assert await rows(store, "only-here") == [1]
    quarantine = location / ".asynctune" / "quarantine"
    for name, loss in (("only-here", 98), ("here-too", 97)):
        (aside,) = quarantine.glob(f"*-trials/{name}/result.json")
        assert json.loads(aside.read_text())["loss"] == loss


async def test_a_takeover_fences_the_old_driver(location, bucket, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("asynctune.store.reconcile.QUIET_S", 1.0)
    store = await ExperimentStore.open(location, sync_config=mirrored(bucket))
    await run(store, 3)
    await store.flush(mirror=True)
    # the old driver is this process, which is known to live: the new one waits until it is quiet
    async with ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "other") as other:
        assert "waiting" in caplog.text
        await run(other, 2)
        await other.flush(mirror=True)
        store.report("t", {"loss": 1})
        with pytest.raises(FencedError):
            await store.flush(mirror=True)
        with pytest.raises(FencedError):
            await store.aclose()
        assert await rows(other, "t") == [3, 2]


# -- damage ------------------------------------------------------------------------------------------------------


def damage_the_journal(location) -> None:
    """A byte of an early commit of the newest segment that has some: corruption, and no tear."""
    segments = sorted((location / ".asynctune").glob("wal-*"), key=lambda path: path.stat().st_size)
    data = bytearray(segments[-1].read_bytes())
    data[len(data) // 2] ^= 1
    segments[-1].write_bytes(data)


async def test_the_copy_takes_the_place_of_a_damaged_state_if_it_has_all_of_it(location, bucket, caplog):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        for loss in range(9):
            await run(store, loss)
            await store.flush()
    damage_the_journal(location)
    with pytest.raises(CorruptStateError):
        await ExperimentStore.open(location, sync_config=SyncConfig())
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        assert "takes its place" in caplog.text
        assert await rows(store, "t") == list(range(9))
        await run(store, 9)
    async with ExperimentStore.open(location) as store:
        assert await rows(store, "t") == list(range(10))


async def test_a_copy_that_lacks_commits_does_not_take_the_place_of_a_damaged_state(location, bucket):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 1)
    async with ExperimentStore.open(location, sync_config=SyncConfig()) as store:
        for loss in range(9):
            await run(store, loss)
            await store.flush()
    damage_the_journal(location)
    before = {path: path.read_bytes() for path in (location / ".asynctune").glob("wal-*")}
    with pytest.raises(CorruptStateError) as refused:
        await ExperimentStore.open(location, sync_config=mirrored(bucket))
    assert "has a copy up to commit" in "".join(refused.value.__notes__)
    assert {path: path.read_bytes() for path in before} == before


# -- the bucket is away ------------------------------------------------------------------------------------------


@pytest.fixture
def faulty(bucket, monkeypatch):
    """Every storage that is opened is one that can be told to fail."""
    storages: list[FaultyStorage] = []
    away = [False]

    async def open_faulty(uri, options):
        storage = FaultyStorage(await open_storage(uri, options))
        storages.append(storage)
        if away[0]:
            storage.fail(StorageError("nobody answers", retryable=True), lasting=True)
        return storage

    monkeypatch.setattr("asynctune.store.access.open_storage", open_faulty)

    def switch(*, to_away: bool, only_new: bool = False) -> None:
        away[0] = to_away
        for storage in [] if only_new else storages:
            if to_away:
                storage.fail(StorageError("nobody answers", retryable=True), lasting=True)
            else:
                storage.heal()

    return switch


async def test_without_the_bucket_what_is_on_this_disk_goes_on(location, bucket, faulty, caplog):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 3, checkpoint=True)
    faulty(to_away=True)
    async with ExperimentStore.open(location) as store:
        assert "cannot be reached" in caplog.text
        await run(store, 2, checkpoint=True)
        assert await store.flush() > 0
        faulty(to_away=False)
        await store.flush(mirror=True)
    async with ExperimentStore.open(f"{bucket}/{location.name}", "read") as reader:
        assert await rows(reader, "t") == [3, 2]
        assert [c.mirrored for c in reader.checkpoints("t")] == [True, True]


async def test_a_bucket_that_turns_out_to_be_empty_gets_everything(location, bucket, faulty):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 3, checkpoint=True)
    faulty(to_away=True)
    MemoryStorage.forget(bucket.split("/")[2])
    async with ExperimentStore.open(location) as store:
        await run(store, 2, checkpoint=True)
        faulty(to_away=False)
        await store.flush(mirror=True)
    async with ExperimentStore.open(f"{bucket}/{location.name}", "read") as reader:
        assert [c.mirrored for c in reader.checkpoints("t")] == [True, True]
        for checkpoint in reader.checkpoints("t"):
            assert (await reader.fetch(checkpoint)).is_dir()


async def test_who_went_on_without_the_bucket_is_fenced_if_another_one_did_with_it(
    location, bucket, faulty, tmp_path
):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 3)
    faulty(to_away=True)
    store = await ExperimentStore.open(location)
    await run(store, 99)
    await store.flush()
    faulty(to_away=False, only_new=True)
    async with ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "other") as other:
        await run(other, 2)
        await other.flush(mirror=True)
        faulty(to_away=False)
        with pytest.raises(FencedError):
            await store.flush(mirror=True)
        with pytest.raises(FencedError):
            await store.aclose()
        assert await rows(other, "t") == [3, 2]
    # and this disk's own is set aside when it is opened again
    async with ExperimentStore.open(location) as store:
        assert await rows(store, "t") == [3, 2]


@pytest.mark.parametrize("mode", ["auto", "create", "resume"])
async def test_without_the_bucket_nothing_is_begun(location, bucket, faulty, mode):
    faulty(to_away=True)
    with pytest.raises(StorageError, match="nobody answers"):
        await ExperimentStore.open(location, mode, sync_config=mirrored(bucket))
    assert not location.exists()


async def test_a_copy_in_a_directory(location, tmp_path):
    share = tmp_path / "share"
    share.mkdir()
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=str(share))) as store:
        await run(store, 3, checkpoint=True)
    copy = share / location.name
    assert (copy / ".asynctune" / "CURRENT").is_file()
    assert (copy / "t" / "checkpoint_000001" / ".manifest.json").is_file()
    async with ExperimentStore.open(copy, "read") as reader:
        assert await rows(reader, "t") == [3]
        assert reader.checkpoints("t")[0].mirrored
    with pytest.raises(ConfigError, match="is the copy of an experiment"):
        await ExperimentStore.open(copy)
    shutil.rmtree(location)
    async with ExperimentStore.open(copy, local_dir=tmp_path / "other") as store:
        assert await rows(store, "t") == [3]


async def test_an_upload_dir_that_is_not_there_is_an_error(location, tmp_path):
    with pytest.raises(StorageError):
        await ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=str(tmp_path / "unmounted")))
    assert not (location / ".asynctune" / "snap-0").exists()


# -- a copy in another place than before -------------------------------------------------------------------------


async def test_back_in_its_former_place_a_copy_gets_what_the_other_one_had_meanwhile(
    location, bucket, tmp_path
):
    for place, loss in (("one", 3), ("two", 2), ("one", 1)):
        async with ExperimentStore.open(location, sync_config=mirrored(f"{bucket}/{place}")) as store:
            await run(store, loss, checkpoint=True)
    for place, steps in (("one", [1, 2, 3]), ("two", [1, 2])):
        uri = f"{bucket}/{place}/{location.name}"
        async with ExperimentStore.open(uri, local_dir=tmp_path / place) as store:
            assert [c.step for c in store.checkpoints("t")] == steps
            for step in steps:
                assert (await store.restore_checkpoint("t", step)).step == step


@pytest.mark.parametrize("between", ["at once", "without a copy"])
async def test_a_copy_is_not_begun_elsewhere_while_only_the_former_one_has_a_checkpoint(
    location, bucket, tmp_path, between
):
    async with ExperimentStore.open(location, sync_config=mirrored(f"{bucket}/one")) as store:
        await run(store, 3, checkpoint=True)
    former = f"{bucket}/one/{location.name}"
    async with ExperimentStore.open(former, local_dir=tmp_path / "staged"):
        pass
    staged = tmp_path / "staged" / location.name
    if between == "without a copy":
        async with ExperimentStore.open(staged, sync_config=SyncConfig()) as store:
            store.report("t", {"loss": 2})
    with pytest.raises(ConfigError, match=f"1 checkpoints .* are only in {former}"):
        await ExperimentStore.open(staged, sync_config=mirrored(f"{bucket}/two"))
    storage = await open_storage(f"{bucket}/two")
    assert [found async for found in storage.list_objects()] == [], "nothing was begun there"
    async with ExperimentStore.open(staged, sync_config=mirrored(f"{bucket}/one")) as store:
        assert (await store.restore_checkpoint("t")).step == 1
    async with ExperimentStore.open(former, local_dir=tmp_path / "again") as store:
        assert (await store.restore_checkpoint("t")).step == 1, "nothing was lost there"


@pytest.mark.parametrize("ahead", [False, True], ids=["same", "ahead"])
@pytest.mark.parametrize("how", ["directory", "uri", "elsewhere"])
async def test_an_experiment_goes_on_where_its_copy_was_copied_to(location, bucket, tmp_path, how, ahead):
    async with ExperimentStore.open(location, sync_config=mirrored(f"{bucket}/one")) as store:
        await run(store, 3, checkpoint=True)
    async with ExperimentStore.open(f"{bucket}/one/{location.name}", local_dir=tmp_path / "staged"):
        pass
    staged = tmp_path / "staged" / location.name
    one = await open_storage(f"{bucket}/one/{location.name}")
    two = await open_storage(f"{bucket}/two/{location.name}")
    keys = [found.key async for found in one.list_objects() if isinstance(found, ObjectInfo)]
    for key in keys:
        await two.put(key, (await one.read(key)).data)
    await one.delete(keys)
    if ahead:
        async with ExperimentStore.open(staged, sync_config=SyncConfig()) as store:
            store.set_metadata("only", "here")
    if how == "directory":
        opening = ExperimentStore.open(staged, sync_config=mirrored(f"{bucket}/two"))
    else:
        local_dir = tmp_path / ("staged" if how == "uri" else how)
        opening = ExperimentStore.open(f"{bucket}/two/{location.name}", local_dir=local_dir)
    async with opening as store:
        assert store.metadata == ({"only": "here"} if ahead and how != "elsewhere" else {})
        assert await rows(store, "t") == [3]
        assert (await store.restore_checkpoint("t")).step == 1
        await run(store, 2, checkpoint=True)
    async with ExperimentStore.open(f"{bucket}/two/{location.name}", "read") as reader:
        for checkpoint in reader.checkpoints("t"):
            await reader.fetch(checkpoint)
        assert [checkpoint.step for checkpoint in reader.checkpoints("t")] == [1, 2]


async def test_what_only_a_copy_without_its_state_has_is_not_given_up(location, bucket, tmp_path, caplog):
    async with ExperimentStore.open(location, sync_config=mirrored(bucket)) as store:
        await run(store, 3, checkpoint=True)
    uri = f"{bucket}/{location.name}"
    async with ExperimentStore.open(uri, local_dir=tmp_path / "staged"):
        pass
    storage = await open_storage(uri)
    await storage.delete([".asynctune/CURRENT"])
    async with ExperimentStore.open(tmp_path / "staged" / location.name) as store:
        assert f"{uri} has no state of this experiment any more" in caplog.text
        caplog.clear()
        await store.flush(mirror=True)
        assert (await store.restore_checkpoint("t")).step == 1
    async with ExperimentStore.open(uri, local_dir=tmp_path / "again") as store:
        assert (await store.restore_checkpoint("t")).step == 1
