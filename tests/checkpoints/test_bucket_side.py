from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from asynctune.config import CheckpointConfig
from asynctune.errors import StorageError
from asynctune.packing import pack
from tests.checkpoints.buckets import BucketRoom, Mirror, quiet
from tests.checkpoints.fakes import MemorySink, read_tree, tree, where

ONE = CheckpointConfig(num_to_keep=1)


def sink_of(records: dict[str, bytes]) -> MemorySink:
    sink = MemorySink()
    sink.records, sink.durable = dict(records), dict(records)
    return sink


def elsewhere(room: BucketRoom, path: Path, **options) -> BucketRoom:
    """Another machine, which knows the bucket alone."""
    return BucketRoom(
        path, held=room.held, sink=sink_of(room.mirror.named), epoch=2, **{"config": ONE, **options}
    )


async def test_the_next_opening_goes_on_where_the_last_one_was_killed(tmp_path):
    room = BucketRoom(tmp_path / "exp", config=ONE)
    await room.__aenter__()
    hung = room.storage.hang(on="put", nth=3)
    await room.save("t")
    await hung.struck.wait()
    sink = await room.kill()
    async with BucketRoom(room.path, held=room.held, sink=sink, epoch=2, config=ONE) as again:
        again.watch()
        report = await again.catalog.reconcile(["t"])
        assert (report.lost, report.revived, report.pending) == ((), (), 1)
        await again.catalog.drain()
        assert again.states() == {1: "live+"}
        again.check()


async def test_a_takeover_finds_what_the_mirror_names(tmp_path):
    room = BucketRoom(tmp_path / "one")
    async with room:
        await room.save("t", tree(tmp_path / "first"))
        await room.catalog.drain()
        room.mirror.swap()
    async with elsewhere(room, tmp_path / "two") as again:
        report = await again.catalog.reconcile(["t"], from_bucket=True)
        assert (report.lost, report.revived, report.set_aside, report.pending) == ((), (), (), 0)
        (listed,) = again.catalog.list("t")
        assert listed.path is None  # it is elsewhere
        cloned = await again.save("u", listed)
        assert cloned.path is not None
        assert again.catalog.list("u")[0].path == cloned.path
        restored = await again.catalog.restore("t")
        assert restored.step == 1
        assert read_tree(where(restored)) == read_tree(tmp_path / "first")
        assert [event["step"] for event in again.events.of("checkpoint_fetched")] == [1, 1]
        assert not again.events.of("checkpoint_damaged")


async def test_what_never_reached_the_bucket_is_lost_loudly_and_what_it_replaced_lives_again(
    tmp_path, caplog
):
    room = BucketRoom(tmp_path / "one", config=ONE)
    await room.__aenter__()
    await room.save("t")
    await room.catalog.drain()
    hung = room.storage.hang(on="put", nth=3, lasting=True)
    await room.save("t")
    await hung.struck.wait()
    while not any(name.startswith("t/checkpoint_000002") for name in room.names()):  # noqa: ASYNC110 - no event
        await asyncio.sleep(0)  # the puts before are under way beside it
    await room.deleted()
    assert room.states() == {1: "deleting+", 2: "live"}
    room.mirror.swap()
    await room.kill()
    async with elsewhere(room, tmp_path / "two") as again:
        again.watch()
        report = await again.catalog.reconcile(["t"], from_bucket=True)
        assert report.lost == (("t", 2),)
        assert report.revived == (("t", 1),)
        assert again.steps() == [1]
        (event,) = again.events.of("checkpoint_lost")
        assert (event["trial_id"], event["step"]) == ("t", 2)
        assert "1 checkpoints are lost: 2 of trial t" in caplog.text
        assert again.stored(2)["state"] == "deleting"
        await again.settled()
        assert again.states() == {1: "live+"}
        assert again.trees() == ["t/checkpoint_000001"]
        assert all(name.startswith("t/checkpoint_000001/") for name in again.names())  # no leftovers
        assert (await again.save("t", step=3)).step == 3
        await again.catalog.drain()


async def test_local_files_of_the_same_checkpoint_are_used(tmp_path):
    """The same disk, whose state was behind the bucket's."""
    room = BucketRoom(tmp_path / "one")
    await room.__aenter__()
    hung = room.storage.hang(on="put", nth=2, lasting=True)
    await room.save("t")
    await hung.struck.wait()
    room.mirror.swap()
    await room.kill()
    async with elsewhere(room, room.path) as again:
        report = await again.catalog.reconcile(["t"], from_bucket=True)
        assert not report.lost
        assert report.pending == 1
        await again.catalog.drain()
        assert again.states() == {1: "live+"}


async def test_files_of_another_line_are_set_aside_and_not_deleted(tmp_path):
    room = BucketRoom(tmp_path / "one")
    async with room:
        await room.save("t")
        await room.save("t")
        await room.catalog.drain()
        room.mirror.swap()
    # This disk has other files in the places of both: another checkpoint, and one without a manifest.
    async with BucketRoom(tmp_path / "two", notes=False) as fork:
        await fork.save("t", tree(tmp_path / "fork", {"fork": b"work"}))
        await fork.save("t")
    (tmp_path / "two/t/checkpoint_000002/.manifest.json").unlink()
    async with elsewhere(room, tmp_path / "two", config=CheckpointConfig()) as again:
        report = await again.catalog.reconcile(["t"], from_bucket=True)
        assert len(report.set_aside) == 2
        assert any(read_tree(Path(path)) == {"fork": b"work"} for path in report.set_aside)
        assert len(again.events.of("orphan_set_aside")) == 2
        assert again.states() == {1: "live+", 2: "live+"}
        assert (await again.catalog.restore("t", 1)).step == 1


