"""From the loop to the files: batches, retries, sync, closing."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
import tempfile
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asynctune.errors import MissingExtraError, StorageError, StoreClosedError
from asynctune.files import LocalFiles
from asynctune.results.projector import ResultFiles
from asynctune.results.rows import Announce, Cut, RowOperation, TrialInfo, encode
from asynctune.testing import FaultyFiles, ManualClock, Operation
from tests.results.world import OPENING, moments, row, the_events, tree, trial


class World:
    """An experiment's result files with a disk, a clock and ears."""

    def __init__(self, root: Path, files: LocalFiles | None = None, **settings: Any) -> None:
        self.root = root
        self.disk = FaultyFiles()
        self.clock = ManualClock()
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.files = ResultFiles(
            str(root),
            files=files or self.disk,
            clock=self.clock,
            emit=lambda kind, **data: self.hear(kind, data),
            **settings,
        )
        self.seq = 0

    def hear(self, kind: str, data: dict[str, Any]) -> None:
        assert asyncio.get_running_loop() is not None
        self.heard.append((kind, data))

    def add(self, *operations: Any) -> int:
        self.seq += 1
        self.files.add(self.seq, [encode(each) for each in operations], self.lookup, OPENING)
        return self.seq

    def lookup(self, trial_id: str) -> TrialInfo | None:
        assert threading.current_thread() is threading.main_thread()
        return None if trial_id == "nobody" else trial(trial_id)

    def rows(self, trial_id: str = "t1") -> list[float]:
        return moments(self.root / f"name_{trial_id}" / "result.json")

    async def until(self, met: Any, seconds: float = 0.0) -> None:
        """Let tasks, threads and the clock run until `met()`."""
        for _ in range(5000):
            if met():
                return
            await self.clock.advance(seconds)
            await asyncio.sleep(0.001)
        raise AssertionError("it does not happen")


@asynccontextmanager
async def running(world: World):
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(world.files.run())
        yield
        world.disk.heal()
        await world.files.aclose()


async def test_flush_writes_what_was_added(tmp_path):
    world = World(tmp_path)
    world.add(Announce(trial_id="t1"), row(1), row(1, trial_id="t2"))
    assert world.files.pending_rows == 3
    await world.files.flush()
    assert world.files.pending_rows == 0
    assert (world.rows(), world.rows("t2")) == ([1], [1])
    assert world.disk.count("sync_data") == world.disk.count("sync_dir") == 0
    await world.files.aclose()


async def test_sync_makes_every_file_and_name_durable(tmp_path):
    world = World(tmp_path, tensorboard=True)
    world.add(Announce(trial_id="t1"), row(1))
    world.add(row(1, trial_id="t2"))
    assert await world.files.sync() == 2
    synced = {each.path for each in world.disk.log if each.kind == "sync_data"}
    assert synced == {str(tmp_path / name) for name in tree(tmp_path)}
    directories = [each.path for each in world.disk.log if each.kind == "sync_dir"]
    assert set(directories[:-1]) == {str(tmp_path / "name_t1"), str(tmp_path / "name_t2")}
    assert directories[-1] == str(tmp_path)

    count = world.disk.count("sync_data")
    assert await world.files.sync() == 2
    assert world.disk.count("sync_data") == count, "nothing was written since"
    assert world.add(row(2)) == await world.files.sync()
    assert world.disk.count("sync_data") == count + 3
    await world.files.aclose()


@pytest.mark.parametrize("trials", [1, 200])
async def test_what_a_killed_process_had_written_is_synced_too(tmp_path, trials):
    operations = [
        each for n in range(trials) for each in (Announce(trial_id=f"t{n}"), row(1, trial_id=f"t{n}"))
    ]
    killed = World(tmp_path, tensorboard=True)
    killed.add(*operations)
    await killed.files.flush()
    assert killed.disk.count("sync_data") == 0
    await killed.files.aclose(write=False)

    world = World(tmp_path, tensorboard=True)
    await world.files.complete([(1, encode(each), OPENING) for each in operations], world.lookup)
    unsynced = world.files._placer._unsynced
    assert len(unsynced) == trials * 5 + 1, "four files of each, its directory, and the experiment's"
    await world.files.sync()
    assert len(unsynced) == 0
    if trials == 1:
        synced = {each.path for each in world.disk.log if each.kind == "sync_data"}
        assert synced == {str(tmp_path / name) for name in tree(tmp_path)}
        directories = {each.path for each in world.disk.log if each.kind == "sync_dir"}
        assert directories == {str(tmp_path / "name_t0"), str(tmp_path)}
    await world.files.aclose()


