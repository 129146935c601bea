"""Owns the bytes on their way: a source being read to be sent, a body being checked as it arrives. Knows no storage.

Both are streams of small chunks, so that memory is bounded, and both check what can be checked: length and crc32c.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, closing, contextmanager
from typing import Final

import google_crc32c

from asynctune.clock import Clock
from asynctune.errors import ConfigError, StorageError
from asynctune.storage.base import Body
from asynctune.storage.retry import RetryPolicy
from asynctune.storage.threads import Threads
from asynctune.storage.values import FileRange, ObjectContent, ObjectInfo, Source

__all__ = [
    "CHUNK_BYTES",
    "StreamBody",
    "check_range",
    "check_source",
    "checked_body",
    "mismatch",
    "open_body",
    "paced_body",
    "range_of",
    "read_source",
    "read_whole",
    "source_chunks",
    "source_size",
]

CHUNK_BYTES: Final = 1 << 20
"""Greatest size of a chunk, in bytes."""


# -- what is sent --------------------------------------------------------------------------------------------


def source_size(data: Source) -> int:
    """How many bytes there are to send."""
    return data.size_bytes if isinstance(data, FileRange) else len(data)


def check_source(data: object, size_bytes: int | None = None) -> None:
    """Refuse what no source is, and one that has not `size_bytes`.

    Raises:
        ConfigError: It is neither bytes nor a file range, or of another size.
    """
    if not isinstance(data, bytes | FileRange):
        raise ConfigError(f"an object is made of bytes or a FileRange, not of {type(data).__name__}")
    if isinstance(data, FileRange) and (data.offset < 0 or data.size_bytes < 0):
        raise ConfigError(f"no file has the range {data}")
    if size_bytes is not None and source_size(data) != size_bytes:
        raise ConfigError(f"these are {source_size(data)} bytes, and {size_bytes} belong here")


def source_chunks(
    data: Source, *, operation: str, key: str, crc32c: int | None = None
) -> Generator[bytes, None, None]:
    """The bytes of a source, blocking; for threads. The last chunk comes only if the checksum is right.

    So a storage that sends as it reads has not sent all, and a wrong object cannot come into being.

    Raises:
        StorageError: The file cannot be read, is too short, or has another checksum. Not retryable.
    """
    check = 0
    last = b""
    with closing(_bytes_of(data, operation, key)) as chunks:
        for chunk in chunks:
            check = google_crc32c.extend(check, chunk)
            if last:
                yield last
            last = chunk
    if crc32c is not None and check != crc32c:
        raise mismatch(operation, key, crc32c, check)
    if last:
        yield last


async def read_source(
    data: Source, threads: Threads, *, operation: str, key: str, crc32c: int | None = None
) -> AsyncGenerator[bytes, None]:
    """`source_chunks` on the event loop: files are read in a thread. Close it with `contextlib.aclosing`."""
    chunks = source_chunks(data, operation=operation, key=key, crc32c=crc32c)
    if isinstance(data, bytes):
        for chunk in chunks:
            yield chunk
        return
    try:
        while (chunk := await threads.run(next, chunks, b"")) != b"":
            yield chunk
    finally:
        threads.start(chunks.close)


def _bytes_of(data: Source, operation: str, key: str) -> Generator[bytes, None, None]:
    if isinstance(data, bytes):
        if len(data) <= CHUNK_BYTES:
            yield data
            return
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]
        return
    with _source_errors(data, operation, key):
        # O_NONBLOCK: something that became a FIFO must not hang the thread
        fd = os.open(data.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _unreadable(data, operation, key, "is no regular file")
        position, left = data.offset, data.size_bytes
        while left > 0:
            with _source_errors(data, operation, key):
                chunk = os.pread(fd, min(left, CHUNK_BYTES), position)
            if not chunk:
                raise _unreadable(data, operation, key, f"ends {left} bytes too early")
            yield chunk
            position += len(chunk)
            left -= len(chunk)
    finally:
        os.close(fd)


@contextmanager
def _source_errors(data: FileRange, operation: str, key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unreadable(data, operation, key, error.strerror or str(error)) from error


def _unreadable(data: FileRange, operation: str, key: str, reason: str) -> StorageError:
    return StorageError(
        f"{operation} of {key!r}: the source {data.path} {reason}",
        operation=operation,
        key=key,
        hint="a file that is being stored must stay as it is",
    )


def mismatch(operation: str, key: str, expected: int, actual: int | None = None) -> StorageError:
    """The error for a source that does not have the checksum it should have."""
    found = "has another" if actual is None else f"has {actual:08x}"
    return StorageError(
        f"{operation} of {key!r}: the checksum should be {expected:08x}, and what was to be stored {found}",
        operation=operation,
        key=key,
        hint="it was changed, or damaged on the disk, since the checksum was taken; nothing was stored",
    )


# -- what is received ----------------------------------------------------------------------------------------


def check_range(key: str, start: int, length: int | None) -> None:
    """Refuse a range that cannot be.

    Raises:
        ConfigError: It begins before the object, or is shorter than nothing.
    """
    if start < 0 or (length is not None and length < 0):
        raise ConfigError(f"get of {key!r}: there is no range of {length} bytes from {start}")


def range_of(size_bytes: int, start: int, length: int | None) -> tuple[int, int]:
    """First and behind-the-last byte of a range, within an object of this size."""
    begin = min(start, size_bytes)
    return begin, size_bytes if length is None else min(begin + length, size_bytes)


async def checked_body(
    chunks: AsyncGenerator[bytes, None], info: ObjectInfo, *, start: int = 0, length: int | None = None
) -> AsyncGenerator[bytes, None]:
    """Hand on the bytes of a body, and check their number; of a whole object also the crc32c, if `info` has it.

    The checksum is known after the last byte; so the last chunk is held back until it is found right.

    Raises:
        StorageError: Too few or too many bytes, or damaged ones; retryable.
    """
    begin, end = range_of(info.size_bytes, start, length)
    expected = end - begin
    crc32c = info.crc32c if expected == info.size_bytes else None
    count, check, last = 0, 0, b""
    async with aclosing(chunks) as arriving:
        async for chunk in arriving:
            if not chunk:
                continue
            count += len(chunk)
            if count > expected:
                raise _damaged(info, f"more than the {expected} bytes asked for have come")
            if crc32c is not None:
                check = google_crc32c.extend(check, chunk)
            if last:
                yield last
            last = chunk
    if count < expected:
        raise _damaged(info, f"{count} of {expected} bytes have come")
    if crc32c is not None and check != crc32c:
        raise _damaged(info, f"the checksum is {check:08x}, not {crc32c:08x}")
    if last:
        yield last


async def paced_body(
    chunks: AsyncGenerator[bytes, None], *, key: str, clock: Clock, policy: RetryPolicy
) -> AsyncGenerator[bytes, None]:
    """Hand on the bytes of a body; who sends them slower than the policy allows is given up.

    The time that the reader takes for what it got does not count.

    Raises:
        StorageError: They come too slowly, or not at all; retryable.
    """
    left_s = policy.request_s
    async with aclosing(chunks):
        while True:
            began = clock.monotonic()
            try:
                async with clock.timeout(max(left_s, 0.0)):
                    chunk = await anext(chunks, b"")
            except TimeoutError:
                raise StorageError(
                    f"get of {key!r}: its bytes come too slowly, or no more",
                    operation="get",
                    key=key,
                    retryable=True,
                    hint="check the network and the storage's endpoint",
                ) from None
            if not chunk:
                return
            left_s += len(chunk) / policy.min_bytes_per_s - (clock.monotonic() - began)
            yield chunk


def _damaged(info: ObjectInfo, what: str) -> StorageError:
    return StorageError(
        f"get of {info.key!r}: {what}",
        operation="get",
        key=info.key,
        retryable=True,
        hint="the transfer was cut or damaged on its way, or the object is damaged where it is; read it again",
    )


class StreamBody:
    """A `Body` made of an info and a stream."""

    def __init__(self, info: ObjectInfo, chunks: AsyncIterator[bytes]) -> None:
        self._info = info
        self._chunks = chunks

    @property
    def info(self) -> ObjectInfo:
        """See `Body.info`."""
        return self._info

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks


@asynccontextmanager
async def open_body(
    chunks: AsyncGenerator[bytes, None], info: ObjectInfo, *, start: int = 0, length: int | None = None
) -> AsyncGenerator[Body, None]:
    """`checked_body` as the `Body` of an `async with`; leaving the block closes `chunks`."""
    async with aclosing(chunks), aclosing(checked_body(chunks, info, start=start, length=length)) as checked:
        yield StreamBody(info, checked)


async def read_whole(opening: AbstractAsyncContextManager[Body], max_bytes: int) -> ObjectContent:
    """What `ObjectStorage.read` answers, by `storage.get(key)`.

    Raises:
        StorageError: The object is larger than `max_bytes`; not retryable.
    """
    async with opening as body:
        info = body.info
        if info.size_bytes > max_bytes:
            raise StorageError(
                f"read of {info.key!r}: it has {info.size_bytes} bytes, more than the {max_bytes} expected",
                operation="read",
                key=info.key,
            )
        return ObjectContent(info, b"".join([chunk async for chunk in body]))
