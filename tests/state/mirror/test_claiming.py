"""The claim of a mirror: who gets it, who waits, and from which copy it goes on."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Any

import pytest

from asynctune.errors import ConfigError, CorruptStateError, ExperimentLockedError, StorageError
from asynctune.state.mirror.claiming import claim_mirror, give_up
from asynctune.state.mirror.current import CURRENT_KEY, Current, same_owner
from asynctune.state.mirror.named import read_named
from asynctune.state.mirror.relations import Position, Relation
from asynctune.storage.memory import MemoryStorage
from asynctune.testing import FaultyStorage, ManualClock
from tests.state.mirror.world import NODE_IP, QuickClock, driving, opened


@pytest.fixture
def storage() -> FaultyStorage:
    return FaultyStorage(MemoryStorage())


@pytest.fixture
def directory(tmp_path) -> str:
    return f"{tmp_path}/state"


@pytest.fixture
def elsewhere(tmp_path) -> str:
    """The same experiment's directory on another machine."""
    return f"{tmp_path}/elsewhere"


async def current_of(storage) -> Current:
    named = await read_named(storage)
    assert named is not None
    return named.current


async def claim(storage, local: Position | None = None, **options):
    settings: dict[str, Any] = {
        "clock": QuickClock(),
        "node_ip": NODE_IP,
        "quiet_s": 0.0,
        "is_dead": lambda _: False,
    }
    return await claim_mirror(storage, local, **(settings | options))


async def test_a_new_one(storage):
    claimed = await claim(storage, experiment_id="e99")
    assert (claimed.relation, claimed.mirrored, claimed.claim.epoch) == ("same", None, 1)
    assert claimed.experiment_id == "e99"
    assert claimed.history == [(1, claimed.claim.nonce, 0)]
    assert claimed.closed_before
    current = await current_of(storage)
    assert same_owner(current.claim, claimed.claim)
    assert (current.seq, current.experiment_id, current.closed) == (0, "e99", False)
    assert (current.claim.pid, current.node_ip) == (os.getpid(), NODE_IP)


async def test_the_epoch_is_above_both(storage):
    first = await claim(storage)
    assert (await claim(storage)).claim.epoch == first.claim.epoch + 1
    assert (await claim(storage, at_least=40)).claim.epoch == 40
    local = Position(first.experiment_id, [(50, b"x" * 16, 0)], 0, 0)
    assert (await claim(storage, local)).claim.epoch == 51


async def test_it_names_what_was_named_before(directory, storage):
    async with driving(directory, storage) as driver:
        await driver.mirror.flush(await driver.commits(3, size=70_000))
        await driver.mirror.flush(await driver.commits(1))
    before = await current_of(storage)
    claimed = await claim(storage)
    after = await current_of(storage)
    assert after.refs == before.refs
    assert (after.tail, after.seq, after.crc) == (before.tail, before.seq, before.crc)
    assert after.history == [*before.history, (claimed.claim.epoch, claimed.claim.nonce, before.seq)]
    assert claimed.relation == "bucket_ahead"
    assert claimed.mirrored is not None
    assert claimed.mirrored.recovered.records == driver.records
    assert claimed.history == after.history


async def test_the_local_copy_goes_on_where_it_is_ahead(directory, storage):
    async with driving(directory, storage, name="first") as driver:
        await driver.mirror.flush(await driver.commits(3))
        await driver.mirror.close()
        await driver.commits(2)  # not mirrored any more
        records = driver.records
    async with driving(directory, storage, name="second") as again:
        assert again.claimed is not None
        assert (again.claimed.relation, again.claimed.mirrored) == ("local_ahead", None)
        assert again.records == records
        await again.mirror.flush(5)
        assert (await current_of(storage)).seq == 5


async def test_a_fork_is_set_aside_with_the_number_of_its_commits(directory, elsewhere, storage):
    async with driving(directory, storage, name="old machine") as old:
        await old.mirror.flush(await old.commits(4))
        await old.mirror.close()
        await old.commits(3)
    async with driving(elsewhere, storage, name="new machine") as new:
        assert new.claimed is not None
        assert new.claimed.relation == "bucket_ahead"
        await new.mirror.flush(await new.commits(1))
        records = new.records
    async with driving(directory, storage, name="old machine again") as back:
        assert back.claimed is not None
        assert (back.claimed.relation, back.claimed.set_aside) == ("fork", 3)
        assert back.records == records
        quarantine = os.listdir(f"{directory}/quarantine")
        assert len(quarantine) == 1
        assert any(name.startswith("wal-") for name in os.listdir(f"{directory}/quarantine/{quarantine[0]}"))


