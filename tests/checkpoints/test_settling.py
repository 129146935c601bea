from __future__ import annotations

import asyncio
import os
import shutil
import time

import pytest

from asynctune.checkpoints import settling
from asynctune.checkpoints.staging import stage_for_adoption
from asynctune.errors import CorruptStateError, StorageError
from tests.checkpoints.fakes import TREE, CountingFiles, MemorySink, Room, disk_full, read_tree, tree, where

KNOWN = {"t": "t", "u": "u"}


async def test_an_orphan_is_set_aside_and_never_adopted(tmp_path, caplog):
    async with Room(tmp_path / "exp") as room:
        await room.save("t")
        await room.save("t")
        await room.save("u")
    sink = room.sink.crashed()
    sink.delete("checkpoint/t/2")
    async with Room(tmp_path / "exp", sink=sink, epoch=2) as room:
        report = await room.catalog.settle(KNOWN.get)
        assert room.directories("t") == ["checkpoint_000001"]
        (path,) = report.set_aside
        assert read_tree(room.path / path) == TREE
        assert path.startswith(str(room.path / ".asynctune/quarantine/"))
        (event,) = room.events.of("orphan_set_aside")
        assert event["trial_id"] == "t"
        assert event["path"] == path
        assert event["was"] == str(room.path / "t/checkpoint_000002")
        assert "was set aside" in caplog.text
        assert (await room.save("t")).path.name == "checkpoint_000002"  # the name is free again
        assert await room.catalog.settle(KNOWN.get) == settling.SettleReport()


async def test_orphans_of_the_same_name_do_not_meet(tmp_path):
    for number in range(3):
        tree(tmp_path / "exp/t/checkpoint_000001")
        async with Room(tmp_path / "exp") as room:
            await room.catalog.settle(KNOWN.get)
            assert not room.directories("t")
            assert len(room.leftovers()) == number + 1


async def test_what_is_not_asynctunes_is_left_alone(tmp_path):
    mine = [
        "t/checkpoint_best/f",
        "t/work/checkpoint_000001/f",
        "t/params.json",
        "notes/checkpoint_000001/f",  # no trial and no manifest
        "notes/.staged-1/f",
        ".git/checkpoint_000001/.manifest.json",
        "checkpoint_000001/f",
        "file",
    ]
    tree(tmp_path / "exp", dict.fromkeys(mine, b""))
    async with Room(tmp_path / "exp") as room:
        assert await room.catalog.settle(KNOWN.get) == settling.SettleReport()
    assert all((tmp_path / "exp" / name).exists() for name in mine)


async def test_a_complete_checkpoint_of_an_unknown_trial_is_an_orphan(tmp_path):
    async with Room(tmp_path / "exp") as room:
        await room.save("lost")
    async with Room(tmp_path / "exp", epoch=2) as room:
        report = await room.catalog.settle(KNOWN.get)
        assert len(report.set_aside) == 1
        assert room.events.of("orphan_set_aside")[0]["trial_id"] is None


async def test_leftovers_of_a_dead_opening(tmp_path):
    staging = tmp_path / "exp/.asynctune/staging"
    tree(staging / "copy-dead-1")
    tree(staging / "clone-dead-2", {"half": b""})
    tree(staging / "copy-dead-3", TREE | {".manifest.json": b"{}"})
    tree(staging / "move-dead-4")
    tree(tmp_path / "exp/.asynctune/restored/dead-1")
    async with Room(tmp_path / "exp", epoch=2) as room:
        report = await room.catalog.settle(KNOWN.get)
        assert len(report.set_aside) == 2  # complete, or somebody's only copy
        assert len(report.removed) == 3
        await room.deleted()
        assert [name for name in room.leftovers() if not name.startswith("quarantine")] == []
        assert sorted(path.name for path in (room.path / ".asynctune/quarantine").glob("*/*")) == [
            "copy-dead-3",
            "move-dead-4",
        ]


