"""What an opening hands over, if nobody makes a store of it."""

from __future__ import annotations

import os

import pytest

from asynctune.clock import SystemClock
from asynctune.config import SyncConfig
from asynctune.files import LocalFiles
from asynctune.state.mirror.named import read_named
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.uri import open_storage
from asynctune.store.opened import Opened
from asynctune.store.place import place_of
from asynctune.store.reconcile import open_place
from asynctune.store.store import ExperimentStore


@pytest.fixture
def bucket():
    """The URI of a bucket in this process's memory."""
    name = f"bucket-{os.urandom(6).hex()}"
    yield f"memory://{name}/some/where"
    MemoryStorage.forget(name)


async def opened(location, bucket, *, local_dir=None) -> Opened:
    config = None if local_dir else SyncConfig(upload_dir=bucket)
    place = place_of(location, "auto", local_dir=local_dir, sync_config=config, storage_options=None)
    return await open_place(place, "auto", files=LocalFiles(), clock=SystemClock(), waiting=pytest.fail)


async def test_what_is_let_go_of_can_be_opened_at_once(location, bucket):
    first = await opened(location, bucket)
    assert not first.from_copy
    await first.let_go()
    await first.let_go()
    named = await read_named(await open_storage(f"{bucket}/{location.name}"))
    assert named is not None
    assert named.current.closed
    again = await opened(location, bucket)
    assert again.directory.journal.experiment_id == named.current.experiment_id
    await again.let_go()


async def test_whether_the_state_is_the_copys(location, bucket, tmp_path):
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket)) as store:
        store.set_metadata("any", 1)
    uri = f"{bucket}/{location.name}"
    elsewhere = await opened(uri, bucket, local_dir=tmp_path / "other")
    assert elsewhere.from_copy
    assert elsewhere.path == str(tmp_path / "other" / location.name)
    await elsewhere.let_go()
    here = await opened(location, bucket)
    assert not here.from_copy
    await here.let_go()
