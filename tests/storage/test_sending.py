"""One file to the bucket, at once or in parts, when requests fail, hang, lose their replies, or are cancelled."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from asynctune.errors import AuthenticationError, ConditionFailedError, NotFoundError, StorageError
from asynctune.storage.local import LocalStorage
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.notes import UploadNotes
from asynctune.storage.sending import Sent
from asynctune.storage.transfer import Transfer
from asynctune.storage.values import IfVersion, OnlyCreate, Upload, UploadedPart
from asynctune.testing import FaultyStorage, ManualClock
from asynctune.testing.storage_faults import StorageCall
from asynctune.testing.storage_scenes import cancelled, file_of, let_run, pattern
from tests.storage.transfers import (
    PART,
    RULES,
    SIZE,
    SMALL,
    Longest,
    QuickClock,
    bucket_of,
    crc32c_of,
    let_threads_end,
    make_transfer,
    memory,
    open_files,
    other_tasks,
    stored,
    until,
)

DATA = pattern(SIZE)
KEY = "trial/checkpoint_000001/model.pt"


@pytest.fixture(params=list(RULES))
def storage(request):
    return FaultyStorage(memory(request.param))


@pytest_asyncio.fixture
async def notes(tmp_path) -> AsyncGenerator[UploadNotes, None]:
    made = UploadNotes(str(tmp_path / "uploads"), location="memory://bucket")
    yield made
    made.close()


@pytest_asyncio.fixture
async def make(storage):
    made = []

    def new(**options: Any) -> Transfer:
        made.append(make_transfer(options.pop("storage", storage), **options))
        return made[-1]

    yield new
    for transfer in made:
        transfer.close()


async def send(transfer: Transfer, path: str, data: bytes = DATA, **options: Any) -> Sent:
    given = {"size_bytes": len(data), "crc32c": crc32c_of(data)} | options
    return await transfer.send(KEY, path, **given)


def check_nothing_is_left(storage, transfer: Transfer, directory, *, uploads: int = 0) -> None:
    assert len(bucket_of(storage).uploads) == uploads
    assert transfer._means.budget.taken_bytes == 0
    assert other_tasks() == set()
    assert open_files(directory) == []


# -- all goes well -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 3 * PART, SIZE])
async def test_a_file_becomes_an_object(storage, make, tmp_path, size):
    data = pattern(size)
    transfer = make()
    sent = await send(transfer, await file_of(tmp_path, data), data)
    assert stored(storage, KEY) == data
    info = await storage.head(KEY)
    assert sent == Sent(info.version, size, 0)
    assert storage.count("put") == (size <= PART)
    assert storage.count("put_part") == (0 if size <= PART else -(-size // PART))
    check_nothing_is_left(storage, transfer, tmp_path)


async def test_a_checksum_that_is_not_given_is_computed(storage, make, tmp_path):
    await send(make(), await file_of(tmp_path, DATA), crc32c=None)
    (begun,) = [call for call in storage.log if call.operation == "begin_upload"]
    assert begun.key == KEY
    assert stored(storage, KEY) == DATA


async def test_parts_go_at_once_where_the_storage_takes_them_so(storage, make, tmp_path):
    most = there = 0
    ready = asyncio.Event()

    async def arrive(call: StorageCall) -> None:
        nonlocal most, there
        there += 1
        most = max(most, there)
        if storage.upload_rules.in_order or there == 3:
            ready.set()
        await ready.wait()
        there -= 1

    storage.call(arrive, on="put_part", lasting=True)
    await send(make(), await file_of(tmp_path, DATA))
    assert most == (1 if storage.upload_rules.in_order else 3)


async def test_the_budget_bounds_what_is_under_way(storage, make, tmp_path):
    most = there = 0

    def begin(call: StorageCall) -> None:
        nonlocal most
        most = max(most, transfer._means.budget.taken_bytes)

    storage.call(begin, on="put_part", lasting=True)
    transfer = make(parts_at_once=5)
    await send(transfer, await file_of(tmp_path, DATA))
    assert there <= most <= 3 * PART
    assert most >= PART


async def test_the_rules_decide_which_parts_there_are(storage, make, tmp_path):
    await send(make(part_bytes=1, put_bytes=0), await file_of(tmp_path, DATA))
    assert storage.count("put_part") <= 1000
    assert stored(storage, KEY) == DATA


@pytest.mark.parametrize("given", [True, False], ids=["checksum given", "checksum computed"])
async def test_what_a_storage_does_not_take_at_once_goes_in_parts(make, tmp_path, given):
    storage = FaultyStorage(
        MemoryStorage(rules=replace(RULES["any order"], max_part_bytes=SMALL, max_put_bytes=SMALL - 1))
    )
    data = pattern(SMALL)
    await send(
        make(storage=storage), await file_of(tmp_path, data), data, **({} if given else {"crc32c": None})
    )
    assert storage.count("put") == 0
    assert stored(storage, KEY) == data


@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["at once", "in parts"])
async def test_conditions_are_kept(storage, make, tmp_path, size):
    data = pattern(size)
    path = await file_of(tmp_path, data)
    transfer = make()
    first = await send(transfer, path, data, condition=OnlyCreate())
    again = await send(transfer, path, data, condition=OnlyCreate())
    assert again.version == first.version  # the same content: nothing is lost, whoever stored it
    other = pattern(size, seed=2)
    other_path = await file_of(tmp_path, other, "other")
    with pytest.raises(ConditionFailedError):
        await send(transfer, other_path, other, condition=OnlyCreate())
    assert stored(storage, KEY) == data
    replaced = await send(transfer, other_path, other, condition=IfVersion(first.version))
    assert stored(storage, KEY) == other
    with pytest.raises(ConditionFailedError):
        await send(transfer, path, data, condition=IfVersion(first.version))
    assert (await storage.head(KEY)).version == replaced.version
    check_nothing_is_left(storage, transfer, tmp_path)


# -- requests fail -----------------------------------------------------------------------------------------


async def requests_of(storage, transfer: Transfer, path: str, data: bytes) -> int:
    before = len(storage.log)
    await send(transfer, path, data)
    await storage.delete([KEY])
    return len(storage.log) - before - 1


FAULTS = {
    "before": {"applied": False},
    "after": {"applied": True},
}


@pytest.mark.parametrize("noted", [False, True], ids=["forgotten", "noted"])
@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["at once", "in parts"])
@pytest.mark.parametrize("fault", list(FAULTS))
async def test_any_request_may_fail_once(storage, make, notes, tmp_path, size, fault, noted):
    data = pattern(size)
    path = await file_of(tmp_path, data)
    transfer = make(notes=notes if noted else None)
    count = await requests_of(storage, transfer, path, data)
    assert count >= (1 if size == SMALL else 7)
    for nth in range(1, count + 1):
        set_fault = storage.fail(nth=nth, **FAULTS[fault])
        await send(transfer, path, data)
        assert set_fault.hits == 1
        assert stored(storage, KEY) == data
        assert await notes.every() == []
        if storage.upload_rules.listed:
            check_nothing_is_left(storage, transfer, tmp_path)
        bucket_of(storage).uploads.clear()
        await storage.delete([KEY])


@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["at once", "in parts"])
@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
async def test_any_two_requests_may_fail(storage, make, tmp_path, size, applied, sampled):
    data = pattern(size)
    path = await file_of(tmp_path, data)
    transfer = make()
    count = await requests_of(storage, transfer, path, data)
    pairs = [(a, b) for a in range(1, count + 4) for b in range(a + 1, count + 5)]
    for first, second in sampled(pairs, 40):
        storage.fail(nth=first, applied=applied)
        storage.fail(nth=second, applied=not applied)
        await send(transfer, path, data)
        storage.heal()
        assert stored(storage, KEY) == data
        await storage.delete([KEY])


@pytest.mark.parametrize("applied", [False, True], ids=["another's", "its own copy"])
@pytest.mark.parametrize("condition", [None, OnlyCreate()], ids=["always", "create"])
@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["at once", "in parts"])
async def test_a_conflict_proves_nothing(storage, make, tmp_path, size, condition, applied):
    data = pattern(size)
    path = await file_of(tmp_path, data)
    transfer = make()
    more = {} if condition is None else {"condition": condition}
    storage.conflict(on=["put", "complete_upload"], applied=applied)
    if condition is None or applied:
        await send(transfer, path, data, **more)
        assert stored(storage, KEY) == data
    else:
        with pytest.raises(ConditionFailedError):
            await send(transfer, path, data, **more)
        assert stored(storage, KEY) is None
    if storage.upload_rules.listed or size == SMALL:
        check_nothing_is_left(storage, transfer, tmp_path)


@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["at once", "in parts"])
async def test_a_storage_that_stays_away_is_given_up(storage, make, tmp_path, size):
    """With pauses that grow, and as long as it was said."""
    data = pattern(size)
    clock = ManualClock()
    transfer = make(clock=clock, rng=Longest(), timeout_s=100.0)
    storage.fail(lasting=True)
    began = clock.monotonic()
    sending = asyncio.create_task(send(transfer, await file_of(tmp_path, data), data))
    while not sending.done():
        if clock.sleepers > 1 or other_tasks() == {sending}:
            await clock.advance(0.1)
        else:
            await asyncio.sleep(0.001)
    with pytest.raises(StorageError, match="asked for") as caught:
        await sending
    assert caught.value.retryable
    assert "given up after" in caught.value.__notes__[0]
    assert 60 <= clock.monotonic() - began <= 101
    assert transfer._means.budget.taken_bytes == 0


async def test_a_refusal_is_not_repeated(storage, make, tmp_path):
    storage.fail(AuthenticationError("no", operation="put_part"), on="put_part", lasting=True)
    transfer = make(parts_at_once=1)
    with pytest.raises(AuthenticationError):
        await send(transfer, await file_of(tmp_path, DATA))
    assert storage.count("put_part") == 1
    check_nothing_is_left(storage, transfer, tmp_path)


@pytest.mark.parametrize("lost", ["put", "complete_upload"])
async def test_a_refusal_of_the_look_is_said_at_once(storage, make, tmp_path, lost):
    data = pattern(SMALL if lost == "put" else SIZE)
    storage.fail(on=lost)
    storage.fail(AuthenticationError("no", operation="head"), on="head")
    with pytest.raises(AuthenticationError):
        await send(make(), await file_of(tmp_path, data), data)
    assert storage.count(lost) == storage.count("head") == 1


async def test_what_the_storage_asks_for_is_waited(storage, make, tmp_path):
    clock = QuickClock()
    storage.fail(StorageError("slow down", retryable=True, retry_after_s=7.0), on=["put", "put_part"])
    await send(make(clock=clock), await file_of(tmp_path, DATA))
    (pause,) = clock.slept
    assert 7.0 <= pause <= 7.2


@pytest.mark.parametrize("at", ["put_part", "complete_upload"])
async def test_an_upload_that_is_gone_is_begun_anew(storage, make, notes, tmp_path, at):
    transfer = make(notes=notes)
    bucket = bucket_of(storage)
    storage.call(lambda _: bucket.uploads.clear(), on=at, nth=1 if at == "complete_upload" else 3)
    await send(transfer, await file_of(tmp_path, DATA))
    assert stored(storage, KEY) == DATA
    assert storage.count("begin_upload") == 2
    assert await notes.every() == []
    check_nothing_is_left(storage, transfer, tmp_path)


async def test_uploads_that_are_always_gone_are_given_up(storage, make, tmp_path):
    bucket = bucket_of(storage)
    storage.call(lambda _: bucket.uploads.clear(), on="complete_upload", lasting=True)
    with pytest.raises(StorageError, match="begun 4 times") as caught:
        await send(make(), await file_of(tmp_path, DATA))
    assert caught.value.retryable


async def test_a_bucket_that_is_not_there_is_said_at_once(storage, make, tmp_path):
    missing = NotFoundError("there is no bucket", operation="begin_upload")
    for operation, size in (("put", SMALL), ("begin_upload", SIZE)):
        storage.fail(missing, on=operation, lasting=True)
        with pytest.raises(NotFoundError, match="no bucket"):
            await send(make(), await file_of(tmp_path, DATA[:size]), DATA[:size])
        assert storage.count(operation) == 1
        storage.heal()


async def test_bytes_damaged_on_their_way_are_sent_again(storage, make, tmp_path, caplog):
    """The file is right: that is found out when all parts are there."""
    inner = storage.storage
    put_part = inner.put_part

    async def damaged(upload: Upload, number: int, data: Any, *, crc32c: int | None = None) -> Any:
        inner.put_part = put_part
        return await put_part(upload, number, bytes(data.size_bytes))

    inner.put_part = damaged
    transfer = make()
    await send(transfer, await file_of(tmp_path, DATA))
    assert "sent again" in caplog.text
    assert stored(storage, KEY) == DATA
    assert storage.count("begin_upload") == 2
    check_nothing_is_left(storage, transfer, tmp_path)


# -- the file changes --------------------------------------------------------------------------------------


def grow(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"x")


def shrink(path: str) -> None:
    os.truncate(path, SIZE - 1)


def flip(path: str) -> None:
    """A bit of the last part, and the time as it was before."""
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(SIZE - 1)
        file.write(bytes([DATA[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def touch(path: str) -> None:
    os.utime(path, ns=(0, 0))


def swap(path: str) -> None:
    before = os.stat(path)
    with open(f"{path}.new", "wb") as file:
        file.write(DATA)
    os.utime(f"{path}.new", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.rename(f"{path}.new", path)


@pytest.mark.parametrize("noted", [False, True], ids=["forgotten", "noted"])
@pytest.mark.parametrize("change", [grow, shrink, flip, touch, swap, os.unlink], ids=lambda f: f.__name__)
async def test_a_file_that_changes_never_becomes_an_object(storage, make, notes, tmp_path, change, noted):
    path = await file_of(tmp_path, DATA)
    storage.call(lambda _: asyncio.to_thread(change, path), on="put_part", nth=2)
    transfer = make(notes=notes if noted else None, parts_at_once=1)
    with pytest.raises(StorageError) as caught:
        await send(transfer, path)
    assert not caught.value.retryable
    assert stored(storage, KEY) is None
    assert storage.count("complete_upload") <= 1
    assert await notes.every() == []
    check_nothing_is_left(storage, transfer, tmp_path)


class Careless(FaultyStorage):
    """Looks at no checksum of the whole."""

    async def begin_upload(self, key: str, *, crc32c: int | None = None, **options: Any) -> Any:
        upload: Any = await super().begin_upload(key, **options)
        begun = bucket_of(self).uploads[upload.upload_id]
        assert begun.upload.crc32c is None
        return replace(upload, crc32c=crc32c)

    async def complete_upload(self, upload: Upload, parts: Any) -> Any:
        return await super().complete_upload(replace(upload, crc32c=None), parts)


async def test_a_storage_need_not_look_at_the_checksum_of_the_whole(make, tmp_path):
    storage = Careless(memory())
    path = await file_of(tmp_path, DATA)
    storage.call(lambda _: asyncio.to_thread(flip, path), on="put_part", nth=2)
    with pytest.raises(StorageError, match="has the checksum"):
        await send(make(storage=storage, parts_at_once=1), path)
    assert stored(storage, KEY) is None


@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["at once", "in parts"])
async def test_a_file_that_is_not_what_it_should_be_is_not_sent(storage, make, tmp_path, size):
    data = pattern(size)
    path = await file_of(tmp_path, data)
    transfer = make()
    for wrong in ({"size_bytes": size + 1}, {"size_bytes": size - 1}):
        with pytest.raises(
            StorageError, match=r"bytes, not|bytes too early|the checksum should be"
        ) as caught:
            await send(transfer, path, data, **wrong)
        assert not caught.value.retryable
    with pytest.raises(StorageError, match="checksum") as caught:
        await send(transfer, path, data, crc32c=1)
    assert not caught.value.retryable
    for name in ("missing", ""):
        with pytest.raises(StorageError) as caught:
            await send(transfer, str(tmp_path / name), data)
        assert not caught.value.retryable
    assert stored(storage, KEY) is None
    check_nothing_is_left(storage, transfer, tmp_path)


# -- going on with an upload -------------------------------------------------------------------------------


@pytest.mark.parametrize("nth", range(1, 6))
async def test_parts_that_are_there_are_not_sent_again(storage, make, notes, tmp_path, nth):
    """Another process goes on after this one failed at the n-th part."""
    path = await file_of(tmp_path, DATA)
    storage.fail(AuthenticationError("expired"), on="put_part", nth=nth, lasting=True)
    with pytest.raises(AuthenticationError):
        await send(make(notes=notes, parts_at_once=1), path)
    assert len(await notes.every()) == 1
    (begun,) = bucket_of(storage).uploads.values()
    there = len(begun.parts)
    assert there == nth - 1
    storage.heal()
    before = storage.count("put_part")
    sent = await send(make(notes=notes), path)
    assert storage.count("put_part") - before == 5 - there
    assert storage.count("begin_upload") == 1
    assert sent.resumed_parts == there
    assert sent.sent_bytes == SIZE - there * PART
    assert stored(storage, KEY) == DATA
    assert await notes.every() == []
    check_nothing_is_left(storage, make(), tmp_path)


async def interrupted(storage, transfer: Transfer, path: str, nth: int = 4) -> None:
    storage.fail(AuthenticationError("expired"), on="put_part", nth=nth, lasting=True)
    with pytest.raises(AuthenticationError):
        await send(transfer, path)
    storage.heal()


async def test_an_upload_of_another_content_is_not_gone_on_with(storage, make, notes, tmp_path):
    await interrupted(storage, make(notes=notes), await file_of(tmp_path, DATA))
    other = pattern(SIZE, seed=2)
    sent = await send(make(notes=notes), await file_of(tmp_path, other), other)
    assert sent.resumed_parts == 0
    assert storage.count("complete_upload") == 1
    assert stored(storage, KEY) == other
    check_nothing_is_left(storage, make(), tmp_path)


async def test_parts_that_do_not_fit_are_sent_again(storage, make, notes, tmp_path):
    """Their bytes are not the file's."""
    path = await file_of(tmp_path, DATA)
    await interrupted(storage, make(notes=notes, parts_at_once=1), path)
    (upload,) = await notes.every()
    bucket = bucket_of(storage)
    (begun,) = bucket.uploads.values()
    inner = memory("any order", bucket)
    begun.parts.pop(2)
    await inner.put_part(upload, 2, bytes(PART))
    sent = await send(make(notes=notes), path)
    assert stored(storage, KEY) == DATA
    assert sent.resumed_parts == (0 if storage.upload_rules.in_order else 2)
    check_nothing_is_left(storage, make(), tmp_path)