async def test_another_experiment_is_refused_and_nothing_is_written(storage):
    first = await claim(storage)
    before = await current_of(storage)
    with pytest.raises(ConfigError, match=first.experiment_id) as refused:
        await claim(storage, Position("other", [(1, b"x" * 16, 0)], 4, 4))
    assert await current_of(storage) == before
    # its owner may have begun a moment ago: only a person can know that it is dead, and is told what to do
    assert f"delete {storage.location}/{CURRENT_KEY}" in str(refused.value)


async def test_what_holds_the_commits_of_another_experiment_is_not_said_to_be_free(directory, storage):
    async with driving(directory, storage) as driver:
        await driver.mirror.flush(await driver.commits(1))
    with pytest.raises(ConfigError, match="holds experiment") as refused:
        await claim(storage, Position("other", [(1, b"x" * 16, 0)], 4, 4))
    assert "delete" not in str(refused.value)


async def test_who_opens_may_refuse_before_anything_is_written(storage):
    asked: list[tuple[Relation, Current | None]] = []

    def refuse(relation: Relation, current: Current | None) -> None:
        asked.append((relation, current))
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        await claim(storage, check=refuse)
    assert asked == [("same", None)]
    assert await read_named(storage) is None


async def test_a_state_that_cannot_be_read_is_not_claimed(directory, storage):
    async with driving(directory, storage) as driver:
        await driver.mirror.flush(await driver.commits(3, size=70_000))
    before = await current_of(storage)
    await storage.delete([before.segments[0].key])
    with pytest.raises(CorruptStateError, match=before.segments[0].name):
        await claim(storage)
    assert await current_of(storage) == before


# -- quiet -----------------------------------------------------------------------------------------------------


async def test_a_young_owner_is_waited_for():
    theirs, clock = ManualClock(time=1_750_000_500.0), ManualClock()
    storage = MemoryStorage(clock=theirs)
    first = await claim(storage, clock=clock)
    theirs.move(12.0)
    clock.move(12.0)
    said: list[str] = []
    task = asyncio.get_running_loop().create_task(
        claim(storage, clock=clock, quiet_s=30.0, waiting=said.append)
    )
    await _until(lambda: bool(said), clock)
    assert str(first.claim.pid) in said[0]
    assert storage.location in said[0]
    assert "18 s" in said[0]
    await clock.advance(17.5)
    assert not task.done()
    await clock.advance(1.0)
    claimed = await task
    assert claimed.claim.epoch == 2
    assert len(said) == 1


@pytest.mark.parametrize("why", ["old", "dead", "closed"])
async def test_nobody_waits_for_one_that_is_gone(why):
    clock = ManualClock()
    storage = MemoryStorage(clock=clock)
    first = await claim(storage, clock=clock)
    if why == "old":
        clock.move(30.0)
    if why == "closed":
        await give_up(first)
    said: list[str] = []
    again = await claim(
        storage, clock=clock, quiet_s=30.0, waiting=said.append, is_dead=lambda _: why == "dead"
    )
    assert (again.claim.epoch, said) == (2, [])
    assert again.closed_before == (why == "closed")


async def test_a_clock_that_is_wrong_by_an_hour_changes_nothing():
    for ahead_s in (-3600.0, 3600.0):
        clock, theirs = ManualClock(), ManualClock(time=1_750_000_000.0 + ahead_s)
        storage = MemoryStorage(clock=theirs)
        await claim(storage, clock=clock)
        said: list[str] = []
        task = asyncio.get_running_loop().create_task(
            claim(storage, clock=clock, quiet_s=30.0, waiting=said.append)
        )
        await _until(lambda: bool(said), clock)  # noqa: B023 - awaited within the round
        assert "30 s" in said[0]
        await clock.advance(31.0)
        await task


async def test_an_owner_that_swaps_meanwhile_lives(directory):
    clock = ManualClock()
    storage = MemoryStorage(clock=clock)
    driver = await opened(directory, storage)
    said: list[str] = []
    task = asyncio.get_running_loop().create_task(
        claim(storage, clock=clock, quiet_s=30.0, waiting=said.append)
    )
    await _until(lambda: bool(said), clock)
    await driver.mirror.flush(await driver.commits(1))
    await clock.advance(6.0)
    with pytest.raises(ExperimentLockedError, match=f"at {storage.location} is open") as caught:
        await task
    assert (caught.value.pid, caught.value.hostname) == (driver.claim.pid, driver.claim.hostname)
    # and goes on
    await driver.mirror.flush(await driver.commits(1))
    await driver.kill()


async def test_a_mirror_that_is_removed_while_it_is_waited_for_is_named():
    clock = ManualClock()
    storage = MemoryStorage(clock=clock)
    await claim(storage, clock=clock)
    said: list[str] = []
    task = asyncio.get_running_loop().create_task(
        claim(storage, clock=clock, quiet_s=30.0, waiting=said.append)
    )
    await _until(lambda: bool(said), clock)
    await storage.delete([CURRENT_KEY])
    await clock.advance(6.0)
    with pytest.raises(StorageError, match=f"{storage.location}/{CURRENT_KEY} has vanished"):
        await task
    assert await read_named(storage) is None, "nothing is put in its place"


