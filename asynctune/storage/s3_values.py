"""Owns what S3's replies mean as values: objects, listings, parts; and a body on its way in both directions.

Versions are ETags, without their quotes. A checksum counts only where it is of the whole object.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import unquote

import google_crc32c

from asynctune.errors import StorageError
from asynctune.storage.crc import crc32c_of_text
from asynctune.storage.memory_bucket import IN_ANY_ORDER
from asynctune.storage.s3_errors import IncompleteReplyError, s3_errors
from asynctune.storage.streams import CHUNK_BYTES, mismatch, read_source, source_chunks
from asynctune.storage.threads import Stop, Threads
from asynctune.storage.values import (
    Condition,
    Directory,
    FileRange,
    IfVersion,
    ObjectInfo,
    OnlyCreate,
    Source,
    UploadRules,
)

__all__ = [
    "RULES",
    "Sending",
    "conditions",
    "decoded",
    "entries_of",
    "info_of",
    "prepared",
    "receiving",
    "told",
    "version_of",
]

RULES: Final[UploadRules] = IN_ANY_ORDER

_FULL: Final = (None, "FULL_OBJECT")


def told(reply: Mapping[str, Any], name: str) -> Any:
    """What a reply, or an entry of one, has to tell.

    Raises:
        IncompleteReplyError: It does not.
    """
    value = reply.get(name)
    if value is None or value == "":
        raise IncompleteReplyError(name)
    return value


def version_of(reply: Mapping[str, Any]) -> str:
    """The version that a reply tells."""
    version = str(told(reply, "ETag")).strip('"')
    if not version:
        raise IncompleteReplyError("ETag")
    return version


def conditions(condition: Condition) -> dict[str, str]:
    """A condition as arguments of a request."""
    if isinstance(condition, OnlyCreate):
        return {"IfNoneMatch": "*"}
    if isinstance(condition, IfVersion):
        return {"IfMatch": f'"{condition.version}"'}
    return {}


def info_of(key: str, reply: Mapping[str, Any], size_bytes: int | None = None) -> ObjectInfo:
    """An object, by the reply to a request for it or by its entry in a listing."""
    of_all = size_bytes is None
    if size_bytes is None:
        size_bytes = int(told(reply, "ContentLength" if "ContentLength" in reply else "Size"))
    whole = of_all and reply.get("ChecksumType") in _FULL
    crc32c = crc32c_of_text(reply.get("ChecksumCRC32C")) if whole else None
    return ObjectInfo(key, size_bytes, version_of(reply), crc32c, told(reply, "LastModified").timestamp())


def entries_of(page: Mapping[str, Any], above: str) -> list[ObjectInfo | Directory]:
    """What a page of a listing tells, in order, relative to the storage's prefix `above`."""
    found: dict[str, ObjectInfo | Directory] = {}
    for directory in page.get("CommonPrefixes", ()):
        name = told(directory, "Prefix").removeprefix(above)
        found[name] = Directory(name)
    for entry in page.get("Contents", ()):
        key = told(entry, "Key").removeprefix(above)
        # A key that ends in a slash is what consoles make of a directory; asynctune has none.
        if key and not key.endswith("/"):
            found[key] = info_of(key, {**entry, "ChecksumType": "unknown"})
    return [found[name] for name in sorted(found)]  # code points and UTF-8 bytes have the same order


def decoded(text: str, page: Mapping[str, Any]) -> str:
    """A key of a listing that was asked to be percent-encoded."""
    return unquote(text) if page.get("EncodingType") == "url" else text


# -- what is sent --------------------------------------------------------------------------------------------


class Sending:
    """A file on its way, for aiohttp, which may send it more than once; keeps the error that ended it.

    Args:
        data: What is sent.
        threads: Where it is read.
        operation: For messages.
        key: For messages.
        crc32c: Of `data`; without it the last chunk is not sent.
    """

    def __init__(self, data: FileRange, threads: Threads, operation: str, key: str, crc32c: int) -> None:
        self._data = data
        self._threads = threads
        self._operation = operation
        self._key = key
        self._crc32c = crc32c
        self.error: StorageError | None = None

    def read(self) -> bytes:
        """Only there because botocore takes for a body what has it."""
        raise NotImplementedError

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        self.error = None
        reading = read_source(
            self._data, self._threads, operation=self._operation, key=self._key, crc32c=self._crc32c
        )
        async with aclosing(reading) as chunks:
            try:
                async for chunk in chunks:
                    yield chunk
            except StorageError as error:
                self.error = error
                raise


async def prepared(
    data: Source, threads: Threads, *, operation: str, key: str, crc32c: int | None
) -> tuple[bytes | Sending, int]:
    """What is to be sent, with its checksum, which goes ahead of it.

    A file of one chunk is read at once. A larger one is read as it is sent, and before, if its checksum is not known.

    Raises:
        StorageError: The file cannot be read, is too short, or `data` has another checksum. Not retryable.
    """
    if isinstance(data, FileRange) and data.size_bytes > CHUNK_BYTES:
        source = data
        if crc32c is None:
            crc32c = await threads.run_stoppable(lambda stop: _checksum(source, operation, key, stop))
        return Sending(source, threads, operation, key, crc32c), crc32c
    if isinstance(data, FileRange):
        data = await threads.run(lambda: b"".join(source_chunks(data, operation=operation, key=key)))
    if len(data) > CHUNK_BYTES:
        found = await threads.run(google_crc32c.value, data)
    else:
        found = google_crc32c.value(data)
    if crc32c is not None and found != crc32c:
        raise mismatch(operation, key, crc32c, found)
    return data, found


def _checksum(data: FileRange, operation: str, key: str, stop: Stop) -> int:
    found = 0
    for chunk in source_chunks(data, operation=operation, key=key):
        stop.check()
        found = google_crc32c.extend(found, chunk)
    return found


# -- what is received ----------------------------------------------------------------------------------------


async def receiving(body: Any, *, key: str, location: str) -> AsyncGenerator[bytes, None]:
    """The bytes of a body."""
    while True:
        with s3_errors("get", key, location):
            chunk = await body.read(CHUNK_BYTES)
        if not chunk:
            return
        yield chunk