class NoChecksums(FaultyStorage):
    """Tells of parts what a server of S3's protocol may tell: `md5` makes an ETag of the part's bytes."""

    md5: Callable[[bytes], str | None]

    async def list_parts(self, upload: Upload) -> list[UploadedPart]:
        held = bucket_of(self).uploads[upload.upload_id].parts
        return [
            replace(part, crc32c=None, md5=self.md5(b"".join(held[part.number][1].chunks)))
            for part in await super().list_parts(upload)
        ]


@pytest.mark.parametrize(
    ("md5", "resumed"),
    [
        (lambda data: hashlib.md5(data).hexdigest(), 3),
        (lambda data: hashlib.md5(b"of what was encrypted").hexdigest(), 0),
        (lambda data: None, 0),
    ],
    ids=["md5", "another", "none"],
)
async def test_parts_without_a_checksum_are_known_by_their_md5_or_sent_again(
    make, notes, tmp_path, md5, resumed
):
    storage = NoChecksums(memory())
    storage.md5 = md5
    path = await file_of(tmp_path, DATA)
    await interrupted(storage, make(storage=storage, notes=notes, parts_at_once=1), path)
    sent = await send(make(storage=storage, notes=notes), path)
    assert sent.resumed_parts == resumed
    assert stored(storage, KEY) == DATA
    assert storage.count("begin_upload") == 1