async def test_an_owner_that_closes_meanwhile_is_not_waited_for(directory):
    clock = ManualClock()
    storage = MemoryStorage(clock=clock)
    driver = await opened(directory, storage)
    said: list[str] = []
    task = asyncio.get_running_loop().create_task(
        claim(storage, clock=clock, quiet_s=30.0, waiting=said.append)
    )
    await _until(lambda: bool(said), clock)
    await driver.commits(2)
    assert await driver.close()
    await clock.advance(6.0)
    claimed = await task
    assert claimed.mirrored is not None
    assert claimed.mirrored.recovered.records == driver.records


# -- in the same moment ------------------------------------------------------------------------------------------


async def test_of_many_claims_in_the_same_moment_one_wins(storage):
    owner = None
    for _ in range(5):
        answers = await asyncio.gather(*(claim(storage) for _ in range(4)), return_exceptions=True)
        won = [a for a in answers if not isinstance(a, BaseException)]
        lost = [a for a in answers if isinstance(a, BaseException)]
        # one that looks only after another's claim is not in the same moment, and gets the next number
        assert len({each.claim.epoch for each in won}) == len(won)
        assert won
        assert lost or owner is None
        assert all(isinstance(error, ExperimentLockedError) for error in lost)
        owner = max((each.claim for each in won), key=lambda each: each.epoch)
        assert same_owner((await current_of(storage)).claim, owner)


async def test_an_owner_that_swaps_at_the_last_moment_keeps_it(directory, storage):
    async with driving(directory, storage) as driver:
        await driver.mirror.flush(await driver.commits(1))
        puts = storage.count("put")

        async def swap(call):
            if call.key == CURRENT_KEY:
                storage.heal()
                await driver.commits(1)
                await driver.mirror.flush(2)

        storage.call(swap, on="put", lasting=True)
        with pytest.raises(ExperimentLockedError):
            await claim(storage)
        assert storage.count("put") > puts
        await driver.mirror.flush(await driver.commits(1))


@pytest.mark.parametrize("fault", ["reply lost", "not applied", "own copy"])
async def test_a_claim_whose_reply_is_lost_is_settled(storage, fault):
    await claim(storage)

    def strike(call):
        if call.key == CURRENT_KEY:
            storage.heal()
            if fault == "own copy":
                storage.conflict(on="put")
            else:
                storage.fail(on="put", applied=fault == "reply lost")

    # set on the look before the put: the probe puts something, too
    storage.call(strike, on="read", lasting=True)
    claimed = await claim(storage)
    assert claimed.claim.epoch == 2
    assert same_owner((await current_of(storage)).claim, claimed.claim)


async def test_a_bucket_that_stays_away_is_an_error(storage):
    storage.fail(lasting=True)
    with pytest.raises(StorageError):
        await claim(storage)


async def test_giving_up_lets_the_next_go_on(storage):
    claimed = await claim(storage)
    await give_up(claimed)
    current = await current_of(storage)
    assert current.closed
    assert replace(current, closed=False, swap_nonce=b"", swap=0) == replace(
        claimed.named.current, swap_nonce=b"", swap=0
    )


async def test_giving_up_says_so_however_far_it_has_gone(directory, storage):
    async with driving(directory, storage) as driver:
        await driver.mirror.flush(await driver.commits(2))
    assert driver.claimed is not None
    await give_up(driver.claimed)
    current = await current_of(storage)
    assert (current.closed, current.seq) == (True, 2)


async def test_giving_up_what_another_owns_changes_nothing(storage):
    first = await claim(storage)
    second = await claim(storage)
    await give_up(first)
    assert await current_of(storage) == second.named.current


async def _until(condition, clock: ManualClock) -> None:
    """Until what happens in a thread, too, has happened."""
    while not condition():
        await clock.advance(0.0)
        await asyncio.sleep(0.001)


async def test_a_claim_that_is_cancelled_when_it_was_made_lets_the_next_go_on(storage, monkeypatch):
    await give_up(await claim(storage))
    put, made = MemoryStorage.put, asyncio.Event()

    async def held(*arguments, **named):
        answer = await put(*arguments, **named)
        if CURRENT_KEY in arguments and not made.is_set():
            made.set()
            await asyncio.Event().wait()
        return answer

    monkeypatch.setattr(MemoryStorage, "put", held)
    claiming = asyncio.create_task(claim(storage))
    await made.wait()
    assert not (await current_of(storage)).closed
    claiming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await claiming
    assert (await current_of(storage)).closed