async def test_nothing_is_put_in_order_before_it_is_known_whose_it_is(tmp_path):
    """A retired record's place may hold the files of another line, which are set aside and not deleted."""
    room = BucketRoom(tmp_path / "one", config=ONE)
    await room.__aenter__()
    await room.save("t")
    await room.catalog.drain()
    room.mirror.open.clear()
    await room.save("t")
    await room.deleted()
    await room.catalog.drain()
    room.mirror.swap()
    await room.kill()
    async with BucketRoom(tmp_path / "two", notes=False) as fork:
        await fork.save("t", tree(tmp_path / "fork", {"fork": b"work"}))
    async with elsewhere(room, tmp_path / "two") as again:
        settling = asyncio.create_task(again.catalog.settle({"t": "t"}.get))
        await quiet(5)
        assert not settling.done()
        report = await again.catalog.reconcile(["t"], from_bucket=True)
        await settling
        await again.settled()
        assert [read_tree(Path(path)) for path in report.set_aside] == [{"fork": b"work"}]
        assert again.states() == {2: "live+"}


async def test_a_new_bucket_gets_everything(tmp_path):
    room = BucketRoom(tmp_path / "exp", config=ONE)
    async with room:
        for _ in range(2):
            await room.save("t")
            await room.catalog.drain()
        await room.settled()
        assert room.states() == {2: "live+"}
    sink = sink_of(room.sink.durable)
    async with BucketRoom(room.path, sink=sink, epoch=2, config=ONE) as again:
        report = await again.catalog.reconcile(["t"], bucket_is_new=True)
        assert report.pending == 1
        assert again.stored(2)["mirrored"] is False
        again.watch()
        await again.catalog.drain()
        assert again.trees() == ["t/checkpoint_000002"]


async def test_a_record_that_cannot_be_read_is_left_alone(tmp_path, caplog):
    room = BucketRoom(tmp_path / "exp")
    async with room:
        for trial in "tu":
            await room.save(trial)
            await room.catalog.drain()
    records = {**room.sink.durable, "checkpoint/t/1": pack({"v": 99})}
    async with BucketRoom(room.path, held=room.held, sink=sink_of(records), epoch=2) as again:
        report = await again.catalog.reconcile(["t", "u"], from_bucket=True)
        assert not report.lost
        assert "stay as they are" in caplog.text
        assert len(again.trees()) == 2


async def test_a_disk_that_cannot_be_read_is_an_error(tmp_path):
    room = BucketRoom(tmp_path / "exp")
    async with room:
        await room.save("t")
        await room.catalog.drain()
    manifest = room.path / "t/checkpoint_000001/.manifest.json"
    shutil.rmtree(manifest.parent)
    manifest.mkdir(parents=True)  # what lies there is no file
    async with BucketRoom(room.path, held=room.held, sink=sink_of(room.sink.durable), epoch=2) as again:
        with pytest.raises(StorageError, match="look through the checkpoints"):
            await again.catalog.reconcile(["t"], from_bucket=True)


async def test_deletions_of_the_last_opening_go_on_also_of_trials_that_have_no_directory_here(tmp_path):
    room = BucketRoom(tmp_path / "one", config=ONE)
    await room.__aenter__()
    await room.save("t")
    await room.catalog.drain()
    room.mirror.open.clear()
    await room.save("t")
    await room.catalog.drain()
    await room.deleted()
    assert room.states() == {1: "deleting-", 2: "live+"}
    room.mirror.swap()
    await room.kill()
    async with elsewhere(room, tmp_path / "two") as again:
        again.watch()
        await again.catalog.reconcile(["t"], from_bucket=True)
        await again.settled()
        assert again.states() == {2: "live+"}
        assert again.trees() == ["t/checkpoint_000002"]


async def test_the_mirror_of_the_fakes_names_late(tmp_path):
    """The checks are worth little if CURRENT is always up to date."""
    sink = MemorySink()
    mirror = Mirror(sink)
    sink.put("checkpoint/t/1", {})
    await sink.commit()
    assert not mirror.named
    await asyncio.wait_for(mirror.reached(1), 5)
    assert mirror.named
    assert (tmp_path / "exp").parent.is_dir()


async def test_what_was_uploaded_whole_is_not_lost_though_nobody_recorded_that(tmp_path):
    room = BucketRoom(tmp_path / "one", config=ONE)
    await room.__aenter__()
    await room.save("t")
    await room.catalog.drain()
    await room.save("t")
    room.mirror.swap()  # CURRENT has the record, and not yet what became of the upload
    await room.catalog.drain()
    assert room.states()[2] == "live+"
    await room.kill()
    async with elsewhere(room, tmp_path / "two") as again:
        again.watch()
        assert again.states()[2] == "live"
        report = await again.catalog.reconcile(["t"], from_bucket=True)
        assert report.lost == ()
        assert again.states()[2] == "live+"
        restored = await again.catalog.restore("t")
        assert restored.step == 2
