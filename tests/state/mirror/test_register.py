"""CURRENT, replaced by compare-and-swap: who wins, and what a lost reply settles to."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from asynctune.errors import CorruptStateError, StorageError, UnsupportedFormatError
from asynctune.state.codec import FORMAT_VERSION
from asynctune.state.mirror.current import CURRENT_KEY, Current, encode_current
from asynctune.state.mirror.named import Named, read_named
from asynctune.state.mirror.register import SwapRegister, open_register
from asynctune.state.mirror.unfenced import ListingRegister
from asynctune.storage.local import LocalStorage
from asynctune.storage.memory import MemoryStorage
from asynctune.testing import FaultyStorage, ManualClock
from tests.state.examples import claim_of


def claimed(epoch: int, nonce: bytes | None = None, seq: int = 0) -> Current:
    claim = claim_of(epoch, nonce)
    fresh = Current(experiment_id="e1", claim=claim, node_ip="", swap=0)
    current = fresh.next(history=[(epoch, claim.nonce, 0)])
    return current if seq == 0 else grown(current, seq)


def grown(current: Current, seq: int) -> Current:
    return current.next(seq=seq, crc=seq, tail=b"t", tail_first_seq=1)


def mine(answer: Named, current: Current) -> bool:
    return answer.current.swap_nonce == current.swap_nonce


@pytest.fixture(params=["memory", "directory"])
def storage(request, tmp_path) -> FaultyStorage:
    inside = MemoryStorage() if request.param == "memory" else LocalStorage(str(tmp_path / "bucket"))
    return FaultyStorage(inside)


async def test_it_is_created_replaced_and_read(storage):
    register = SwapRegister(storage)
    assert await register.read() is None
    first = claimed(1)
    named = await register.swap(first, None)
    assert named.current is first
    second = grown(first, 3)
    again = await register.swap(second, named)
    assert again.current is second
    found = await register.read()
    assert found is not None
    assert (found.current, found.version) == (second, again.version)
    assert found.modified_at > 0


async def test_only_one_of_two_wins(storage):
    register = SwapRegister(storage)
    base = await register.swap(claimed(1), None)
    one, two = claimed(2, b"a" * 16), claimed(2, b"b" * 16)
    assert mine(await register.swap(one, base), one)
    answer = await register.swap(two, base)
    assert answer.current == one
    assert (await register.swap(two, None)).current == one


@pytest.mark.parametrize("fault", ["reply lost", "own copy"])
@pytest.mark.parametrize("first", [True, False], ids=["create", "replace"])
async def test_a_lost_reply_is_no_defeat(storage, fault, first):
    register = SwapRegister(storage)
    base = None if first else await register.swap(claimed(1), None)
    if fault == "reply lost":
        storage.fail(on="put", applied=True)
    else:
        storage.conflict(on="put")
    current = claimed(2)
    answer = await register.swap(current, base)
    assert mine(answer, current)
    # its version is the one to go on from
    after = grown(current, 4)
    assert mine(await register.swap(after, answer), after)


async def test_what_was_not_applied_is_not_known(storage):
    register = SwapRegister(storage)
    base = await register.swap(claimed(1), None)
    storage.fail(on="put")
    current = grown(base.current, 2)
    with pytest.raises(StorageError):
        await register.swap(current, base)
    assert mine(await register.swap(current, base), current)


async def test_an_earlier_one_that_comes_late_is_found(storage):
    """Its reply was lost, and reading back failed too; the next swap meets it."""
    register = SwapRegister(storage)
    base = await register.swap(claimed(1), None)
    storage.fail(on="put", applied=True)
    storage.fail(on="head")
    early = grown(base.current, 2)
    with pytest.raises(StorageError):
        await register.swap(early, base)
    later = grown(base.current, 3)
    answer = await register.swap(later, base)
    assert answer.current == early
    again = grown(early, 3)
    assert mine(await register.swap(again, answer), again)


async def test_a_current_that_vanished_is_an_error_that_does_not_pass(storage):
    register = SwapRegister(storage)
    base = await register.swap(claimed(1), None)
    await storage.delete([CURRENT_KEY])
    with pytest.raises(StorageError, match="vanished") as caught:
        await register.swap(grown(base.current, 2), base)
    assert not caught.value.retryable


async def test_a_damaged_current_is_refused(storage):
    data = bytearray(encode_current(claimed(1)))
    data[60] ^= 1
    await storage.put(CURRENT_KEY, bytes(data))
    with pytest.raises(CorruptStateError, match="CURRENT") as caught:
        await read_named(storage)
    assert str(caught.value.path).endswith(CURRENT_KEY)


async def test_a_newer_one_is_refused_by_name(storage, monkeypatch):
    monkeypatch.setattr("asynctune.state.codec.FORMAT_VERSION", FORMAT_VERSION + 1)
    data = encode_current(claimed(1))
    monkeypatch.undo()
    await storage.put(CURRENT_KEY, data)
    with pytest.raises(UnsupportedFormatError, match="upgrade"):
        await read_named(storage)


# -- probing -------------------------------------------------------------------------------------------------


async def test_a_storage_that_keeps_conditions_is_found_out(storage):
    register = await open_register(storage, writing=True, clock=ManualClock())
    assert isinstance(register, SwapRegister)
    assert (register.fenced, register.why_unfenced) == (True, "")
    assert [entry async for entry in storage.list_objects()] == []


async def test_the_clock_of_the_storage_is_read():
    clock, theirs = ManualClock(), ManualClock(time=1_750_000_100.0)
    register = await open_register(MemoryStorage(clock=theirs), writing=True, clock=clock)
    assert register.clock_offset_s == 100.0


async def test_a_storage_that_hangs_does_not_hold_up_who_is_cancelled(storage):
    hung = storage.hang(on=("put", "delete", "head", "read"), lasting=True)
    opening = asyncio.create_task(open_register(storage, writing=True, clock=ManualClock()))
    await hung.struck.wait()
    opening.cancel()
    async with asyncio.timeout(20):
        await asyncio.wait([opening])
    assert opening.cancelled()


@pytest.mark.parametrize("lies", [True, False], ids=["lies", "says so"])
async def test_a_storage_that_keeps_none_gets_another_way(lies):
    storage = FaultyStorage(MemoryStorage(supports_conditions=lies), ignore_conditions=lies)
    register = await open_register(storage, writing=True, clock=ManualClock())
    assert isinstance(register, ListingRegister)
    assert not register.fenced
    assert "conditional" in register.why_unfenced
    assert ("though it says so" in register.why_unfenced) == lies


async def test_a_reader_probes_nothing(storage):
    await open_register(storage, writing=False, clock=ManualClock())
    assert storage.log == []
    plain = MemoryStorage(supports_conditions=False)
    assert isinstance(await open_register(plain, writing=False, clock=ManualClock()), ListingRegister)


# -- both ways in one place ------------------------------------------------------------------------------------


async def test_the_higher_epoch_counts_whichever_way_it_was_written():
    inside = MemoryStorage()
    swapping, listing = SwapRegister(inside), ListingRegister(inside)
    base = await swapping.swap(claimed(1), None)
    taken = claimed(2)
    listed = await listing.swap(taken, base)
    assert mine(listed, taken)
    found = await swapping.read()
    assert found is not None
    assert found.current == taken
    # and back: the one object is replaced, in the version it has
    back = claimed(3)
    assert mine(await swapping.swap(back, found), back)
    found = await listing.read()
    assert found is not None
    assert found.current == back


async def test_reading_takes_two_requests(storage):
    await SwapRegister(storage).swap(claimed(1), None)
    before = len(storage.log)
    await read_named(storage)
    assert len(storage.log) - before == 2


async def test_the_newer_swap_of_one_owner_counts():
    inside = MemoryStorage()
    first = claimed(1)
    base = await ListingRegister(inside).swap(first, None)
    named = await ListingRegister(inside).swap(grown(first, 5), base)
    found = await read_named(inside)
    assert found is not None
    assert found.key == named.key
    assert replace(found.current, swap_nonce=b"") == replace(named.current, swap_nonce=b"")
