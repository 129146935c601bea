from __future__ import annotations

import asyncio
import errno
import shutil

import pytest

from asynctune.checkpoints import copying
from asynctune.config import CheckpointConfig
from asynctune.errors import CheckpointNotFoundError, ConfigError, StorageError
from asynctune.trial import Checkpoint
from tests.checkpoints.fakes import TREE, CountingFiles, Room, read_tree, tree, where


@pytest.fixture
async def room(tmp_path):
    async with Room(tmp_path / "exp") as made:
        yield made


async def test_a_private_copy_of_the_newest(room):
    await room.save("t")
    saved = await room.save("t", metrics={"acc": 1})
    restored = await room.catalog.restore("t")
    assert (restored.trial_id, restored.step, restored.metrics) == ("t", 2, {"acc": 1})
    assert restored.files == saved.files
    assert restored.committed_at == saved.committed_at
    assert restored.path != saved.path
    assert read_tree(restored.path) == TREE
    assert not (restored.path / ".manifest.json").exists()
    for name in TREE:
        (restored.path / name).write_bytes(b"ruined")
    assert all(report.ok for report in await room.verify())
    assert read_tree((await room.catalog.restore("t", 1)).path) == TREE


async def test_private_copies_go_at_the_close_or_when_released(tmp_path):
    async with Room(tmp_path / "exp") as room:
        await room.save("t")
        await room.save("u")
        one, other = where(await room.catalog.restore("t")), where(await room.catalog.restore("u"))
        room.catalog.release("t")
        await room.deleted()
        assert not one.exists()
        assert other.exists()
        shutil.rmtree(other)  # the user may remove it too
        last = where(await room.catalog.restore("u"))
    assert not last.exists()
    assert room.leftovers() == []


async def test_to_a_directory_of_the_users(room, tmp_path):
    await room.save("t")
    restored = await room.catalog.restore("t", to=tmp_path / "new/deep")
    assert restored.path == tmp_path / "new/deep"
    (tmp_path / "empty").mkdir()
    inode = (tmp_path / "empty").stat().st_ino
    restored = await room.catalog.restore("t", to=str(tmp_path / "empty"))
    assert read_tree(restored.path) == TREE
    assert (tmp_path / "empty").stat().st_ino == inode


async def test_a_directory_with_something_in_it_is_refused(room, tmp_path):
    saved = await room.save("t")
    (tmp_path / "file").write_bytes(b"")
    for target in (tree(tmp_path / "full", {"mine": b"1"}), saved.path):
        with pytest.raises(ConfigError, match="not empty"):
            await room.catalog.restore("t", to=target)
    with pytest.raises(ConfigError, match="not a directory"):
        await room.catalog.restore("t", to=tmp_path / "file")
    assert read_tree(tmp_path / "full") == {"mine": b"1"}
    assert read_tree(saved.path) == TREE


async def test_damage_falls_back_loudly(room, tmp_path, caplog):
    for _ in range(4):
        await room.save("t")
    (room.path / "t/checkpoint_000003/z.json").write_bytes(b"[]")
    shutil.rmtree(room.path / "t/checkpoint_000004")
    restored = await room.catalog.restore("t")
    assert restored.step == 2
    assert read_tree(restored.path) == TREE
    damaged = room.events.of("checkpoint_damaged")
    assert [event["step"] for event in damaged] == [4, 3]
    assert "z.json" in damaged[1]["message"]
    assert damaged[1]["problems"] == [
        "z.json: has other content than was recorded (CRC-32C and SHA-256 differ)"
    ]
    assert caplog.text.count("is damaged") == 2
    assert "older checkpoint 2" in caplog.text
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "new"):
        assert (await room.catalog.restore("t", to=target)).step == 2
        assert read_tree(target) == TREE
    assert room.steps() == [1, 2, 3, 4]  # what is damaged stays recorded, for whoever looks