async def test_an_upload_that_was_completed_is_found_done(storage, make, notes, tmp_path):
    """The process died after that, before it forgot the upload."""
    path = await file_of(tmp_path, DATA)
    storage.hang(on="complete_upload", applied=True)
    sending = asyncio.create_task(send(make(notes=notes), path))
    while not (await storage.head(KEY)):
        await let_run(1)
    await cancelled(sending)
    assert len(await notes.every()) == 1
    sent = await send(make(notes=notes), path)
    assert sent.sent_bytes == 0
    assert storage.count("begin_upload") == 1
    assert await notes.every() == []
    check_nothing_is_left(storage, make(), tmp_path)


async def test_an_upload_that_is_gone_meanwhile_is_begun_anew(storage, make, notes, tmp_path):
    path = await file_of(tmp_path, DATA)
    await interrupted(storage, make(notes=notes), path)
    bucket_of(storage).uploads.clear()
    sent = await send(make(notes=notes), path)
    assert (sent.sent_bytes, sent.resumed_parts) == (SIZE, 0)
    assert stored(storage, KEY) == DATA


async def test_a_note_that_the_storage_makes_nothing_of_is_not_in_the_way(storage, make, notes, tmp_path):
    path = await file_of(tmp_path, DATA)
    await interrupted(storage, make(notes=notes), path)
    storage.fail(StorageError("what is this", operation="list_parts"), on="list_parts")
    sent = await send(make(notes=notes), path)
    assert (sent.sent_bytes, sent.resumed_parts) == (SIZE, 0)
    assert await notes.every() == []


