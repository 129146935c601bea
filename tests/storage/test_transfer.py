"""Files to and from every kind of storage, and what they take of memory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
import time
import tracemalloc
import urllib.request
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio

from asynctune.errors import AuthenticationError, ConfigError, NotFoundError, StorageError
from asynctune.storage.base import ObjectStorage
from asynctune.storage.budget import ByteBudget
from asynctune.storage.local import LocalStorage
from asynctune.storage.notes import UploadNotes
from asynctune.storage.transfer import Transfer
from asynctune.storage.uri import open_storage
from asynctune.storage.values import OnlyCreate, UploadedPart
from asynctune.testing import FaultyStorage
from asynctune.testing.storage_scenes import cancelled, file_of, pattern, sparse_file
from tests.storage.discarding import DiscardingStorage, crc32c_of_zeros
from tests.storage.fake_gcs import FakeGcs
from tests.storage.moto import moto_server
from tests.storage.transfers import QuickClock, crc32c_of, let_threads_end, memory, open_files

PART = 5 << 20
SIZE = 2 * PART + 12_345
KEY = "trial/checkpoint_000001/model.pt"


@pytest.fixture(scope="session")
def s3_endpoint():
    with moto_server() as url:
        yield url


async def open_s3(endpoint: str, bucket: str):
    options = {"key": "AKTEST", "secret": "hidden", "endpoint_url": endpoint, "region": "us-east-1"}
    return await open_storage(f"s3://{bucket}/some/prefix", options)


@pytest_asyncio.fixture(params=["memory", "memory in order", "local", "s3", "gcs"])
async def storage(request, tmp_path):
    if request.param.startswith("memory"):
        yield FaultyStorage(memory("in order" if "order" in request.param else "any order"))
    elif request.param == "local":
        opened: ObjectStorage = LocalStorage(str(tmp_path / "bucket"))
        yield FaultyStorage(opened)
        await opened.aclose()
    elif request.param == "s3":
        endpoint = request.getfixturevalue("s3_endpoint")
        bucket = f"bucket-{random.SystemRandom().getrandbits(64):x}"
        making = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")
        (await asyncio.to_thread(urllib.request.urlopen, making, None, 20)).close()
        opened = await open_s3(endpoint, bucket)
        yield FaultyStorage(opened)
        await opened.aclose()
    else:
        async with FakeGcs() as server:
            options = {"endpoint_url": server.url, "anonymous": True}
            opened = await open_storage("gs://bucket/p", options)
            yield FaultyStorage(opened)
            await opened.aclose()


@pytest_asyncio.fixture
async def transfer(storage, tmp_path):
    notes = UploadNotes(str(tmp_path / "uploads"), location=storage.location)
    made = Transfer(
        storage, budget=ByteBudget(3 * PART), notes=notes, part_bytes=PART, put_bytes=PART, clock=QuickClock()
    )
    yield made
    made.close()


async def pending(storage) -> list[str]:
    return [upload.key async for upload in storage.list_uploads()]


@pytest.mark.parametrize("size", [0, 1000, PART, SIZE])
async def test_there_and_back(storage, transfer, tmp_path, size):
    data = pattern(size)
    path = await file_of(tmp_path, data)
    crc32c = crc32c_of(data)
    sent = await transfer.send(KEY, path, size_bytes=size, crc32c=crc32c, condition=OnlyCreate())
    assert (sent.sent_bytes, sent.resumed_parts) == (size, 0)
    assert await transfer.holds(KEY, size_bytes=size, crc32c=crc32c) == sent.version
    assert await transfer.holds(KEY, size_bytes=size + 1, crc32c=crc32c) is None
    assert await transfer.holds(KEY, size_bytes=size, crc32c=crc32c ^ 1) is None
    assert await transfer.holds("missing", size_bytes=size, crc32c=crc32c) is None
    target = tmp_path / "back"
    await transfer.receive(
        KEY,
        str(target),
        size_bytes=size,
        crc32c=crc32c,
        sha256=hashlib.sha256(data).hexdigest(),
        version=sent.version,
    )
    assert target.read_bytes() == data
    assert await pending(storage) == []
    assert not (tmp_path / "uploads").exists() or os.listdir(tmp_path / "uploads") == []
    assert transfer.storage is storage


@pytest.mark.parametrize("lost", ["put", "begin_upload", "put_part", "complete_upload"])
async def test_a_reply_that_is_lost_is_settled(storage, transfer, tmp_path, lost):
    size = 1000 if lost == "put" else SIZE
    data = pattern(size)
    path = await file_of(tmp_path, data)
    fault = storage.fail(on=lost, applied=True)
    await transfer.send(KEY, path, size_bytes=size, crc32c=crc32c_of(data), condition=OnlyCreate())
    assert fault.hits == 1
    assert (await storage.read(KEY)).data == data
    assert await pending(storage) == []


async def test_another_process_sends_only_what_is_missing(storage, transfer, tmp_path):
    data = pattern(SIZE)
    path = await file_of(tmp_path, data)
    given = {"size_bytes": SIZE, "crc32c": crc32c_of(data)}
    fault = storage.hang(on="put_part", nth=2)
    sending = asyncio.create_task(transfer.send(KEY, path, **given))
    await fault.struck.wait()
    parts: list[UploadedPart] = []
    while not parts:
        (upload,) = await transfer._means.notes.every()
        parts = await storage.storage.list_parts(upload)
    await cancelled(sending)
    storage.heal()
    begun = storage.count("begin_upload")
    sent = await transfer.send(KEY, path, **given)
    assert storage.count("begin_upload") == begun == 1
    assert sent.resumed_parts >= len(parts)
    assert sent.sent_bytes <= SIZE - sum(part.size_bytes for part in parts)
    assert (await storage.read(KEY)).data == data
    assert await pending(storage) == []
    assert os.listdir(tmp_path / "uploads") == []


@pytest.mark.parametrize("after", [1, 2, 4, 8])
async def test_a_killed_process_is_gone_on_with(tmp_path, after):
    """After so many of its requests, in whatever state that is: what is there whole is not sent again."""
    part_bytes, data = 200_000, pattern(1_100_000)
    path, notes_path = await file_of(tmp_path, data), str(tmp_path / "uploads")
    storage = FaultyStorage(LocalStorage(str(tmp_path / "bucket")))
    command = ["tests.storage.killed_sender", storage.location, notes_path, path, str(part_bytes)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    for _ in range(after):
        assert await process.stdout.readline()
    process.kill()
    await process.communicate()
    notes = UploadNotes(notes_path, location=storage.location)
    transfer = Transfer(storage, notes=notes, part_bytes=part_bytes, put_bytes=part_bytes)
    done = await storage.head("a/b")
    there = 0
    for upload in await notes.every():
        with suppress(NotFoundError):  # it was completed, or almost
            there = len(await storage.storage.list_parts(upload))
    sent = await transfer.send("a/b", path, size_bytes=len(data), crc32c=crc32c_of(data))
    assert (sent.sent_bytes == 0) if done else (sent.resumed_parts == there)
    assert storage.count("put_part") == (0 if done else 6 - there)
    assert (await storage.read("a/b")).data == data
    assert await notes.every() == []
    await transfer.abort_leftovers()  # of a process that died between the beginning and the note
    assert await pending(storage) == []
    transfer.close()
    await storage.aclose()


async def test_a_changed_file_is_no_object_and_no_upload(storage, transfer, tmp_path):
    data = pattern(SIZE)
    path = await file_of(tmp_path, data)

    def change() -> None:
        fd = os.open(path, os.O_WRONLY)
        os.pwrite(fd, b"another content", SIZE - 100)
        os.close(fd)

    storage.call(lambda _: asyncio.to_thread(change), on="put_part", nth=2)
    with pytest.raises(StorageError) as caught:
        await transfer.send(KEY, path, size_bytes=SIZE, crc32c=crc32c_of(data))
    assert not caught.value.retryable
    assert await storage.head(KEY) is None
    assert await pending(storage) == []
    assert os.listdir(tmp_path / "uploads") == []


async def test_a_cancelled_upload_leaves_nothing(storage, tmp_path):
    """Without notes."""
    transfer = Transfer(storage, part_bytes=PART, put_bytes=PART)
    path = await file_of(tmp_path, pattern(SIZE))
    for operation in ("put_part", "complete_upload"):
        fault = storage.hang(on=operation)
        sending = asyncio.create_task(transfer.send(KEY, path, size_bytes=SIZE))
        await fault.struck.wait()
        await cancelled(sending)
        assert sending.cancelled()
        storage.heal()
        assert await storage.head(KEY) is None
        assert await pending(storage) == []
        await let_threads_end(lambda: open_files(path) == [])
    transfer.close()


async def test_cancelled_at_any_moment_nothing_stays(storage, tmp_path, rng):
    """No object but a whole one, no upload, no task, no descriptor; on the way back no file."""
    data = pattern(SIZE)
    path = await file_of(tmp_path, data)
    crc32c = crc32c_of(data)
    transfer = Transfer(storage, part_bytes=PART, put_bytes=PART)
    tasks = asyncio.all_tasks()
    began = time.monotonic()
    await transfer.send(KEY, path, size_bytes=SIZE, crc32c=crc32c)
    took_s = time.monotonic() - began
    await storage.delete([KEY])
    for _ in range(5):
        sending = asyncio.create_task(transfer.send(KEY, path, size_bytes=SIZE, crc32c=crc32c))
        await asyncio.sleep(rng.uniform(0, took_s))  # whenever that is: the moment does not matter
        await cancelled(sending)
        info = await storage.head(KEY)
        assert info is None or info.size_bytes == SIZE
        assert await pending(storage) == []
        await storage.delete([KEY])
    await transfer.send(KEY, path, size_bytes=SIZE, crc32c=crc32c)
    for _ in range(5):
        target = tmp_path / "back"
        receiving = asyncio.create_task(transfer.receive(KEY, str(target), size_bytes=SIZE, crc32c=crc32c))
        await asyncio.sleep(rng.uniform(0, took_s))
        await cancelled(receiving)
        assert not receiving.cancelled() or not target.exists()
        target.unlink(missing_ok=True)
        await let_threads_end(lambda: open_files(tmp_path) == [])
    assert {task for task in asyncio.all_tasks() - tasks if "asynctune" in str(task)} == set()
    transfer.close()


async def test_leftovers_are_aborted(storage, transfer, tmp_path):
    path = await file_of(tmp_path, pattern(SIZE))
    storage.fail(AuthenticationError("expired"), on="put_part", nth=2, lasting=True)
    with pytest.raises(AuthenticationError):
        await transfer.send(KEY, path, size_bytes=SIZE)
    (noted,) = await transfer._means.notes.every()
    await storage.begin_upload("other", size_bytes=SIZE, part_bytes=PART)
    listed = storage.upload_rules.listed
    assert await transfer.abort_leftovers("", {noted.upload_id}) == (1 if listed else 0)
    assert await pending(storage) == ([KEY] if listed else [])
    storage.heal()
    await transfer.send(KEY, path, size_bytes=SIZE)
    assert storage.count("begin_upload") == 2  # the noted one was gone on with
    assert await pending(storage) == []


async def test_many_small_files(storage, transfer, tmp_path):
    data = {f"trial/f{number}": pattern(2000, number) for number in range(30)}
    paths = {key: await file_of(tmp_path, content, key[6:]) for key, content in data.items()}
    (tmp_path / "back").mkdir()
    async with asyncio.TaskGroup() as tasks:
        for key, path in paths.items():
            tasks.create_task(transfer.send(key, path, size_bytes=2000, crc32c=crc32c_of(data[key])))
    async with asyncio.TaskGroup() as tasks:
        for key, content in data.items():
            target = str(tmp_path / "back" / key[6:])
            tasks.create_task(transfer.receive(key, target, size_bytes=2000, crc32c=crc32c_of(content)))
    for key, content in data.items():
        assert (tmp_path / "back" / key[6:]).read_bytes() == content
    assert transfer._means.budget.taken_bytes == 0


# -- memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_bytes", [16 << 20, 256 << 20], ids=["at once", "in parts"])
async def test_a_large_file_is_sent_in_little_memory(tmp_path, size_bytes):
    path = await sparse_file(tmp_path, size_bytes)
    storage = DiscardingStorage()
    transfer = Transfer(storage)
    crc32c = crc32c_of_zeros(size_bytes)
    tracemalloc.start()
    try:
        sent = await transfer.send("k", path, size_bytes=size_bytes, crc32c=crc32c)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent.sent_bytes == storage.received == size_bytes
    assert storage.parts == (0 if size_bytes <= 16 << 20 else size_bytes >> 24)
    assert peak <= 24 << 20
    assert storage._bucket.uploads == {}
    transfer.close()


async def test_a_large_object_is_received_in_little_memory(tmp_path):
    size_bytes = 96 << 20
    target = tmp_path / "file"
    transfer = Transfer(DiscardingStorage())
    tracemalloc.start()
    try:
        await transfer.receive(
            str(size_bytes), str(target), size_bytes=size_bytes, crc32c=crc32c_of_zeros(size_bytes)
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert target.stat().st_size == size_bytes
    assert peak <= 24 << 20
    transfer.close()


# -- the rest ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"part_bytes": 0},
        {"parts_at_once": 0},
        {"put_bytes": -1},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
    ],
    ids=lambda options: "-".join(map(str, options)) + str(*options.values()),
)
def test_values_that_cannot_work_are_refused(options: dict[str, Any]):
    with pytest.raises(ConfigError):
        Transfer(memory(), **options)


async def test_no_message_has_the_id_of_an_upload(storage, transfer, tmp_path, caplog):
    path = await file_of(tmp_path, pattern(SIZE))
    caplog.set_level("DEBUG", logger="asynctune")
    storage.fail(StorageError("no", retryable=False), on="complete_upload", lasting=True)
    seen: list[str] = []

    async def look(_: object) -> None:
        seen.extend(upload.upload_id for upload in await transfer._means.notes.every())

    storage.call(look, on="put_part")
    with pytest.raises(StorageError) as caught:
        await transfer.send(KEY, path, size_bytes=SIZE)
    assert seen
    told = f"{caught.value!r} {getattr(caught.value, '__notes__', '')} {caplog.text}"
    assert all(upload_id not in told for upload_id in seen)


async def test_a_small_object_is_read_once_and_not_longer_than_the_patience(storage, transfer):
    await storage.storage.put("a", b"small")
    content = await transfer.read("a", max_bytes=5)
    assert (content.data, content.info.size_bytes) == (b"small", 5)
    with pytest.raises(NotFoundError):
        await transfer.read("b", max_bytes=5)
    with pytest.raises(StorageError, match="more than"):
        await transfer.read("a", max_bytes=4)
    before = storage.count("read")
    storage.fail(on="read")
    with pytest.raises(StorageError):
        await transfer.read("a", max_bytes=5)
    assert storage.count("read") == before + 1
