"""The running mirror: what it brings into the bucket, when, and what it does while the bucket is away."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc

import pytest

from asynctune.errors import FencedError, StorageError, StoreClosedError
from asynctune.state.mirror.claiming import claim_mirror
from asynctune.state.mirror.current import CURRENT_KEY, TAIL_BYTES, Current
from asynctune.state.mirror.garbage import GRACE_S
from asynctune.state.mirror.journal_runs import JournalRuns
from asynctune.state.mirror.named import read_named
from asynctune.state.mirror.planning import MAX_SEGMENTS
from asynctune.state.mirror.reading import read_mirror
from asynctune.storage.local import LocalStorage
from asynctune.storage.memory import MemoryStorage
from asynctune.testing import FaultyStorage, ManualClock
from asynctune.testing.storage_scenes import entries
from tests.state.mirror.world import NODE_IP, Driver, QuickClock, driving, opened, until, until_async

MIB = 1 << 20


@pytest.fixture(params=["memory", "directory"])
def storage(request, tmp_path) -> FaultyStorage:
    inside = MemoryStorage() if request.param == "memory" else LocalStorage(str(tmp_path / "bucket"))
    return FaultyStorage(inside)


@pytest.fixture
def directory(tmp_path) -> str:
    return f"{tmp_path}/state"


async def current_of(storage) -> Current:
    named = await read_named(storage)
    assert named is not None
    return named.current


async def check(storage, driver: Driver, seq: int | None = None) -> None:
    """The bucket holds what the driver has, with every row."""
    found = await read_mirror(storage, rows_after=lambda _records, current: current.projected)
    assert found is not None
    assert found.recovered.seq == (driver.journal.seq if seq is None else seq)
    if seq is None:
        assert found.recovered.records == driver.records
    rows = [at for part in found.recovered.rows for at, _ in part]
    assert rows == list(range(found.current.projected + 1, found.recovered.seq + 1))


# -- what is written -----------------------------------------------------------------------------------------


async def test_a_small_commit_costs_one_put(directory, storage):
    async with driving(directory, storage) as driver:
        await driver.mirror.flush(await driver.commits(1))
        before = len(storage.log)
        await driver.mirror.flush(await driver.commits(1))
        assert [(call.operation, call.key) for call in storage.log[before:]] == [("put", CURRENT_KEY)]
        await check(storage, driver)


async def test_what_outgrows_the_tail_becomes_a_segment(directory, storage):
    async with driving(directory, storage) as driver:
        await driver.mirror.flush(await driver.commits(3))
        assert (await current_of(storage)).segments == ()
        await driver.mirror.flush(await driver.commits(2, size=40_000))
        current = await current_of(storage)
        assert [(ref.first_seq, ref.last_seq) for ref in current.segments] == [(1, 5)]
        assert current.tail == b""
        await check(storage, driver)


async def test_many_segments_are_merged(directory, storage):
    async with driving(directory, storage) as driver:
        for _ in range(3 * MAX_SEGMENTS):
            await driver.mirror.flush(await driver.commits(1, size=TAIL_BYTES))
            assert len((await current_of(storage)).segments) <= MAX_SEGMENTS
        await check(storage, driver)
        assert driver.mirror.stats.put_bytes < 8 * driver.journal.seq * TAIL_BYTES


async def test_commits_of_an_opening_before_come_with_their_own_header(directory, storage):
    first = await opened(directory, storage, name="first")
    await first.mirror.flush(await first.commits(2))
    assert await first.close()
    await asyncio.to_thread(_reopened_alone, directory)
    async with driving(directory, storage, name="third") as third:
        await third.mirror.flush(await third.commits(1))
        found = await read_mirror(storage)
        assert found is not None
        assert found.recovered.records == third.records
        assert found.recovered.history == third.journal.history


def _reopened_alone(directory: str) -> None:
    """An opening that knew nothing of the bucket."""
    from random import Random  # noqa: PLC0415 - for this alone

    from tests.lab.states import Session  # noqa: PLC0415

    session = Session(directory, rng=Random(4))
    session.truth.records[session.recovered.seq] = {}
    session.commit({"alone": b"1"}, rows=(b"r",))
    session.close()


async def test_a_snapshot_is_put_when_it_is_less_to_read(directory, storage):
    async with driving(directory, storage) as driver:
        for _ in range(8):
            await driver.mirror.flush(await driver.commits(4, size=100_000))
        seq = await driver.snapshot()
        await until(lambda: driver.mirror.stats.snapshots == 1)
        await driver.mirror.flush(await driver.commits(1))
        current = await current_of(storage)
        assert current.snapshot is not None
        assert current.snapshot.last_seq == seq
        assert current.segments  # for their rows
        await check(storage, driver)
        driver.mirror.projected(seq)
        await until_async(lambda: _no_segments_before(storage, seq))
        assert (await current_of(storage)).projected == seq
        await check(storage, driver)


async def _no_segments_before(storage, seq: int) -> bool:
    return all(ref.last_seq > seq for ref in (await current_of(storage)).segments)


async def test_a_journal_that_was_pruned_is_made_good_by_a_snapshot(directory, storage):
    async with driving(directory, storage, offline=True, start=False) as driver:
        await driver.commits(3)
        first = await driver.snapshot(prune=True)
        await driver.commits(2)
        driver.start()
        await driver.mirror.flush(5)
        assert driver.told.projected == [first]
        current = await current_of(storage)
        assert current.snapshot is not None
        assert (current.snapshot.last_seq, current.projected, current.seq) == (first, first, 5)
        await check(storage, driver)


async def test_a_journal_pruned_while_the_bucket_was_away(directory, storage):
    async with driving(directory, storage) as driver:
        await driver.mirror.flush(await driver.commits(3))
        storage.fail(lasting=True)
        await driver.commits(3)
        await driver.snapshot(prune=True)
        last = await driver.commits(2)
        storage.heal()
        await driver.mirror.flush(last)
        assert driver.told.projected == [6]
        await check(storage, driver)
        # and on from there, by frames again
        await driver.mirror.flush(await driver.commits(1))
        assert driver.told.projected == [6]
        await check(storage, driver)


async def test_the_snapshot_that_is_sent_may_be_removed_meanwhile(directory, storage):
    async with driving(directory, storage, offline=True, start=False) as driver:
        await driver.commits(2, size=1000)
        await driver.snapshot(prune=True)
        await driver.commits(1)

        async def prune(call):
            if "/snap-" in call.key:
                await driver.snapshot(prune=True)

        storage.call(prune, on="put", lasting=True)
        driver.start()
        await driver.mirror.flush(3)
        storage.heal()
        await driver.mirror.flush(await driver.commits(1))
        await check(storage, driver)


# -- who waits -------------------------------------------------------------------------------------------------


async def test_it_mirrors_by_itself(directory, storage):
    async with driving(directory, storage) as driver:
        seq = await driver.commits(3)
        await driver.mirror.reached(seq)
        await check(storage, driver)
        assert driver.mirror.mirrored_seq == seq
        assert driver.mirror.stats.claimed
        mirrored = [data["seq"] for kind, _, data in driver.told.events if kind == "mirrored"]
        assert mirrored[-1] == seq
        assert mirrored == sorted(mirrored)


async def test_swaps_are_paced_and_a_flush_is_not(directory):
    clock = ManualClock()
    storage = FaultyStorage(MemoryStorage(clock=clock))
    storage.call(lambda _call: clock.move(0.1), on="put", lasting=True)  # what each takes
    driver = await opened(directory, storage, clock=clock)
    await driver.mirror.flush(await driver.commits(1))
    swaps = driver.mirror.stats.swaps
    await driver.commits(1)
    await clock.advance(2.0)
    assert driver.mirror.stats.swaps == swaps
    await clock.advance(0.5)  # 24 times 0.1 s after the end of the last
    await driver.mirror.reached(2)
    await driver.commits(1)
    await driver.mirror.flush(3)  # at once
    assert driver.mirror.stats.swaps == swaps + 2
    await driver.kill()


async def test_a_storage_that_asks_for_it_gets_a_second_between_swaps(directory):
    class Google(FaultyStorage):
        @property
        def location(self) -> str:
            return "gs://bucket/experiment"

    clock = ManualClock()
    storage = Google(MemoryStorage(clock=clock))
    driver = await opened(directory, storage, clock=clock)
    for _ in range(2):  # after the claim, too
        task = asyncio.get_running_loop().create_task(driver.mirror.flush(await driver.commits(1)))
        await clock.advance(0.8)
        assert not task.done()
        await clock.advance(0.3)
        await task
    await driver.kill()


async def test_a_cancelled_flush_stops_nothing(directory, storage):
    async with driving(directory, storage) as driver:
        hanging = storage.hang(on="put")
        task = asyncio.get_running_loop().create_task(driver.mirror.flush(await driver.commits(1)))
        await hanging.struck.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        storage.heal()
        await driver.mirror.reached(1)
        await check(storage, driver)


# -- replies that are lost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["reply lost", "reply lost twice", "own copy", "not applied"])
@pytest.mark.parametrize("size", [20, TAIL_BYTES], ids=["tail", "segment"])
async def test_each_put_may_lose_its_reply(directory, storage, fault, size):
    async with driving(directory, storage) as driver:
        await driver.mirror.flush(await driver.commits(1))
        for nth in (1, 2):
            if fault == "own copy":
                storage.conflict(on="put", nth=nth)
            else:
                storage.fail(on="put", nth=nth, applied=fault != "not applied")
            if fault == "reply lost twice":
                storage.fail(on="head", nth=1)  # and nobody can look what became of it
            await driver.mirror.flush(await driver.commits(1, size=size))
            storage.heal()
            await check(storage, driver)


async def test_every_request_may_fail_once(directory, storage):
    """Before it is done and after, at each request of a run: what was acknowledged is there."""
    for applied in (False, True):
        nth = 1
        while True:
            place = f"{directory}-{applied}-{nth}"
            inside = MemoryStorage()
            faulty = FaultyStorage(inside)
            driver = await opened(place, faulty)
            fault = faulty.fail(nth=nth, applied=applied)
            for size in (20, 70_000, 70_000, 20):
                await driver.mirror.flush(await driver.commits(1, size=size))
                await check(inside, driver)
            assert await driver.close()
            assert (await current_of(inside)).closed
            if fault.hits == 0:
                break
            nth += 1
        assert nth > 6


# -- away and back -----------------------------------------------------------------------------------------------


async def test_an_hour_without_the_bucket_costs_no_memory_and_is_caught_up(directory):
    storage = FaultyStorage(MemoryStorage())

    def away(_call):
        raise StorageError(
            "away", retryable=True
        )  # a new one each time: an error keeps what it was raised through

    async with driving(directory, storage) as driver:
        await driver.mirror.flush(await driver.commits(1))
        storage.call(away, lasting=True)
        await driver.commits(30, size=100)
        await until(lambda: "mirror_away" in driver.told.kinds())
        tracemalloc.start()
        try:
            for _ in range(40):
                await driver.commits(2, size=500_000)
                driver.records.clear()
                driver.journal._image.clear()
                await asyncio.sleep(0.01)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 30 * MIB  # of 40 MB committed, a piece of 8 MiB is held while it is tried
        assert driver.mirror.stats.away_s is not None
        storage.heal()
        await driver.mirror.flush(driver.journal.seq)
        assert driver.told.kinds() == ["mirror_away", "mirror_back"]
        assert driver.mirror.stats.away_s is None
        await check(storage, driver, driver.journal.seq)


async def test_a_backlog_goes_over_in_pieces(directory, storage):
    async with driving(directory, storage, offline=True, start=False) as driver:
        seq = await driver.commits(5, size=3 * MIB)
        driver.start()
        await driver.mirror.flush(seq)
        assert driver.mirror.stats.swaps >= 3
        await check(storage, driver)


async def test_a_flush_waits_for_the_bucket_to_be_back(directory, storage):
    async with driving(directory, storage) as driver:
        storage.fail(lasting=True)
        task = asyncio.get_running_loop().create_task(driver.mirror.flush(await driver.commits(1)))
        await until(lambda: "mirror_away" in driver.told.kinds())
        assert not task.done()
        storage.heal()
        assert await task == 1


async def test_a_refusal_that_does_not_pass_is_raised_by_flush(directory, storage):
    async with driving(directory, storage) as driver:
        await driver.mirror.flush(await driver.commits(1))
        storage.fail(StorageError("no permission", retryable=False), on="put", lasting=True)
        with pytest.raises(StorageError, match="no permission"):
            await driver.mirror.flush(await driver.commits(1))
        assert driver.told.kinds() == ["mirror_failed"]
        storage.heal()
        await driver.mirror.flush(2)
        await check(storage, driver)


# -- opened without the bucket -------------------------------------------------------------------------------------


async def test_opened_without_the_bucket_it_is_claimed_when_that_is_back(directory, storage):
    first = await opened(directory, storage, name="first")
    await first.mirror.flush(await first.commits(2))
    await first.kill()
    async with driving(directory, storage, name="second", offline=True) as second:
        assert second.mirror.mirrored_seq in (0, 2)
        await second.mirror.flush(await second.commits(2))
        assert "mirror_claimed" in second.told.kinds()
        current = await current_of(storage)
        assert (current.claim.epoch, current.claim.nonce) == (second.claim.epoch, second.claim.nonce)
        await check(storage, second)


async def test_a_journal_that_is_cut_in_the_middle_of_a_swap_is_read_again(directory, storage, monkeypatch):
    async with driving(directory, storage) as driver:
        await driver.mirror.flush(await driver.commits(2))
        read, reading, cut = JournalRuns.read, threading.Event(), threading.Event()

        def held(*arguments, **named):
            reading.set()
            assert cut.wait(20)
            return read(*arguments, **named)

        monkeypatch.setattr(JournalRuns, "read", held)
        flushing = asyncio.create_task(driver.mirror.flush(await driver.commits(1)))
        assert await asyncio.to_thread(reading.wait, 20)
        await driver.commits(1)
        await driver.snapshot(prune=True)
        cut.set()
        assert await flushing >= 3
        await check(storage, driver)


async def test_claimed_late_it_names_nothing_before_the_records_are_settled(directory, storage):
    first = await opened(directory, storage, name="first")
    await first.mirror.flush(await first.commits(2))
    await first.kill()
    async with driving(directory, storage, name="second", offline=True, start=False) as second:
        second.mirror._settled = False
        await second.commits(1)
        second.start()
        flushing = asyncio.create_task(second.mirror.flush(3))
        await until(lambda: "mirror_claimed" in second.told.kinds())
        await asyncio.sleep(0.02)
        assert not flushing.done()
        current = await current_of(storage)
        assert (current.claim.nonce, current.seq) == (second.claim.nonce, 2)
        second.mirror.settled()
        assert await flushing == 3
        await check(storage, second)


async def test_never_settled_it_is_closed_with_what_it_had(directory, storage, caplog):
    async with driving(directory, storage, offline=True) as driver:
        driver.mirror._settled = False
        await driver.commits(1)
        await until(lambda: "mirror_claimed" in driver.told.kinds())
        assert not await driver.mirror.close(60)
        assert "1 commits are not in the bucket yet" in caplog.text
        assert (await current_of(storage)).seq == 0


async def test_opened_without_the_bucket_while_another_went_on_is_fenced(directory, storage, tmp_path):
    first = await opened(directory, storage, name="first")
    await first.mirror.flush(await first.commits(2))
    await first.kill()
    async with (
        driving(f"{tmp_path}/elsewhere", storage, name="other") as other,
        driving(directory, storage, name="second", offline=True, start=False) as second,
    ):
        await other.mirror.flush(await other.commits(1))
        await second.commits(1)
        second.start()
        with pytest.raises(FencedError, match="went on"):
            await second.mirror.flush(3)
        assert "mirror_fenced" in second.told.kinds()
        await other.mirror.flush(await other.commits(1))
        await check(storage, other)


async def test_a_claim_made_later_whose_reply_is_lost(directory, storage):
    async with driving(directory, storage, offline=True, start=False) as driver:
        await driver.commits(1)

        def strike(call):
            if call.key == CURRENT_KEY:
                storage.heal()
                storage.fail(on="put", applied=True)
                storage.fail(on="head")

        storage.call(strike, on="read", lasting=True)
        driver.start()
        await driver.mirror.flush(1)
        await check(storage, driver)


# -- fenced ------------------------------------------------------------------------------------------------------


async def test_after_a_takeover_the_loser_is_told_and_hurts_nothing(directory, storage, tmp_path):
    loser = await opened(directory, storage, name="loser")
    await loser.mirror.flush(await loser.commits(2))
    async with driving(f"{tmp_path}/elsewhere", storage, name="winner") as winner:
        waiting = asyncio.get_running_loop().create_task(loser.mirror.reached(99))
        with pytest.raises(FencedError, match=r"taken over.*flush\(mirror=True\)"):
            await loser.mirror.flush(await loser.commits(1))
        with pytest.raises(FencedError):
            await waiting
        assert loser.task is not None
        with pytest.raises(FencedError):
            await loser.task
        with pytest.raises(FencedError):
            await loser.mirror.flush(1000)
        with pytest.raises(FencedError):
            await loser.mirror.close()
        assert loser.told.kinds() == ["mirror_fenced"]
        await winner.mirror.flush(await winner.commits(1))
        await check(storage, winner)
    await loser.kill()


# -- the end -------------------------------------------------------------------------------------------------------


async def test_a_close_brings_the_rest_and_says_so(directory, storage):
    driver = await opened(directory, storage)
    await driver.commits(3)
    assert await driver.close()
    current = await current_of(storage)
    assert (current.closed, current.seq) == (True, 3)
    with pytest.raises(StoreClosedError):
        await driver.mirror.flush(4)
    await check(storage, driver)


async def test_a_close_while_the_bucket_is_away_says_what_is_left(directory, storage):
    driver = await opened(directory, storage)
    await driver.mirror.flush(await driver.commits(1))
    storage.fail(lasting=True)
    await driver.commits(2)
    assert not await driver.close(0.2)
    assert [data for kind, _, data in driver.told.events if kind == "mirror_behind"] == [{"commits": 2}]
    storage.heal()
    async with driving(directory, storage) as again:
        await again.mirror.reached(3)
        await check(storage, again)


async def test_a_close_interrupts_a_bucket_that_hangs(directory, storage):
    driver = await opened(directory, storage)
    storage.hang(on="put", lasting=True)
    await driver.commits(1)
    assert not await driver.close(0.2)
    storage.heal()


async def test_a_close_that_is_refused_for_good_does_not_wait(directory, storage):
    driver = await opened(directory, storage)
    await driver.mirror.flush(await driver.commits(1))
    storage.fail(StorageError("no permission", retryable=False), on="put", lasting=True)
    assert not await driver.close()
    storage.heal()


async def test_waiters_are_told_of_the_close(directory, storage):
    driver = await opened(directory, storage)
    task = asyncio.get_running_loop().create_task(driver.mirror.reached(99))
    await asyncio.sleep(0)
    assert await driver.close()
    with pytest.raises(StoreClosedError):
        await task


# -- garbage -------------------------------------------------------------------------------------------------------


async def test_only_what_is_not_named_is_deleted_and_only_later(directory):
    clock = ManualClock()
    storage = FaultyStorage(MemoryStorage(clock=clock))
    async with driving(directory, storage, clock=clock) as driver:
        for _ in range(MAX_SEGMENTS + 2):
            await driver.mirror.flush(await driver.commits(1, size=TAIL_BYTES))
        await clock.advance(GRACE_S - 1)
        assert storage.count("delete") == 2  # of the probes
        kept = set(await entries(storage, ".asynctune/seg-"))
        named = {ref.key for ref in (await current_of(storage)).segments}
        assert kept > named
        await clock.advance(2)
        await until_async(lambda: _only(storage, named))
        await check(storage, driver)


async def _only(storage, keys: set[str]) -> bool:
    return set(await entries(storage, ".asynctune/seg-")) == keys


async def test_what_was_put_and_never_named_goes_too(directory):
    clock = ManualClock()
    storage = FaultyStorage(MemoryStorage(clock=clock))
    async with driving(directory, storage, clock=clock) as driver:
        await driver.mirror.flush(await driver.commits(1))
        storage.fail(on="put", nth=2)  # the segment is there, and CURRENT is not swapped
        seq = await driver.commits(1, size=TAIL_BYTES)
        task = asyncio.get_running_loop().create_task(driver.mirror.flush(seq))
        while not task.done():
            await clock.advance(0.1)
            await asyncio.sleep(0.001)
        found = set(await entries(storage, ".asynctune/seg-"))
        assert len(found) == 2
        named = {ref.key for ref in (await current_of(storage)).segments}
        await clock.advance(GRACE_S + 1)
        await until_async(lambda: _only(storage, named))


# -- without conditions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lies", [True, False], ids=["lies", "says so"])
async def test_a_storage_without_conditions_is_used_and_told(directory, lies):
    clock = QuickClock()
    storage = FaultyStorage(MemoryStorage(supports_conditions=lies), ignore_conditions=lies)
    async with driving(directory, storage, clock=clock) as driver:
        for size in (20, 70_000, 20, 70_000, 20):
            await driver.mirror.flush(await driver.commits(1, size=size))
            await check(storage, driver)
        assert driver.told.kinds() == ["mirror_unfenced"]
        await clock.sleep(GRACE_S + 1)
        await driver.mirror.flush(await driver.commits(1))
        await until_async(lambda: _few_listed(storage))
        await check(storage, driver)
    async with driving(f"{directory}-elsewhere", storage) as other:
        assert other.records == driver.records
        await other.mirror.flush(await other.commits(1))
        claimed = await claim_mirror(
            storage, None, clock=clock, node_ip=NODE_IP, quiet_s=0.0, is_dead=lambda _: True
        )
        with pytest.raises(FencedError):
            await other.mirror.flush(await other.commits(1))
        assert claimed.mirrored is not None


async def test_without_conditions_nothing_is_deleted_after_a_takeover(directory):
    clock = ManualClock()
    storage = FaultyStorage(MemoryStorage(supports_conditions=False, clock=clock))
    driver = await opened(directory, storage, clock=clock)
    for _ in range(MAX_SEGMENTS + 2):
        await driver.mirror.flush(await driver.commits(1, size=TAIL_BYTES))
    claimed = await claim_mirror(
        storage, None, clock=clock, node_ip=NODE_IP, quiet_s=0.0, is_dead=lambda _: True
    )
    before = set(await entries(storage, ".asynctune/seg-"))
    await clock.advance(GRACE_S + 1)
    assert driver.task is not None
    with pytest.raises(FencedError):
        await driver.task
    assert set(await entries(storage, ".asynctune/seg-")) == before
    assert claimed.mirrored is not None
    await driver.kill()


async def _few_listed(storage) -> bool:
    return len(await entries(storage, ".asynctune/current-")) <= 4
