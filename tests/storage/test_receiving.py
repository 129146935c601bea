"""One object to a local file, when bodies break off, are damaged, hang, or the disk refuses."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import stat
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from asynctune.errors import AuthenticationError, ConditionFailedError, NotFoundError, StorageError
from asynctune.storage.local import LocalStorage
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.receiving import DamagedObjectError
from asynctune.storage.transfer import Transfer
from asynctune.testing import FaultyFiles, FaultyStorage, ManualClock
from asynctune.testing.storage_scenes import cancelled, pattern
from tests.storage.transfers import (
    PART,
    SIZE,
    SMALL,
    Longest,
    QuickClock,
    crc32c_of,
    let_threads_end,
    make_transfer,
    memory,
    open_files,
    other_tasks,
    until,
)

DATA = pattern(SIZE)
SMALL_DATA = pattern(SMALL)
SHA = hashlib.sha256(DATA).hexdigest()
KEY = "trial/checkpoint_000001/model.pt"


class Unchecked(MemoryStorage):
    """Keeps no checksums, as a directory."""

    def _info(self, info):
        return replace(super()._info(info), crc32c=None)


@pytest.fixture
def storage():
    return FaultyStorage(memory())


@pytest.fixture
def files():
    return FaultyFiles()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "file"


@pytest_asyncio.fixture
async def make(storage, files):
    made = []

    def new(**options: Any) -> Transfer:
        made.append(make_transfer(options.pop("storage", storage), **({"files": files} | options)))
        return made[-1]

    yield new
    for transfer in made:
        transfer.close()


async def receive(transfer: Transfer, target, data: bytes = DATA, **options: Any) -> None:
    given = {"size_bytes": len(data), "crc32c": crc32c_of(data)} | options
    await transfer.receive(KEY, str(target), **given)


async def check_nothing_is_left(transfer: Transfer, target) -> None:
    assert not target.exists()
    assert transfer._means.budget.taken_bytes == 0
    assert other_tasks() == set()
    await let_threads_end(lambda: open_files(target.parent) == [])


# -- all goes well -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 3 * PART, SIZE])
async def test_an_object_becomes_a_file(storage, files, make, target, size):
    data = pattern(size)
    await storage.put(KEY, data)
    transfer = make()
    await receive(transfer, target, data, sha256=hashlib.sha256(data).hexdigest())
    assert target.read_bytes() == data
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert storage.count("get") == max(1, -(-size // PART))
    last = [operation.kind for operation in files.log if operation.path == str(target)][-2:]
    assert last == ["sync", "close"]
    assert open_files(target.parent) == []
    assert transfer._means.budget.taken_bytes == 0


async def test_a_file_that_the_caller_syncs(storage, files, make, target):
    await storage.put(KEY, SMALL_DATA)
    await receive(make(), target, SMALL_DATA, durable=False)
    assert target.read_bytes() == SMALL_DATA
    assert {"sync", "sync_data"}.isdisjoint(operation.kind for operation in files.log)


async def test_the_permissions_are_those_that_are_asked_for(storage, make, target):
    await storage.put(KEY, DATA)
    before = os.umask(0o077)
    try:
        await receive(make(), target, mode=0o444)
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o444


async def test_ranges_come_at_once(storage, make, target):
    await storage.put(KEY, DATA)
    there = 0
    three = asyncio.Event()

    async def arrive(_: object) -> None:
        nonlocal there
        there += 1
        if there == 3:
            three.set()
        await three.wait()

    storage.call(arrive, on="get", lasting=True)
    await receive(make(), target)
    assert target.read_bytes() == DATA


async def test_a_file_that_is_there_is_not_touched(storage, make, target):
    await storage.put(KEY, DATA)
    target.write_bytes(b"mine")
    with pytest.raises(StorageError, match="exists"):
        await receive(make(), target)
    assert target.read_bytes() == b"mine"


# -- bodies break off ----------------------------------------------------------------------------------------


async def requests_of(storage, transfer: Transfer, target, data: bytes) -> int:
    await storage.put(KEY, data)
    before = len(storage.log)
    await receive(transfer, target, data)
    target.unlink()
    return len(storage.log) - before


@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["small", "large"])
@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
async def test_any_request_may_fail_once(storage, make, target, size, applied):
    data = pattern(size)
    transfer = make()
    count = await requests_of(storage, transfer, target, data)
    for nth in range(1, count + 1):
        fault = storage.fail(nth=nth, applied=applied)
        await receive(transfer, target, data)
        assert fault.hits == 1
        assert target.read_bytes() == data
        target.unlink()
        await check_nothing_is_left(transfer, target)


@pytest.mark.parametrize("after_bytes", [0, 1, 500])
@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["small", "large"])
async def test_a_body_that_breaks_off_is_continued(storage, make, target, size, after_bytes):
    data = pattern(size)
    await storage.put(KEY, data)
    transfer = make()
    for nth in range(1, -(-size // PART) + 1):
        storage.truncate(after_bytes, nth=nth)
        before = storage.count("get")
        await receive(transfer, target, data)
        came = min(PART, size - (nth - 1) * PART) <= after_bytes
        assert storage.count("get") - before == -(-size // PART) + (not came)
        assert target.read_bytes() == data
        target.unlink()


async def test_bodies_that_always_break_off_come_to_an_end(storage, make, target):
    """As long as each brings something; and pauses stay short."""
    await storage.put(KEY, DATA)
    storage.truncate(100, lasting=True)
    clock = QuickClock()
    await receive(make(clock=clock, rng=Longest()), target)
    assert target.read_bytes() == DATA
    assert len(clock.slept) >= 30
    assert max(clock.slept) <= 0.2


@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["small", "large"])
async def test_bodies_that_bring_nothing_are_given_up(storage, make, target, size):
    data = pattern(size)
    await storage.put(KEY, data)
    clock = ManualClock()
    transfer = make(clock=clock, timeout_s=100.0, rng=Longest())
    storage.truncate(0, lasting=True)
    began = clock.monotonic()
    receiving = asyncio.create_task(receive(transfer, target, data))
    while not receiving.done():
        if clock.sleepers > 0:
            await clock.advance(0.1)
        else:
            await asyncio.sleep(0.001)
    with pytest.raises(StorageError, match="broke off") as caught:
        await receiving
    assert caught.value.retryable
    assert 60 <= clock.monotonic() - began <= 101
    await check_nothing_is_left(transfer, target)


async def test_a_refusal_is_not_repeated(storage, make, target):
    await storage.put(KEY, DATA)
    storage.fail(AuthenticationError("no"), on="get")
    transfer = make()
    with pytest.raises(AuthenticationError):
        await receive(transfer, target)
    await check_nothing_is_left(transfer, target)


# -- bytes are wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["crc32c", "sha256", "kept"])
@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["small", "large"])
async def test_damaged_bytes_are_fetched_again(make, target, size, by, caplog):
    storage = FaultyStorage(memory() if by == "kept" else Unchecked())
    data = pattern(size)
    await storage.put(KEY, data)
    expected: dict[str, dict[str, Any]] = {
        "crc32c": {},
        "sha256": {"crc32c": None, "sha256": hashlib.sha256(data).hexdigest()},
        "kept": {"crc32c": None},
    }
    for at in (0, size // 2, size - 1):
        fault = storage.damage(at, nth=at // PART + 1)
        await receive(make(storage=storage, parts_at_once=1), target, data, **expected[by])
        assert fault.hits == 1
        assert target.read_bytes() == data
        target.unlink()
    assert caplog.text.count("for the 1. time") == 3


@pytest.mark.parametrize("by", ["crc32c", "sha256"])
async def test_what_is_always_damaged_is_an_error(make, target, by):
    storage = FaultyStorage(Unchecked())
    await storage.put(KEY, DATA)
    storage.damage(1234, lasting=True)
    transfer = make(storage=storage)
    more: dict[str, Any] = {"crc32c": None, "sha256": SHA} if by == "sha256" else {}
    with pytest.raises(DamagedObjectError, match="3 times") as caught:
        await receive(transfer, target, **more)
    assert not caught.value.retryable
    assert caught.value.key == KEY
    assert storage.count("get") == 3 * 5
    await check_nothing_is_left(transfer, target)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["small", "large"])
async def test_another_object_is_an_error(make, target, size, kept):
    storage = FaultyStorage(memory() if kept else Unchecked())
    data = pattern(size)
    await storage.put(KEY, pattern(size, seed=2))
    transfer = make(storage=storage)
    with pytest.raises(StorageError) as caught:
        await receive(transfer, target, data)
    assert not caught.value.retryable
    if kept:
        assert storage.count("get") <= 1
    await check_nothing_is_left(transfer, target)


@pytest.mark.parametrize("wrong", [-1, 1])
@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["small", "large"])
async def test_an_object_of_another_size_is_an_error(storage, make, target, size, wrong):
    await storage.put(KEY, pattern(size))
    transfer = make()
    with pytest.raises(DamagedObjectError, match="bytes, not") as caught:
        await receive(transfer, target, size_bytes=size + wrong)
    assert not caught.value.retryable
    assert storage.count("get") <= 1
    await check_nothing_is_left(transfer, target)


@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["small", "large"])
async def test_a_missing_object_is_an_error(storage, make, target, size):
    transfer = make()
    with pytest.raises(NotFoundError):
        await receive(transfer, target, pattern(size))
    await check_nothing_is_left(transfer, target)


@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["small", "large"])
async def test_only_one_version_is_read(storage, make, target, size):
    data, other = pattern(size), pattern(size, seed=2)
    first = await storage.put(KEY, data)
    second = await storage.put(KEY, other)
    transfer = make()
    with pytest.raises(ConditionFailedError):
        await receive(transfer, target, data, version=first.version)
    await check_nothing_is_left(transfer, target)
    await receive(transfer, target, other, version=second.version)
    assert target.read_bytes() == other


async def test_an_object_that_is_replaced_meanwhile_is_no_mixture(storage, make, target):
    await storage.put(KEY, DATA)
    inner = storage.storage
    storage.call(lambda _: inner.put(KEY, pattern(SIZE, seed=2)), on="get", nth=3)
    transfer = make(parts_at_once=1)
    with pytest.raises(ConditionFailedError):
        await receive(transfer, target)
    await check_nothing_is_left(transfer, target)


# -- hangs, cancellation, the disk -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["small", "large"])
async def test_a_cancelled_transfer_leaves_nothing(storage, make, target, size):
    data = pattern(size)
    transfer = make()
    count = await requests_of(storage, transfer, target, data)
    for nth in range(1, count + 1):
        fault = storage.hang(nth=nth)
        receiving = asyncio.create_task(receive(transfer, target, data))
        await until(fault.struck.wait(), receiving)
        await cancelled(receiving)
        assert receiving.cancelled()
        storage.heal()
        await check_nothing_is_left(transfer, target)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55])
async def test_cancelled_at_any_moment(storage, make, target, turns):
    await storage.put(KEY, DATA)
    transfer = make()
    receiving = asyncio.create_task(receive(transfer, target, sha256=SHA))
    for _ in range(turns):
        await asyncio.sleep(0)
    await cancelled(receiving)
    if receiving.cancelled():
        await check_nothing_is_left(transfer, target)


class Stalling(FaultyStorage):
    """Its bodies stop after the first chunk, so often as it is told."""

    stalls = 0

    def get(self, key, *, start=0, length=None, version=None):
        opening = super().get(key, start=start, length=length, version=version)
        if not self.stalls:
            return opening
        self.stalls -= 1
        self.truncate(10)
        return _Stalled(opening)


class _Stalled:
    def __init__(self, opening) -> None:
        self.opening = opening

    async def __aenter__(self):
        self.body = await self.opening.__aenter__()
        return self

    async def __aexit__(self, *error):
        return await self.opening.__aexit__(*error)

    @property
    def info(self):
        return self.body.info

    async def __aiter__(self):
        try:
            async for chunk in self.body:
                yield chunk
        except StorageError:
            await asyncio.Event().wait()


@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["small", "large"])
async def test_a_body_that_stalls_is_given_up(make, target, size):
    storage = Stalling(memory())
    data = pattern(size)
    await storage.put(KEY, data)
    storage.stalls = 1
    clock = ManualClock()
    transfer = make(storage=storage, clock=clock, timeout_s=60.0, parts_at_once=1)
    receiving = asyncio.create_task(receive(transfer, target, data))
    while not receiving.done():
        if other_tasks() == {receiving} or clock.sleepers:
            await clock.advance(20.0)
        await asyncio.sleep(0.001)
    with pytest.raises(StorageError, match="nothing has come of it"):
        await receiving
    await check_nothing_is_left(transfer, target)


async def test_a_disk_that_refuses_is_an_error(storage, files, make, target):
    """At whichever step; and the file is gone."""
    await storage.put(KEY, DATA)
    transfer = make()
    await receive(transfer, target, sha256=SHA)
    steps = len(files.log)
    target.unlink()
    for nth in range(1, steps + 1):
        for number in (errno.ENOSPC, errno.EIO):
            fault = files.fail(number, nth=nth)
            with pytest.raises(StorageError) as caught:
                await receive(transfer, target, sha256=SHA)
            assert caught.value.retryable == (number == errno.ENOSPC)
            files.heal()
            assert fault.hits == 1
            assert not target.exists()
    assert transfer._means.budget.taken_bytes == 0


async def test_from_a_directory(make, target, tmp_path):
    storage = LocalStorage(str(tmp_path / "bucket"))
    transfer = make(storage=storage, clock=QuickClock())
    await storage.put(KEY, DATA)
    await receive(transfer, target, sha256=SHA)
    assert target.read_bytes() == DATA
    damaged = bytearray(DATA)
    damaged[1] ^= 1
    (tmp_path / "bucket" / KEY).write_bytes(damaged)
    with pytest.raises(StorageError, match="3 times"):
        await receive(transfer, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    await storage.aclose()
