from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys

import pytest

from asynctune.errors import ConfigError, CorruptStateError, ExperimentNotFoundError, StoreClosedError
from asynctune.store.store import ExperimentStore
from asynctune.testing import FaultyFiles
from asynctune.testing.files import CHANGES
from asynctune.trial import TrialStatus
from tests.killing import ROOT
from tests.store.scenes import Counter, directory_with, listing


@pytest.fixture
def small(monkeypatch):
    """Snapshots after every few commits."""
    monkeypatch.setattr("asynctune.state.generations._MIN_JOURNAL_BYTES", 1000)


async def same_as(reader: ExperimentStore, store: ExperimentStore) -> None:
    seq = await store.flush()
    assert await reader.refresh() >= seq
    assert list(reader.trials) == list(store.trials)
    assert reader.metadata == store.metadata
    assert reader.stats().trials == store.stats().trials


async def test_a_reader_follows_a_live_writer(location, tmp_path, store):
    await store.flush()
    async with ExperimentStore.open(location, "read") as reader:
        assert reader.mode == "read"
        assert reader.experiment_id == store.experiment_id
        assert reader.created_at == store.created_at
        assert reader.location == location
        assert reader.opening.epoch == store.opening.epoch
        assert reader.writer_info == {
            "pid": os.getpid(),
            "hostname": store.opening.hostname,
            "since": store.opening.opened_at,
            "alive": True,
        }
        await same_as(reader, store)
        store.add_trial({"x": 1}, "a")
        assert len(reader.trials) == 0  # not before it is refreshed
        await same_as(reader, store)
        store.report("a", {"loss": 1})
        store.set_metadata("k", [1])
        await store.save_checkpoint("a", directory_with(tmp_path / "d"))
        await same_as(reader, store)
        assert [checkpoint.step for checkpoint in reader.checkpoints("a")] == [1]
        best = reader.best_trial("loss", "min")
        assert best is not None
        assert best.trial_id == "a"
        store.set_status("a", "ERROR")
        store.requeue(restart_errored=True)
        await same_as(reader, store)
        await store.aclose()
        await reader.refresh()
        assert reader.writer_info is None


async def test_a_reader_follows_through_snapshots_pruning_and_new_openings(location, small):
    store = await ExperimentStore.open(location, checkpoint_period=0)
    reader = await ExperimentStore.open(location, "read")
    lazy = await ExperimentStore.open(location, "read")
    for round_ in range(60):
        store.set_metadata(f"k{round_ % 7}", "x" * (round_ % 5) * 100 + str(round_))
        store.add_trial({"round": round_})
        await same_as(reader, store)
        if round_ % 20 == 19:
            await store.aclose()
            store = await ExperimentStore.open(location, checkpoint_period=0)
            await same_as(reader, store)
    assert len(list((location / ".asynctune").glob("snap-*"))) in {2, 3}  # one may be about to go
    assert not (location / ".asynctune" / "wal-1-1").exists()
    await same_as(lazy, store)  # many generations later
    await store.aclose()
    for each in (reader, lazy):
        await each.refresh()
        assert each.writer_info is None
        await each.aclose()


WRITER = """
import asyncio, sys
from asynctune import ExperimentStore
import asynctune.state.generations
asynctune.state.generations._MIN_JOURNAL_BYTES = 2000
async def main():
    async with ExperimentStore.open(sys.argv[1]) as store:
        for line in sys.stdin:
            for i in range(20):
                store.set_metadata(f"k{i}", [line] * i)
            store.add_trial({"line": line})
            print(await store.flush(), len(store.trials), flush=True)
asyncio.run(main())
"""


async def test_a_reader_follows_a_writer_in_another_process(location):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, str(location), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    reader = None
    for number in range(30):
        process.stdin.write(b"%d\n" % number)
        seq, trials = map(int, (await process.stdout.readline()).split())
        if reader is None:
            reader = await ExperimentStore.open(location, "read")
        elif number % 3 == 0:
            continue
        assert await reader.refresh() >= seq
        assert len(reader.trials) == trials
        assert reader.metadata["k1"] == [f"{number}\n"]
        assert reader.writer_info is not None
        assert reader.writer_info["pid"] == process.pid
    process.stdin.close()
    assert await process.wait() == 0
    assert reader is not None
    await reader.refresh()
    assert reader.writer_info is None
    await reader.aclose()


async def test_a_reader_writes_nothing_and_takes_no_lock(location, tmp_path):
    async with ExperimentStore.open(location) as store:
        store.add_trial({}, "a")
        store.set_status("a", "RUNNING")
        store.report("a", {"loss": 1})
        saved = await store.save_checkpoint("a", directory_with(tmp_path / "d"))
    before = listing(location)
    files = FaultyFiles()
    async with ExperimentStore.open(location, "read", files=files) as reader:
        await reader.refresh()
        list(reader.trials)
        assert await reader.fetch(saved) == saved.path
        async with reader.lease("a") as leased:
            assert leased == saved
        restored = await reader.restore_checkpoint("a")
        assert restored.path is not None
        assert not restored.path.is_relative_to(location)
        assert (restored.path / "model.bin").read_bytes() == b"weights"
        async with ExperimentStore.open(location) as second:  # no lock is in its way
            assert second.opening.resumed
            await second.flush()
        assert [o for o in files.log if o.kind in CHANGES and str(location) in o.path] == []
    assert not restored.path.exists()
    assert not restored.path.parent.exists()  # nothing of the reader stays in the temporary directory
    assert listing(location) != before  # by the writer
    async with ExperimentStore.open(location, "read") as reader:
        after = listing(location)
        await reader.refresh()
    assert listing(location) == after