@pytest.mark.parametrize(
    "error", [AuthenticationError("no"), StorageError("away", retryable=True)], ids=["refused", "away"]
)
async def test_a_note_stays_while_the_storage_does_not_tell(storage, make, notes, tmp_path, error):
    path = await file_of(tmp_path, DATA)
    await interrupted(storage, make(notes=notes, parts_at_once=1), path)
    storage.fail(error, on="list_parts", lasting=True)
    with pytest.raises(type(error)):
        await send(make(notes=notes, timeout_s=1e-6), path)
    storage.heal()
    assert (await send(make(notes=notes), path)).resumed_parts == 3


async def test_an_upload_of_another_content_may_be_left(storage, make, notes, tmp_path):
    """If the storage does not take the abort, it is looked for again at the end."""
    await interrupted(storage, make(notes=notes), await file_of(tmp_path, DATA))
    other = pattern(SIZE, seed=2)
    storage.fail(on="abort_upload")
    await send(make(notes=notes), await file_of(tmp_path, other), other)
    assert stored(storage, KEY) == other
    assert len(bucket_of(storage).uploads) == (0 if storage.upload_rules.listed else 1)


async def test_an_upload_is_written_down_before_its_first_part(storage, make, notes, tmp_path):
    known: list[Upload] = []

    async def look(call: StorageCall) -> None:
        known.extend(await notes.every())

    storage.call(look, on="put_part")
    await send(make(notes=notes), await file_of(tmp_path, DATA))
    assert [upload.key for upload in known] == [KEY]


