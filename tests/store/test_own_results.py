"""Result files are replaced in the bucket only by the opening that owns the copy."""

from __future__ import annotations

import google_crc32c
import pytest

from asynctune.errors import ConditionFailedError, FencedError
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.transfer import Transfer
from asynctune.store.own_results import OwnResults
from asynctune.testing import FaultyStorage


class World:
    """One opening's sender, and a storage that others put into as well."""

    def __init__(self, directory, *, supports_conditions=True):
        self.directory = directory
        self.storage = FaultyStorage(MemoryStorage(supports_conditions=supports_conditions))
        self.transfer = Transfer(self.storage)
        self.results = OwnResults(self.storage, self.transfer, self.check_owner)
        self.owner, self.checks = True, 0

    async def check_owner(self):
        self.checks += 1
        if not self.owner:
            raise FencedError("another opening has it")

    async def send(self, data):
        path = self.directory / "file"
        path.write_bytes(data)
        return await self.results.send(
            "t/result.json", str(path), size_bytes=len(data), crc32c=google_crc32c.value(data)
        )

    async def held(self):
        return (await self.storage.read("t/result.json")).data


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.transfer.close()


async def test_a_file_is_sent_again_and_again_after_one_look(world):
    for number in range(3):
        await world.send(b"row\n" * (number + 1))
    assert await world.held() == b"row\n" * 3
    assert world.checks == 1


async def test_what_an_earlier_opening_left_is_replaced(world):
    await world.storage.put("t/result.json", b"old\n")
    await world.send(b"new\n")
    assert await world.held() == b"new\n"


async def test_nothing_is_replaced_after_a_takeover_that_is_seen(world):
    await world.storage.put("t/result.json", b"theirs\n")
    world.owner = False
    with pytest.raises(FencedError):
        await world.send(b"late\n")
    assert await world.held() == b"theirs\n"


@pytest.mark.parametrize("known", [False, True], ids=["looked up", "put before"])
async def test_nothing_is_replaced_after_a_takeover_that_comes_in_between(world, known):
    if known:
        await world.send(b"old\n")
    check = world.check_owner

    async def taken_over():
        await check()
        if world.owner:
            world.owner = False
            await world.storage.put("t/result.json", b"theirs\n")

    if known:
        await taken_over()
    else:
        world.results._check_owner = taken_over
    with pytest.raises(FencedError):
        await world.send(b"late\n")
    assert await world.held() == b"theirs\n"


async def test_what_somebody_else_put_there_is_replaced_by_the_owner(world):
    await world.send(b"old\n")
    await world.storage.put("t/result.json", b"edited\n")
    await world.send(b"new\n")
    assert await world.held() == b"new\n"


async def test_an_object_that_changes_all_the_time_is_an_error(world):
    async def changing():
        await world.storage.put("t/result.json", b"%d\n" % world.checks)
        world.checks += 1

    world.results._check_owner = changing
    with pytest.raises(ConditionFailedError):
        await world.send(b"new\n")


async def test_without_conditions_it_is_just_sent(tmp_path):
    world = World(tmp_path, supports_conditions=False)
    world.owner = False
    await world.send(b"new\n")
    assert (await world.held(), world.checks) == (b"new\n", 0)
    world.transfer.close()
