"""From a changed record to the disk, on a clock that stands still unless moved."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from asynctune.errors import FencedError, StorageError, StoreClosedError
from asynctune.files import LocalFiles
from asynctune.state import generations
from asynctune.state.epochs import claim_epoch
from asynctune.state.journal import CommitDone
from asynctune.state.pacing import CommitPacing
from asynctune.state.recovery import recover
from asynctune.state.writer import StateWriter
from asynctune.testing import FaultyFiles, ManualClock
from tests.lab.states import Session, Truth


class Watching:
    """An observer that keeps what it is told, and lets a test wait for it."""

    def __init__(self) -> None:
        self.commits: list[int] = []
        self.rows: list[bytes] = []
        self.events: list[tuple[str, str]] = []
        self.cuts: list[tuple[int, bool]] = []
        self.on_cut: Callable[[int, bool], float | None] = lambda _seq, _explicit: None
        self.on_commit: Callable[[int], None] = lambda _seq: None
        self.may_prune = True
        self._told = asyncio.Event()

    def before_cut(self, seq: int, *, explicit: bool) -> float | None:
        self.cuts.append((seq, explicit))
        return self.on_cut(seq, explicit)

    def committed(self, seq: int, rows: list[bytes], done: CommitDone) -> None:
        self.on_commit(seq)
        self.commits.append(seq)
        self.rows += rows
        self._told.set()

    def happened(self, kind: str, message: str, **data: Any) -> None:
        self.events.append((kind, message))
        self._told.set()

    async def before_prune(self, seq: int) -> bool:
        self._told.set()
        return self.may_prune

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not true():
                self._told.clear()
                await self._told.wait()

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


class Writing:
    """A writer with its task, over a journal in a directory."""

    def __init__(self, session: Session, files: FaultyFiles, **pacing: float) -> None:
        self.files = files
        self.session = session
        self.directory = session.directory
        self.clock: ManualClock = self.session.clock
        self.observer = Watching()
        found = self.session.recovered
        self.writer = StateWriter(
            self.session.journal,
            pacing=CommitPacing(**pacing),
            clock=self.clock,
            observer=self.observer,
            snapshots=found.snapshots,
            snapshot_bytes=found.snapshot_bytes,
            journal_bytes=found.journal_bytes,
        )
        self.task = asyncio.create_task(self.writer.run())

    def takes(self, seconds: float, *, lasting: bool = False) -> None:
        """Let the next commit (or every one) take so long."""
        self.files.call(lambda _operation: self.clock.move(seconds), on="sync_data", lasting=lasting)

    def hold(self) -> threading.Event:
        """Let the next commit wait for an event before it is synced."""
        go = threading.Event()
        self.held = held = threading.Event()  # set when it waits

        def wait(_operation):
            held.set()
            go.wait(20)

        self.files.call(wait, on="sync_data")
        return go

    async def committed(self, count: int) -> None:
        await self.observer.until(lambda: len(self.observer.commits) >= count)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.writer.aclose()

    async def found(self) -> dict[str, bytes]:
        return (await asyncio.to_thread(recover, self.directory, LocalFiles())).records


def opened(directory: str, files: LocalFiles, seed: int) -> Session:
    return Session(directory, files=files, rng=random.Random(seed))


@pytest.fixture
async def start(tmp_path, seed):
    made: list[Writing] = []

    async def begin(name: str = "state", **pacing: float) -> Writing:
        files = FaultyFiles()
        session = await asyncio.to_thread(opened, f"{tmp_path}/{name}", files, seed)
        made.append(Writing(session, files, **pacing))
        return made[-1]

    yield begin
    for writing in made:
        writing.files.heal()
        await writing.close()


# -- pace ------------------------------------------------------------------------------------------------------


async def test_the_first_change_is_committed_at_once(start):
    writing = await start()
    writing.writer.put("a", b"1")
    await writing.committed(1)
    assert await writing.found() == {"a": b"1"}


async def test_after_a_save_of_two_seconds_the_next_starts_48_seconds_later(start):
    writing = await start()
    writing.takes(2.0)
    writing.writer.put("a", b"1")
    await writing.committed(1)
    assert writing.writer.stats().interval_s == pytest.approx(48.0)
    assert writing.writer.stats().checkpoint_seconds == pytest.approx(2.0)
    writing.writer.put("a", b"2")
    await writing.clock.advance(47.99)
    assert writing.observer.cuts == [(1, False)]
    await writing.clock.advance(0.02)
    assert writing.observer.cuts == [(1, False), (2, False)]
    await writing.committed(2)


async def test_a_flush_does_not_wait_for_the_pace(start):
    writing = await start()
    writing.takes(2.0)
    writing.writer.put("a", b"1")
    assert await writing.writer.flush() == 1
    writing.writer.put("a", b"2")
    assert await writing.writer.flush() == 2
    assert writing.observer.cuts == [(1, True), (2, True)]
    assert writing.clock.monotonic() == 102.0
    assert await writing.found() == {"a": b"2"}


async def test_a_fixed_period(start):
    writing = await start(period_s=10.0)
    for turn in range(3):
        writing.writer.put("a", bytes([turn]))
        await writing.committed(turn + 1)
        writing.writer.put("b", bytes([turn]))
        await writing.clock.advance(9.9)
        assert len(writing.observer.cuts) == turn + 1
        await writing.clock.advance(0.1)
    await writing.committed(4)


async def test_the_ceiling_warns_once_when_it_breaks_the_rule(start, caplog):
    writing = await start(max_interval_s=1.0)
    for turn in range(3):
        writing.takes(1.0)
        writing.writer.put("a", bytes([turn]))
        await writing.clock.advance(1.0)
        await writing.committed(turn + 1)
    assert writing.observer.kinds() == ["pacing_exceeded"]
    assert "5 %" in caplog.text


async def test_time_spent_by_others_counts(start):
    writing = await start()
    writing.writer.add_cost(0.5)
    assert writing.writer.stats().checkpoint_seconds == 0.5


# -- what is in a commit ---------------------------------------------------------------------------------------


async def test_everything_dirty_goes_into_one_commit(start):
    writing = await start()
    go = writing.hold()
    writing.writer.put("a", b"1")
    first = asyncio.create_task(writing.writer.flush())
    await asyncio.sleep(0)
    flushes = []
    for i in range(40):
        writing.writer.put(f"k{i}", b"x")
        writing.writer.add_row(bytes([i]))
        flushes.append(asyncio.create_task(writing.writer.flush()))
    await asyncio.sleep(0)
    assert writing.writer.stats().dirty_keys == 41
    assert writing.writer.committed_seq == 0
    assert writing.writer.next_seq == 2
    go.set()
    assert await first == 1
    assert set(await asyncio.gather(*flushes)) == {2}
    assert writing.observer.commits == [1, 2]
    assert writing.observer.rows == [bytes([i]) for i in range(40)]
    assert writing.writer.stats().commits == 2


async def test_the_last_of_several_changes_counts(start):
    writing = await start()
    go = writing.hold()
    writing.writer.put("held", b"")
    await writing.clock.advance(0)
    writing.writer.put("a", b"1")
    writing.writer.put("a", b"2")
    writing.writer.put("b", b"1")
    writing.writer.delete("b")
    writing.writer.delete("c")
    writing.writer.put("c", b"3")
    go.set()
    await writing.writer.flush()
    assert await writing.found() == {"held": b"", "a": b"2", "c": b"3"}


async def test_what_is_put_while_a_commit_is_cut_rides_in_it(start):
    writing = await start()

    def capture(seq, explicit):
        writing.writer.put("searcher", b"as of %d" % seq)

    writing.observer.on_cut = capture
    writing.writer.put("a", b"1")
    assert await writing.writer.flush() == 1
    assert await writing.found() == {"a": b"1", "searcher": b"as of 1"}
    assert writing.writer.stats().dirty_keys == 0


async def test_a_flush_of_nothing_new_returns_at_once(start):
    writing = await start()
    assert await writing.writer.flush() == 0
    writing.writer.put("a", b"1")
    assert await writing.writer.flush() == 1
    assert await writing.writer.flush() == 1
    assert writing.observer.commits == [1]


async def test_random_changes_are_all_there_afterwards(start, rng):
    writing = await start()
    model: dict[str, bytes] = {}
    for _ in range(300):
        key = f"k{rng.randrange(20)}"
        if rng.random() < 0.3:
            writing.writer.delete(key)
            model.pop(key, None)
        else:
            model[key] = rng.randbytes(rng.randrange(50))
            writing.writer.put(key, model[key])
        if rng.random() < 0.2:
            await writing.clock.advance(rng.choice((0.0, 0.01, 1.0)))
        if rng.random() < 0.1:
            await writing.writer.flush()
            assert await writing.found() == model
    await writing.writer.flush()
    assert await writing.found() == model


# -- asking again ----------------------------------------------------------------------------------------------


async def test_the_observer_is_asked_again_when_it_said_so_with_nothing_dirty(start):
    writing = await start()
    asked: list[float] = []

    def capture(seq, explicit):
        asked.append(writing.clock.monotonic())
        if len(asked) == 1:
            return writing.clock.monotonic() + 30
        writing.writer.put("searcher", b"state")
        return None

    writing.observer.on_cut = capture
    writing.writer.put("a", b"1")
    await writing.writer.flush()
    await writing.clock.advance(29.9)
    assert asked == [100.0]
    await writing.clock.advance(0.2)
    assert asked == [100.0, 130.0]
    await writing.committed(2)
    assert await writing.found() == {"a": b"1", "searcher": b"state"}
    await writing.clock.advance(1000)
    assert len(asked) == 2


async def test_asking_again_keeps_to_the_pace_of_commits(start):
    writing = await start()
    writing.takes(2.0)
    writing.observer.on_cut = lambda seq, _explicit: float("-inf") if seq == 1 else None
    writing.writer.put("a", b"1")
    await writing.writer.flush()
    await writing.clock.advance(47.9)
    assert writing.observer.cuts == [(1, True)]
    await writing.clock.advance(0.2)
    assert writing.observer.cuts == [(1, True), (2, False)]


# -- waiting and cancellation ------------------------------------------------------------------------------------


async def test_a_cancelled_flush_leaves_the_commit_going(start):
    writing = await start()
    go = writing.hold()
    writing.writer.put("a", b"1")
    task = asyncio.create_task(writing.writer.flush())
    other = asyncio.create_task(writing.writer.flush())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    go.set()
    assert await other == 1
    assert await writing.found() == {"a": b"1"}


async def test_a_cancelled_flush_does_not_force_a_commit_any_more(start):
    writing = await start()
    go = writing.hold()
    writing.takes(2.0)
    writing.writer.put("a", b"1")
    await writing.clock.advance(0)
    assert writing.observer.cuts == [(1, False)]
    writing.writer.put("a", b"2")
    task = asyncio.create_task(writing.writer.flush())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    go.set()
    await writing.committed(1)
    await writing.clock.advance(1)
    assert writing.observer.commits == [1]
    await writing.clock.advance(100)
    await writing.committed(2)
    assert await writing.found() == {"a": b"2"}


async def test_the_age_of_the_oldest_unsaved_change(start):
    writing = await start()
    assert writing.writer.stats().oldest_dirty_age_s == 0
    writing.takes(2.0)
    writing.writer.put("a", b"1")
    await writing.writer.flush()
    assert writing.writer.stats().oldest_dirty_age_s == 0
    writing.writer.put("a", b"2")
    await writing.clock.advance(10)
    writing.writer.put("b", b"2")
    await writing.clock.advance(5)
    assert writing.writer.stats().oldest_dirty_age_s == pytest.approx(15)
    go = writing.hold()
    task = asyncio.create_task(writing.writer.flush())
    await asyncio.to_thread(writing.held.wait, 20)
    writing.writer.put("c", b"3")
    writing.clock.move(1)
    assert writing.writer.stats().oldest_dirty_age_s == pytest.approx(16)
    go.set()
    await task
    assert writing.writer.stats().oldest_dirty_age_s == pytest.approx(1)


# -- failures --------------------------------------------------------------------------------------------------


async def test_one_failed_write_is_overcome_and_told(start):
    writing = await start()
    writing.files.fail(errno.EIO, on="sync_data")
    writing.writer.put("a", b"1")
    assert await writing.writer.flush() == 1
    assert writing.observer.kinds() == ["write_failed"]
    assert await writing.found() == {"a": b"1"}


async def test_failing_twice_is_a_state_that_every_call_sees(start):
    writing = await start()
    writing.writer.put("a", b"1")
    await writing.writer.flush()
    writing.files.fail(errno.EIO, on="write", lasting=True)
    writing.writer.put("a", b"2")
    with pytest.raises(StorageError, match="twice") as first:
        await writing.writer.flush()
    with pytest.raises(StorageError) as second:
        await writing.writer.flush()
    with pytest.raises(StorageError) as third:
        writing.writer.check()
    assert first.value is second.value is third.value
    await asyncio.wait([writing.task])
    assert writing.task.exception() is not None
    assert await writing.found() == {"a": b"1"}


async def test_a_takeover_reaches_every_waiter(start):
    writing = await start()
    go = writing.hold()
    writing.writer.put("a", b"1")
    tasks = [asyncio.create_task(writing.writer.flush()) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.to_thread(claim_epoch, writing.directory, LocalFiles(), writing.clock)
    go.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [FencedError] * 3
    assert writing.observer.commits == []


async def test_an_observer_that_raises_does_not_vanish(start):
    writing = await start()

    def fail(_seq):
        raise KeyError("observer")

    writing.observer.on_commit = fail
    writing.writer.put("a", b"1")
    with pytest.raises(StorageError, match="observer") as caught:
        await writing.writer.flush()
    assert isinstance(caught.value.__cause__, KeyError)


async def test_a_full_disk_is_waited_out(start, caplog):
    writing = await start()
    writing.files.fail(errno.ENOSPC, on="write", lasting=True, after_bytes=5)
    writing.writer.put("a", b"1")
    task = asyncio.create_task(writing.writer.flush())
    await writing.observer.until(lambda: "disk_full" in writing.observer.kinds())
    writing.writer.put("b", b"2")
    writes = writing.files.count("write")
    for _ in range(20):
        await writing.clock.advance(2.0)
        await writing.writer._thread.run(lambda: None)
    assert writing.files.count("write") - writes >= 20
    assert not task.done()
    assert writing.observer.kinds() == ["disk_full"]
    assert "no space" in caplog.text
    assert writing.writer.stats().oldest_dirty_age_s == pytest.approx(40)
    assert writing.writer.stats().dirty_keys == 2
    writing.files.heal()
    await writing.clock.advance(2.0)
    assert await task == 1
    assert writing.observer.kinds()[:2] == ["disk_full", "disk_recovered"]
    assert await writing.writer.flush() == 2
    assert await writing.found() == {"a": b"1", "b": b"2"}
    # the next time it is told again
    writing.files.fail(errno.ENOSPC, on="write", lasting=True)
    writing.writer.put("a", b"3")
    task = asyncio.create_task(writing.writer.flush())
    await writing.observer.until(lambda: writing.observer.kinds().count("disk_full") == 2)
    writing.files.heal()
    await writing.clock.advance(0.1)
    assert await task == 3


async def test_the_waits_for_space_double_up_to_two_seconds(start):
    writing = await start()
    writing.files.fail(errno.ENOSPC, on="create", lasting=True)
    writing.files.fail(errno.ENOSPC, on="write")
    tries: list[float] = []
    writing.files.call(lambda _operation: tries.append(writing.clock.monotonic()), on="create", lasting=True)
    writing.writer.put("a", b"1")
    await writing.observer.until(lambda: "disk_full" in writing.observer.kinds())
    for _ in range(120):
        await writing.clock.advance(0.1)
        await writing.writer._thread.run(lambda: None)
        await asyncio.sleep(0)
    times = [round(time - 100.0, 1) for time in dict.fromkeys(tries)]
    assert times == [0.0, 0.1, 0.3, 0.7, 1.5, 3.1, 5.1, 7.1, 9.1, 11.1]
    writing.files.heal()
    await writing.clock.advance(2)
    await writing.committed(1)


async def test_closing_tells_who_still_waits(start):
    writing = await start()
    go = writing.hold()
    writing.writer.put("a", b"1")
    tasks = [asyncio.create_task(writing.writer.flush())]
    await asyncio.sleep(0)
    writing.writer.put("b", b"2")
    tasks.append(asyncio.create_task(writing.writer.flush()))
    await asyncio.sleep(0)
    closing = asyncio.create_task(writing.close())
    await asyncio.sleep(0)
    go.set()
    await closing
    first, second = await asyncio.gather(*tasks, return_exceptions=True)
    # the commit under way may end before the close tells its waiter; it is on the disk either way
    assert first == 1 or isinstance(first, StoreClosedError)
    assert isinstance(second, StoreClosedError)
    with pytest.raises(StoreClosedError):
        await writing.writer.flush()
    assert await writing.found() == {"a": b"1"}


# -- snapshots -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_snapshots(monkeypatch):
    monkeypatch.setattr(generations, "_MIN_JOURNAL_BYTES", 500)


async def churn(writing: Writing, commits: int) -> dict[str, bytes]:
    model = {}
    for i in range(commits):
        model[f"k{i % 3}"] = os.urandom(60)
        writing.writer.put(f"k{i % 3}", model[f"k{i % 3}"])
        await writing.writer.flush()
    return model


@pytest.mark.usefixtures("small_snapshots")
async def test_snapshots_are_written_when_the_journal_outgrew_them_and_two_are_kept(start):
    writing = await start()
    model = await churn(writing, 12)
    await writing.observer.until(lambda: "snapshot_written" in writing.observer.kinds())
    model |= await churn(writing, 60)
    await writing.observer.until(lambda: writing.observer.kinds().count("snapshot_written") >= 4)
    await writing.writer._generations._thread.run(lambda: None)
    stats = writing.writer.stats()
    assert stats.snapshots >= 4
    assert stats.snapshot_bytes > 0
    names = os.listdir(writing.directory)
    assert 2 <= len([name for name in names if name.startswith("snap-")]) <= 3
    assert len([name for name in names if name.startswith("wal-")]) <= 4
    assert await writing.found() == model


@pytest.mark.usefixtures("small_snapshots")
async def test_the_journal_is_kept_while_the_observer_needs_it(start):
    writing = await start()
    writing.observer.may_prune = False
    model = await churn(writing, 60)
    await writing.observer.until(lambda: writing.observer.kinds().count("snapshot_written") >= 3)
    assert os.path.exists(f"{writing.directory}/wal-1-1")
    assert await writing.found() == model


@pytest.mark.usefixtures("small_snapshots")
@pytest.mark.parametrize("operation", ["rename", "sync", "create"])
async def test_a_snapshot_that_cannot_be_written_stops_nothing(start, operation):
    writing = await start()
    model = await churn(writing, 1)
    writing.files.fail(errno.EIO, on=operation, lasting=operation == "rename")
    model |= await churn(writing, 15)
    await writing.observer.until(lambda: "write_failed" in writing.observer.kinds())
    writing.files.heal()
    model |= await churn(writing, 60)
    await writing.observer.until(lambda: "snapshot_written" in writing.observer.kinds())
    assert await writing.found() == model
    writing.writer.check()


@pytest.mark.usefixtures("small_snapshots")
async def test_snapshots_count_as_checkpoint_time(start):
    writing = await start()
    go = threading.Event()
    writing.files.call(lambda _operation: go.wait(20) and writing.clock.move(3.0), on="rename")
    await churn(writing, 15)
    go.set()
    await writing.observer.until(lambda: "snapshot_written" in writing.observer.kinds())
    await asyncio.sleep(0)
    assert writing.writer.stats().checkpoint_seconds == pytest.approx(3.0)


def open_often(directory: str, times: int, rng: random.Random) -> None:
    truth = Truth()
    for i in range(times):
        session = Session(directory, truth, rng=rng)
        session.commit({"a": bytes([i])})
        session.close()


async def test_a_journal_in_too_many_segments_makes_a_snapshot_due(start, monkeypatch, tmp_path, rng):
    monkeypatch.setattr(generations, "_MAX_SEGMENTS", 5)
    await asyncio.to_thread(open_often, f"{tmp_path}/state", 7, rng)
    for turn in range(2):
        writing = await start()
        writing.writer.put("turn", bytes([turn]))
        await writing.writer.flush()
        await writing.observer.until(lambda w=writing: "snapshot_written" in w.observer.kinds())
        await writing.writer._generations._thread.run(lambda: None)
        await writing.close()
        assert await writing.found() == {"a": bytes([6]), "turn": bytes([turn])}
    assert len([name for name in os.listdir(f"{tmp_path}/state") if name.startswith("wal-")]) <= 3
