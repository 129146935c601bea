"""A real storage without conditional writes, and a real network filesystem: JuiceFS, as a gateway and mounted twice."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from asynctune.config import SyncConfig
from asynctune.state.sharing import lock_and_look
from asynctune.storage.local import LocalStorage
from asynctune.storage.probe import keeps_conditions
from asynctune.storage.s3 import open_storage
from asynctune.storage.uri import StorageURI, parse_uri
from asynctune.storage.values import OnlyCreate, Stored
from asynctune.store.store import ExperimentStore
from asynctune.testing import ObjectStorageTests
from asynctune.testing.storage_scenes import entries
from asynctune.trial import TrialStatus
from tests.crash.sharing import kill_and_go_on, open_at_once, pause_and_take_over, started
from tests.storage.juicefs import KEY, SECRET, juicefs_gateway, juicefs_mounts

NUMBERS = itertools.count(1)


# -- the gateway ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def endpoint():
    with juicefs_gateway() as url:
        yield url


@pytest.fixture
def options(endpoint) -> dict[str, Any]:
    return {"key": KEY, "secret": SECRET, "endpoint_url": endpoint, "region": "us-east-1"}


@pytest.fixture
async def uri(options) -> StorageURI:
    name = f"bucket-{os.getpid()}-{next(NUMBERS)}"
    bucket = await open_storage(parse_uri(f"s3://{name}"), options)
    await bucket._client.create_bucket(Bucket=name)
    await bucket.aclose()
    return parse_uri(f"s3://{name}/some/prefix")


class TestGateway(ObjectStorageTests):
    many = 300  # more than a page of a listing; it takes JuiceFS 20 s to store two thousand

    @pytest.fixture
    def make_storage(self, uri, options):
        async def make():
            return await open_storage(uri, options | {"conditional_writes": False})

        return make


async def test_a_server_that_says_that_it_keeps_conditions_and_does_not_is_found_out(uri, options):
    storage = await open_storage(uri, options)
    assert storage.supports_conditions
    for data in (b"1", b"2"):
        assert isinstance(await storage.put("k", data, condition=OnlyCreate()), Stored)
    await storage.delete(["k"])
    assert await keeps_conditions(storage) is False
    assert await entries(storage) == []
    await storage.aclose()


async def test_an_experiment_is_copied_there_and_comes_back(uri, options, tmp_path, caplog):
    """Without conditions, which the store finds out by itself."""
    location = tmp_path / "exp"
    sync = SyncConfig(upload_dir=str(uri), storage_options=options)
    async with ExperimentStore.open(location, sync_config=sync) as store:
        events = store.events()
        trial = store.add_trial({"lr": 0.1}, "t")
        store.set_status("t", TrialStatus.RUNNING)
        for number in range(1, 4):
            store.report("t", {"loss": 1 / number})
            with await asyncio.to_thread(tempfile.TemporaryDirectory) as name:
                await asyncio.to_thread(Path(name, "model").write_bytes, bytes([number]) * 1000)
                await store.save_checkpoint("t", name)
            await store.flush(mirror=True)
    assert [event.kind async for event in events].count("mirror_unfenced") == 1
    assert len([record for record in caplog.records if "conditional" in record.message]) == 1
    await asyncio.to_thread(shutil.rmtree, location)
    copy = f"{uri}/exp"
    async with ExperimentStore.open(copy, local_dir=tmp_path / "other", storage_options=options) as store:
        assert [row["loss"] for row in await store.history("t")] == [1, 1 / 2, 1 / 3]
        restored = await store.restore_checkpoint(trial.trial_id)
        assert restored.path is not None
        assert await asyncio.to_thread(Path(restored.path, "model").read_bytes) == bytes([3]) * 1000
        store.report("t", {"loss": 0.1})
        await store.flush(mirror=True)
    async with ExperimentStore.open(copy, "read", storage_options=options) as reader:
        assert reader.trials[0].num_results == 4
        assert [checkpoint.mirrored for checkpoint in reader.checkpoints("t")] == [True] * 3


# -- the filesystem ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def volume():
    with juicefs_mounts() as places:
        yield places


@pytest.fixture
def mounts(volume) -> list[Path]:
    """A directory of this test, as two hosts see it."""
    name = f"test-{os.getpid()}-{next(NUMBERS)}"
    (volume[0] / name).mkdir()
    return [place / name for place in volume]


class TestMount(ObjectStorageTests):
    many = 60  # nothing here depends on how many there are

    @pytest.fixture
    def make_storage(self, mounts):
        turns = itertools.cycle(mounts)

        async def make():
            return LocalStorage(str(next(turns) / "root"))

        return make


async def test_locks_hold_between_mounts(mounts):
    def look() -> None:
        (mounts[0] / "state").mkdir()
        lock, found = lock_and_look(str(mounts[0] / "state"))
        assert lock is not None
        assert found.mount is not None
        assert found.mount.kind == "fuse.juicefs"
        assert found.is_network
        assert (found.locks, found.warning) == ("working", None)
        other, seen = lock_and_look(str(mounts[1] / "state"))
        assert other is None
        assert seen.locks == "working"
        lock.release()

    await asyncio.to_thread(look)


@pytest.mark.timeout(120)
async def test_of_two_that_open_at_once_one_goes_on(mounts):
    endings = await open_at_once(mounts, 1)
    assert endings == {"goes on": 1, "ExperimentLockedError": 1}


@pytest.mark.timeout(120)
async def test_without_locks_the_last_to_claim_goes_on(mounts):
    endings = await open_at_once(mounts, 1, locks=False)
    assert endings == {"goes on": 1, "FencedError": 1}


@pytest.mark.timeout(120)
async def test_who_slept_while_another_host_took_over_is_fenced(mounts, rng):
    assert await pause_and_take_over(mounts, rng) == "FencedError"


@pytest.mark.timeout(120)
async def test_an_experiment_goes_on_from_another_host(mounts, rng):
    await kill_and_go_on(mounts, rng)


@pytest.mark.timeout(120)
async def test_a_reader_on_another_host_sees_what_was_flushed(mounts):
    async with started(mounts[0] / "exp") as driver:
        await driver.until("flushed")
        for _ in range(5):
            promised = driver.marks[-1]
            async with ExperimentStore.open(mounts[1] / "exp", "read") as reader:
                assert reader.metadata["tick"] >= promised
                promised = driver.marks[-1]
                async with asyncio.timeout(30):
                    while reader.metadata["tick"] < promised:  # a host may remember attributes for a second
                        await reader.refresh()
        await driver.close()
