"""Bytes on their way: what is sent ends before it is wrong, what arrives is whole or an error."""

from __future__ import annotations

import asyncio
import itertools
import os
from contextlib import aclosing

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.errors import ConfigError, StorageError
from asynctune.storage.retry import RetryPolicy
from asynctune.storage.streams import (
    CHUNK_BYTES,
    check_source,
    checked_body,
    open_body,
    paced_body,
    read_source,
    source_chunks,
)
from asynctune.storage.threads import Threads
from asynctune.storage.values import FileRange, ObjectInfo
from asynctune.testing import ManualClock
from asynctune.testing.storage_scenes import file_of, pattern

DATA = pattern(3 * CHUNK_BYTES + 5)
CRC = google_crc32c.value(DATA)


def info(data: bytes, crc32c: int | None = None) -> ObjectInfo:
    return ObjectInfo("k", len(data), "v", google_crc32c.value(data) if crc32c is None else crc32c, 0.0)


async def arriving(*chunks: bytes):
    for chunk in chunks:
        yield chunk


async def received(chunks, of: ObjectInfo, **options) -> bytes:
    return b"".join([chunk async for chunk in checked_body(chunks, of, **options)])


def read_all(source, crc32c: int | None = None) -> list[bytes]:
    return list(source_chunks(source, operation="put", key="k", crc32c=crc32c))


def open_files() -> set[str]:
    return {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    }


# -- what is sent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crc32c", [None, CRC], ids=["unknown", "known"])
async def test_bytes_and_files_are_read_alike(tmp_path, crc32c):
    path = await file_of(tmp_path, b"before" + DATA + b"after")
    sources = (DATA, FileRange(path, 6, len(DATA)))
    threads = Threads("test", 1)
    for source in sources:
        chunks = await asyncio.to_thread(read_all, source, crc32c)
        assert b"".join(chunks) == DATA
        assert max(len(chunk) for chunk in chunks) <= CHUNK_BYTES
        reading = read_source(source, threads, operation="put", key="k", crc32c=crc32c)
        assert [chunk async for chunk in reading] == chunks
    threads.close()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_a_wrong_checksum_is_found_before_the_last_byte(size):
    sent: list[bytes] = []
    with pytest.raises(StorageError, match="checksum should be") as caught:
        sent.extend(source_chunks(DATA[:size], operation="put", key="k", crc32c=CRC))
    assert sum(map(len, sent)) < max(size, 1)
    assert not caught.value.retryable
    assert (caught.value.operation, caught.value.key) == ("put", "k")


async def test_a_file_that_ends_too_early_is_an_error(tmp_path):
    path = await file_of(tmp_path, DATA)
    for source in (
        FileRange(path, 1, len(DATA)),
        FileRange(f"{path}x", 0, 1),
        FileRange(str(tmp_path), 0, 1),
    ):
        with pytest.raises(StorageError, match="source") as caught:
            await asyncio.to_thread(read_all, source)
        assert not caught.value.retryable


async def test_a_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StorageError, match="no regular file"):
        await asyncio.to_thread(read_all, FileRange(str(tmp_path / "fifo"), 0, 1))


async def test_a_reading_that_is_given_up_closes_its_file(tmp_path):
    path = await file_of(tmp_path, DATA)
    threads = Threads("test", 1)
    reading = read_source(FileRange(path, 0, len(DATA)), threads, operation="put", key="k")
    async with aclosing(reading):
        await anext(reading)
        assert path in open_files()
    await threads.run(lambda: None)  # the closing was before it
    assert path not in open_files()
    threads.close()


@pytest.mark.parametrize(
    "data", [None, "text", bytearray(b"1"), FileRange("/f", -1, 1), FileRange("/f", 0, -1)]
)
def test_what_is_no_source_is_refused(data):
    with pytest.raises(ConfigError):
        check_source(data)


# -- what is received --------------------------------------------------------------------------------------


