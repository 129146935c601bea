"""Restoring, leasing, cloning and fetching where the files are not on this disk, or damaged there."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from asynctune.checkpoints.bucket import Bucket
from asynctune.checkpoints.catalog import TrialCheckpoints
from asynctune.clock import SystemClock
from asynctune.config import CheckpointConfig
from asynctune.errors import CheckpointNotFoundError, StorageError
from asynctune.files import LocalFiles
from asynctune.trial import MANIFEST_FILE, Checkpoint
from tests.checkpoints.buckets import BucketRoom
from tests.checkpoints.fakes import TREE, Events, Room, read_tree, tree, where

PLACE = "t/checkpoint_000001"


@pytest.fixture
async def room(tmp_path):
    """Two uploaded checkpoints of one trial, of which nothing is on this disk."""
    async with BucketRoom(tmp_path / "exp") as made:
        await made.save("t", tree(tmp_path / "first", {"number": b"1"}))
        await made.save("t", tree(tmp_path / "second", {"number": b"2", "big": b"x" * 2000}))
        await made.catalog.drain()
        shutil.rmtree(made.path / "t")
        yield made


def damage(room: BucketRoom, step: int) -> None:
    """Damage the copy in the bucket."""
    room.held.remove(f"t/checkpoint_00000{step}/number")


async def test_restoring_fetches(room, tmp_path):
    restored = await room.catalog.restore("t")
    assert restored.step == 2
    assert read_tree(where(restored)) == {"number": b"2", "big": b"x" * 2000}
    (where(restored) / "number").write_bytes(b"mine")
    again = await room.catalog.restore("t", 2, tmp_path / "to")
    assert read_tree(where(again)) == {"number": b"2", "big": b"x" * 2000}
    assert len(room.events.of("checkpoint_fetched")) == 2
    assert not room.events.of("checkpoint_damaged")  # that nothing is here is no damage
    room.catalog.release("t")
    await room.deleted()
    assert not where(restored).exists()
    assert where(again).exists()


async def test_what_is_damaged_here_is_fetched_and_said_aloud(room, caplog):
    tree(room.path / "t/checkpoint_000002", {"number": b"9", "big": b"x" * 2000})
    restored = await room.catalog.restore("t")
    assert (restored.step, read_tree(where(restored))["number"]) == (2, b"2")
    (event,) = room.events.of("checkpoint_damaged")
    assert event["step"] == 2
    assert "is damaged" in caplog.text


async def test_what_is_intact_here_is_not_fetched(tmp_path):
    async with BucketRoom(tmp_path / "exp") as room:
        await room.save("t")
        await room.catalog.drain()
        room.storage.fail(lasting=True)
        assert (await room.catalog.restore("t")).step == 1
        async with room.catalog.lease("t") as held:
            assert where(held) == room.path / PLACE
        assert await room.catalog.fetch(held) == str(room.path / PLACE)
        assert (await room.catalog.clone("t", 1, to_trial="u", trial_name="u")).step == 1


async def test_damaged_here_and_there_falls_back(room, caplog):
    damage(room, 2)
    restored = await room.catalog.restore("t")
    assert (restored.step, read_tree(where(restored))) == (1, {"number": b"1"})
    assert "goes on from its older checkpoint 1" in caplog.text
    (event,) = room.events.of("checkpoint_damaged")
    assert (event["step"], event["path"]) == (2, "memory://bucket/t/checkpoint_000002")
    with pytest.raises(CheckpointNotFoundError, match="checkpoint 1 is in the bucket, so restore that one"):
        await room.catalog.restore("t", 2)
    damage(room, 1)
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint of trial t is intact"):
        await room.catalog.restore("t")
    assert room.leftovers() == [f"restored/{where(restored).name}"]


async def test_a_bucket_that_cannot_be_asked_is_no_reason_to_go_back(room, tmp_path):
    for operation in ("read", "get"):
        room.storage.fail(on=operation, lasting=True)
        with pytest.raises(StorageError):
            await room.catalog.restore("t")
        with pytest.raises(StorageError):
            await room.catalog.restore("t", 2, tmp_path / "to")
        room.storage.heal()
    assert not (tmp_path / "to").exists()
    assert not room.leftovers()
    assert (await room.catalog.restore("t")).step == 2


async def test_a_lease_of_what_is_elsewhere(room):
    async with room.catalog.lease("t", 1) as held, room.catalog.lease("t", 1) as also:
        assert read_tree(where(held)) == {"number": b"1"}
        assert where(held) == where(also)
        assert len(room.events.of("checkpoint_fetched")) == 1
        room.catalog.release("t")  # somebody reads it still
        await room.deleted()
        assert where(held).is_dir()
    room.catalog.release("t")
    await room.deleted()
    assert not where(held).exists()
    damage(room, 1)
    with pytest.raises(CheckpointNotFoundError, match=r"neither here .* nor in the bucket"):
        async with room.catalog.lease("t", 1):
            pass


async def test_leases_at_the_same_time_fetch_once(room):
    async def use() -> Path:
        async with room.catalog.lease("t", 2) as held:
            return where(held)

    found = await asyncio.gather(*(use() for _ in range(5)))
    assert len(set(found)) == 1
    assert len(room.events.of("checkpoint_fetched")) == 1


async def test_a_clone_of_what_is_elsewhere(room):
    clone = await room.catalog.clone("t", 1, to_trial="u", trial_name="u")
    assert read_tree(where(clone)) == {"number": b"1"}
    (report,) = await room.verify("u")
    assert report.ok
    await room.catalog.drain()
    assert "u/checkpoint_000001" in room.trees()
    damage(room, 1)
    with pytest.raises(CheckpointNotFoundError, match="checkpoint 2 is in the bucket"):
        await room.catalog.clone("t", 1, to_trial="u", trial_name="u")
    assert not [name for name in room.leftovers() if name.startswith("staging")]


async def test_fetching(room, tmp_path):
    first, second = room.catalog.list("t")
    path = await room.catalog.fetch(first)
    assert read_tree(Path(path)) == {"number": b"1"}
    assert await room.catalog.fetch(first) == path
    assert await room.catalog.fetch(second, tmp_path / "to") == str(tmp_path / "to")
    assert read_tree(tmp_path / "to")["number"] == b"2"
    with pytest.raises(CheckpointNotFoundError, match="never committed"):
        await room.catalog.fetch(Checkpoint.from_dict({"a": 1}))
    with pytest.raises(CheckpointNotFoundError, match="has no checkpoint 9"):
        await room.catalog.fetch(Checkpoint(path=None, trial_id="t", step=9))


async def test_fetching_without_a_bucket(tmp_path):
    async with Room(tmp_path / "exp") as room:
        saved = await room.save("t")
        assert await room.catalog.fetch(saved) == str(saved.path)
        (where(saved) / "z.json").unlink()
        with pytest.raises(CheckpointNotFoundError, match="is damaged"):
            await room.catalog.fetch(saved)


async def test_a_cancelled_fetch_leaves_nothing_behind(room, tmp_path):
    hung = room.storage.hang(on="get", nth=2, lasting=True)
    restoring = asyncio.create_task(room.catalog.restore("t", 2, tmp_path / "to"))
    await hung.struck.wait()
    restoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restoring
    room.storage.heal()
    assert not (tmp_path / "to").exists()
    assert (await room.catalog.restore("t", 2, tmp_path / "to")).step == 2


async def test_a_reader_fetches_and_writes_nothing_in_the_experiment(room, tmp_path):
    before = sorted(path for path in room.path.rglob("*") if path.is_file())
    reader = TrialCheckpoints(
        str(room.path),
        sink=room.sink,
        config=CheckpointConfig(),
        files=LocalFiles(),
        clock=SystemClock(),
        emit=Events(),
        epoch=1,
        scratch_dir=str(tmp_path / "scratch"),
        bucket=Bucket.for_reading(room.copies),
        local=False,
    )
    assert [each.path for each in reader.list("t")] == [None, None]
    running = asyncio.create_task(reader.run())
    await asyncio.sleep(0)
    async with reader.lease("t", 1) as held:
        assert read_tree(where(held)) == {"number": b"1"}
    assert (await reader.restore("t")).step == 2
    assert await reader.fetch(reader.list("t")[0]) == str(where(held))
    assert await reader.aclose() == ()
    await running
    assert not list((tmp_path / "scratch").iterdir())
    assert sorted(path for path in room.path.rglob("*") if path.is_file()) == before


async def test_what_is_being_deleted_in_the_bucket_is_not_fetched(tmp_path):
    """A record that says so is never live, so nothing is restored from such a copy."""
    async with BucketRoom(tmp_path / "exp", config=CheckpointConfig(num_to_keep=1)) as room:
        for _ in range(2):
            await room.save("t")
            await room.catalog.drain()
        await room.settled()
        with pytest.raises(CheckpointNotFoundError, match="has no checkpoint 1; it has 2"):
            await room.catalog.restore("t", 1)
        assert set(TREE) | {MANIFEST_FILE} == {name.split("/", 2)[2] for name in room.names()}
