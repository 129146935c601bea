from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from asynctune.config import CheckpointConfig
from asynctune.errors import CheckpointNotFoundError, StorageError
from asynctune.files import LocalFiles
from tests.checkpoints.fakes import CountingFiles, MemorySink, Room, disk_full, tree, where

BEST = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="acc")


async def test_the_best_and_the_latest_stay(tmp_path):
    async with Room(tmp_path / "exp", config=BEST) as room:
        for acc in (0.5, 0.9, 0.1, 0.7, 0.2):
            await room.save("t", metrics={"acc": acc})
        await room.deleted()
        assert room.steps() == [2, 4, 5]
        assert room.directories() == ["checkpoint_000002", "checkpoint_000004", "checkpoint_000005"]
        assert [event["step"] for event in room.events.of("checkpoint_deleted")] == [1, 3]


async def test_nothing_is_touched_before_the_mark_is_durable(tmp_path):
    order: list[str] = []
    sink = MemorySink()

    class Watched(LocalFiles):
        def unlink(self, path: str) -> None:
            order.append("manifest")
            self.check(path)
            super().unlink(path)

        def remove_tree(self, path: str) -> None:
            if "checkpoint_" in path:
                order.append("data")
                self.check(path)
                assert not os.path.exists(f"{path}/.manifest.json")
            super().remove_tree(path)

        def check(self, path: str) -> None:
            marked = MemorySink()
            marked.records = sink.durable
            record = marked.get("checkpoint/t/1")
            assert record is not None
            assert record["state"] == "deleting"
            assert marked.get("checkpoint/t/2")["state"] == "live"  # type: ignore[index]

    async with Room(
        tmp_path / "exp", config=CheckpointConfig(num_to_keep=1), files=Watched(), sink=sink
    ) as room:
        await room.save("t")
        await room.save("t")
        await room.deleted()
        assert order == ["manifest", "data"]
        assert sink.steps("t") == [2]
        assert room.directories() == ["checkpoint_000002"]


async def test_a_save_does_not_wait_for_deletions(tmp_path):
    async with Room(tmp_path / "exp", config=CheckpointConfig(num_to_keep=1), deleting=False) as room:
        for _ in range(4):
            await room.save("t")
        assert room.steps() == [4]
        assert room.catalog.deletions_pending == 3
        assert len(room.directories()) == 4
        # Recorded steps stay taken until they are gone.
        assert (await room.save("t")).step == 5


async def test_the_mark_and_what_replaces_it_are_one_commit(tmp_path):
    async with Room(tmp_path / "exp", config=CheckpointConfig(num_to_keep=1), deleting=False) as room:
        await room.save("t")
        before = room.sink.commits
        await room.save("t")
        assert room.sink.commits == before + 1
        found = room.sink.crashed()
        assert found.get("checkpoint/t/1")["state"] == "deleting"  # type: ignore[index]


async def test_a_leased_one_is_not_deleted_until_the_lease_ends(tmp_path):
    async with Room(tmp_path / "exp", config=CheckpointConfig(num_to_keep=1)) as room:
        await room.save("t")
        async with room.catalog.lease("t", 1) as held:
            async with room.catalog.lease("t") as also:
                assert held.path == also.path
            for _ in range(3):
                await room.save("t")
            await room.deleted()
            assert room.steps() == [1, 4]
            assert (where(held) / "model.bin").is_file()
        await room.deleted()
        assert room.steps() == [4]
        assert room.directories() == ["checkpoint_000004"]
        with pytest.raises(CheckpointNotFoundError, match="it has 4"):
            async with room.catalog.lease("t", 1):
                pass


async def test_what_is_marked_can_not_be_leased_or_restored(tmp_path):
    async with Room(tmp_path / "exp", config=CheckpointConfig(num_to_keep=1), deleting=False) as room:
        await room.save("t")
        await room.save("t")
        with pytest.raises(CheckpointNotFoundError):
            async with room.catalog.lease("t", 1):
                pass
        with pytest.raises(CheckpointNotFoundError):
            await room.catalog.restore("t", 1)


class Stubborn(LocalFiles):
    stubborn = True

    def remove_tree(self, path: str) -> None:
        if self.stubborn and path.endswith("checkpoint_000001"):
            raise OSError(errno.EBUSY, "Device or resource busy", path)
        super().remove_tree(path)