# -- hangs and cancellation --------------------------------------------------------------------------------


@pytest.mark.parametrize("noted", [False, True], ids=["forgotten", "noted"])
@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["at once", "in parts"])
async def test_a_cancelled_transfer_leaves_nothing(storage, make, notes, tmp_path, size, applied, noted):
    """At whichever request; then another one goes on, or begins."""
    data = pattern(size)
    path = await file_of(tmp_path, data)
    transfer = make(notes=notes if noted else None, clock=ManualClock())
    count = await requests_of(storage, transfer, path, data)
    for nth in range(1, count + 1):
        fault = storage.hang(nth=nth, applied=applied)
        sending = asyncio.create_task(send(transfer, path, data))
        await until(fault.struck.wait(), sending)
        sending.cancel()
        if storage.log[-1].operation == "begin_upload":
            # Its reply comes while it is waited for: nobody else could free what was begun.
            await let_run(2)
            assert not sending.done()
            storage.heal()
        await asyncio.wait([sending])
        assert sending.cancelled()
        storage.heal()
        assert stored(storage, KEY) in (None, data)
        await let_threads_end(lambda: open_files(tmp_path) == [])
        left = await notes.every()
        assert len(left) <= noted
        check_nothing_is_left(
            storage, transfer, tmp_path, uploads=len(bucket_of(storage).uploads) and len(left)
        )
        await send(transfer, path, data)
        assert stored(storage, KEY) == data
        check_nothing_is_left(storage, transfer, tmp_path)
        await storage.delete([KEY])


