"""What a damaged state still tells."""

from __future__ import annotations

import asyncio

from asynctune.files import LocalFiles
from asynctune.state.salvage import salvage
from asynctune.store.store import ExperimentStore


async def make(path, commits: int) -> None:
    async with ExperimentStore.open(path) as store:
        for number in range(commits):
            store.set_metadata("n", number)
            await store.flush()


async def state_of(path):
    async with ExperimentStore.open(path, "read") as store:
        return store.experiment_id, store.stats().committed_seq


def segments(path):
    return sorted((path / ".asynctune").glob("wal-*"))


async def test_of_a_whole_state_it_tells_the_newest_commit(tmp_path):
    await make(tmp_path / "exp", 5)
    experiment_id, seq = await state_of(tmp_path / "exp")
    left = await asyncio.to_thread(salvage, f"{tmp_path}/exp/.asynctune", LocalFiles())
    assert (left.experiment_id, left.seq) == (experiment_id, seq)
    assert [epoch for epoch, _, _ in left.history] == [1]


async def test_commits_behind_the_damage_count(tmp_path):
    await make(tmp_path / "exp", 5)
    experiment_id, seq = await state_of(tmp_path / "exp")
    (segment,) = segments(tmp_path / "exp")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    left = await asyncio.to_thread(salvage, f"{tmp_path}/exp/.asynctune", LocalFiles())
    assert (left.experiment_id, left.seq) == (experiment_id, seq)


async def test_a_damaged_header_leaves_the_commits(tmp_path):
    await make(tmp_path / "exp", 3)
    _, seq = await state_of(tmp_path / "exp")
    (segment,) = segments(tmp_path / "exp")
    data = bytearray(segment.read_bytes())
    data[45] ^= 1  # behind the frame's own header
    segment.write_bytes(data)
    left = await asyncio.to_thread(salvage, f"{tmp_path}/exp/.asynctune", LocalFiles())
    assert left.experiment_id is None
    assert left.seq == seq


async def test_of_two_openings_the_newest_history_counts(tmp_path):
    await make(tmp_path / "exp", 3)
    await make(tmp_path / "exp", 3)
    _, seq = await state_of(tmp_path / "exp")
    left = await asyncio.to_thread(salvage, f"{tmp_path}/exp/.asynctune", LocalFiles())
    assert left.seq == seq
    assert [epoch for epoch, _, _ in left.history] == [1, 2]


def test_of_an_empty_directory_it_tells_nothing(tmp_path):
    left = salvage(str(tmp_path), LocalFiles())
    assert (left.experiment_id, left.history, left.seq, left.crc) == (None, [], 0, 0)