async def test_a_deletion_that_fails_is_said_once_and_tried_again(tmp_path, caplog):
    files = Stubborn()
    async with Room(tmp_path / "exp", config=CheckpointConfig(num_to_keep=1), files=files) as room:
        for _ in range(4):
            await room.save("t")
            await room.deleted()
        assert room.sink.steps("t") == [1, 4]
        assert room.steps() == [4]
        (failed,) = room.events.of("write_failed")
        assert failed["step"] == 1
        assert "resource busy" in caplog.text
        files.stubborn = False
        await room.save("t")
        await room.deleted()
        assert room.sink.steps("t") == [5]
        assert room.directories() == ["checkpoint_000005"]


async def test_a_crash_during_a_deletion_is_continued(tmp_path):
    counting = CountingFiles()
    config = CheckpointConfig(num_to_keep=1)
    async with Room(tmp_path / "all", config=config, files=counting, deleting=False) as room:
        await room.save("t")
        await room.save("t")
        saved = len(counting.calls)
    count = len(CountingFiles.CHANGES) and 3  # unlink, remove_tree, sync_dir
    for number in range(1, count + 2):
        path = tmp_path / f"exp-{number}"
        files = CountingFiles(saved + number, forever=True)
        async with Room(path, config=config, files=files, deleting=False) as room:
            await room.save("t")
            await room.save("t")
            await asyncio.wait_for(room.catalog._deletions._work(), 10)
            crashed = room.sink.crashed()
        async with Room(path, config=config, sink=crashed, epoch=2) as again:
            report = await again.catalog.settle({"t": "t"}.get)
            await again.deleted()
            assert again.steps() == [2]
            assert again.directories() == ["checkpoint_000002"]
            assert report.set_aside == ()
            assert again.sink.steps("t") == [2]


async def test_the_journals_failure_ends_the_work_before_anything_is_deleted(tmp_path):
    room = Room(tmp_path / "exp", config=CheckpointConfig(num_to_keep=1), deleting=False)
    await room.save("t")
    await room.save("t")
    room.sink.commit_error = disk_full()
    with pytest.raises(StorageError):
        await room.catalog.run()
    assert len(room.directories()) == 2
    await room.catalog.aclose()


async def test_the_close_finishes_what_is_retired(tmp_path):
    async with Room(tmp_path / "exp", config=CheckpointConfig(num_to_keep=1)) as room:
        for trial in ("t", "u"):
            for _ in range(3):
                await room.save(trial)
    assert room.directories("t") == room.directories("u") == ["checkpoint_000003"]
    assert room.sink.steps("t") == [3]


async def test_one_warning_for_a_missing_attribute(tmp_path, caplog):
    async with Room(tmp_path / "exp", config=BEST) as room:
        for trial in ("t", "u"):
            for _ in range(4):
                await room.save(trial, metrics={"loss": 1.0})
        await room.deleted()
        assert room.steps() == [3, 4]
    assert caplog.text.count("checkpoint_score_attribute") == 1


async def test_k_holds_after_an_opening_with_another_k(tmp_path):
    async with Room(tmp_path / "exp") as room:
        for _ in range(5):
            await room.save("t")
    async with Room(
        tmp_path / "exp", config=CheckpointConfig(num_to_keep=2), sink=room.sink.crashed()
    ) as again:
        await again.catalog.settle({"t": "t"}.get)
        await again.deleted()
        assert again.steps() == [4, 5]


async def test_a_record_that_cannot_be_read_stops_deletions_of_its_trial_only(tmp_path, caplog):
    config = CheckpointConfig(num_to_keep=1)
    async with Room(tmp_path / "exp", config=config) as room:
        await room.save("t")
        room.sink.put("checkpoint/t/2", {"v": 99})
        await room.save("t")
        await room.save("u")
        await room.save("u")
        await room.deleted()
        assert room.directories("t") == ["checkpoint_000001", "checkpoint_000003"]
        assert room.directories("u") == ["checkpoint_000002"]
    assert "leaves trial t alone" in caplog.text


async def test_a_link_in_the_place_of_a_directory_is_not_followed(tmp_path):
    precious = tree(tmp_path / "precious")
    async with Room(tmp_path / "exp", config=CheckpointConfig(num_to_keep=1), deleting=False) as room:
        first = await room.save("t")
        path = Path(first.path)
        path.rename(tmp_path / "moved-by-hand")
        path.symlink_to(precious)
        await room.save("t")
        await room.catalog._deletions._work()
        assert (precious / "model.bin").exists()
        assert room.events.of("write_failed")