async def test_a_cancelled_beginning_that_hangs_is_not_waited_for_long(storage, make, tmp_path):
    clock = ManualClock()
    fault = storage.hang(on="begin_upload")
    transfer = make(clock=clock)
    sending = asyncio.create_task(send(transfer, await file_of(tmp_path, DATA)))
    await until(fault.struck.wait(), sending)
    sending.cancel()
    await clock.advance(6.0)
    await asyncio.wait([sending])
    assert sending.cancelled()
    check_nothing_is_left(storage, transfer, tmp_path)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55])
async def test_cancelled_at_any_moment(storage, make, tmp_path, turns):
    path = await file_of(tmp_path, DATA)
    transfer = make()
    sending = asyncio.create_task(send(transfer, path))
    for _ in range(turns):
        await asyncio.sleep(0)
    await cancelled(sending)
    assert stored(storage, KEY) in (None, DATA)
    await let_threads_end(lambda: open_files(tmp_path) == [])
    check_nothing_is_left(storage, transfer, tmp_path)


@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["at once", "in parts"])
async def test_a_request_that_hangs_is_given_up(storage, make, notes, tmp_path, size):
    """And what it had sent before is not sent again by the next attempt."""
    data = pattern(size)
    path = await file_of(tmp_path, data)
    clock = ManualClock()
    transfer = make(notes=notes, clock=clock, timeout_s=60.0, parts_at_once=1)
    count = await requests_of(storage, transfer, path, data)
    for nth in range(1, count + 1):
        fault = storage.hang(nth=nth)
        sending = asyncio.create_task(send(transfer, path, data))
        await until(fault.struck.wait(), sending)
        operation = storage.log[-1].operation
        while not sending.done():
            await clock.advance(61.0)
        with pytest.raises(StorageError, match="nothing has come of it") as caught:
            await sending
        assert caught.value.retryable
        assert caught.value.operation == operation
        before = storage.count("put_part")
        sent = await send(transfer, path, data)
        assert storage.count("put_part") - before == (0 if size == SMALL else 5 - sent.resumed_parts)
        if operation == "put_part":
            assert sent.resumed_parts == nth - 2
        assert stored(storage, KEY) == data
        check_nothing_is_left(storage, transfer, tmp_path)
        await storage.delete([KEY])


