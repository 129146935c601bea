"""When a snapshot is due, and which generations are kept."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest

from asynctune.state import generations as room
from asynctune.state.generations import Generations
from asynctune.state.thread import WorkThread
from asynctune.testing import FaultyFiles
from tests.lab.states import Session

MIB = 1024 * 1024


@pytest.fixture
async def session(tmp_path, rng):
    made = await asyncio.to_thread(lambda: Session(f"{tmp_path}/state", files=FaultyFiles(), rng=rng))
    yield made
    await asyncio.to_thread(made.close)


@pytest.fixture
async def begin(session):
    threads, made = [], []

    def start(**found) -> Generations:
        threads.append(WorkThread("asynctune-journal"))
        known: dict[str, Any] = {"snapshots": [], "snapshot_bytes": 0, "journal_bytes": 0} | found
        made.append(Generations(session.journal, threads[-1], session.clock, **known))
        return made[-1]

    yield start
    for each in made:
        await each.aclose()
    for thread in threads:
        thread.stop()


async def test_due_when_the_journal_outgrew_a_mebibyte_or_the_last_snapshot(begin):
    each = begin()
    each.grew(MIB)
    assert not each.due
    each.grew(1)
    assert each.due
    large = begin(snapshot_bytes=5 * MIB, journal_bytes=4 * MIB)
    assert not large.due
    large.grew(MIB + 1)
    assert large.due


async def test_due_when_there_are_too_many_segments(begin, session):
    each = begin()
    session.journal.segments = room._MAX_SEGMENTS
    assert not each.due
    session.journal.segments += 1
    assert each.due


async def test_a_snapshot_covers_the_journal_up_to_its_capture(begin, session):
    await asyncio.to_thread(session.commit, {"a": b"1"})
    each = begin(journal_bytes=3 * MIB)
    session.files.call(lambda _operation: each.grew(100), on="rename")
    session.files.call(lambda _operation: session.clock.move(0.5), on="rename")
    done = await each.write()
    assert (done.seq, done.bytes_to_next, done.cost_s) == (1, MIB - 100, 0.5)
    assert done.size_bytes == os.stat(f"{session.directory}/snap-1").st_size == each.snapshot_bytes
    assert each.journal_bytes == 100
    assert each.count == 1
    assert not each.due


async def test_after_a_failure_it_is_due_again_when_the_journal_doubled(begin, session):
    each = begin(journal_bytes=2 * MIB)
    session.files.fail(errno.ENOSPC, on="create")
    with pytest.raises(OSError, match="No space"):
        await each.write()
    assert not each.due
    each.grew(2 * MIB)
    assert not each.due
    each.grew(1)
    assert each.due
    assert each.count == 0


async def test_nothing_may_be_dropped_before_there_are_two(begin, session):
    each = begin()
    assert each.droppable is None
    for seq in (1, 2, 3):
        await asyncio.to_thread(session.commit, {"a": bytes([seq])})
        await each.write()
        assert each.droppable == (seq - 1 or None)
    await each.prune(2)
    assert each.droppable == 2
    assert sorted(name for name in os.listdir(session.directory) if name.startswith("snap")) == [
        "snap-2",
        "snap-3",
    ]


async def test_those_found_on_the_disk_count(begin):
    assert begin(snapshots=[4, 9]).droppable == 4


async def test_closing_waits_for_what_is_under_way(begin, session):
    each = begin()
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()
    session.files.call(lambda _operation: loop.call_soon_threadsafe(reached.set), on="create", nth=2)
    writing = asyncio.create_task(each.write())
    await reached.wait()
    writing.cancel()
    await asyncio.wait([writing])
    await each.aclose()
    assert not [name for name in os.listdir(session.directory) if name.startswith(".")]
    assert os.path.exists(f"{session.directory}/snap-0")


async def test_waiting_for_the_interpreter_is_no_cost_of_a_snapshot(begin, session, monkeypatch):
    await asyncio.to_thread(session.commit, {"a": b"1"})
    each = begin(journal_bytes=3 * MIB)
    computed = 10.0

    def busy():
        # each look at it finds a second more on the clock, and a tenth of that computed
        nonlocal computed
        session.clock.move(1.0)
        computed += 0.1
        return computed

    start = session.clock.monotonic()
    monkeypatch.setattr(session.clock, "busy", busy)
    monkeypatch.setattr(room, "_TimedFiles", lambda files, _clock: _Untimed(files))
    done = await each.write()
    assert session.clock.monotonic() - start == pytest.approx(4.0)
    assert done.cost_s == pytest.approx(0.2)


class _Untimed:
    """File operations that took no time."""

    waited_s = 0.0

    def __init__(self, files):
        self._files = files

    def __getattr__(self, name):
        return getattr(self._files, name)