async def test_the_name_of_a_directory_that_somebody_else_made_is_synced(tmp_path):
    (tmp_path / "name_t1").mkdir()
    world = World(tmp_path)
    world.add(row(1))
    await world.files.sync()
    assert str(tmp_path) in {each.path for each in world.disk.log if each.kind == "sync_dir"}
    await world.files.aclose()


async def test_a_flush_that_is_cancelled_leaves_its_work_to_the_beat(tmp_path):
    world = World(tmp_path)
    async with running(world):
        world.add(row(1))
        flushing = asyncio.create_task(world.files.flush())
        await asyncio.sleep(0)
        flushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flushing
        await world.until(lambda: world.rows() == [1])


async def test_more_trials_than_one_batch(tmp_path, monkeypatch):
    monkeypatch.setattr("asynctune.results.projector._TRIALS_AT_ONCE", 10)
    world = World(tmp_path)
    world.add(*[row(1, trial_id=f"t{n:02}") for n in range(35)])
    world.disk.fail(errno.ENOSPC, on="open_append", nth=3)
    with pytest.raises(StorageError):
        await world.files.flush()
    assert world.files.pending_rows == 1, "a failure holds up its own trial alone"
    world.disk.heal()
    world.disk.fail(errno.ENOSPC, on="open_append", lasting=True)
    world.add(*[row(2, trial_id=f"t{n:02}") for n in range(35)])
    with pytest.raises(StorageError):
        await world.files.flush()
    assert world.files.pending_rows == 36
    world.disk.heal()
    await world.files.flush()
    assert all(world.rows(f"t{n:02}") == [1, 2] for n in range(35))
    await world.files.aclose()


async def test_many_files_are_synced_too(tmp_path):
    world = World(tmp_path)
    world.add(*[row(1, trial_id=f"t{n}") for n in range(100)])
    await world.files.sync()
    assert len({each.path for each in world.disk.log if each.kind == "sync_data"}) == 300
    await world.files.aclose()


async def test_batches_keep_their_distance(tmp_path):
    world = World(tmp_path, interval_s=5.0)
    async with running(world):
        world.add(row(1))
        await world.until(lambda: world.rows() == [1])
        world.add(row(2))
        await world.until(lambda: world.clock.sleepers == 1)
        await world.clock.advance(4.9)
        assert world.rows() == [1]
        await world.clock.advance(0.2)
        await world.until(lambda: world.rows() == [1, 2])


async def test_a_full_disk_loses_nothing_and_is_told_once(tmp_path):
    world = World(tmp_path)
    async with running(world):
        world.add(row(1))
        await world.until(lambda: world.files.pending_rows == 0)
        fault = world.disk.fail(errno.ENOSPC, on="write", lasting=True, after_bytes=10)
        world.add(row(2))
        await world.until(lambda: world.heard, 1.0)
        for n in range(3, 20):
            world.add(row(n))
            await world.clock.advance(1.0)
        with pytest.raises(StorageError, match="free some space") as raised:
            await world.files.flush()
        assert raised.value.retryable
        with pytest.raises(StorageError):
            await world.files.sync()
        assert world.files.pending_rows == 18
        assert world.rows() == [1]
        hits = fault.hits
        for _ in range(30):
            await world.clock.advance(1.0)
            await world.until(lambda: world.clock.sleepers == 1)
        assert hits < fault.hits <= hits + 3, "tried less and less often"
        assert [kind for kind, _ in world.heard] == ["write_failed"]
        assert world.heard[0][1]["disk_full"] is True

        world.disk.heal()
        await world.until(lambda: world.files.pending_rows == 0, 1.0)
        assert world.rows() == list(range(1, 20))
        assert [kind for kind, _ in world.heard] == ["write_failed"]

        world.disk.fail(errno.EIO, on="write")
        world.add(row(20))
        await world.until(lambda: len(world.heard) == 2, 1.0)
        assert world.heard[1][1]["disk_full"] is False