# -- a directory keeps no checksums ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SMALL, SIZE], ids=["at once", "in parts"])
async def test_without_a_kept_checksum_the_object_is_read(make, tmp_path, size):
    storage = FaultyStorage(LocalStorage(str(tmp_path / "bucket")))
    transfer = make(storage=storage)
    data = pattern(size)
    path = await file_of(tmp_path, data)
    storage.conflict(on=["put", "complete_upload"], applied=True)
    await send(transfer, path, data, condition=OnlyCreate())
    assert storage.count("get") == 1
    other = pattern(size, seed=2)
    with pytest.raises(ConditionFailedError):
        await send(transfer, await file_of(tmp_path, other, "other"), other, condition=OnlyCreate())
    storage.fail(on=["put", "complete_upload"], applied=True)
    await send(transfer, await file_of(tmp_path, other, "other"), other)
    assert (await storage.read(KEY)).data == other
    assert [upload async for upload in storage.list_uploads()] == []
    await storage.aclose()


async def test_random_faults(storage, make, notes, tmp_path, rng):
    """Many, of any kind, until it is done; and what is stored is right."""
    path = await file_of(tmp_path, DATA)
    for _ in range(20):
        transfer = make(notes=notes if rng.random() < 0.5 else None)
        for _ in range(rng.randrange(6)):
            storage.fail(nth=rng.randrange(1, 15), applied=rng.random() < 0.5)
        if rng.random() < 0.3:
            storage.conflict(on=["complete_upload"], applied=rng.random() < 0.5)
        await send(transfer, path)
        assert stored(storage, KEY) == DATA
        storage.heal()
        assert await notes.every() == []
        await storage.delete([KEY])
        bucket_of(storage).uploads.clear()
