"""Owns Google Cloud Storage as an `ObjectStorage`: what each operation asks for, and what the answers mean.

Versions are generations. Checksums are checked by the server, which is given them with every write, and here for
every object that is read whole. Sessions of uploads cannot be listed (`upload_rules.listed`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from operator import itemgetter
from typing import Any, Final, Literal

import google_crc32c

from asynctune.errors import StorageError
from asynctune.storage.base import Body
from asynctune.storage.checks import check_condition, check_part, check_parts, closed
from asynctune.storage.gcs_auth import GcsOptions
from asynctune.storage.gcs_bucket import LISTED_FIELDS, GcsBucket
from asynctune.storage.gcs_http import GcsHttp
from asynctune.storage.gcs_objects import (
    RULES,
    condition_params,
    info_of_resource,
)
from asynctune.storage.gcs_sessions import GcsSessions
from asynctune.storage.keys import MAX_KEY_BYTES, check_key, check_prefix
from asynctune.storage.retry import Retry
from asynctune.storage.streams import (
    CHUNK_BYTES,
    check_range,
    check_source,
    open_body,
    paced_body,
    read_whole,
    source_chunks,
    source_size,
)
from asynctune.storage.threads import Stop, Threads
from asynctune.storage.uri import StorageURI
from asynctune.storage.values import (
    Always,
    Condition,
    Conflict,
    Directory,
    ObjectContent,
    ObjectInfo,
    Outcome,
    PendingUpload,
    Source,
    Upload,
    UploadedPart,
    UploadRules,
)

__all__ = ["GcsStorage", "open_storage"]

_ALWAYS: Final = Always()
_PAGE: Final = 1000
_DELETIONS: Final = 16


async def open_storage(
    uri: StorageURI, options: Mapping[str, Any], *, retry: Retry | None = None
) -> GcsStorage:
    """Open a bucket with a prefix; asks nothing of it.

    Args:
        uri: A `gs://` location.
        options: See `asynctune.storage.gcs_auth`.
        retry: How requests are repeated.

    Raises:
        ConfigError: An option is unknown, or cannot be.
        AuthenticationError: The credentials that are named cannot be read.
    """
    checked = GcsOptions(options)
    threads = Threads("gcs")
    try:
        credentials = await threads.run(checked.credentials)
        http = GcsHttp(checked.endpoint, uri.bucket, credentials, signed=checked.signed)
    except BaseException:
        threads.close()
        raise
    return GcsStorage(uri, http, threads, Retry(location=str(uri)) if retry is None else retry)


class GcsStorage:
    """A prefix of a bucket; made by `open_storage`."""

    def __init__(self, uri: StorageURI, http: GcsHttp, threads: Threads, retry: Retry) -> None:
        self._location = str(uri)
        self._prefix = f"{uri.prefix}/" if uri.prefix else ""
        self._http = http
        self._threads = threads
        self._retry = retry
        self._bucket = GcsBucket(self._location, self._prefix, http, threads)
        self._sessions = GcsSessions(http, threads)
        self._closed = False

    @property
    def location(self) -> str:
        """`gs://bucket/prefix`."""
        return self._location

    @property
    def supports_conditions(self) -> bool:
        """Always: `ifGenerationMatch`."""
        return True

    @property
    def upload_rules(self) -> UploadRules:
        """Those of resumable sessions."""
        return RULES

    @property
    def max_key_bytes(self) -> int:
        """See `ObjectStorage.max_key_bytes`."""
        return MAX_KEY_BYTES - len(self._prefix.encode())

    # -- whole objects ---------------------------------------------------------------------------------------

    async def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStorage.head`."""
        name = self._name("head", key)
        return await self._retry.run(lambda: self._bucket.head("head", key, name), operation="head", key=key)

    @asynccontextmanager
    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, version: str | None = None
    ) -> AsyncGenerator[Body, None]:
        """See `ObjectStorage.get`."""
        name = self._name("get", key)
        check_range(key, start, length)
        async with AsyncExitStack() as stack:
            info, chunks = await self._retry.run(
                lambda: self._bucket.open(stack, key, name, (start, length), version),
                operation="get",
                key=key,
            )
            chunks = paced_body(chunks, key=key, clock=self._retry.clock, policy=self._retry.policy)
            async with open_body(chunks, info, start=start, length=length) as body:
                yield body

    async def read(self, key: str, *, max_bytes: int = 16 << 20) -> ObjectContent:
        """See `ObjectStorage.read`."""
        name = self._name("read", key)
        return await self._retry.run(
            lambda: read_whole(self._once(key, name), max_bytes),
            operation="read",
            key=key,
            size_bytes=max_bytes,
        )

    @asynccontextmanager
    async def _once(self, key: str, name: str) -> AsyncGenerator[Body, None]:
        async with AsyncExitStack() as stack:
            info, chunks = await self._bucket.open(stack, key, name, (0, None), None)
            async with open_body(chunks, info) as body:
                yield body

    async def put(
        self, key: str, data: Source, *, condition: Condition = _ALWAYS, crc32c: int | None = None
    ) -> Outcome:
        """See `ObjectStorage.put`. The source is read twice: the server is told the checksum before the bytes."""
        name = self._name("put", key)
        check_condition(condition, supported=True, location=self._location)
        check_source(data)
        check = await self._checksum("put", key, data, crc32c)
        params = condition_params(condition)
        if params is None:
            return Conflict()
        return await self._retry.run(
            lambda: self._bucket.put(key, name, data, params, check),
            operation="put",
            key=key,
            size_bytes=source_size(data),
        )

    async def delete(self, keys: Collection[str]) -> None:
        """See `ObjectStorage.delete`."""
        names = [(key, self._name("delete", key)) for key in keys]
        waiting = iter(enumerate(names))
        failures: list[tuple[int, StorageError]] = []

        async def some() -> None:
            for number, (key, name) in waiting:
                try:
                    await self._retry.run(
                        partial(self._bucket.delete, key, name), operation="delete", key=key
                    )
                except StorageError as error:
                    failures.append((number, error))
                    return  # the others go on: what can go is to go

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(_DELETIONS, len(names))):
                tasks.create_task(some())
        if failures:
            raise min(failures, key=itemgetter(0))[1]

    async def list_objects(
        self, prefix: str = "", *, delimiter: Literal["/"] | None = None, start_after: str | None = None
    ) -> AsyncGenerator[ObjectInfo | Directory, None]:
        """See `ObjectStorage.list_objects`."""
        self._check_open("list_objects")
        whole, behind = self._prefix + check_prefix(prefix), start_after or ""
        params = {"prefix": whole, "maxResults": str(_PAGE), "fields": LISTED_FIELDS}
        if start_after is not None:
            params["startOffset"] = max(whole, self._prefix + start_after)  # which is listed too
        if delimiter is not None:
            params["delimiter"] = delimiter
        while True:
            page = await self._retry.run(
                partial(self._bucket.page, "list_objects", dict(params)), operation="list_objects", key=None
            )
            entries: list[tuple[str, ObjectInfo | Directory]] = []
            for item in page.get("items", []):
                key = str(item.get("name", "")).removeprefix(self._prefix)
                entries.append((key, info_of_resource("list_objects", key, item)))
            for name in page.get("prefixes", []):
                key = str(name).removeprefix(self._prefix)
                entries.append((key, Directory(key)))
            for key, entry in sorted(entries, key=itemgetter(0)):  # code points sort as UTF-8 does
                if key > behind:
                    yield entry
            if not (token := page.get("nextPageToken")):
                return
            params["pageToken"] = token

    # -- uploads in parts: see `gcs_sessions` ------------------------------------------------------------------

    async def begin_upload(
        self,
        key: str,
        *,
        size_bytes: int,
        part_bytes: int,
        condition: Condition = _ALWAYS,
        crc32c: int | None = None,
    ) -> Upload | Conflict:
        """See `ObjectStorage.begin_upload`."""
        name = self._name("begin_upload", key)
        check_condition(condition, supported=True, location=self._location)
        RULES.check(size_bytes, part_bytes)
        params = condition_params(condition)
        if params is None:
            return Conflict()
        upload_id = await self._retry.run(
            lambda: self._bucket.begin(key, name, size_bytes, params, crc32c),
            operation="begin_upload",
            key=key,
        )
        if upload_id is None:
            return Conflict()
        self._sessions.begun(upload_id)
        return Upload(
            key=key,
            upload_id=upload_id,
            size_bytes=size_bytes,
            part_bytes=part_bytes,
            condition=condition,
            crc32c=crc32c,
        )

    async def put_part(
        self, upload: Upload, number: int, data: Source, *, crc32c: int | None = None
    ) -> UploadedPart:
        """See `ObjectStorage.put_part`. The last part is kept aside, in memory if it is bytes."""
        self._name("put_part", upload.key)
        _, size_bytes = check_part(upload, number, data)
        if crc32c is not None:
            await self._checksum("put_part", upload.key, data, crc32c)
        return await self._retry.run(
            lambda: self._sessions.put_part(upload, number, data, crc32c),
            operation="put_part",
            key=upload.key,
            size_bytes=size_bytes,
        )

    async def list_parts(self, upload: Upload) -> list[UploadedPart]:
        """See `ObjectStorage.list_parts`."""
        self._name("list_parts", upload.key)
        return await self._retry.run(
            lambda: self._sessions.parts(upload), operation="list_parts", key=upload.key
        )

    async def complete_upload(self, upload: Upload, parts: Sequence[UploadedPart]) -> Outcome:
        """See `ObjectStorage.complete_upload`."""
        name = self._name("complete_upload", upload.key)
        last = check_parts(upload, parts)[-1]
        return await self._retry.run(
            lambda: self._complete(upload, name),
            operation="complete_upload",
            key=upload.key,
            size_bytes=last.size_bytes,
        )

    async def _complete(self, upload: Upload, name: str) -> Outcome:
        state = await self._sessions.complete(upload)
        if isinstance(state, Conflict):
            return state
        stored = await self._bucket.completed(upload, name, state.resource)
        self._sessions.forget(upload.upload_id)
        return stored

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """See `ObjectStorage.abort_upload`."""
        self._name("abort_upload", key)
        await self._retry.run(lambda: self._sessions.abort(key, upload_id), operation="abort_upload", key=key)

    async def list_uploads(self, prefix: str = "") -> AsyncGenerator[PendingUpload, None]:
        """Nothing: Google Cloud Storage does not tell of its sessions, as `upload_rules.listed` says."""
        self._check_open("list_uploads")
        check_prefix(prefix)
        return
        yield

    # -- the end ---------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """See `ObjectStorage.aclose`."""
        self._closed = True
        try:
            await self._http.aclose()
        finally:
            self._threads.close()

    # -- small things ----------------------------------------------------------------------------------------

    def _check_open(self, operation: str) -> None:
        if self._closed:
            raise closed(operation, self._location)

    def _name(self, operation: str, key: str) -> str:
        self._check_open(operation)
        return self._prefix + check_key(key, self.max_key_bytes)

    async def _checksum(self, operation: str, key: str, data: Source, crc32c: int | None) -> int:
        def check(stop: Stop | None = None) -> int:
            found = 0
            with closing(source_chunks(data, operation=operation, key=key, crc32c=crc32c)) as chunks:
                for chunk in chunks:
                    if stop is not None:
                        stop.check()
                    found = google_crc32c.extend(found, chunk)
            return found

        if isinstance(data, bytes) and len(data) <= CHUNK_BYTES:
            return check()
        return await self._threads.run_stoppable(check)
