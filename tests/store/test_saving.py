"""Checkpoints that workers bring to a store: used, kept, found again and given up like those that were saved here."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from asynctune.checkpoints.arriving import InBucket
from asynctune.config import CheckpointConfig, SyncConfig
from asynctune.errors import ConfigError, StoreClosedError, TrialNotFoundError, UploadError
from asynctune.inspect.garbage import find_garbage
from asynctune.inspect.verifying import verify
from asynctune.storage.base import ObjectStorage
from asynctune.storage.uri import open_storage
from asynctune.storage.values import Directory
from asynctune.store.store import ExperimentStore
from asynctune.testing import DirectorySyncer
from asynctune.trial import Checkpoint
from tests.checkpoints.bringing import SMALL, Worker
from tests.checkpoints.fakes import read_tree, where
from tests.inspect_cli.test_garbage import Later
from tests.storage.moto import make_bucket, moto_server
from tests.store.test_mirroring import bucket, swaps

__all__ = ["bucket", "swaps"]  # fixtures


@pytest.fixture(scope="module")
def endpoint():
    """A moto server with a bucket."""
    pytest.importorskip("moto")
    pytest.importorskip("aiobotocore")
    with moto_server() as url:
        make_bucket(url, "tunes")
        yield url


@pytest.fixture(params=["memory", "directory", "s3"])
def upload_dir(request, tmp_path, monkeypatch):
    """Where copies are kept."""
    monkeypatch.setattr("asynctune.store.reconcile.QUIET_S", 0.05)
    if request.param == "memory":
        return request.getfixturevalue("bucket")
    if request.param == "directory":
        (tmp_path / "copies").mkdir()
        return str(tmp_path / "copies")
    for name, value in {
        "AWS_ENDPOINT_URL": request.getfixturevalue("endpoint"),
        "AWS_ACCESS_KEY_ID": "AKIATESTKEY",
        "AWS_SECRET_ACCESS_KEY": "a-very-secret-word",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return f"s3://tunes/{tmp_path.name}"


def opened(location: Path, upload_dir: str, **options: Any) -> Any:
    return ExperimentStore.open(
        location, sync_config=SyncConfig(upload_dir=upload_dir), **{"max_interval_s": 0.05, **options}
    )


class Node:
    """Another machine, with its own way to the bucket."""

    def __init__(self, path: Path, storage: ObjectStorage | None) -> None:
        self.path = path
        self.storage = storage
        self.count = 0

    def worker(self, **content: str) -> Worker:
        """Who brings a checkpoint with these files."""
        self.count += 1
        files = {name: data.encode() for name, data in content.items()} or SMALL
        home = self.path.parent / "exp"
        return Worker(self.path / str(self.count), files, storage=self.storage, experiment=home)

    async def bring(self, store: ExperimentStore, trial_id: str = "t", **content: str) -> Checkpoint:
        """Let the store have one at once."""
        made = await store.adopt_checkpoint(trial_id, self.worker(**content).checkpoint)
        assert made is not None
        return made

    async def names(self) -> set[str]:
        """What the bucket holds of checkpoints."""
        assert self.storage is not None
        return {
            info.key
            async for info in self.storage.list_objects("t/checkpoint_")
            if not isinstance(info, Directory)
        }


@pytest.fixture
async def node(tmp_path, upload_dir):
    storage = await open_storage(f"{upload_dir}/exp")
    yield Node(tmp_path / "node", storage)
    await storage.aclose()


def begun(store: ExperimentStore) -> None:
    store.add_trial({}, "t")
    store.set_status("t", "RUNNING")


async def test_the_experiment_goes_on_here_and_elsewhere(location, upload_dir, node, tmp_path):
    async with opened(location, upload_dir) as store:
        begun(store)
        store.report("t", {"loss": 3})
        await node.bring(store, model="one")
        store.report("t", {"loss": 2})
        made = await node.bring(store, model="two")
        assert (made.path, made.mirrored, made.metrics) == (None, True, {"loss": 2, "training_iteration": 2})
        store.report("t", {"loss": 1})
        seq = await store.flush(mirror=True)
        assert store.stats().mirrored_seq >= seq
        assert store.stats().uploads_pending == 0
    assert not list(location.glob("t/checkpoint_*"))

    async with opened(location, upload_dir) as store:
        assert [each.path for each in store.checkpoints("t")] == [None, None]
        store.requeue()
        assert store.get_trial("t").num_results == 2, "it goes on from the second one"
        assert read_tree(where(await store.restore_checkpoint("t"))) == {"model": b"two"}
        store.set_status("t", "RUNNING")
        third = await node.bring(store, model="three")
        assert third.step == 3
        assert f"{upload_dir}/exp/t/checkpoint_000003-2.1" == store.checkpoint_uri(third)
        await store.flush(mirror=True)
    for report in (await verify(str(location)), await verify(f"{upload_dir}/exp")):
        assert report.problems == ()
    assert (await find_garbage(f"{upload_dir}/exp", clock=Later(100))).leaks == ()

    shutil.rmtree(location)
    copy = f"{upload_dir}/exp"
    async with ExperimentStore.open(copy, "read") as reader, reader.lease("t", 1) as leased:
        assert read_tree(where(leased)) == {"model": b"one"}
    async with ExperimentStore.open(copy, local_dir=tmp_path / "other") as store:
        assert [each.step for each in store.checkpoints("t")] == [1, 2, 3]
        assert read_tree(where(await store.restore_checkpoint("t"))) == {"model": b"three"}
        cloned = await store.clone_checkpoint("t", 1, to_trial=store.add_trial({}).trial_id)
        assert read_tree(where(cloned)) == {"model": b"one"}
        elsewhere = Node(tmp_path / "other" / "node", node.storage)
        assert (await elsewhere.bring(store, model="four")).step == 4


async def test_a_reader_of_the_directory_finds_it_in_the_copy(location, upload_dir, node, tmp_path):
    async with opened(location, upload_dir) as store:
        begun(store)
        made = await node.bring(store)
        await store.flush()
        async with ExperimentStore.open(location, "read") as reader:
            assert reader.checkpoints("t") == (made,)
            assert read_tree(Path(await reader.fetch(made, tmp_path / "to"))) == SMALL


async def test_a_close_that_leaves_the_copy_behind_loses_nothing(location, bucket, swaps, tmp_path):
    node = Node(tmp_path / "node", storage := await open_storage(f"{bucket}/exp"))
    store = await opened(location, bucket)
    begun(store)
    await store.flush(mirror=True)
    swaps.clear()
    await node.bring(store, model="one")
    with pytest.raises(UploadError):
        await store.aclose(drain_timeout_s=0.2)
    swaps.set()
    async with opened(location, bucket) as store:
        assert read_tree(where(await store.restore_checkpoint("t"))) == {"model": b"one"}
        await store.flush(mirror=True)
    assert (await verify(f"{bucket}/exp")).problems == ()
    await storage.aclose()


async def test_retention_keeps_what_the_copy_names(location, bucket, swaps, tmp_path):
    node = Node(tmp_path / "node", storage := await open_storage(f"{bucket}/exp"))
    keep = CheckpointConfig(num_to_keep=1)
    async with opened(location, bucket, checkpoint_config=keep) as store:
        begun(store)
        await node.bring(store, model="one")
        await store.flush(mirror=True)
        swaps.clear()
        swaps.asked.clear()
        for number in range(5):
            await node.bring(store, model=str(number))
        await store.flush()
        await swaps.asked.wait()
        for _ in range(50):  # for a deletion that would come too early
            await asyncio.sleep(0.002)
            assert "t/checkpoint_000001/.manifest.json" in await node.names()
        swaps.set()
    assert await node.names() == {"t/checkpoint_000006/.manifest.json", "t/checkpoint_000006/model"}
    assert (await verify(f"{bucket}/exp")).problems == ()
    async with opened(location, bucket) as store:
        assert [each.step for each in store.checkpoints("t")] == [6]
        assert store._records.steps("t") == [6], "and no other is remembered"
    await storage.aclose()


async def test_a_place_in_the_timeline_is_that_of_the_call(location, bucket, tmp_path):
    node = Node(tmp_path / "node", storage := await open_storage(f"{bucket}/exp"))
    async with opened(location, bucket) as store:
        begun(store)
        store.report("t", {"loss": 3})
        worker = node.worker()
        worker.may_go.clear()
        coming = asyncio.ensure_future(store.adopt_checkpoint("t", worker.checkpoint, step=1))
        await worker.asked.wait()
        assert store.last_step("t") == 1
        store.report("t", {"loss": 2})
        worker.may_go.set()
        made = await coming
        assert made is not None
        assert made.metrics["loss"] == 3
        store.set_status("t", "PENDING", error="failed")
        assert store.get_trial("t").num_results == 1
    await storage.aclose()


async def test_without_a_copy_it_comes_home(store, tmp_path):
    begun(store)
    node = Node(tmp_path / "node", None)
    made = await node.bring(store)
    assert read_tree(where(made)) == SMALL
    there = node.worker()
    there.answer = InBucket(b"")
    with pytest.raises(ConfigError, match="there is no upload_dir"):
        await store.adopt_checkpoint("t", there.checkpoint)
    with pytest.raises(TrialNotFoundError):
        await store.adopt_checkpoint("unknown", node.worker().checkpoint)
    given_up = node.worker()
    given_up.answer = None
    assert await store.adopt_checkpoint("t", given_up.checkpoint) is None


async def test_with_a_syncer_it_comes_home(location, tmp_path):
    (tmp_path / "copies").mkdir()
    sync = SyncConfig(upload_dir=str(tmp_path / "copies"), syncer=DirectorySyncer())
    node = Node(tmp_path / "node", None)
    async with ExperimentStore.open(location, sync_config=sync) as store:
        begun(store)
        there = node.worker()
        there.answer = InBucket(b"")
        with pytest.raises(ConfigError, match="which only it can reach"):
            await store.adopt_checkpoint("t", there.checkpoint)
        made = await node.bring(store)
        assert read_tree(where(made)) == SMALL
        await store.flush(mirror=True)
    assert read_tree(tmp_path / "copies/exp/t/checkpoint_000001") == SMALL


async def test_a_store_does_not_wait_for_what_does_not_come(location, upload_dir, node, tmp_path):
    store = await opened(location, upload_dir)
    begun(store)
    store.add_trial({}, "other")
    hangs = node.worker()
    hangs.may_go.clear()
    coming = asyncio.ensure_future(store.adopt_checkpoint("t", hangs.checkpoint))
    await hangs.asked.wait()
    async with asyncio.timeout(30):
        await store.save_checkpoint("other", Checkpoint.from_dict({"x": 1}))
        await node.bring(store, "other")
        await store.flush(mirror=True)
        await store.aclose()
    with pytest.raises(StoreClosedError, match="before a checkpoint of trial t had come"):
        await coming
    assert isinstance(hangs.ended, asyncio.CancelledError)
    async with opened(location, upload_dir) as store:
        assert store.checkpoints("t") == ()
        assert len(store.checkpoints("other")) == 2
