"""A mirror read back: all of it, from few requests, or refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import google_crc32c
import pytest

from asynctune.errors import CorruptStateError, StorageError
from asynctune.state.mirror.current import CURRENT_KEY, Current, encode_current
from asynctune.state.mirror.named import read_named
from asynctune.state.mirror.reading import ObjectCache, read_mirror
from asynctune.storage.memory import MemoryStorage
from asynctune.testing import FaultyStorage
from tests.state.mirror.world import QuickClock, driving, opened, until


@pytest.fixture
def storage() -> FaultyStorage:
    return FaultyStorage(MemoryStorage())


@pytest.fixture
def directory(tmp_path) -> str:
    return f"{tmp_path}/state"


async def filled(directory: str, storage: FaultyStorage) -> dict[str, bytes]:
    """A mirror with a snapshot, segments of two openings, and a tail; what its records are."""
    first = await opened(directory, storage, name="first")
    for _ in range(2):  # few enough that nothing is merged
        await first.mirror.flush(await first.commits(3, size=30_000))
    await first.snapshot()
    for _ in range(2):
        await first.mirror.flush(await first.commits(3, size=300_000))
    await until(lambda: first.mirror.stats.snapshots == 1)
    await first.mirror.flush(await first.commits(1))
    await first.kill()
    async with driving(directory, storage, name="second") as second:
        await second.mirror.flush(await second.commits(2, size=40_000))
        await second.mirror.flush(await second.commits(1))
        return dict(second.records)


async def current_of(storage) -> Current:
    named = await read_named(storage)
    assert named is not None
    return named.current


async def replaced(storage: FaultyStorage, **changes) -> None:
    await storage.put(CURRENT_KEY, encode_current(replace(await current_of(storage), **changes)))


async def test_an_empty_place_has_none(storage):
    assert await read_mirror(storage) is None


async def test_all_of_it_comes_back(directory, storage):
    records = await filled(directory, storage)
    current = await current_of(storage)
    assert current.snapshot is not None
    assert len(current.segments) >= 2
    assert current.tail
    found = await read_mirror(storage)
    assert found is not None
    assert found.recovered.records == records
    assert found.recovered.seq == current.seq
    assert found.recovered.crc == current.crc
    assert found.recovered.history == current.history
    assert found.recovered.claim == current.claim
    assert found.recovered.experiment_id == current.experiment_id
    assert found.recovered.notices == []


async def test_rows_since_a_commit_come_with_it(directory, storage):
    await filled(directory, storage)
    asked = []

    def after(records: dict[str, bytes], current: Current) -> int:
        asked.append((len(records), current.seq))
        return 5

    found = await read_mirror(storage, rows_after=after)
    assert found is not None
    rows = [row for part in found.recovered.rows for row in part]
    assert [seq for seq, _ in rows] == list(range(6, found.current.seq + 1))
    assert asked == [(len(found.recovered.records), found.current.seq)]


async def test_it_takes_few_requests(directory, storage):
    await filled(directory, storage)
    current = await current_of(storage)
    before = len(storage.log)
    await read_mirror(storage)
    assert len(storage.log) - before == 2 + len(current.refs)


async def test_a_cache_saves_the_immutable_ones(directory, storage):
    await filled(directory, storage)
    cache = ObjectCache()
    await read_mirror(storage, cache=cache)
    before = len(storage.log)
    found = await read_mirror(storage, cache=cache)
    assert found is not None
    assert len(storage.log) - before == 2
    small = ObjectCache(max_bytes=10)
    await read_mirror(storage, cache=small)
    before = len(storage.log)
    await read_mirror(storage, cache=small)
    assert len(storage.log) - before == 2 + len(found.current.refs)


async def test_a_claim_alone_is_an_empty_state(directory, storage):
    driver = await opened(directory, storage, start=False)
    await driver.kill()
    found = await read_mirror(storage)
    assert found is not None
    assert (found.recovered.seq, found.recovered.records) == (0, {})
    assert found.recovered.claim == driver.claim


@pytest.mark.parametrize("what", ["snapshot", "first segment", "last segment"])
@pytest.mark.parametrize("how", ["missing", "cut", "longer", "flipped"])
async def test_damage_names_the_object(directory, storage, what, how):
    await filled(directory, storage)
    current = await current_of(storage)
    ref = {
        "snapshot": current.snapshot,
        "first segment": current.segments[0],
        "last segment": current.segments[-1],
    }[what]
    assert ref is not None
    data = (await storage.read(ref.key)).data
    if how == "missing":
        await storage.delete([ref.key])
    else:
        middle = len(data) // 2
        changed = {
            "cut": data[:-1],
            "longer": data + b"\0",
            "flipped": data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :],
        }
        await storage.put(ref.key, changed[how])
    with pytest.raises(CorruptStateError, match=ref.name) as caught:
        await read_mirror(storage, clock=QuickClock())
    assert str(caught.value.path).endswith(ref.key)


async def test_what_fits_its_checksum_and_is_wrong_is_found_all_the_same(directory, storage):
    """As a driver with a bug might write it: CURRENT names it rightly, and its frames do not belong here."""
    await filled(directory, storage)
    current = await current_of(storage)
    one, two, *rest = current.segments
    data = (await storage.read(two.key)).data
    await storage.put(one.key, data)
    swapped = replace(one, size_bytes=len(data), crc32c=google_crc32c.value(data))
    await replaced(storage, segments=(swapped, two, *rest))
    with pytest.raises(CorruptStateError, match=one.name):
        await read_mirror(storage)


async def test_a_snapshot_of_another_experiment_is_refused(directory, storage, tmp_path):
    await filled(directory, storage)
    other = FaultyStorage(MemoryStorage())
    await filled(f"{tmp_path}/other", other)
    theirs = (await current_of(other)).snapshot
    mine = (await current_of(storage)).snapshot
    assert theirs is not None
    assert mine is not None
    data = (await other.read(theirs.key)).data
    await storage.put(mine.key, data)
    await replaced(storage, snapshot=replace(mine, size_bytes=len(data), crc32c=google_crc32c.value(data)))
    with pytest.raises(CorruptStateError):
        await read_mirror(storage)


@pytest.mark.parametrize("change", ["seq", "crc", "experiment"])
async def test_a_current_that_says_another_thing_than_its_frames_is_refused(directory, storage, change):
    await filled(directory, storage)
    current = await current_of(storage)
    changes: dict[str, dict[str, Any]] = {
        "seq": {"seq": current.seq + 1},
        "crc": {"crc": 1},
        "experiment": {"experiment_id": "other"},
    }
    await replaced(storage, **changes[change])
    with pytest.raises(CorruptStateError):
        await read_mirror(storage)


async def test_objects_that_are_replaced_while_they_are_read(directory, storage):
    records = await filled(directory, storage)
    current = await current_of(storage)
    driver = await opened(directory, storage)
    ref = current.segments[-1]

    async def replace_all(_call):
        storage.heal()
        # the owner merges all into one object, and somebody removes the old one without waiting
        seq = await driver.commits(1, size=300_000)
        await driver.mirror.flush(seq)
        merged = await current_of(storage)
        data = b"".join([(await storage.storage.read(r.key)).data for r in (ref,)])
        name = replace(ref, name=f"seg-{driver.claim.epoch}-{driver.claim.nonce.hex()[:12]}-99")
        await storage.storage.put(name.key, data)
        segments = tuple(name if r == ref else r for r in merged.segments)
        await storage.storage.put(CURRENT_KEY, encode_current(merged.next(segments=segments)))
        await storage.storage.delete([ref.key])

    storage.call(replace_all, on="read", nth=2)
    found = await read_mirror(storage, clock=QuickClock())
    await driver.kill()
    assert found is not None
    assert found.recovered.records.keys() >= records.keys()


async def test_a_storage_that_refuses_is_that(directory, storage):
    await filled(directory, storage)
    storage.fail(on="read", nth=3)
    with pytest.raises(StorageError, match="asked for"):
        await read_mirror(storage)
