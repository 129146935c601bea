"""Checkpoints that workers put into the bucket: records are true, whatever fails there, wherever the driver dies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asynctune.checkpoints.committing import Wanted
from asynctune.config import CheckpointConfig
from asynctune.errors import CheckpointExistsError, StorageError, UploadError
from tests.checkpoints.bringing import SMALL, Worker
from tests.checkpoints.bucket_scenes import FAULTS, after, before, finish, killed
from tests.checkpoints.buckets import BucketRoom
from tests.checkpoints.fakes import MemorySink, read_tree, where

TRIALS = ("a", "b")
STEPS = 3

KEEP = pytest.mark.parametrize("keep", [None, 1], ids=["keep-all", "keep-1"])


def room_of(path: Path, keep: int | None, **options: Any) -> BucketRoom:
    return BucketRoom(path, config=CheckpointConfig(num_to_keep=keep), **options)


async def bring_all(room: BucketRoom, attempt: int = 0) -> None:
    """What is committed already stays; each failure is a new start of its trial."""
    for trial in TRIALS:
        for step in range(1, STEPS + 1):
            while True:
                node = room.path.parent / f"{room.path.name}-{trial}-{step}-{attempt}"
                worker = Worker(node, storage=room.storage)
                try:
                    wanted = Wanted.of(trial, trial, attempt=attempt, plain=not attempt)
                    await room.catalog.arrivals.adopt(wanted, worker.checkpoint, step)
                except CheckpointExistsError:
                    break
                except (StorageError, UploadError):
                    attempt += 1
                else:
                    break


async def begin_and_bring_all(room: BucketRoom) -> None:
    await room.catalog.reconcile([])
    await bring_all(room)


def check_end(room: BucketRoom, keep: int | None) -> None:
    """What is kept is in the bucket, and nothing is here."""
    kept = list(range(1, STEPS + 1))[-(keep or STEPS) :]
    for trial in TRIALS:
        assert room.states(trial) == dict.fromkeys(kept, "live+")
        assert room.directories(trial) == []
    room.check()
    assert not room.events.of("checkpoint_lost")
    assert not room.events.of("checkpoint_damaged")


async def operations(path: Path, keep: int | None) -> int:
    async with room_of(path / "count", keep) as room:
        await begin_and_bring_all(room)
        await finish(room)
        check_end(room, keep)
        kept = {room.record(step, trial).directory for trial in TRIALS for step in room.states(trial)}
        assert set(room.names()) == {f"{each}/{name}" for each in kept for name in [*SMALL, ".manifest.json"]}
        return room.storage.count()


@KEEP
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_every_operation_fails(tmp_path, keep, fault, sampled):
    count = await operations(tmp_path, keep)
    assert count >= 30
    for number in sampled(range(1, count + 1), 6):
        async with room_of(tmp_path / f"exp-{number}", keep) as room:
            room.watch()
            fault(room.storage, number)
            await begin_and_bring_all(room)
            await finish(room)
            check_end(room, keep)


@KEEP
@pytest.mark.parametrize("kill", [before, after], ids=["before", "after"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
async def test_killed_at_every_operation_and_opened_again(tmp_path, keep, kill, elsewhere, sampled):
    count = await operations(tmp_path, keep)
    for number in sampled(range(1, count + 1), 6):
        room = room_of(tmp_path / f"exp-{number}", keep)
        room.watch()
        sink = await killed(room, kill(room, number), begin_and_bring_all(room))
        path = room.path
        if elsewhere:
            # another disk, which knows what CURRENT named
            path, sink = tmp_path / f"other-{number}", MemorySink()
            sink.records, sink.durable = dict(room.mirror.named), dict(room.mirror.named)
        async with room_of(path, keep, held=room.held, sink=sink, epoch=2) as again:
            again.mirror.named = dict(room.mirror.named)
            again.watch()
            report = await again.catalog.reconcile(TRIALS, from_bucket=elsewhere)
            assert not report.lost
            settled = await again.catalog.settle({trial: trial for trial in TRIALS}.get)
            assert not settled.set_aside
            for trial in TRIALS:
                for checkpoint in again.catalog.list(trial):
                    assert checkpoint.path is None
                    restored = await again.catalog.restore(trial, checkpoint.step)
                    assert read_tree(where(restored)) == SMALL
            await bring_all(again, attempt=1)
            await finish(again)
            check_end(again, keep)
