"""One experiment with a bucket, and what may become of it: an operation fails, or is the driver's last.

Three trials save three checkpoints each, with retention and a file that goes in parts. At every operation of the
storage, and around every commit, what the records say is in the bucket is there whole: in memory, on the disk, and in
CURRENT, which lags as far behind as it may. Used by the tests, for a sample of the operations, and by the lab.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from asynctune.config import CheckpointConfig
from asynctune.errors import CheckpointExistsError, StorageError, UploadError
from asynctune.storage.memory_bucket import MemoryBucket
from asynctune.storage.values import UploadRules
from asynctune.testing import FaultyStorage
from tests.checkpoints.buckets import RULES, BucketRoom, records_in, wrong_with
from tests.checkpoints.fakes import MemorySink, tree

TRIALS = ("a", "b", "c")
STEPS = 3
SMALL = {"model.bin": b"weights" * 90, "a/deep.txt": b"deep", "empty": b""}
IN_ORDER = UploadRules(
    min_part_bytes=16,
    max_part_bytes=1 << 20,
    max_parts=100,
    max_put_bytes=1 << 20,
    in_order=True,
    listed=False,
)


def room_of(path: Path, keep: int | None, **options: Any) -> BucketRoom:
    config = CheckpointConfig(num_to_keep=keep, checkpoint_score_attribute="acc")
    return BucketRoom(path, config=config, options={"max_concurrency": 2}, **options)


async def save_all(room: BucketRoom, source: Path) -> None:
    """What is saved already stays; a second run goes on where the first one ended."""

    async def of(trial: str) -> None:
        for step in range(1, STEPS + 1):
            try:
                await room.save(trial, source, step=step, metrics={"acc": -step})
            except CheckpointExistsError:
                continue
            if step == 1:
                await drained(room)

    async with asyncio.TaskGroup() as group:
        for trial in TRIALS:
            group.create_task(of(trial))


async def drained(room: BucketRoom) -> None:
    """However often they fail."""
    while True:
        try:
            return await room.catalog.drain()
        except UploadError:
            await asyncio.sleep(0)


async def finish(room: BucketRoom) -> None:
    await drained(room)
    await room.settled()


def check_end(room: BucketRoom, keep: int | None) -> None:
    """Everything that is kept is in the bucket, and nothing else is."""
    best = {None: [1, 2, 3], 1: [1, 3], 3: [1, 2, 3]}[keep]
    expected: set[str] = set()
    for trial in TRIALS:
        assert room.states(trial) == dict.fromkeys(best, "live+")
        for step in best:
            record = room.record(step, trial)
            assert wrong_with(record, room.held) is None
            expected |= {f"{record.directory}/{name}" for name in [*record.files, ".manifest.json"]}
    assert set(room.names()) == expected
    if room.storage.upload_rules.listed:
        assert not room.held.uploads
    notes = room.path / ".asynctune/uploads"
    assert not notes.exists() or not list(notes.iterdir())
    assert room.catalog.uploads.pending == 0
    room.check()


async def operations(tmp_path: Path, keep: int | None, rules: UploadRules = RULES) -> int:
    async with room_of(tmp_path / "count", keep, rules=rules) as room:
        await save_all(room, tree(tmp_path / "src", SMALL))
        await finish(room)
        check_end(room, keep)
        return room.storage.count()


Fault = Callable[[FaultyStorage, int], Any]
FAULTS: dict[str, Fault] = {
    "fails": lambda storage, nth: storage.fail(nth=nth),
    "reply-lost": lambda storage, nth: storage.fail(nth=nth, applied=True),
    "refused": lambda storage, nth: storage.fail(StorageError("no", retryable=False), nth=nth),
    "refused-after": lambda storage, nth: storage.fail(
        StorageError("no", retryable=False), nth=nth, applied=True
    ),
}

Kill = Callable[[BucketRoom, int], asyncio.Event]


def before(room: BucketRoom, number: int) -> asyncio.Event:
    return room.storage.hang(nth=number, lasting=True).struck


def after(room: BucketRoom, number: int) -> asyncio.Event:
    """Done, and nobody is told."""
    room.storage.hang(nth=number + 1, lasting=True)
    return room.storage.hang(nth=number, applied=True).struck


async def killed(room: BucketRoom, struck: asyncio.Event, work: Awaitable[None]) -> MemorySink:
    """Work until the fault strikes, or to the end; what the disk has then."""
    await room.__aenter__()

    async def whole() -> None:
        await work
        await finish(room)

    working = asyncio.ensure_future(whole())
    waiting = asyncio.ensure_future(struck.wait())
    await asyncio.wait([working, waiting], return_when=asyncio.FIRST_COMPLETED)
    sink = await room.kill()
    for task in (working, waiting):
        task.cancel()
    await asyncio.gather(working, waiting, return_exceptions=True)
    await room.catalog.abandon()
    return sink


def snapshot(held: MemoryBucket) -> dict[str, str]:
    """Key and version of all that is in the bucket."""
    return {key: info.version for key, (info, _) in held.objects.items()}


def again_check(room: BucketRoom, keep: int | None, there: dict[str, str]) -> None:
    check_end(room, keep)
    for key, (info, _) in room.held.objects.items():
        assert there.get(key, info.version) == info.version, f"{key} was sent twice"


# -- what happens ------------------------------------------------------------------------------------------


async def fails_once(path: Path, keep: int | None, rules: UploadRules, fault: Fault, number: int) -> None:
    """The n-th operation fails."""
    source = tree(path / "src", SMALL)
    async with room_of(path / f"exp-{number}", keep, rules=rules) as room:
        room.watch()
        fault(room.storage, number)
        await save_all(room, source)
        await finish(room)
        check_end(room, keep)


async def is_away(path: Path, keep: int | None, number: int) -> None:
    """Everything fails from the n-th operation on, until some uploads have failed; saves go on meanwhile."""
    source = tree(path / "src", SMALL)
    async with room_of(path / f"exp-{number}", keep) as room:
        room.watch()
        room.storage.fail(StorageError("away", retryable=False), nth=number, lasting=True)

        async def back() -> None:
            await room.events.happened("upload_failed", 3)
            room.storage.heal()
            room.watch()

        healing = asyncio.create_task(back())
        await save_all(room, source)
        room.storage.heal()
        room.watch()
        healing.cancel()
        await finish(room)
        check_end(room, keep)


async def killed_and_opened_again(
    path: Path, keep: int | None, kill: Kill, number: int, *, notes: bool
) -> None:
    """The same disk: nothing of what is in the bucket is sent again."""
    source = tree(path / "src", SMALL)
    room = room_of(path / f"exp-{number}", keep, notes=notes)
    room.watch()
    sink = await killed(room, kill(room, number), save_all(room, source))
    there = snapshot(room.held)
    again = room_of(room.path, keep, held=room.held, sink=sink, epoch=2, notes=notes)
    async with again:
        again.mirror.named = dict(room.mirror.named)
        again.watch()
        await again.catalog.reconcile(TRIALS)
        await again.catalog.settle({trial: trial for trial in TRIALS}.get)
        await save_all(again, source)
        await finish(again)
        again_check(again, keep, there)


async def killed_and_taken_over(path: Path, keep: int | None, number: int) -> int:
    """Another disk, which knows CURRENT alone: what it named is there, the rest is lost loudly; how many were."""
    source = tree(path / "src", SMALL)
    room = room_of(path / f"one-{number}", keep)
    room.watch()
    await killed(room, before(room, number), save_all(room, source))
    if number % 2:
        room.mirror.swap()
    named = dict(room.mirror.named)
    sink = MemorySink()
    sink.records, sink.durable = dict(named), dict(named)
    async with room_of(path / f"two-{number}", keep, held=room.held, sink=sink, epoch=2) as again:
        again.mirror.named = named
        again.watch()
        report = await again.catalog.reconcile(TRIALS, from_bucket=True)
        assert len(report.lost) == len(again.events.of("checkpoint_lost"))
        for trial in TRIALS:
            for checkpoint in again.catalog.list(trial):
                restored = await again.catalog.restore(trial, checkpoint.step)
                assert restored.step == checkpoint.step
        await save_all(again, source)
        await finish(again)
        expected: set[str] = set()
        for record in records_in(again.sink.records):
            assert record.mirrored
            assert not record.deleting
            expected |= {f"{record.directory}/{name}" for name in [*record.files, ".manifest.json"]}
        # What CURRENT never named may be left behind: `inspect gc` finds that.
        unnamed = {record.directory for record in records_in(room.sink.records)}
        unnamed -= {record.directory for record in records_in(named)}
        assert {
            name for name in set(again.names()) - expected if not name.startswith(tuple(unnamed))
        } == set()
        return len(report.lost)
