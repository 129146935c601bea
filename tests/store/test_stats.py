from __future__ import annotations

import pytest

from asynctune.state.writer import WriterStats
from asynctune.store.stats import StoreStats
from asynctune.store.store import ExperimentStore
from asynctune.testing import ManualClock


async def test_the_figures(location):
    clock = ManualClock()
    async with ExperimentStore.open(location, clock=clock) as store:
        await store.flush()
        clock.move(5)
        store.add_trial({}, "a")
        clock.move(2)
        stats = store.stats()
        assert stats.trials == 1
        assert stats.dirty_keys == 1
        assert stats.oldest_dirty_age_s == 2
        assert stats.elapsed_seconds == 7
        assert stats.checkpoint_fraction == stats.checkpoint_seconds / stats.elapsed_seconds
        assert stats.mirrored_seq is None
        assert (stats.uploads_pending, stats.uploads_done, stats.uploads_failed, stats.upload_bytes) == (
            0,
            0,
            0,
            0,
        )
        await store.flush()
        after = store.stats()
        assert after.dirty_keys == 0
        assert after.oldest_dirty_age_s == 0
        assert after.commits == stats.commits + 1
        assert after.committed_seq == stats.committed_seq + 1
        assert after.journal_bytes > stats.journal_bytes
        assert (after.snapshots, after.snapshot_bytes) == (0, 0)
        with pytest.raises(AttributeError):
            after.commits = 0  # type: ignore[misc]
    final = store.stats()  # readable after the close
    assert final.trials == 1
    async with ExperimentStore.open(location, "read") as reader:
        assert reader.stats().committed_seq == final.committed_seq
        assert reader.stats().trials == 1


def test_the_fraction_of_no_time_at_all_is_none():
    writer = WriterStats(
        commits=1,
        committed_seq=1,
        dirty_keys=0,
        checkpoint_seconds=0.5,
        interval_s=0.0,
        oldest_dirty_age_s=0.0,
        journal_bytes=1,
        snapshot_bytes=0,
        snapshots=0,
    )
    others = {
        "mirrored_seq": None,
        "uploads_pending": 0,
        "uploads_done": 0,
        "uploads_failed": 0,
        "upload_bytes": 0,
        "trials": 0,
    }
    assert StoreStats.of_writer(writer, 0.0, **others).checkpoint_fraction == 0
    assert StoreStats.of_writer(writer, 10.0, **others).checkpoint_fraction == 0.05


async def test_snapshots_and_the_journal_after_them_are_counted(location, monkeypatch):
    monkeypatch.setattr("asynctune.state.generations._MIN_JOURNAL_BYTES", 1000)
    async with ExperimentStore.open(location) as store:
        events = store.events()
        for number in range(20):
            store.set_metadata("k", [number] * 40)
            await store.flush()
        while (await anext(events)).kind != "snapshot_written":
            pass
        stats = store.stats()
        assert stats.snapshots >= 1
        assert stats.snapshot_bytes > 0
        newest = max(int(path.name[5:]) for path in (location / ".asynctune").glob("snap-*"))
        assert newest <= stats.committed_seq
    async with ExperimentStore.open(location) as store:
        assert store.stats().snapshot_bytes > 0
        assert store.stats().snapshots == 0