async def test_one_that_was_asked_for_is_never_replaced(room):
    for _ in range(3):
        await room.save("t")
    (room.path / "t/checkpoint_000002/z.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"z\.json: is missing.*checkpoint 3 verifies.*step=3"):
        await room.catalog.restore("t", 2)
    (room.path / "t/checkpoint_000003/z.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match="checkpoint 1 verifies"):
        await room.catalog.restore("t", 2)
    (room.path / "t/checkpoint_000001/z.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match="no other one verifies"):
        await room.catalog.restore("t", 2)
    assert room.leftovers() == ["restored"] or not room.leftovers()


async def test_none_that_verifies(room):
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint; start it from the beginning"):
        await room.catalog.restore("t")
    for _ in range(2):
        await room.save("t")
    for number in (1, 2):
        (room.path / f"t/checkpoint_00000{number}/.manifest.json").unlink()
    with pytest.raises(
        CheckpointNotFoundError, match=r"no checkpoint .* is intact.*checkpoint 2:.*checkpoint 1:"
    ):
        await room.catalog.restore("t")
    with pytest.raises(CheckpointNotFoundError, match="it has 1, 2"):
        await room.catalog.restore("t", 7)
    for step in (-1, "1", True):
        with pytest.raises(ConfigError):
            await room.catalog.restore("t", step)


async def test_something_extra_is_no_reason_to_fall_back(room, caplog):
    await room.save("t")
    saved = await room.save("t")
    (saved.path / ".DS_Store").write_bytes(b"")
    restored = await room.catalog.restore("t")
    assert restored.step == 2
    assert read_tree(restored.path) == TREE
    assert "does not belong" in caplog.text
    assert not room.events.of("checkpoint_damaged")


@pytest.mark.parametrize("given", [False, True])
async def test_a_target_that_cannot_be_written_is_no_damage(tmp_path, monkeypatch, given):
    monkeypatch.setattr(copying, "SMALL_BYTES", 64)
    counting = CountingFiles()
    async with Room(tmp_path / "exp", files=counting) as room:
        for _ in range(2):
            await room.save("t")
        await room.catalog.restore("t")
        (tmp_path / "to").mkdir()
        counting.calls.clear()
        await room.catalog.restore("t", to=tmp_path / "to" if given else None)
        needed = len(counting.calls)
        for number in range(1, needed + 1):
            target = tmp_path / f"to-{number}"
            if number % 2:
                target.mkdir()
            counting.calls.clear()
            counting.fail_at, counting.error = number, errno.ENOSPC
            with pytest.raises(StorageError, match="No space left") as caught:
                await room.catalog.restore("t", to=target if given else None)
            counting.fail_at = None
            assert caught.value.retryable
            assert not target.exists() or not list(target.iterdir())
        assert not room.events.of("checkpoint_damaged")
        room.catalog.release("t")
        await room.deleted()
        assert not room.leftovers()


async def test_what_is_being_restored_is_not_deleted(tmp_path):
    files = CountingFiles()
    async with Room(tmp_path / "exp", files=files, config=CheckpointConfig(num_to_keep=1)) as room:
        await room.save("t")
        files.calls.clear()
        seen = []
        files.at = {3: lambda: seen.append(room.catalog._deletions.leases.steps("t"))}
        await room.catalog.restore("t")
        assert seen == [{1}]
        assert not room.catalog._deletions.leases.steps("t")


async def test_values_come_back(room):
    value = {"epoch": 3, "weights": [1.5, float("inf")], "shape": (2, 3), "raw": b"\0\1", "big": 2**80}
    saved = await room.save("t", Checkpoint.from_dict(value))
    assert await asyncio.to_thread(saved.to_dict) == value
    restored = await room.catalog.restore("t")
    assert await asyncio.to_thread(restored.to_dict) == value
    again = await room.save("t", restored.path)  # as a directory
    assert await asyncio.to_thread(again.to_dict) == value