@given(
    st.binary(max_size=50),
    st.lists(st.integers(0, 50), max_size=6),
    st.integers(0, 60),
    st.none() | st.integers(0, 60),
)
async def test_what_arrives_whole_is_handed_on(data, cuts, start, length):
    wanted = data[start:] if length is None else data[start : start + length]
    edges = [0, *sorted(min(cut, len(wanted)) for cut in cuts), len(wanted)]
    pieces = [wanted[a:b] for a, b in itertools.pairwise(edges)]
    assert await received(arriving(*pieces), info(data), start=start, length=length) == wanted


@pytest.mark.parametrize(
    "chunks", [[], [b"ab"], [b"ab", b"c"], [b"abcd", b"e"], [b"abcX"], [b"Xbcd"]], ids=repr
)
async def test_what_does_not_is_an_error(chunks):
    seen = []

    async def read():
        async for chunk in checked_body(arriving(*chunks), info(b"abcd")):
            seen.append(chunk)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(StorageError, match="get of 'k'") as caught:
        await read()
    assert caught.value.retryable
    assert len(b"".join(seen)) < 4


@pytest.mark.parametrize("chunks", [[], [b"b"], [b"bc", b"d"]], ids=repr)
async def test_the_length_is_checked_where_no_checksum_can_be(chunks):
    with pytest.raises(StorageError, match="get of 'k'") as caught:
        await received(arriving(*chunks), info(b"abcd"), start=1, length=2)
    assert caught.value.retryable


async def test_the_checksum_is_that_of_the_whole_object():
    wrong = info(b"abcd", crc32c=1)
    assert await received(arriving(b"bc"), wrong, start=1, length=2) == b"bc"
    with pytest.raises(StorageError, match="checksum"):
        await received(arriving(b"abcd"), wrong, start=0, length=10)
    unknown = ObjectInfo("k", 4, "v", None, 0.0)
    assert await received(arriving(b"abcX"), unknown) == b"abcX"


async def test_leaving_the_block_closes_what_arrives():
    closed = []

    async def endless():
        try:
            while True:
                yield b"x"
        finally:
            closed.append(True)

    async with open_body(endless(), info(bytes(100))) as body:
        async for _ in body:
            break
    assert closed


# -- how fast it has to come ---------------------------------------------------------------------------------


PACE = RetryPolicy(request_s=10.25, min_bytes_per_s=2.0)


@pytest.mark.parametrize("pause_s", [0.0, 1.0, 60.0], ids=["at once", "slowly", "never"])
async def test_a_body_that_comes_too_slowly_is_given_up(pause_s):
    """A byte a second, where two are asked for; it is not held up by what its reader does meanwhile."""
    clock = ManualClock()
    closed = asyncio.Event()

    async def coming():
        try:
            for _ in range(100):
                await clock.sleep(pause_s)
                yield b"1"
        finally:
            closed.set()

    got: list[bytes] = []

    async def read() -> None:
        async for chunk in paced_body(coming(), key="k", clock=clock, policy=PACE):
            got.append(chunk)
            clock.move(3600.0)  # the reader's own time

    reading = asyncio.create_task(read())
    while not reading.done():
        await clock.advance(0.5)
    assert closed.is_set()
    if not pause_s:
        await reading
        assert len(got) == 100
        return
    with pytest.raises(StorageError, match="too slowly") as caught:
        await reading
    assert caught.value.retryable
    assert (caught.value.operation, caught.value.key) == ("get", "k")
    # ten seconds, and half of one for each byte, which takes a whole one
    assert len(got) == (19 if pause_s == 1.0 else 0)


async def test_who_stops_reading_a_paced_body_closes_it():
    closed = asyncio.Event()

    async def coming():
        try:
            while True:
                yield b"1"
        finally:
            closed.set()

    async with aclosing(paced_body(coming(), key="k", clock=ManualClock(), policy=PACE)) as chunks:
        assert await anext(chunks) == b"1"
    assert closed.is_set()
