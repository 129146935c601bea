"""A write whose reply was lost: whose is the object?"""

from __future__ import annotations

import pytest

from asynctune.errors import AuthenticationError, StorageError
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.settling import put_settled
from asynctune.storage.values import Conflict, IfVersion, OnlyCreate, Stored
from asynctune.testing import FaultyStorage


@pytest.fixture
def storage():
    return FaultyStorage(MemoryStorage())


async def test_a_reply_that_says_stored_is_believed(storage):
    assert await put_settled(storage, "k", b"mine", condition=OnlyCreate()) == Stored("1")
    assert storage.count() == 1


async def test_a_conflict_with_ones_own_first_copy_is_success(storage):
    storage.conflict(on="put")
    assert await put_settled(storage, "k", b"mine", condition=OnlyCreate()) == Stored("1")


async def test_a_lost_reply_of_a_write_that_was_applied_is_success(storage):
    storage.fail(on="put", applied=True)
    assert await put_settled(storage, "k", b"mine", condition=OnlyCreate()) == Stored("1")


async def test_a_lost_reply_of_a_write_that_was_not_applied_is_its_error(storage):
    await storage.put("k", b"hers")
    fault = storage.fail(on="put")
    with pytest.raises(StorageError) as caught:
        await put_settled(storage, "k", b"mine", condition=IfVersion("1"))
    assert caught.value is fault.error


@pytest.mark.parametrize("content", [b"hers", b"another size"])
async def test_a_conflict_with_another_is_one(storage, content):
    await storage.put("k", content)
    assert await put_settled(storage, "k", b"mine", condition=OnlyCreate()) == Conflict("1")


async def test_a_conflict_with_what_is_gone_again_is_one(storage):
    assert await put_settled(storage, "k", b"mine", condition=IfVersion("1")) == Conflict(None)


async def test_it_may_vanish_between_two_looks(storage):
    await storage.put("k", b"hers")
    storage.call(lambda _: storage.storage.delete(["k"]), on="read")
    assert await put_settled(storage, "k", b"mine", condition=OnlyCreate()) == Conflict(None)


@pytest.mark.parametrize("then", [b"hers, and larger", b""], ids=["larger", "smaller"])
async def test_it_may_be_replaced_between_two_looks(storage, then):
    await storage.put("k", b"hers")
    storage.call(lambda _: storage.storage.put("k", then), on="read")
    assert await put_settled(storage, "k", b"mine", condition=OnlyCreate()) == Conflict("2")


async def test_a_look_that_fails_is_no_answer(storage):
    await storage.put("k", b"hers")
    storage.fail(on="read")
    with pytest.raises(StorageError, match="asked for"):
        await put_settled(storage, "k", b"mine", condition=OnlyCreate())


async def test_an_error_that_leaves_no_doubt_is_raised_at_once(storage):
    storage.fail(AuthenticationError("no"), on="put")
    with pytest.raises(AuthenticationError):
        await put_settled(storage, "k", b"mine", condition=OnlyCreate())
    assert storage.count() == 1


async def test_who_cannot_look_does_not_know(storage):
    storage.conflict(on="put")
    storage.fail(on="head")
    with pytest.raises(StorageError):
        await put_settled(storage, "k", b"mine", condition=OnlyCreate())
