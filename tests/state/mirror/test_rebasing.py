"""A mirror that is damaged in the bucket is made anew from the disk that has everything."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from asynctune.errors import CorruptStateError, FencedError, StorageError
from asynctune.state.mirror.claiming import claim_mirror
from asynctune.state.mirror.current import TAIL_BYTES, Current, Ref
from asynctune.state.mirror.journal_runs import JournalRuns
from asynctune.state.mirror.named import read_named
from asynctune.state.mirror.planning import MAX_SEGMENTS
from asynctune.state.mirror.reading import read_mirror
from asynctune.storage.local import LocalStorage
from asynctune.storage.memory import MemoryStorage
from asynctune.testing import FaultyStorage
from tests.state.mirror.world import NODE_IP, Driver, QuickClock, driving, opened

DAMAGES = ("missing", "truncated", "other bytes")


@pytest.fixture(params=["memory", "directory"])
def storage(request, tmp_path) -> FaultyStorage:
    inside = MemoryStorage() if request.param == "memory" else LocalStorage(str(tmp_path / "bucket"))
    return FaultyStorage(inside)


@pytest.fixture
def directory(tmp_path) -> str:
    return f"{tmp_path}/state"


async def damage(storage, ref: Ref, how: str) -> None:
    data = (await storage.read(ref.key)).data
    await storage.delete([ref.key])
    if how == "truncated":
        await storage.put(ref.key, data[:-7])
    elif how == "other bytes":
        await storage.put(ref.key, data[:-7] + b"another")


async def current_of(storage) -> Current:
    named = await read_named(storage)
    assert named is not None
    return named.current


async def check(storage, driver: Driver) -> None:
    """The bucket holds what the driver has, with every row that its result files may lack."""
    found = await read_mirror(storage, rows_after=lambda _records, current: current.projected)
    assert found is not None
    assert found.recovered.seq == driver.journal.seq
    assert found.recovered.records == driver.records
    assert found.recovered.history == driver.journal.history
    rows = [at for part in found.recovered.rows for at, _ in part]
    assert rows == list(range(found.current.projected + 1, found.recovered.seq + 1))


def healed(driver: Driver) -> list[str]:
    return [data["object"] for kind, _, data in driver.told.events if kind == "mirror_healed"]


async def full(driver: Driver) -> None:
    """As many segments as there may be: the next swap reads some, to merge them."""
    while len((await current_of(driver.storage)).segments) < MAX_SEGMENTS:
        await driver.mirror.flush(await driver.commits(1, size=TAIL_BYTES))


# -- met while merging -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("snapshot", [False, True], ids=["frames alone", "with a snapshot"])
async def test_a_damaged_segment_is_replaced(directory, storage, how, snapshot, caplog):
    async with driving(directory, storage) as driver:
        await driver.commits(2)
        at = await driver.snapshot(prune=True) if snapshot else 0
        await full(driver)
        hurt = (await current_of(storage)).segments[-1]
        await damage(storage, hurt, how)
        with caplog.at_level(logging.WARNING, "asynctune"):
            await driver.mirror.flush(await driver.commits(3, size=TAIL_BYTES))
        assert healed(driver) == [f"{storage.location}/{hurt.key}"]
        assert [record.message for record in caplog.records if hurt.name in record.message] == [
            message for kind, message, _ in driver.told.events if kind == "mirror_healed"
        ]
        assert set(driver.told.kinds()) == {"mirror_healed"}
        await check(storage, driver)
        current = await current_of(storage)
        assert hurt not in current.segments
        assert (current.snapshot.last_seq if current.snapshot else 0) == at
        assert driver.told.projected == ([at] if snapshot else [])
        # and on from there
        await full(driver)
        await driver.mirror.flush(await driver.commits(2, size=TAIL_BYTES))
        await check(storage, driver)
        assert len(healed(driver)) == 1


async def test_the_mirror_never_says_less_while_it_is_healed(directory, storage, monkeypatch):
    monkeypatch.setattr(JournalRuns.read, "__defaults__", (2 * TAIL_BYTES,))
    async with driving(directory, storage) as driver:
        await driver.commits(1)
        await driver.snapshot()
        await full(driver)
        named = []

        async def look(call):
            if call.key == ".asynctune/CURRENT":
                named.append((await current_of(storage.storage)).seq)

        storage.call(look, on="put", lasting=True)
        await damage(storage, (await current_of(storage)).segments[-1], "missing")
        await driver.mirror.flush(await driver.commits(9, size=TAIL_BYTES))
        named.append((await current_of(storage)).seq)
        assert named == sorted(named)
        assert healed(driver)
        await check(storage, driver)


async def test_result_files_go_before_the_frames_are_given_up(directory, storage):
    async with driving(directory, storage) as driver:
        # before the journal is pruned: else the first swap has asked for the result files already
        await driver.mirror.flush(await driver.commits(2))
        await driver.snapshot(prune=True)
        await full(driver)
        await damage(storage, (await current_of(storage)).segments[-1], "missing")
        refusals = iter([True, False])

        async def project(seq):
            if next(refusals):
                raise StorageError("not now", operation="put", retryable=True)
            driver.told.projected.append(seq)

        swapper = driver.mirror._swapper
        assert swapper is not None
        swapper._rebasing._project = project
        before = await current_of(storage)
        await driver.mirror.flush(await driver.commits(1, size=TAIL_BYTES))
        assert driver.told.projected == [2]
        assert sorted(driver.told.kinds()) == ["mirror_away", "mirror_back", "mirror_healed"]
        assert (await current_of(storage)).projected == max(2, before.projected)
        await check(storage, driver)


@pytest.mark.parametrize("on", ["put", "get", "read", "head"])
async def test_a_request_that_fails_meanwhile(directory, storage, on):
    async with driving(directory, storage) as driver:
        await driver.commits(2)
        await driver.snapshot()
        await full(driver)
        await damage(storage, (await current_of(storage)).segments[-1], "missing")
        for nth in (1, 2, 3):
            storage.fail(on=on, nth=nth, applied=nth == 2)
        await driver.mirror.flush(await driver.commits(1, size=TAIL_BYTES))
        storage.heal()
        await driver.mirror.flush(await driver.commits(1))
        assert len(healed(driver)) == 1
        await check(storage, driver)


async def test_who_was_fenced_heals_nothing(directory, storage, tmp_path):
    async with driving(directory, storage) as driver:
        await full(driver)
        await claim_mirror(
            storage, None, clock=QuickClock(), node_ip=NODE_IP, quiet_s=0.0, is_dead=lambda _claim: True
        )
        await damage(storage, (await current_of(storage)).segments[-1], "missing")
        seq = await driver.commits(1, size=TAIL_BYTES)
        before = len(storage.log)
        with pytest.raises(FencedError):
            await driver.mirror.flush(seq)
        assert [call for call in storage.log[before:] if call.operation == "put"] == []
        assert healed(driver) == []


async def test_a_disk_that_lacks_it_says_so(directory, storage):
    async with driving(directory, storage) as driver:
        await driver.commits(2)
        await full(driver)
        seq = await driver.snapshot(prune=True)
        current = await current_of(storage)
        await damage(storage, current.segments[-1], "missing")
        await driver.commits(1, size=TAIL_BYTES)
        # the newest snapshot is the only one, and damaged
        path = Path(directory) / f"snap-{seq}"
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(CorruptStateError, match="cannot be made anew"):
            await driver.mirror.flush(driver.journal.seq)


# -- seen by an opening ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 2], ids=["same", "local ahead"])
@pytest.mark.parametrize("how", ["missing", "truncated"])
async def test_an_opening_from_its_own_disk_heals(directory, storage, how, ahead):
    first = await opened(directory, storage, name="first")
    await first.commits(2)
    await first.mirror.flush(await first.commits(3, size=TAIL_BYTES))
    if ahead:
        storage.fail(lasting=True)
        await first.commits(ahead)
        await first.kill()
        storage.heal()
    else:
        assert await first.close()
    hurt = (await current_of(storage)).segments[0]
    await damage(storage, hurt, how)
    with pytest.raises(CorruptStateError, match=hurt.name):
        await read_mirror(storage)
    second = await opened(directory, storage, name="second")
    assert second.claimed is not None
    assert second.claimed.relation == ("local_ahead" if ahead else "same")
    assert await second.close()
    assert healed(second) == [f"{storage.location}/{hurt.key}"]
    await check(storage, second)


async def test_an_opening_looks_once(directory, storage):
    first = await opened(directory, storage, name="first")
    await first.mirror.flush(await first.commits(3, size=TAIL_BYTES))
    assert await first.close()
    async with driving(directory, storage, name="second") as second:
        for _ in range(3):
            await second.mirror.flush(await second.commits(1))
        key = (await current_of(storage)).segments[0].key
        assert [call.operation for call in storage.log if call.key == key] == ["put", "head"]
        assert healed(second) == []


async def test_an_opening_that_is_behind_is_refused(directory, storage, tmp_path):
    first = await opened(directory, storage, name="first")
    await first.mirror.flush(await first.commits(3, size=TAIL_BYTES))
    assert await first.close()
    hurt = (await current_of(storage)).segments[0]
    await damage(storage, hurt, "missing")
    before = await current_of(storage)
    with pytest.raises(CorruptStateError, match=hurt.name):
        await opened(str(tmp_path / "other"), storage, name="second")
    assert await current_of(storage) == before