async def test_a_trial_that_cannot_be_written_delays_no_other(tmp_path):
    world = World(tmp_path)

    def refuse(operation: Operation) -> None:
        if "name_bad" in operation.path:
            raise PermissionError(errno.EACCES, "no", operation.path)

    async with running(world):
        world.disk.call(refuse, on=("make_plain_dir", "open_append"), lasting=True)
        for n in range(1, 30):
            world.add(row(n, trial_id="bad"), row(n, trial_id="good"))
            await world.until(lambda n=n: len(world.rows("good")) == n, 1.0)
        await world.until(lambda: world.files.pending_rows == 29, 1.0)
        world.disk.heal()
        await world.files.flush()
        assert len(world.rows("bad")) == 29


async def test_a_broken_disk_is_not_tried_for_every_trial(tmp_path):
    world = World(tmp_path)
    fault = world.disk.fail(errno.EIO, on="make_plain_dir", lasting=True)
    world.add(*[row(1, trial_id=f"t{n}") for n in range(50)])
    with pytest.raises(StorageError, match="of 7 more trials"):
        await world.files.flush()
    assert fault.hits == 8
    world.disk.heal()
    await world.files.flush()
    assert len(list(tmp_path.iterdir())) == 50
    await world.files.aclose()


async def test_a_failed_sync_is_not_trusted_the_second_time(tmp_path):
    world = World(tmp_path)
    world.add(row(1))
    await world.files.flush()
    world.disk.fail(errno.EIO, on="sync_data", lasting=True)
    with pytest.raises(StorageError, match="sync"):
        await world.files.sync()
    world.disk.heal()
    renames = world.disk.count("rename")
    assert await world.files.sync() == 1
    assert world.disk.count("rename") == renames + 3, (
        "written again, for the system may have dropped the bytes"
    )
    assert world.rows() == [1]
    count = world.disk.count(("sync", "sync_data"))
    await world.files.sync()
    assert world.disk.count(("sync", "sync_data")) == count
    await world.files.aclose()


async def test_a_directory_deleted_before_the_sync_does_not_hold_it_up(tmp_path):
    world = World(tmp_path)
    world.add(row(1))
    await world.files.flush()
    for path in (tmp_path / "name_t1").iterdir():
        path.unlink()
    (tmp_path / "name_t1").rmdir()
    assert await world.files.sync() == 1
    assert not (tmp_path / "name_t1").exists()
    await world.files.aclose()


async def test_a_lost_head_is_told(tmp_path, caplog):
    world = World(tmp_path)
    world.add(row(3))
    await world.files.flush()
    ((kind, data),) = world.heard
    assert (kind, data["trial_id"], data["missing"]) == ("results_incomplete", "t1", 2)
    assert "lacks 2 row(s)" in caplog.text
    await world.files.aclose()


async def test_rows_of_an_unknown_trial_are_an_error_in_the_log(tmp_path, caplog):
    world = World(tmp_path)
    world.add(row(1, trial_id="nobody"), row(1))
    with caplog.at_level(logging.ERROR):
        await world.files.flush()
    assert "nobody" in caplog.text
    assert world.files.pending_rows == 0
    assert world.rows() == [1]
    await world.files.aclose()


# -- recovery ------------------------------------------------------------------------------------------------


