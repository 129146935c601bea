"""What a reader tells of where it reads from, and of where the experiment's copy is."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import replace

import pytest

from asynctune.config import SyncConfig
from asynctune.errors import CheckpointNotFoundError, ConfigError, StorageError
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.uri import open_storage
from asynctune.storage.values import ObjectInfo
from asynctune.store import access, lazy_copies
from asynctune.store.store import ExperimentStore
from asynctune.testing import DirectorySyncer, FaultyStorage
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


@pytest.fixture
async def other(location, bucket, tmp_path):
    """The directory of an experiment whose checkpoint is in the bucket only."""
    await make(location, bucket)
    async with ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "other"):
        pass
    return tmp_path / "other" / location.name


def value_in(path):
    return Checkpoint.from_directory(path).to_dict()


def refuse_the_bucket(monkeypatch) -> None:
    async def refuse(*_arguments, **_settings):
        raise AssertionError("nobody has asked for anything of the bucket")

    monkeypatch.setattr(lazy_copies, "open_access", refuse)


async def test_who_reads_a_directory_gets_from_the_bucket_what_is_not_here(other, tmp_path, blockbuster):
    async with ExperimentStore.open(other, "read") as reader:
        (checkpoint,) = reader.checkpoints("t")
        found = await asyncio.gather(reader.fetch(checkpoint), reader.fetch(checkpoint, tmp_path / "own"))
        restored = await reader.restore_checkpoint("t")
        assert restored.path is not None
        for path in (*found, restored.path):
            assert await asyncio.to_thread(value_in, path) == {"x": 1}
        async with reader.lease("t") as leased:
            assert leased.path is not None
            assert not str(leased.path).startswith(str(other))
    assert not await asyncio.to_thread(os.path.exists, other / "t" / "checkpoint_000001"), (
        "a reader writes nothing"
    )
    assert not await asyncio.to_thread(os.path.exists, found[0])


async def test_what_is_here_is_read_without_the_bucket(location, bucket, monkeypatch):
    await make(location, bucket)
    refuse_the_bucket(monkeypatch)
    async with ExperimentStore.open(location, "read") as reader:
        await reader.refresh()
        (checkpoint,) = reader.checkpoints("t")
        assert await reader.fetch(checkpoint) == checkpoint.path
        assert (await reader.restore_checkpoint("t")).path is not None


async def test_the_bucket_is_opened_once_with_the_options_of_the_reader(other, monkeypatch):
    asked = []
    real = access.open_access

    async def watched(remote, *arguments, **settings):
        asked.append((str(remote), dict(remote.options)))
        return await real(replace(remote, options={}), *arguments, **settings)

    monkeypatch.setattr(lazy_copies, "open_access", watched)
    async with ExperimentStore.open(other, "read", storage_options={"key": "k"}) as reader:
        (checkpoint,) = reader.checkpoints("t")
        await asyncio.gather(reader.fetch(checkpoint), reader.restore_checkpoint("t"))
        assert asked == [(reader.upload_uri, {"key": "k"})]


async def test_a_bucket_that_is_away_is_told_and_asked_again_the_next_time(other, monkeypatch):
    away = True
    real = access.open_access

    async def open_access(*arguments, **settings):
        opened = await real(*arguments, **settings)
        if away:
            storage = FaultyStorage(opened.storage)
            storage.fail(lasting=True)
            monkeypatch.setattr(opened, "_storage", storage)
        return opened

    monkeypatch.setattr(lazy_copies, "open_access", open_access)
    async with ExperimentStore.open(other, "read") as reader:
        (checkpoint,) = reader.checkpoints("t")
        with pytest.raises(StorageError, match=r"on this disk.*memory://.* cannot be reached") as told:
            await reader.fetch(checkpoint)
        assert told.value.retryable
        away = False
        assert await asyncio.to_thread(os.path.isdir, await reader.fetch(checkpoint))


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_where_nothing_says_where_the_copy_is_that_is_told(other, when):
    note = other / ".asynctune" / "MIRROR"
    if when == "before":
        note.unlink()
    async with ExperimentStore.open(other, "read") as reader:
        if when == "meanwhile":
            note.unlink()
        text = (
            "copy is in upload_dir"
            if when == "before"
            else "has no copy any more; there was one at memory://"
        )
        for read in (reader.fetch(reader.checkpoints("t")[0]), reader.restore_checkpoint("t")):
            with pytest.raises(CheckpointNotFoundError, match=text):
                await read


async def test_a_copy_that_is_not_there_any_more_is_told(other, bucket):
    storage = await open_storage(f"{bucket}/{other.name}")
    await storage.delete([info.key async for info in storage.list_objects() if isinstance(info, ObjectInfo)])
    async with ExperimentStore.open(other, "read") as reader:
        with pytest.raises(CheckpointNotFoundError, match=r"neither here .* nor in the bucket"):
            await reader.fetch(reader.checkpoints("t")[0])


async def test_a_copy_that_a_syncer_keeps_is_read_with_it(location, tmp_path):
    (tmp_path / "vault").mkdir()
    sync = SyncConfig(upload_dir=str(tmp_path / "vault"), syncer=DirectorySyncer())
    async with ExperimentStore.open(location, sync_config=sync) as store:
        store.add_trial({}, "t")
        await store.save_checkpoint("t", Checkpoint.from_dict({"x": 1}))
    await asyncio.to_thread(shutil.rmtree, location / "t" / "checkpoint_000001")
    async with ExperimentStore.open(location, "read") as reader:
        with pytest.raises(ConfigError, match="DirectorySyncer"):
            await reader.fetch(reader.checkpoints("t")[0])
    async with ExperimentStore.open(location, "read", sync_config=sync) as reader:
        assert await asyncio.to_thread(os.path.isdir, await reader.fetch(reader.checkpoints("t")[0]))
