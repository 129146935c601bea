"""Each operation of the disk fails once: the store copes, waits, or fails loudly; what it acknowledged is there."""

from __future__ import annotations

import asyncio
import errno

import pytest

from asynctune.errors import AsynctuneError
from asynctune.store.store import ExperimentStore
from asynctune.testing import FaultyFiles
from tests.crash.life import FAULTS, count_operations, kill_at, run_with_fault
from tests.store.scenes import directory_with


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_at_any_operation_loses_nothing_acknowledged(tmp_path, sampled, name, caplog):
    (tmp_path / "count").mkdir()
    total = await count_operations(tmp_path / "count", name)
    assert total > 30
    outcomes = {}
    for nth in {1, *sampled(range(2, total + 1), 12)}:
        directory = tmp_path / str(nth)
        directory.mkdir()
        outcomes[nth] = await run_with_fault(directory, name, nth)
    assert set(outcomes.values()) != {"not reached"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("part", "most", "count"), [("", 210, 8), (".snap-", 15, 5), ("wal-", 60, 4)])
async def test_a_process_that_dies_at_any_operation_loses_nothing_acknowledged(
    tmp_path, sampled, part, most, count
):
    outcomes = set()
    # how many operations there are is not the same each time: the first is always reached, a late one may not be
    for nth in {1, *sampled(range(2, most), count)}:
        (tmp_path / str(nth)).mkdir()
        outcomes.add(await kill_at(tmp_path / str(nth), part, nth))
    assert "killed" in outcomes


@pytest.mark.timeout(120)
async def test_a_full_disk_is_waited_out_and_nothing_is_lost(tmp_path):
    files = FaultyFiles()
    async with ExperimentStore.open(tmp_path / "exp", files=files) as store:
        store.set_metadata("before", 1)
        await store.flush()
        events = store.events()
        files.fail(errno.ENOSPC, on={"write", "create"}, lasting=True)
        store.set_metadata("during", 1)
        task = asyncio.create_task(store.flush())
        while (await anext(events)).kind != "disk_full":
            pass
        store.set_metadata("meanwhile", 1)
        assert store.stats().dirty_keys >= 2
        assert store.stats().oldest_dirty_age_s > 0
        assert not task.done()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await store.flush()
        files.heal()
        await task
        await store.flush()
        kinds = set()
        while "disk_recovered" not in kinds:
            kinds.add((await anext(events)).kind)
        assert "write_failed" not in kinds
    async with ExperimentStore.open(tmp_path / "exp", "read") as reader:
        assert reader.metadata == {"before": 1, "during": 1, "meanwhile": 1}


async def test_a_close_that_may_not_wait_for_space_says_what_is_not_on_the_disk(tmp_path):
    files = FaultyFiles()
    store = await ExperimentStore.open(tmp_path / "exp", files=files)
    store.set_metadata("before", 1)
    await store.flush()
    files.fail(errno.ENOSPC, on={"write", "create"}, lasting=True)
    store.set_metadata("during", 1)
    with pytest.raises(AsynctuneError, match="1 changed records are not on the disk"):
        await store.aclose(drain_timeout_s=0.2)
    files.heal()
    async with ExperimentStore.open(tmp_path / "exp") as store:
        assert store.metadata["before"] == 1


async def test_a_disk_that_fails_twice_puts_the_store_into_a_failed_state_told_by_every_call(tmp_path):
    files = FaultyFiles()
    store = await ExperimentStore.open(tmp_path / "exp", files=files)
    store.add_trial({}, "t")
    await store.save_checkpoint("t", directory_with(tmp_path / "d"))
    files.fail(errno.EIO, on={"sync_data", "sync"}, lasting=True)
    store.set_metadata("k", 1)
    with pytest.raises(AsynctuneError, match="refused commit") as caught:
        await store.flush()
    failure = caught.value
    for call in (
        lambda: store.add_trial({}),
        lambda: store.set_status("t", "RUNNING"),
        lambda: store.report("t", {}),
        lambda: store.set_metadata("k", 2),
        store.requeue,
    ):
        with pytest.raises(type(failure)) as again:
            call()
        assert again.value is failure
    for coroutine in (
        store.flush(),
        store.drain(),
        store.refresh(),
        store.save_checkpoint("t", tmp_path / "d"),
        store.clone_checkpoint("t", to_trial="t"),
    ):
        with pytest.raises(type(failure)) as again:
            await coroutine
        assert again.value is failure
    with pytest.raises(type(failure)) as again:
        await store.aclose()
    assert again.value is failure
    await store.aclose()
    files.heal()
    async with ExperimentStore.open(tmp_path / "exp") as store:
        assert [checkpoint.step for checkpoint in store.checkpoints("t")] == [1]
        store.set_metadata("k", 3)
