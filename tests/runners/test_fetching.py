"""What a node brings itself: a committed checkpoint from where it is, whole and verified, or nothing."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.manifest import digest_of
from asynctune.checkpoints.staging import stage_for_adoption
from asynctune.errors import CheckpointNotFoundError, MissingExtraError, StorageError
from asynctune.protocols import CheckpointPlace
from asynctune.runners import fetching
from asynctune.runners.bucket_bringing import NodeBucket
from asynctune.runners.fetching import fetch_in_place
from asynctune.runners.orders import packed_place
from asynctune.storage.memory import MemoryStorage
from asynctune.trial import MANIFEST_FILE, Checkpoint

DIRECTORY = "t1/checkpoint_000003-2.1"


class Bucket(MemoryStorage):
    """Refuses to be read as often as a test says."""

    refusals = 0
    retryable = True
    hangs: asyncio.Event | None = None

    async def read(self, key, **options):
        if self.hangs is not None:
            self.hangs.set()
            await asyncio.Event().wait()
        if self.refusals:
            self.refusals -= 1
            raise StorageError("not now", operation="get", key=key, retryable=self.retryable)
        return await super().read(key, **options)


@pytest.fixture
async def scene(tmp_path, monkeypatch):
    """A committed checkpoint on the driver's disk and in the bucket."""
    monkeypatch.setattr(fetching, "_BETWEEN_S", 0.01)

    class Scene:
        opened = 0

        def __init__(self):
            self.bucket = Bucket()
            self.committed = tmp_path / "exp" / DIRECTORY
            self.to = tmp_path / "node" / "restored"
            self.threads = DiskThreads(2)

        async def make(self):
            (tmp_path / "made" / "deep").mkdir(parents=True)
            Path(tmp_path, "made", "model").write_bytes(b"weights" * 1000)
            Path(tmp_path, "made", "deep", "file").write_bytes(b"deep")
            self.committed.parent.mkdir(parents=True)
            made = await stage_for_adoption(tmp_path / "made", self.committed.parent)
            encoded = await asyncio.to_thread(
                lambda: made.manifest.named(trial_id="t1", step=3, epoch=2, attempt=1).encode()
            )
            self.node = NodeBucket(self.bucket, 30.0)
            await self.node.send(made.path, DIRECTORY, encoded)
            os.rename(made.path, self.committed)
            assert (self.committed / MANIFEST_FILE).read_bytes() == encoded
            self.place = CheckpointPlace(
                checkpoint=Checkpoint(trial_id="t1", step=3),
                directory=DIRECTORY,
                manifest_sha256=digest_of(encoded),
                path=str(self.committed),
                is_in_copy=True,
            )

        async def open(self):
            self.opened += 1
            return self.node

        async def fetch(self, *, is_shared, bucket=True, **changed):
            place = packed_place(replace(self.place, **changed))
            assert place is not None
            opens = self.open if bucket else None
            await fetch_in_place(place, str(self.to), is_shared=is_shared, bucket=opens, threads=self.threads)

        def is_there(self):
            assert (self.to / "model").read_bytes() == b"weights" * 1000
            assert (self.to / "deep" / "file").read_bytes() == b"deep"
            assert self.to.stat().st_mode & 0o777 == 0o700
            return True

    made = Scene()
    await made.make()
    yield made
    await made.node.aclose()
    made.threads.close()


@pytest.mark.parametrize("bucket", [True, False])
async def test_what_all_machines_share_is_read_there(scene, bucket):
    await scene.fetch(is_shared=True, bucket=bucket)
    assert scene.is_there()
    assert scene.opened == 0, "nothing is asked of the bucket"


@pytest.mark.parametrize(
    ("is_shared", "path"),
    [(False, "/somebody/elses"), (True, "/nowhere"), (True, None)],
    ids=["apart", "not-there", "never-there"],
)
async def test_otherwise_the_bucket_is(scene, is_shared, path):
    """Also of one that is not on the driver's disk any more, or never was."""
    await scene.fetch(is_shared=is_shared, path=path)
    assert scene.is_there()


async def test_what_is_damaged_on_the_disk_is_brought_from_the_bucket(scene):
    (scene.committed / "model").write_bytes(b"weighty" * 1000)
    await scene.fetch(is_shared=True)
    assert scene.is_there()


async def test_what_is_damaged_everywhere_is_not_taken(scene):
    (scene.committed / "model").unlink()
    await scene.bucket.put(f"{DIRECTORY}/deep/file", b"DEEP")
    with pytest.raises(CheckpointNotFoundError, match=r"model.*missing.*; .*deep/file"):
        await scene.fetch(is_shared=True)
    assert not scene.to.exists()


async def test_a_manifest_that_is_not_the_recorded_one_is_no_checkpoint(scene):
    for is_shared in (True, False):
        with pytest.raises(CheckpointNotFoundError, match="is not the recorded one"):
            await scene.fetch(is_shared=is_shared, bucket=not is_shared, manifest_sha256="0" * 64)
    assert not scene.to.exists()


async def test_a_bucket_that_refuses_for_a_moment_is_asked_again(scene):
    scene.bucket.refusals = 2
    await scene.fetch(is_shared=False)
    assert scene.is_there()


async def test_a_bucket_that_refuses_in_the_middle_is_asked_again_for_all_of_it(scene, monkeypatch):
    monkeypatch.setattr(scene.node._transfer, "receive", refusing(scene.node._transfer.receive))
    await scene.fetch(is_shared=False)
    assert scene.is_there()


def refusing(receive):
    left = 2

    async def refuses(key, *arguments, **settings):
        nonlocal left
        if key.endswith("model") and left:
            left -= 1
            raise StorageError("not now", operation="get", key=key, retryable=True)
        await receive(key, *arguments, **settings)

    return refuses


@pytest.mark.parametrize(("refusals", "retryable"), [(100, True), (1, False)], ids=["for-long", "for-good"])
async def test_a_bucket_that_refuses_is_told(scene, refusals, retryable):
    scene.bucket.refusals, scene.bucket.retryable = refusals, retryable
    with pytest.raises(CheckpointNotFoundError, match="not now"):
        await scene.fetch(is_shared=False)
    assert not scene.to.exists()
    assert scene.bucket.refusals == (96 if retryable else 0)


async def test_a_disk_that_refuses_is_told(scene, tmp_path):
    (tmp_path / "node").write_text("a file")
    with pytest.raises(CheckpointNotFoundError, match="Not a directory"):
        await scene.fetch(is_shared=True)


async def test_what_this_node_does_not_reach_is_said_to_be_there(scene):
    for reached in ({"bucket": False}, {"is_in_copy": False}):
        with pytest.raises(CheckpointNotFoundError, match="nowhere that this node reaches"):
            await scene.fetch(is_shared=False, **reached)


async def test_a_node_that_lacks_the_client_says_so(scene):
    async def missing():
        raise MissingExtraError("s3", "aiobotocore", "a bucket")

    scene.open = missing
    with pytest.raises(MissingExtraError):
        await scene.fetch(is_shared=False)


async def test_cancelled_it_leaves_nothing(scene):
    scene.bucket.hangs = asyncio.Event()
    fetching = asyncio.create_task(scene.fetch(is_shared=False))
    await scene.bucket.hangs.wait()
    assert scene.to.exists()
    fetching.cancel()
    await asyncio.wait([fetching])
    assert fetching.cancelled()
    assert not scene.to.exists()