async def test_what_this_opening_does_at_the_same_time_is_told_apart(tmp_path):
    files = CountingFiles()
    async with Room(tmp_path / "exp", files=files) as room:
        await room.save("t")
        restored = await room.catalog.restore("t")
        files.calls.clear()
        loop = asyncio.get_running_loop()
        reports: list[settling.SettleReport] = []
        # At every call of a save, the experiment is put in order beside it.
        for number in range(1, 40):
            files.at = {
                number: lambda: reports.append(
                    asyncio.run_coroutine_threadsafe(room.catalog.settle(KNOWN.get), loop).result(30)
                )
            }
            files.calls.clear()
            await room.save("t")
            if not reports:
                break
            assert reports.pop() == settling.SettleReport()
        assert number > 15
        assert read_tree(where(restored)) == TREE
        assert all(report.ok for report in await room.verify())


async def test_a_save_that_waits_for_its_commit_is_no_orphan(tmp_path):
    async with Room(tmp_path / "exp") as room:
        await room.save("t")
        room.sink.gate.clear()
        saving = asyncio.create_task(room.save("t"))
        for _ in range(2):
            await room.sink.asked.acquire()
        assert await room.catalog.settle(KNOWN.get) == settling.SettleReport()
        room.sink.gate.set()
        assert read_tree((await saving).path) == TREE


async def test_a_staged_checkpoint_waits_a_day_for_its_adoption(tmp_path):
    async with Room(tmp_path / "exp") as room:
        staged = await stage_for_adoption(tree(tmp_path / "src"), room.path / "t")
        assert await room.catalog.settle(KNOWN.get) == settling.SettleReport()
        old = time.time() - settling.ADOPTION_GRACE_S - 60
        os.utime(staged.path, (old, old))
        report = await room.catalog.settle(KNOWN.get)
        assert len(report.set_aside) == 1
        assert "nobody adopted" in room.events.of("orphan_set_aside")[0]["message"]


async def test_many_trials_are_looked_through_in_slices(tmp_path, monkeypatch):
    monkeypatch.setattr(settling, "_TRIALS_PER_SLICE", 4)
    for number in range(30):
        tree(tmp_path / f"exp/trial-{number}", {"params.json": b"{}"})
    tree(tmp_path / "exp/trial-17/checkpoint_000001")
    async with Room(tmp_path / "exp") as room:
        report = await room.catalog.settle(lambda name: name)
        assert len(report.set_aside) == 1


async def test_an_unreadable_record_stops_it_before_anything_is_moved(tmp_path):
    tree(tmp_path / "exp/t/checkpoint_000001")
    async with Room(tmp_path / "exp") as room:
        room.sink.put("checkpoint/t/1", {"v": 2})
        with pytest.raises(CorruptStateError):
            await room.catalog.settle(KNOWN.get)
        assert room.directories() == ["checkpoint_000001"]


async def test_an_orphan_that_cannot_be_moved_is_said_and_hinders_nobody(tmp_path):
    tree(tmp_path / "exp/t/checkpoint_000001")
    for number in range(1, 10):
        async with Room(tmp_path / "exp", files=CountingFiles(number)) as room:
            report = await room.catalog.settle(KNOWN.get)
            assert report.stuck == (str(room.path / "t/checkpoint_000001"),)
            (event,) = room.events.of("write_failed")
            assert "cannot be set aside" in event["message"]
            assert len([*room.path.rglob("model.bin")]) == 1
            if not room.directories("t"):  # moved, but not synced
                break
            saved = await room.save("t")
            assert saved.path.name == "checkpoint_000001-1.0"
        for path in room.path.glob("t/checkpoint_000001-1.0"):
            shutil.rmtree(path)
    assert number > 2


async def test_after_a_save_that_failed_everywhere_the_next_opening_cleans_up(tmp_path):
    """The journal refuses the record, and nothing can be undone either."""
    counting = CountingFiles()
    async with Room(tmp_path / "all", files=counting) as room:
        await room.save("t")
    path = tmp_path / "exp"
    files = CountingFiles(len(counting.calls) + 1, forever=True)
    async with Room(path, files=files) as room:
        room.sink.put_error = disk_full()
        with pytest.raises(StorageError) as caught:
            await room.save("t")
        assert "could not be cleaned up" in str(caught.value.__notes__)
        room.sink.put_error = None
        assert room.directories() == ["checkpoint_000001"]
    async with Room(path, sink=MemorySink(), epoch=2) as room:
        assert len((await room.catalog.settle(KNOWN.get)).set_aside) == 1
        assert room.directories() == []