async def test_complete_brings_files_to_the_timeline_of_the_journal(tmp_path):
    first = World(tmp_path)
    first.add(row(1), row(2), row(1, trial_id="t2"))
    await first.files.aclose()
    path = tmp_path / "name_t1/result.json"
    path.write_bytes(path.read_bytes()[:-30])

    second = World(tmp_path)
    told: list[tuple[int, RowOperation]] = [
        (7, row(2)),
        (8, row(3)),
        (8, Cut(trial_id="t2", keep=0)),
        (9, row(1, trial_id="t2", at=10)),
    ]
    packed = [(seq, encode(each), OPENING) for seq, each in told]
    await second.files.complete(packed, second.lookup)
    assert (second.rows(), second.rows("t2")) == ([1, 2, 3], [10])
    assert second.files.pending_rows == 0
    before = tree(tmp_path)
    await second.files.complete(packed, second.lookup)
    assert tree(tmp_path) == before
    assert await second.files.sync() == 9
    await second.files.aclose()


async def test_complete_on_a_full_disk_is_retried_and_holds_back_the_sync(tmp_path):
    world = World(tmp_path)
    world.disk.fail(errno.ENOSPC, on="write", lasting=True)
    await world.files.complete([(3, encode(row(1)), OPENING)], world.lookup)
    assert world.heard[0][0] == "write_failed"
    with pytest.raises(StorageError):
        await world.files.sync()
    async with running(world):
        world.add(row(2))
        world.disk.heal()
        await world.until(lambda: world.rows() == [1, 2], 1.0)


# -- cancellation and the end --------------------------------------------------------------------------------


async def test_a_cancelled_flush_leaves_no_work_behind_and_loses_nothing(tmp_path):
    world = World(tmp_path)
    entered, go_on = threading.Event(), threading.Event()

    def wait(operation: Operation) -> None:
        entered.set()
        assert go_on.wait(30)

    world.disk.call(wait, on="write", nth=2)
    world.add(row(1), row(1, trial_id="t2"), row(2))
    flush = asyncio.create_task(world.files.flush())
    await asyncio.to_thread(entered.wait)
    for _ in range(3):
        flush.cancel()
        await asyncio.sleep(0)
    assert not flush.done(), "the thread is at it"
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await flush
    log = len(world.disk.log)
    await asyncio.sleep(0.02)
    assert len(world.disk.log) == log
    assert world.files.pending_rows > 0
    await world.files.flush()
    assert (world.rows(), world.rows("t2")) == ([1, 2], [1])
    await world.files.aclose()


async def test_what_fails_under_a_cancelled_caller_is_told(tmp_path, caplog):
    world = World(tmp_path)
    entered, go_on = threading.Event(), threading.Event()

    def fail(operation: Operation) -> None:
        entered.set()
        assert go_on.wait(30)
        raise RuntimeError("broken")

    world.disk.call(fail, on="write")
    world.add(row(1))
    flush = asyncio.create_task(world.files.flush())
    await asyncio.to_thread(entered.wait)
    flush.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await flush
    assert "broken" in caplog.text
    await world.files.aclose()
    assert world.rows() == [1]


@pytest.mark.parametrize("ticks", range(12))
async def test_cancelling_at_each_await_loses_nothing(tmp_path, ticks):
    world = World(tmp_path)
    for method in (world.files.flush, world.files.sync):
        world.add(*[row(len(world.rows(f"t{n}")) + 1, trial_id=f"t{n}") for n in range(120)])
        task = asyncio.create_task(method())
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await world.files.flush()
    assert world.files.pending_rows == 0
    assert all(world.rows(f"t{n}") == [1, 2] for n in range(120))
    assert await world.files.sync() == 2
    await world.files.aclose()


async def test_run_ends_when_closed_and_everything_is_durable(tmp_path):
    world = World(tmp_path, tensorboard=True)
    task = asyncio.create_task(world.files.run())
    await asyncio.sleep(0)
    world.add(row(1), row(2))
    await world.files.aclose()
    await task
    assert world.rows() == [1, 2]
    assert [step for step, _ in the_events(tmp_path / "name_t1")] == [1, 2]
    assert world.disk.count("sync_data") == 4
    await world.files.aclose()
    with pytest.raises(StoreClosedError):
        world.add(row(3))


