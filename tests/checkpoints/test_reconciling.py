from __future__ import annotations

import asyncio

import pytest

from asynctune.checkpoints.reconciling import Reconciliation, look_for, plan_reconciliation
from asynctune.config import CheckpointConfig
from asynctune.files import LocalFiles
from tests.checkpoints.buckets import record
from tests.checkpoints.fakes import Room

ONE = CheckpointConfig(num_to_keep=1)
TWO = CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="acc")
ALL = CheckpointConfig()


@pytest.mark.parametrize(
    ("records", "here", "config", "lost", "revived"),
    [
        ([], [], ALL, [], []),
        ([record(1), record(2, "live")], [2], ALL, [], []),
        ([record(1), record(2, "live")], [], ALL, [2], []),
        ([record(1, "live"), record(2, "live")], [1], ALL, [2], []),
        ([record(1, "deleting+"), record(2, "live")], [], ONE, [2], [1]),
        ([record(1, "deleting+"), record(2, "live")], [2], ONE, [], []),
        ([record(1, "deleting-"), record(2, "live")], [], ONE, [2], []),
        ([record(1, "deleting"), record(2, "live")], [1], ONE, [2], []),
        ([record(1, "deleting+"), record(2, "deleting+"), record(3, "live")], [], ONE, [3], [2]),
        ([record(1, "deleting+"), record(2, "deleting+"), record(3, "live")], [], ALL, [3], [2]),
        ([record(1, "deleting+"), record(2), record(3, "live")], [], ALL, [3], []),
        ([record(1, "deleting+", 5), record(2, "live+", 9), record(3, "live", 7)], [], TWO, [3], [1]),
        ([record(1, "deleting+", 5), record(2, "live+", 9), record(3, "live+", 7)], [], TWO, [], []),
        ([record(1, "deleting+")], [], ONE, [], [1]),
    ],
    ids=[
        "nothing",
        "all-somewhere",
        "lost",
        "only-here",
        "the-retired-one-replaces-it",
        "nothing-lost",
        "its-copy-is-being-deleted",
        "never-uploaded",
        "the-newest-of-the-retired",
        "all-kept-the-newest-of-the-retired",
        "all-kept-a-live-one-is-left",
        "rank-says-so",
        "rank-is-not-asked-when-nothing-is-lost",
        "no-live-one-is-left",
    ],
)
def test_what_records_come_to(records, here, config, lost, revived):
    expected = Reconciliation(tuple(lost), tuple(revived))
    assert plan_reconciliation(records, frozenset(here), config) == expected


async def test_what_lies_on_this_disk(tmp_path):
    async with Room(tmp_path / "exp") as room:
        for _ in range(4):
            await room.save("t")
        records = list(room.catalog._context.records.all("t"))
        where = room.path / "t"
        (where / "checkpoint_000002/.manifest.json").write_bytes(b"another")
        (where / "checkpoint_000003/.manifest.json").unlink()
        (where / "checkpoint_000004").rename(tmp_path / "away")
        found = await asyncio.to_thread(look_for, LocalFiles(), str(room.path), records)
        assert [found["t", step] for step in (1, 2, 3, 4)] == ["here", "other", "broken", "missing"]
