"""Uploads in parts that a lost machine left: they are aborted after the claim, and nothing else is."""

from __future__ import annotations

import asyncio
import logging
import os
import urllib.request
from functools import partial

import pytest

from asynctune.config import SyncConfig
from asynctune.errors import AuthenticationError, FencedError, StorageError
from asynctune.files import LocalFiles
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.notes import UploadNotes
from asynctune.storage.transfer import Transfer
from asynctune.storage.uri import open_storage
from asynctune.storage.values import PendingUpload, Upload
from asynctune.store.store import ExperimentStore
from asynctune.testing import FaultyStorage
from asynctune.trial import Checkpoint
from tests.storage.moto import moto_server
from tests.store.scenes import mirroring_of


@pytest.fixture
def bucket():
    """The URI of a bucket in this process's memory."""
    name = f"bucket-{os.urandom(6).hex()}"
    yield f"memory://{name}/some/where"
    MemoryStorage.forget(name)


@pytest.fixture
def faulty(monkeypatch):
    """Storages of the store as they are opened; each is given to the functions in the list before it is used."""
    prepare: list = []

    async def open_faulty(uri, options):
        storage = FaultyStorage(await open_storage(uri, options))
        for each in prepare:
            storage = each(storage) or storage
        return storage

    monkeypatch.setattr("asynctune.store.access.open_storage", open_faulty)
    return prepare


async def begun(uri, key, options=None) -> Upload:
    """An upload that a machine has begun and never ended."""
    storage = await open_storage(uri, options)
    upload = await storage.begin_upload(key, size_bytes=6 << 20, part_bytes=5 << 20)
    assert isinstance(upload, Upload)
    await storage.put_part(upload, 1, bytes(5 << 20))
    await storage.aclose()
    return upload


async def unfinished(uri, options=None) -> set[str]:
    storage = await open_storage(uri, options)
    found = {upload.key async for upload in storage.list_uploads()}
    await storage.aclose()
    return found


async def until(uri, keys, options=None):
    async with asyncio.timeout(20):
        while await unfinished(uri, options) != keys:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


async def test_what_a_lost_machine_left_is_aborted(location, bucket, caplog):
    caplog.set_level(logging.INFO, "asynctune")
    config, uri = SyncConfig(upload_dir=bucket), f"{bucket}/{location.name}"
    async with ExperimentStore.open(location, sync_config=config):
        pass
    await begun(uri, "t/checkpoint_000001/model.bin")
    await begun(uri, "t/result.json")
    await begun(f"{bucket}/{location.name}2", "t/checkpoint_000001/model.bin")
    noted = await begun(uri, "t/checkpoint_000002/model.bin")
    storage = await open_storage(uri)
    notes = UploadNotes(f"{location}/.asynctune/uploads", location=storage.location, files=LocalFiles())
    await notes.remember(noted)
    notes.close()
    async with ExperimentStore.open(location):
        await until(uri, {"t/checkpoint_000002/model.bin"})
        assert await unfinished(f"{bucket}/{location.name}2") == {"t/checkpoint_000001/model.bin"}
        assert await storage.list_parts(noted), "this directory can go on with it"
    assert "2 uploads that other machines left unfinished were aborted" in caplog.text
    assert noted.upload_id not in caplog.text


async def test_what_is_not_of_this_experiment_is_nobodys_leftover(location, bucket):
    config, uri = SyncConfig(upload_dir=bucket), f"{bucket}/{location.name}"
    others = {
        "inner/t/checkpoint_000001/model.bin",  # of an experiment with this copy as its upload_dir, and a live driver
        "inner/t/result.json",
        "inner/.asynctune/objects/snapshot",
        "notes/movie.mp4",
        "movie.mp4",
        "t/checkpoint_best/model.bin",
    }
    for key in sorted(others | {"t/checkpoint_000001/sub/model.bin", ".asynctune/x", "t/stdout"}):
        await begun(uri, key)
    async with ExperimentStore.open(location, sync_config=config):
        await until(uri, others)
    async with ExperimentStore.open(location):
        pass
    assert await unfinished(uri) == others


async def test_a_key_that_no_storage_takes_does_not_end_the_store(location, bucket, monkeypatch):
    uri = f"{bucket}/{location.name}"
    await begun(uri, "t/checkpoint_000001/model.bin")
    listing = MemoryStorage.list_uploads

    async def list_more(self, prefix=""):
        for key in ("t/checkpoint_000001//model.bin", ".asynctune//x", "t/checkpoint_000001/../x"):
            yield PendingUpload(key, "of another tool", 0.0)
        async for upload in listing(self, prefix):
            yield upload

    with monkeypatch.context() as patched:
        patched.setattr(MemoryStorage, "list_uploads", list_more)
        store = await ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket))
    await until(uri, set())
    await store.flush(mirror=True)
    await store.aclose()