async def test_closing_without_writing_leaves_the_files_alone(tmp_path):
    world = World(tmp_path)
    world.add(row(1))
    await world.files.aclose(write=False)
    assert tree(tmp_path) == {}


async def test_a_close_that_cannot_write_says_so_and_lets_go(tmp_path):
    world = World(tmp_path)
    threads = threading.active_count()
    task = asyncio.create_task(world.files.run())
    world.disk.fail(errno.EIO, on="write", lasting=True)
    world.add(row(1))
    with pytest.raises(StorageError):
        await world.files.aclose()
    await task
    await world.until(lambda: threading.active_count() == threads)


# -- size and extras -----------------------------------------------------------------------------------------


@pytest.fixture
def quick_path(tmp_path):
    """A directory in memory where there is one: what is counted is not the disk's speed."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.mark.timeout(300)  # 10 000 directories, on a machine that has other things to do
async def test_ten_thousand_trials_need_a_handful_of_descriptors(quick_path, blockbuster):
    blockbuster.deactivate()  # 200 000 system calls, each with a look at the stack

    class Counting(LocalFiles):
        writes = most = 0

        def write(self, fd: int, data: bytes | bytearray | memoryview) -> int:
            self.writes += 1
            if self.writes % 100 == 0:
                self.most = max(self.most, len(os.listdir("/proc/self/fd")))
            return super().write(fd, data)

    disk = Counting()
    world = World(quick_path, files=disk)
    at_rest = len(await asyncio.to_thread(os.listdir, "/proc/self/fd"))
    world.add(*[row(1, trial_id=f"t{n}") for n in range(10_000)])
    await world.files.flush()
    assert 0 < disk.most <= at_rest + 8
    assert world.files.pending_rows == 0
    assert len(await asyncio.to_thread(os.listdir, quick_path)) == 10_000
    assert world.rows("t9999") == [1]
    await world.files.aclose(write=False)


async def test_no_thread_for_each_trial(tmp_path):
    world = World(tmp_path, tensorboard=True)
    threads = threading.active_count()
    world.add(*[row(1, trial_id=f"t{n}") for n in range(50)])
    await world.files.flush()
    assert threading.active_count() <= threads + 1
    await world.files.aclose()


async def test_tensorboard_without_the_extra_is_named(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboardX"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    world = World(tmp_path, tensorboard=True)
    with pytest.raises(MissingExtraError, match=r"asynctune\[tensorboard\]"):
        await world.files.prepare()
    await world.files.aclose()


async def test_without_tensorboard_nothing_is_missed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    world = World(tmp_path)
    await world.files.prepare()
    world.add(row(1))
    await world.files.aclose()
    assert world.rows() == [1]


async def test_who_mirrors_the_files_is_told_before_who_waits_for_them(tmp_path):
    told: list[str] = []
    world = World(tmp_path, written=told.append)
    world.add(Announce(trial_id="t1"), row(1), row(1, trial_id="t2"))
    await world.files.flush()
    assert sorted(told) == ["name_t1", "name_t2"]
    told.clear()
    world.disk.fail(errno.ENOSPC, on="write")
    world.add(row(2))
    with pytest.raises(StorageError):
        await world.files.flush()
    assert told == ["name_t1"], "some of its files may be written"
    await world.files.sync()
    assert told == ["name_t1"] * 2
    await world.files.aclose()


async def test_nothing_is_written_while_somebody_looks(tmp_path):
    world = World(tmp_path)
    entered, gate = threading.Event(), threading.Event()

    def look() -> list[float]:
        entered.set()
        gate.wait(30)
        return world.rows()

    looking = asyncio.create_task(world.files.between_writes(look))
    await asyncio.to_thread(entered.wait)
    world.add(row(1))
    writing = asyncio.create_task(world.files.flush())
    await asyncio.sleep(0)
    gate.set()
    assert await looking == []
    await writing
    assert await world.files.between_writes(world.rows) == [1]
    await world.files.aclose()
