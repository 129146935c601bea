"""Owns the storage that is a bucket of S3, or of what speaks its protocol; knows aiobotocore through `s3_client`.

- A conditional write is one header that the server keeps: `If-None-Match: *` or `If-Match`. `412` is a `Conflict`;
  so is `404` where a version was to be replaced. `409` says that two writes met: the request is sent again.
- Each body goes with its crc32c ahead of it, which the server verifies; a body read whole is verified once more.
- Of an upload in parts each part is verified so. The checksum of the whole follows from theirs, and is compared before
  the upload is completed; where the server keeps one of the whole, `head` tells it.
- The ETag is the version: the same bytes, stored again, may have the same one.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Literal

from botocore.exceptions import ClientError

from asynctune.errors import ConditionFailedError, NotFoundError, StorageError
from asynctune.storage.base import Body
from asynctune.storage.checks import check_condition, no_object
from asynctune.storage.crc import crc32c_text
from asynctune.storage.keys import check_prefix
from asynctune.storage.retry import Retry
from asynctune.storage.s3_bucket import MISSING, PAGE, UNMET, is_conflict, sent
from asynctune.storage.s3_client import make_client, read_options
from asynctune.storage.s3_errors import code_of, s3_errors, status_of
from asynctune.storage.s3_uploads import S3Uploads
from asynctune.storage.s3_values import conditions, entries_of, info_of, prepared, receiving, told, version_of
from asynctune.storage.streams import (
    check_range,
    check_source,
    open_body,
    paced_body,
    read_whole,
    source_size,
)
from asynctune.storage.threads import Threads
from asynctune.storage.uri import StorageURI
from asynctune.storage.values import (
    Always,
    Condition,
    Conflict,
    Directory,
    ObjectContent,
    ObjectInfo,
    Outcome,
    Source,
    Stored,
)

__all__ = ["S3Storage", "open_storage"]

_ALWAYS: Final = Always()
_NO_XML: Final = re.compile("[\ufffe\uffff]")
_NO_RANGE: Final = 416
_LISTED: Final = 250  # of a thousand the XML alone takes 25 ms or more of the event loop


async def open_storage(uri: StorageURI, options: Mapping[str, Any]) -> S3Storage:
    """Open a bucket; see `s3_client.read_options` for the options. Sends nothing to the bucket yet.

    Raises:
        ConfigError: An option cannot be, or no client can be made with them.
    """
    understood = read_options(options)
    threads = Threads("s3", 4)
    try:
        return S3Storage(uri, await make_client(understood, threads), threads, understood)
    except BaseException:
        threads.close()
        raise


class S3Storage(S3Uploads):
    """A bucket with a prefix as an `ObjectStorage`. Made by `open_storage`; see `S3Bucket`."""

    # -- whole objects ---------------------------------------------------------------------------------------

    async def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStorage.head`."""
        full = self._full("head", key)
        return await self._run("head", key, lambda: self._head(key, full))

    async def _head(self, key: str, full: str) -> ObjectInfo | None:
        try:
            reply = await self._client.head_object(Bucket=self._bucket, Key=full, ChecksumMode="ENABLED")
        except ClientError as error:
            if status_of(error) != MISSING:
                raise
            await self._check_bucket("head", key)
            return None
        self._bucket_seen = True
        return info_of(key, reply)

    async def _check_bucket(self, operation: str, key: str) -> None:
        """A reply without a body does not tell a missing object from a missing bucket: ask, once."""
        if self._bucket_seen:
            return
        try:
            await self._client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            if status_of(error) == MISSING:
                raise NotFoundError(
                    f"{operation}: there is no bucket of {self._location}",
                    operation=operation,
                    key=key,
                    hint="check its name and the endpoint, or create it",
                ) from None
            if status_of(error) != 403:  # noqa: PLR2004 - who may not ask is told that by what comes next
                raise
        self._bucket_seen = True

    @asynccontextmanager
    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, version: str | None = None
    ) -> AsyncGenerator[Body, None]:
        """See `ObjectStorage.get`."""
        async with self._getting(self._retry, key, start, length, version) as body:
            yield body

    @asynccontextmanager
    async def _getting(
        self, retry: Retry, key: str, start: int, length: int | None, version: str | None
    ) -> AsyncGenerator[Body, None]:
        full = self._full("get", key)
        check_range(key, start, length)
        async with AsyncExitStack() as stack:
            info, body = await self._run(
                "get", key, lambda: self._open(stack, key, full, start, length, version), retry=retry
            )
            chunks = _nothing()
            if body is not None:
                chunks = receiving(body, key=key, location=self._location)
                chunks = paced_body(chunks, key=key, clock=self._clock, policy=self._policy)
            yield await stack.enter_async_context(open_body(chunks, info, start=start, length=length))

    async def _open(
        self, stack: AsyncExitStack, key: str, full: str, start: int, length: int | None, version: str | None
    ) -> tuple[ObjectInfo, Any]:
        """The object and the body of a range of it; `None` instead of a body without bytes."""
        ranged = start > 0 or length is not None
        more: dict[str, str] = {} if version is None else {"IfMatch": f'"{version}"'}
        if ranged:
            more["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        else:
            more["ChecksumMode"] = "ENABLED"
        try:
            if length == 0:
                return await self._open_nothing(key, full, version), None
            reply = await self._client.get_object(Bucket=self._bucket, Key=full, **more)
        except ClientError as error:
            if status_of(error) == UNMET and version is not None:
                raise self._replaced(key) from None
            if status_of(error) == _NO_RANGE:
                return await self._open_nothing(key, full, version), None
            if status_of(error) == MISSING and code_of(error) != "NoSuchBucket":
                raise no_object("get", key, self._location) from None
            raise
        body = reply["Body"]
        stack.push_async_exit(body)
        whole = str(reply.get("ContentRange", "")).rpartition("/")[2]
        if not ranged:
            return info_of(key, reply), body
        if not whole.isdigit():
            raise StorageError(
                f"get of {key!r} in {self._location}: the server sends no ranges", operation="get", key=key
            )
        return info_of(key, reply, int(whole)), body

    async def _open_nothing(self, key: str, full: str, version: str | None) -> ObjectInfo:
        info = await self._head(key, full)
        if info is None:
            raise no_object("get", key, self._location)
        if version is not None and info.version != version:
            raise self._replaced(key)
        return info

    def _replaced(self, key: str) -> ConditionFailedError:
        return ConditionFailedError(
            f"get of {key!r} in {self._location}: it was replaced", operation="get", key=key
        )

    async def read(self, key: str, *, max_bytes: int = 16 << 20) -> ObjectContent:
        """See `ObjectStorage.read`."""
        return await self._retry.run(
            lambda: read_whole(self._getting(self._once, key, 0, None, None), max_bytes),
            operation="read",
            key=key,
            size_bytes=max_bytes,
        )

    async def put(
        self, key: str, data: Source, *, condition: Condition = _ALWAYS, crc32c: int | None = None
    ) -> Outcome:
        """See `ObjectStorage.put`."""
        full = self._full("put", key)
        check_condition(condition, self._conditions, self._location)
        check_source(data)
        body, check = await prepared(data, self._threads, operation="put", key=key, crc32c=crc32c)

        async def send() -> Outcome:
            try:
                reply = await self._client.put_object(
                    Bucket=self._bucket,
                    Key=full,
                    Body=body,
                    ContentLength=source_size(data),
                    ChecksumAlgorithm="CRC32C",
                    ChecksumCRC32C=crc32c_text(check),
                    **conditions(condition),
                )
            except ClientError as error:
                if is_conflict(error, condition):
                    return Conflict()
                raise
            return Stored(version_of(reply))

        return await self._run("put", key, lambda: sent(send, body), source_size(data))

    async def delete(self, keys: Collection[str]) -> None:
        """See `ObjectStorage.delete`."""
        self._check_open("delete")
        relative = {self._full("delete", key): key for key in keys}
        single = [full for full in relative if _NO_XML.search(full)]  # no list in XML can name these
        many = [full for full in relative if not _NO_XML.search(full)]
        if len(many) == 1:
            single, many = single + many, []
        for full in single:
            await self._delete_one(full, relative[full])
        for start in range(0, len(many), PAGE):
            await self._delete_many(many[start : start + PAGE], relative)

    async def _delete_one(self, full: str, key: str) -> None:
        await self._run("delete", key, lambda: self._client.delete_object(Bucket=self._bucket, Key=full))

    async def _delete_many(self, left: list[str], relative: Mapping[str, str]) -> None:
        await self._run("delete", relative[left[0]], lambda: self._delete_page(left, relative))

    async def _delete_page(self, left: list[str], relative: Mapping[str, str]) -> None:
        """Delete what is left of a page; `left` is shortened to what the server did not delete."""
        reply = await self._client.delete_objects(
            Bucket=self._bucket, Delete={"Objects": [{"Key": full} for full in left], "Quiet": True}
        )
        errors = {e.get("Key", ""): e for e in reply.get("Errors", ()) if e.get("Code") != "NoSuchKey"}
        if not errors:
            return
        left[:] = [full for full in left if full in errors] or left
        worst = next(iter(errors.values()))
        status = {"AccessDenied": 403, "InternalError": 500, "SlowDown": 503}.get(worst.get("Code", ""), 400)
        refused = {"Error": worst, "ResponseMetadata": {"HTTPStatusCode": status}}
        with s3_errors("delete", relative.get(left[0]), self._location):
            raise ClientError(refused, "DeleteObjects")

    async def list_objects(
        self, prefix: str = "", *, delimiter: Literal["/"] | None = None, start_after: str | None = None
    ) -> AsyncGenerator[ObjectInfo | Directory, None]:
        """See `ObjectStorage.list_objects`."""
        self._check_open("list")
        whole = self._prefix + check_prefix(prefix)
        more: dict[str, Any] = {} if delimiter is None else {"Delimiter": delimiter}
        last = start_after or ""
        if last > prefix:
            if not last.startswith(prefix):
                return  # all keys with the prefix are before it; not every server sees that
            more["StartAfter"] = self._prefix + last

        def understood(page: Any) -> tuple[list[ObjectInfo | Directory], str | None]:
            token = page.get("NextContinuationToken") if told(page, "IsTruncated") else None
            return entries_of(page, self._prefix), token

        while True:
            entries, token = await self._call(
                "list", None, "list_objects_v2", understood, Prefix=whole, MaxKeys=_LISTED, **more
            )
            for entry in entries:
                name = entry.name if isinstance(entry, Directory) else entry.key
                if name > last:
                    last = name
                    yield entry
            if not token:
                return
            more["ContinuationToken"] = token
            self._check_open("list")


async def _nothing() -> AsyncGenerator[bytes, None]:
    return
    yield b""
