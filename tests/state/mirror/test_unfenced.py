"""CURRENT where a storage has no conditional writes."""

from __future__ import annotations

import asyncio

import pytest

from asynctune.errors import CorruptStateError, StorageError
from asynctune.state.mirror.current import mark_of
from asynctune.state.mirror.listing import LISTED_PREFIX, Entry, entry_of, list_entries
from asynctune.state.mirror.named import read_named
from asynctune.state.mirror.unfenced import ListingRegister
from asynctune.storage.memory import MemoryStorage
from asynctune.testing import FaultyStorage
from tests.state.mirror.test_register import claimed, grown, mine


@pytest.fixture
def storage() -> FaultyStorage:
    return FaultyStorage(MemoryStorage(supports_conditions=False))


@pytest.fixture
def register(storage) -> ListingRegister:
    return ListingRegister(storage)


async def test_each_swap_is_an_object_and_the_highest_counts(storage, register):
    assert await register.read() is None
    first = claimed(1)
    named = await register.swap(first, None)
    second = grown(first, 3)
    named = await register.swap(second, named)
    assert len(await list_entries(storage)) == 2
    found = await register.read()
    assert found is not None
    assert (found.current, found.key) == (second, named.key)


async def test_names_order_as_they_count():
    orders = [
        Entry(2, "0" * 12, 5, 1),
        Entry(2, "0" * 12, 5, 2),
        Entry(2, "0" * 12, 40, 1),
        Entry(2, "f" * 12, 1, 1),
        Entry(10, "0" * 12, 0, 1),
        Entry(123456, "0" * 12, 10**18, 10**9),
    ]
    assert sorted(orders) == orders
    assert sorted(entry.key for entry in orders) == [entry.key for entry in orders]


async def test_a_higher_epoch_is_noticed_before_the_next_swap(register):
    first = claimed(1)
    named = await register.swap(first, None)
    taken = claimed(2)
    assert mine(await register.swap(taken, named), taken)
    answer = await register.swap(grown(first, 1), named)
    assert answer.current == taken


async def test_of_two_claims_of_one_number_the_greater_nonce_goes_on(register):
    base = await register.swap(claimed(1), None)
    low, high = claimed(2, b"\1" * 16), claimed(2, b"\2" * 16)
    assert mine(await register.swap(low, base), low)
    # it had read before `low` claimed
    register_of_high = _blind_once(register)
    assert mine(await register_of_high.swap(high, base), high)
    answer = await register.swap(grown(low, 1), await _named(register, low))
    assert answer.current == high


async def test_a_claim_does_not_overrule_one_that_has_gone_further(storage, register):
    base = await register.swap(claimed(1), None)
    low, high = claimed(2, b"\1" * 16), claimed(2, b"\2" * 16)
    named = await register.swap(low, base)
    further = grown(low, 7)
    await register.swap(further, named)
    answer = await _blind_once(register).swap(high, base)
    assert answer.current == further
    assert mark_of(high.claim) not in " ".join(entry.key for entry in await list_entries(storage))


async def test_two_claims_in_the_same_moment_never_both_go_on_unnoticed(storage):
    for number in range(20):
        one, two = claimed(1 + number, b"\1" * 16), claimed(1 + number, b"\2" * 16)
        base = await ListingRegister(storage).read()
        first, second = await asyncio.gather(
            ListingRegister(storage).swap(one, base), ListingRegister(storage).swap(two, base)
        )
        won = [c for c, answer in ((one, first), (two, second)) if mine(answer, c)]
        assert len(won) <= 1 or won[-1] is two
        found = await read_named(storage)
        assert found is not None
        if len(won) == 2:
            answer = await ListingRegister(storage).swap(grown(one, 1), first)
            assert answer.current == two


async def test_a_lost_reply_is_settled(storage, register):
    first = claimed(1)
    named = await register.swap(first, None)
    storage.fail(on="put", applied=True)
    second = grown(first, 2)
    assert mine(await register.swap(second, named), second)


async def test_ones_own_late_copies_are_no_rivals(storage, register):
    first = claimed(1)
    named = await register.swap(first, None)
    lost = grown(first, 2)
    await storage.put(entry_of(lost).key, b"a late copy")
    second = grown(grown(first, 2), 3)
    assert mine(await register.swap(second, named), second)


async def test_a_swap_asks_for_little(storage, register):
    first = claimed(1)
    named = await register.swap(first, None)
    for seq in range(1, 50):
        named = await register.swap(grown(named.current, seq), named)
    before = len(storage.log)
    await register.swap(grown(named.current, 50), named)
    assert [call.operation for call in storage.log[before:]] == ["list_objects", "put"]


async def test_a_damaged_one_is_passed_over_and_told(storage, register, caplog):
    first = claimed(1)
    named = await register.swap(first, None)
    await storage.put(Entry(9, "a" * 12, 5, 5).key, b"damaged")
    await storage.put(f"{LISTED_PREFIX}something-else", b"not one of them")
    found = await read_named(storage)
    assert found is not None
    assert found.key == named.key
    assert "damaged" in caplog.text


async def test_nothing_but_damaged_ones_is_an_error(storage):
    await storage.put(Entry(9, "a" * 12, 5, 5).key, b"damaged")
    with pytest.raises(CorruptStateError):
        await read_named(storage)


async def test_ones_that_go_while_they_are_read(storage, register):
    first = claimed(1)
    named = await register.swap(first, None)
    again = await register.swap(grown(first, 2), named)

    def remove(_call):
        storage.heal()
        return storage.storage.delete([again.key])

    storage.call(remove, on="read", nth=2)
    found = await read_named(storage)
    assert found is not None
    assert found.key == named.key
    await storage.put(Entry(9, "a" * 12, 5, 5).key, b"")
    storage.call(lambda call: storage.storage.delete([call.key]), on="read", lasting=True)
    with pytest.raises(StorageError, match="removed"):
        await read_named(storage)


def _blind_once(register: ListingRegister) -> ListingRegister:
    """One that looked before anybody else wrote."""
    other = ListingRegister(register._storage)
    look = other._rivals
    looks = 0

    async def rivals(mine, floor):
        nonlocal looks
        looks += 1
        return [] if looks == 1 else await look(mine, floor)

    other._rivals = rivals  # type: ignore[method-assign]
    return other


async def _named(register: ListingRegister, current):
    from asynctune.state.mirror.named import read_key  # noqa: PLC0415 - for one test

    return await read_key(register._storage, entry_of(current).key)
