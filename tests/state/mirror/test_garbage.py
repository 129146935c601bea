"""What is not named any more goes, late; what nobody named is found."""

from __future__ import annotations

from asynctune.state.mirror.current import key_of
from asynctune.state.mirror.garbage import GRACE_S, Garbage, find_leaks
from asynctune.state.mirror.listing import KEPT_LISTED, list_entries
from asynctune.state.mirror.named import read_named
from asynctune.storage.memory import MemoryStorage
from asynctune.testing import ManualClock
from tests.state.mirror.world import driving


def test_it_goes_ten_minutes_later():
    garbage = Garbage()
    garbage.add(["a", "b"], 100.0)
    garbage.add(["a", "c"], 200.0)
    assert len(garbage) == 3
    assert garbage.next_due == 100.0 + GRACE_S
    assert garbage.due(100.0 + GRACE_S - 1) == []
    assert garbage.due(100.0 + GRACE_S) == ["a", "b"]
    garbage.deleted(["a"])
    garbage.postpone(["b"], 1000.0)
    assert garbage.due(100.0 + GRACE_S) == []
    assert set(garbage.due(2000.0)) == {"b", "c"}
    garbage.deleted(["b", "c"])
    assert garbage.next_due is None


def test_what_stands_for_current_goes_sooner():
    garbage = Garbage()
    garbage.add([".asynctune/current-0000000001-0123456789ab-1-1"], 0.0)
    assert garbage.next_due is not None
    assert garbage.next_due < GRACE_S


async def test_leaks_are_found_and_nothing_that_is_named(tmp_path):
    clock = ManualClock()
    storage = MemoryStorage(clock=clock)
    async with driving(f"{tmp_path}/state", storage) as driver:
        await driver.mirror.flush(await driver.commits(3, size=70_000))
    for name in ("seg-1-0123456789ab-9", "snap-1-0123456789ab-5", "probe-abc", "current-0000000000-x"):
        await storage.put(key_of(name), b"left")
    await storage.put("trial_1/result.json", b"not ours")
    assert await find_leaks(storage, clock=clock) == []
    clock.move(3700.0)
    await storage.put(key_of("seg-1-0123456789ab-10"), b"young")
    found = {info.key for info in await find_leaks(storage, clock=clock)}
    assert found == {
        key_of(name)
        for name in ("seg-1-0123456789ab-9", "snap-1-0123456789ab-5", "probe-abc", "current-0000000000-x")
    }
    named = await read_named(storage)
    assert named is not None
    assert named.current.refs
    assert await find_leaks(MemoryStorage(), clock=clock) == []


async def test_without_conditions_the_newest_few_that_stand_for_current_are_no_leaks(tmp_path):
    clock = ManualClock()
    storage = MemoryStorage(clock=clock, supports_conditions=False)
    async with driving(f"{tmp_path}/state", storage) as driver:
        for _ in range(6):
            await driver.mirror.flush(await driver.commits(1))
    clock.move(3700.0)
    entries = [entry.key for entry in await list_entries(storage)]
    assert len(entries) > KEPT_LISTED
    assert [info.key for info in await find_leaks(storage, clock=clock)] == entries[:-KEPT_LISTED]
