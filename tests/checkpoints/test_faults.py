"""Whatever fails, and wherever the caller is cancelled: what was recorded stays, and nothing else does."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asynctune.checkpoints import copying
from asynctune.checkpoints.staging import stage_for_adoption
from asynctune.config import CheckpointConfig
from asynctune.errors import StorageError
from tests.checkpoints.fakes import TREE, CountingFiles, Room, read_tree, tree, where

CONFIG = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="acc")
Call = Callable[[Room, Path], Awaitable[Any]]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(copying, "SMALL_BYTES", 64)
    monkeypatch.setattr(copying, "CHUNK_BYTES", 256)
    monkeypatch.setattr(copying, "SYNC_BYTES", 256)


async def save(room: Room, source: Path) -> Any:
    return await room.save("t", source, metrics={"acc": 1})


async def move(room: Room, source: Path) -> Any:
    return await room.save("t", source, metrics={"acc": 1}, move=True)


async def clone(room: Room, source: Path) -> Any:
    return await room.catalog.clone("t", 1, to_trial="t", trial_name="t")


async def adopt(room: Room, source: Path) -> Any:
    return await room.catalog.adopt("t", source, trial_name="t")


CALLS = pytest.mark.parametrize("call", [save, move, clone, adopt])


async def begin(path: Path, name: str, files: CountingFiles) -> tuple[Room, Path]:
    """A room with two checkpoints, and a source to commit."""
    room = Room(path / name, config=CONFIG, files=files, deleting=False)
    for acc in (5, 4):
        await room.save("t", tree(path / "first"), metrics={"acc": acc})
    source = tree(path / f"{name}-src")
    files.calls.clear()
    return room, source


async def prepare(call: Call, source: Path, room: Room) -> Path:
    """For an adoption, stage the source first."""
    if call is not adopt:
        return source
    staged = await stage_for_adoption(source, room.path / "t", move=True)
    return Path(staged.path)


async def check_untouched(room: Room, source: Path, call: Call) -> None:
    assert room.steps() == [1, 2]
    assert room.sink.crashed().steps("t") == [1, 2]
    assert all(report.ok for report in await room.verify())
    assert read_tree(source) == TREE
    expected = ["checkpoint_000001", "checkpoint_000002"]
    assert [name for name in room.directories() if name != source.name] == expected
    assert not room.leftovers()


async def check_committed(room: Room, call: Call) -> None:
    assert room.steps()[-1] == 3
    assert all(report.ok for report in await room.verify())
    assert read_tree(room.path / "t/checkpoint_000003") == TREE
    assert not room.leftovers()


@CALLS
async def test_every_operation_fails_once(tmp_path, call):
    files = CountingFiles()
    room, source = await begin(tmp_path, "exp", files)
    source = await prepare(call, source, room)
    for number in range(1, 100):  # what failed before is in the way of nothing
        files.calls.clear()
        files.fail_at, files.error = number, (errno.EIO, errno.ENOSPC)[number % 2]
        try:
            await call(room, source)
        except StorageError as failed:
            told = (bool(failed.key), failed.retryable)
            assert told == (True, files.error == errno.ENOSPC)
            await check_untouched(room, source, call)
        else:
            assert number > len(files.calls)  # it never came to the failure
            break
    assert number > 5
    await check_committed(room, call)
    await room.catalog.aclose()


@CALLS
async def test_every_operation_fails_for_good_and_the_next_opening_cleans_up(tmp_path, call, sampled):
    files = CountingFiles()
    room, source = await begin(tmp_path, "all", files)
    source = await prepare(call, source, room)
    files.calls.clear()
    await call(room, source)
    await room.catalog.aclose()
    for number in sampled(range(1, len(files.calls) + 1), 12):
        files = CountingFiles()
        room, source = await begin(tmp_path, f"exp-{number}", files)
        source = await prepare(call, source, room)
        files.fail_at, files.forever = number, True
        with pytest.raises(StorageError):
            await call(room, source)
        await room.catalog.aclose()
        assert room.sink.crashed().steps("t") == [1, 2]
        async with Room(room.path, config=CONFIG, sink=room.sink.crashed(), epoch=2) as again:
            report = await again.catalog.settle({"t": "t"}.get)
            await again.deleted()
            assert again.steps() == [1, 2]
            assert all(each.ok for each in await again.verify())
            assert not [name for name in again.leftovers() if not name.startswith("quarantine")]
            # Files that were given away are somewhere: where they were, or set aside.
            places = [source, *map(Path, report.set_aside)]
            if call is not clone:
                assert TREE in [read_tree(place) for place in places if place.exists()]
            assert (await again.save("t", tree(tmp_path / "next"))).step == 3


@CALLS
async def test_cancelled_at_every_operation(tmp_path, call):
    """The cancellation arrives while the n-th operation is being done in its thread."""
    loop = asyncio.get_running_loop()
    files = CountingFiles()
    room, source = await begin(tmp_path, "exp-0", files)
    source = await prepare(call, source, room)
    cancelled = 0
    for number in range(1, 100):
        files.calls.clear()
        task = asyncio.ensure_future(call(room, source))
        files.at = {number: partial(loop.call_soon_threadsafe, task.cancel)}
        try:
            await task
        except asyncio.CancelledError:
            cancelled += 1
            await check_untouched(room, source, call)
            continue
        needed = len(files.calls)
        await check_committed(room, call)
        await room.catalog.aclose()
        if number > needed:
            break
        # It came too late to cancel anything.
        room, source = await begin(tmp_path, f"exp-{number}", files)
        source = await prepare(call, source, room)
    assert cancelled > 3


@CALLS
async def test_cancelled_at_every_hop(tmp_path, call, monkeypatch):
    """The cancellation arrives before the n-th hop to a thread."""
    room, source = await begin(tmp_path, "exp", CountingFiles())
    source = await prepare(call, source, room)
    threads = room.catalog._threads
    run = threads.run
    for number in range(1, 100):
        left = [number]

        async def counted(*args: Any, left: list[int] = left, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                current = asyncio.current_task()
                assert current is not None
                current.cancel()
            return await run(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(threads, "run", counted)
            task = asyncio.ensure_future(call(room, source))
            await asyncio.wait([task])
        if not task.cancelled():
            await task
            break
        await check_untouched(room, source, call)
    assert number > 2
    await check_committed(room, call)
    await room.catalog.aclose()


@CALLS
async def test_cancelled_while_the_commit_goes_on_it_is_recorded(tmp_path, call):
    room, source = await begin(tmp_path, "exp", CountingFiles())
    source = await prepare(call, source, room)
    room.sink.gate.clear()
    task = asyncio.ensure_future(call(room, source))
    for _ in range(3):  # two before, and this one
        await room.sink.asked.acquire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    room.sink.gate.set()
    await room.sink.commit()
    await check_committed(room, call)
    assert (await room.save("t")).step == 4
    await room.catalog.aclose()


async def test_cancelled_while_waiting_for_a_turn_nothing_happens(tmp_path):
    async with Room(tmp_path / "exp") as room:
        room.sink.gate.clear()
        first = asyncio.create_task(room.save("t"))
        second = asyncio.create_task(room.save("t"))
        await room.sink.asked.acquire()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        room.sink.gate.set()
        assert (await first).step == 1
        assert (await room.save("t")).step == 2


async def test_cancelled_restores_leave_nothing(tmp_path):
    loop = asyncio.get_running_loop()
    files = CountingFiles()
    async with Room(tmp_path / "exp", files=files) as room:
        await room.save("t")
        for number in range(1, 60):
            for target in (None, tmp_path / f"to-{number}"):
                files.calls.clear()
                task = asyncio.ensure_future(room.catalog.restore("t", to=target))
                files.at = {number: partial(loop.call_soon_threadsafe, task.cancel)}
                try:
                    restored = await task
                except asyncio.CancelledError:
                    assert target is None or not target.exists()
                else:
                    assert read_tree(where(restored)) == TREE
            room.catalog.release("t")
            await room.deleted()
            assert [name for name in room.leftovers() if name.startswith("restored/")] == []
            if number > len(files.calls):
                break
        assert number > 5
        assert not room.catalog._deletions.leases.steps("t")
