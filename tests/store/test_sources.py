"""What a reader tells of where it reads from, and of where the experiment's copy is."""

from __future__ import annotations

import os

import pytest

from asynctune.config import SyncConfig
from asynctune.errors import CheckpointNotFoundError, StorageError
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.uri import open_storage
from asynctune.store.store import ExperimentStore
from asynctune.trial import Checkpoint


@pytest.fixture
def bucket():
    name = f"bucket-{os.urandom(6).hex()}"
    yield f"memory://{name}/some/where"
    MemoryStorage.forget(name)


async def make(location, upload_dir, *, saved: bool = True) -> None:
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=upload_dir)) as store:
        store.add_trial({}, "t")
        if saved:
            await store.save_checkpoint("t", Checkpoint.from_dict({"x": 1}))


async def test_a_reader_of_a_directory_says_where_the_copy_is(location, bucket):
    await make(location, bucket)
    async with ExperimentStore.open(location, "read") as reader:
        assert reader.upload_uri == f"{bucket}/exp"
        assert reader.copy_source is None
        (checkpoint,) = reader.checkpoints("t")
        assert checkpoint.path == location / "t" / "checkpoint_000001"
        assert reader.checkpoint_uri(checkpoint) == f"{bucket}/exp/t/checkpoint_000001"


async def test_without_a_copy_there_is_nothing_to_say(location):
    async with ExperimentStore.open(location) as store:
        store.add_trial({}, "t")
        saved = await store.save_checkpoint("t", Checkpoint.from_dict({"x": 1}))
        assert (store.upload_uri, store.copy_source, store.checkpoint_uri(saved)) == (None, None, None)
    async with ExperimentStore.open(location, "read") as reader:
        assert (reader.upload_uri, reader.checkpoint_uri(saved)) == (None, None)


async def test_a_note_that_makes_no_sense_keeps_nobody_from_reading(location, bucket):
    await make(location, bucket)
    (location / ".asynctune" / "MIRROR").write_text("{")
    async with ExperimentStore.open(location, "read") as reader:
        assert reader.upload_uri is None


@pytest.mark.parametrize("kind", ["bucket", "directory"])
async def test_a_reader_of_a_copy_says_when_it_changed(location, bucket, tmp_path, kind):
    upload_dir = bucket
    if kind == "directory":
        (tmp_path / "copies").mkdir()
        upload_dir = str(tmp_path / "copies")
    await make(location, upload_dir)
    async with ExperimentStore.open(f"{upload_dir}/exp", "read") as reader:
        assert reader.upload_uri == f"{upload_dir}/exp"
        source = reader.copy_source
        assert source is not None
        assert source.changed_at is not None
        head = await source.storage.head(".asynctune/CURRENT")
        assert head is not None
        assert source.changed_at == head.modified_at
        (checkpoint,) = reader.checkpoints("t")
        assert checkpoint.path is None
        assert checkpoint.mirrored
        assert reader.checkpoint_uri(checkpoint) == f"{upload_dir}/exp/t/checkpoint_000001"
        assert (await reader.fetch(checkpoint)).is_dir()


async def test_rows_that_are_not_in_the_copy_any_more_are_missed(location, bucket):
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket)) as store:
        for trial_id in ("t", "u"):
            store.add_trial({}, trial_id)
        store.set_status("t", "RUNNING")
        store.report("t", {"loss": 1})
    storage = await open_storage(f"{bucket}/exp")
    await storage.delete(["t/result.json"])
    async with ExperimentStore.open(f"{bucket}/exp", "read") as reader:
        with pytest.raises(StorageError, match=r"results of trial t: .*not in the copy.*t/result\.json"):
            await reader.history("t")
        assert await reader.history("u") == [], "which never had any"


async def test_who_reads_a_directory_is_told_of_the_copy_that_has_what_is_not_here(
    location, bucket, tmp_path
):
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket)) as store:
        store.add_trial({}, "t")
        await store.save_checkpoint("t", Checkpoint.from_dict(1))
    async with ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "other"):
        pass
    async with ExperimentStore.open(tmp_path / "other" / location.name, "read") as reader:
        for read in (reader.fetch(reader.checkpoints("t")[0]), reader.restore_checkpoint("t")):
            with pytest.raises(CheckpointNotFoundError, match="copy is in upload_dir"):
                await read