async def test_everything_that_changes_is_refused(location, tmp_path):
    async with ExperimentStore.open(location) as store:
        store.add_trial({}, "a")
        await store.save_checkpoint("a", directory_with(tmp_path / "d"))
    before = listing(location)
    async with ExperimentStore.open(location, "read") as reader:
        for call in (
            lambda: reader.add_trial({}),
            lambda: reader.update_trial("a", {}),
            lambda: reader.set_status("a", TrialStatus.RUNNING),
            lambda: reader.report("a", {}),
            lambda: reader.set_metadata("k", 1),
            lambda: reader.attach_searcher(Counter()),
            lambda: reader.attach_scheduler(Counter()),
            lambda: reader.attach_state("mine", Counter()),
            reader.requeue,
        ):
            with pytest.raises(ConfigError, match='opened with mode="read"'):
                call()
        for coroutine in (
            reader.save_checkpoint("a", tmp_path / "d"),
            reader.adopt_checkpoint("a", tmp_path / "d"),
            reader.clone_checkpoint("a", to_trial="a"),
            reader.flush(),
            reader.drain(),
        ):
            with pytest.raises(ConfigError, match='opened with mode="read"'):
                await coroutine
        assert len(reader.trials) == 1
    assert listing(location) == before


async def test_after_the_close_a_reader_refuses_and_its_events_end(location):
    async with ExperimentStore.open(location):
        pass
    reader = await ExperimentStore.open(location, "read")
    events = reader.events()
    await reader.aclose()
    await reader.aclose()
    assert [event.kind async for event in events] == ["closed"]
    with pytest.raises(StoreClosedError, match="closed"):
        await reader.refresh()
    with pytest.raises(StoreClosedError):
        reader.events()
    with pytest.raises(StoreClosedError):
        await reader.restore_checkpoint("a")


async def test_an_experiment_that_was_removed_or_replaced_is_told(location):
    async with ExperimentStore.open(location) as store:
        store.set_metadata("k", 1)
    async with ExperimentStore.open(location, "read") as reader:
        shutil.rmtree(location)
        with pytest.raises(ExperimentNotFoundError, match="no such directory"):
            await reader.refresh()
        async with ExperimentStore.open(location):
            pass
        with pytest.raises(ExperimentNotFoundError, match="replaced by another"):
            await reader.refresh()
        assert reader.metadata == {"k": 1}


async def test_a_reader_of_damaged_state_says_so_and_keeps_what_it_knew(location, small):
    async with ExperimentStore.open(location, checkpoint_period=0) as store:
        for number in range(40):
            store.set_metadata("k", [number] * 50)
            await store.flush()
    async with ExperimentStore.open(location, "read") as reader:
        for path in (location / ".asynctune").iterdir():
            data = bytearray(path.read_bytes())
            # not a segment that has only begun: a reader looks at its header each time
            if path.name.startswith(("snap-", "wal-")) and len(data) > 500:
                data[len(data) * 3 // 4] ^= 1
                path.write_bytes(data)
        await reader.refresh()  # nothing new was written, so nothing is read
        assert reader.metadata == {"k": [39] * 50}
    with pytest.raises(CorruptStateError):
        await ExperimentStore.open(location, "read")


async def test_a_refresh_that_is_cancelled_loses_nothing(location, monkeypatch):
    monkeypatch.setattr("asynctune.store.reader._KEYS_AT_ONCE", 0)
    async with ExperimentStore.open(location) as store:
        reader = await ExperimentStore.open(location, "read")
        for number in range(10):
            store.set_metadata(f"k{number}", number)
            await store.flush()
        for turns in range(60):
            task = asyncio.create_task(reader.refresh())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            store.set_metadata(f"m{turns}", turns)
            await store.flush()
        await reader.refresh()
        assert reader.metadata == store.metadata
        await reader.aclose()


async def test_two_refreshes_at_once(location, store):
    await store.flush()
    async with ExperimentStore.open(location, "read") as reader:
        for number in range(5):
            store.set_metadata("k", number)
            seq = await store.flush()
            assert await asyncio.gather(*(reader.refresh() for _ in range(4))) == [seq] * 4
            assert reader.metadata == {"k": number}


async def test_opening_for_reading_does_not_block_the_loop_even_as_the_first_thing_a_process_does(location):
    async with ExperimentStore.open(location):
        pass
    program = """
import asyncio, sys
from tests.blocking import no_blocking_calls
from asynctune import ExperimentStore
async def main():
    async with ExperimentStore.open(sys.argv[1], "read") as reader:
        await reader.refresh()
        print(reader.writer_info)
with no_blocking_calls():
    asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(location), cwd=ROOT, stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert output == b"None\n"
