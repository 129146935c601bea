"""Checkpoints that nodes put into the bucket themselves: whole, under the driver's name, or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asynctune.checkpoints.manifest import Manifest, digest_of
from asynctune.checkpoints.staging import stage_for_adoption
from asynctune.errors import AsynctuneError, AuthenticationError, ConfigError, StorageError
from asynctune.runners.bucket_bringing import NodeBucket
from asynctune.storage.memory import MemoryStorage
from asynctune.trial import MANIFEST_FILE

DIRECTORY = "t1/checkpoint_000003-2.1"


class Failing(MemoryStorage):
    """Refuses what a test says."""

    refuses: tuple[str, ...] = ()
    waits: str | None = None
    reached: asyncio.Event | None = None

    async def put(self, key, *args, **options):
        if self.reached is not None and self.waits is not None and self.waits in key:
            self.reached.set()
            await asyncio.Event().wait()
        if any(each in key for each in self.refuses):
            raise StorageError(f"{key} is refused", operation="put", key=key)
        return await super().put(key, *args, **options)

    async def delete(self, keys, **options):
        if "delete" in self.refuses:
            raise StorageError("no deletes", operation="delete")
        return await super().delete(keys, **options)


@pytest.fixture
async def sending():
    made = NodeBucket(Failing(), 30.0)
    yield made
    await made.aclose()


@pytest.fixture
async def staged(tmp_path):
    """A staged directory, and the manifest with which it is committed."""
    (tmp_path / "made" / "deep").mkdir(parents=True)
    Path(tmp_path, "made", "model").write_bytes(b"weights" * 1000)
    Path(tmp_path, "made", "deep", "file").write_bytes(b"deep")
    (tmp_path / "t1").mkdir()
    made = await stage_for_adoption(tmp_path / "made", tmp_path / "t1")
    named = await asyncio.to_thread(
        lambda: made.manifest.named(trial_id="t1", step=3, epoch=2, attempt=1).encode()
    )
    return made.path, named


async def there(sending):
    return sorted([info.key async for info in sending._storage.list_objects("")])


async def test_it_is_whole_under_its_name(sending, staged):
    path, manifest = staged
    await sending.send(path, DIRECTORY, manifest)
    assert await there(sending) == [
        f"{DIRECTORY}/{MANIFEST_FILE}",
        f"{DIRECTORY}/deep/file",
        f"{DIRECTORY}/model",
    ]
    found = await sending._storage.read(f"{DIRECTORY}/{MANIFEST_FILE}")
    assert digest_of(found.data) == digest_of(manifest)
    assert Manifest.decode(found.data).step == 3


@pytest.mark.parametrize("refused", ["model", MANIFEST_FILE])
async def test_what_could_not_be_sent_is_taken_back(sending, staged, refused):
    path, manifest = staged
    sending._storage.refuses = (refused,)
    with pytest.raises(AsynctuneError, match="refused"):
        await sending.send(path, DIRECTORY, manifest)
    assert await there(sending) == []


async def test_one_that_was_cancelled_is_taken_back(sending, staged):
    path, manifest = staged
    sending._storage.waits, sending._storage.reached = MANIFEST_FILE, asyncio.Event()
    running = asyncio.create_task(sending.send(path, DIRECTORY, manifest))
    await sending._storage.reached.wait()
    assert len(await there(sending)) == 2
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await there(sending) == []


async def test_one_that_nobody_wants_is_taken_back(sending, staged):
    path, manifest = staged
    await sending.send(path, DIRECTORY, manifest)
    await sending.take_back(DIRECTORY, manifest)
    await sending.take_back(DIRECTORY, manifest)
    assert await there(sending) == []


async def test_what_stays_is_told_of(sending, staged, caplog):
    path, manifest = staged
    sending._storage.refuses = (MANIFEST_FILE, "delete")
    with pytest.raises(AsynctuneError, match="is refused"):
        await sending.send(path, DIRECTORY, manifest)
    assert f"{DIRECTORY} is of no use and could not be removed" in caplog.text
    assert "inspect gc" in caplog.text


async def test_a_directory_that_changed_is_not_sent(sending, staged):
    path, manifest = staged
    Path(path, "model").write_bytes(b"another")
    with pytest.raises(AsynctuneError):
        await sending.send(path, DIRECTORY, manifest)
    assert await there(sending) == []


async def test_what_cannot_be_opened():
    with pytest.raises(ConfigError):
        await NodeBucket.open("nowhere://x", None, 1.0)


class Closed(MemoryStorage):
    """Answers a look as a test says."""

    error: Exception | None = None

    async def head(self, key):
        if self.error is not None:
            raise self.error
        return await super().head(key)


async def test_a_node_that_may_not_look_at_the_bucket_says_what_to_do():
    bucket = Closed()
    node = NodeBucket(bucket, 30.0)
    await node.check()
    bucket.error = AuthenticationError("no credentials", operation="head")
    with pytest.raises(ConfigError, match=r"^no credentials; this is said on a node: .*storage_options"):
        await node.check()
    await node.aclose()


async def test_a_bucket_that_is_away_for_now_keeps_no_trial_from_running(caplog):
    caplog.set_level("INFO")
    bucket = Closed()
    bucket.error = StorageError("no answer", operation="head", retryable=True)
    node = NodeBucket(bucket, 30.0)
    await node.check()
    assert "does not answer yet: no answer" in caplog.text
    await node.aclose()