async def test_there_is_one_listing_and_it_keeps_nobody_up(location, bucket, faulty):
    storages: list[FaultyStorage] = []
    faulty.append(storages.append)
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket)) as store:
        await store.flush(mirror=True)
    assert storages[0].count("list_uploads") == 1


@pytest.mark.parametrize("fault", ["refused", "away", "hangs"])
async def test_what_cannot_be_listed_stays_and_the_opening_goes_on(
    location, bucket, faulty, fault, caplog, monkeypatch
):
    monkeypatch.setattr("asynctune.store.leftovers._LOOK_S", 0.05)
    uri = f"{bucket}/{location.name}"
    await begun(uri, "t/checkpoint_000001/model.bin")
    error = AuthenticationError("not allowed") if fault == "refused" else StorageError("away", retryable=True)

    def broken(storage):
        if fault == "hangs":
            storage.hang(on="list_uploads", lasting=True)
        else:
            storage.fail(error, on="list_uploads", lasting=True)

    faulty.append(broken)
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket)) as store:
        await store.flush(mirror=True)
    (message,) = [text for text in caplog.messages if "was not looked through" in text]
    assert uri in message
    assert await unfinished(uri) == {"t/checkpoint_000001/model.bin"}


async def test_what_cannot_be_aborted_is_said_once(location, bucket, faulty, caplog):
    uri = f"{bucket}/{location.name}"
    for name in "abc":
        await begun(uri, f"t/checkpoint_000001/{name}")
    struck = []

    def broken(storage):
        struck.append(storage.fail(AuthenticationError("not allowed"), on="abort_upload", lasting=True))

    faulty.append(broken)
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket)) as store:
        await struck[0].struck.wait()
        await store.flush(mirror=True)
    (message,) = [text for text in caplog.messages if "left unfinished" in text]
    assert message.startswith("3 uploads")
    assert struck[0].hits == 1


async def test_where_a_claim_keeps_nobody_out_nothing_is_aborted(location, bucket, faulty):
    uri = f"{bucket}/{location.name}"
    await begun(uri, "t/checkpoint_000001/model.bin")
    faulty.append(lambda storage: FaultyStorage(storage.storage, ignore_conditions=True))
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket)) as store:
        assert not mirroring_of(store)._leftovers
        await store.flush(mirror=True)
    assert await unfinished(uri) == {"t/checkpoint_000001/model.bin"}


async def test_a_fenced_driver_whose_upload_is_aborted_learns_that_it_is_fenced(
    location, bucket, faulty, tmp_path, monkeypatch
):
    monkeypatch.setattr("asynctune.store.reconcile.QUIET_S", 0.05)
    monkeypatch.setattr("asynctune.store.access.Transfer", partial(Transfer, part_bytes=1 << 10, put_bytes=0))
    storages: list[FaultyStorage] = []
    faulty.append(storages.append)
    uri = f"{bucket}/{location.name}"
    store = await ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket))
    store.add_trial({}, "t")
    await store.flush(mirror=True)
    held = storages[0].hang(on="put_part", nth=2)
    await store.save_checkpoint("t", Checkpoint.from_dict({"weights": bytes(4 << 10)}))
    await held.struck.wait()
    (key,) = await unfinished(uri)
    store.set_metadata("both", 1)
    await mirroring_of(store).mirror.flush(await store.flush())  # it is quiet from now on
    async with ExperimentStore.open(uri, local_dir=tmp_path / "other") as other:
        await until(uri, set())
        storages[0].heal()
        store.set_metadata("any", 1)
        await store.flush()
        with pytest.raises(FencedError):
            await store.flush(mirror=True)
        with pytest.raises(FencedError):
            await store.aclose()
        other.set_metadata("any", 2)
        await other.flush(mirror=True)
    assert key.startswith("t/checkpoint_000001/")
    async with ExperimentStore.open(uri, "read") as reader:
        assert reader.metadata == {"both": 1, "any": 2}


async def test_on_a_server_of_s3(location):
    with moto_server() as endpoint:
        make = urllib.request.Request(f"{endpoint}/bucket", method="PUT")
        await asyncio.to_thread(lambda: urllib.request.urlopen(make, timeout=20).close())
        options = {"key": "AKTEST", "secret": "hidden", "endpoint_url": endpoint, "region": "us-east-1"}
        config = SyncConfig(upload_dir="s3://bucket/some", storage_options=options)
        uri = f"s3://bucket/some/{location.name}"
        await begun(uri, "t/checkpoint_000001/model.bin", options)
        await begun("s3://bucket/some/another", "t/checkpoint_000001/model.bin", options)
        async with ExperimentStore.open(location, sync_config=config) as store:
            await until(uri, set(), options)
            store.add_trial({}, "t")
            await store.flush(mirror=True)
        assert await unfinished("s3://bucket/some/another", options) == {"t/checkpoint_000001/model.bin"}
