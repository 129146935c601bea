"""Owns single attempts at one bucket of Google Cloud Storage: what is asked, and what each answer means.

Nothing is repeated here, and no argument is checked; `asynctune.storage.gcs` does both.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any, Final

import aiohttp

from asynctune.errors import ConditionFailedError, NotFoundError, StorageError
from asynctune.storage.checks import no_object
from asynctune.storage.gcs_errors import CHECKSUM_REFUSED
from asynctune.storage.gcs_http import GcsHttp, SentBody, body_chunks, reply_json, reply_text
from asynctune.storage.gcs_objects import (
    crc32c_text,
    info_of_headers,
    info_of_resource,
    is_generation,
)
from asynctune.storage.streams import (
    mismatch,
    read_source,
    source_size,
)
from asynctune.storage.threads import Threads
from asynctune.storage.values import (
    Conflict,
    ObjectInfo,
    Outcome,
    Source,
    Stored,
    Upload,
)

__all__ = ["LISTED_FIELDS", "GcsBucket"]

_OK: Final = 200
_PARTIAL: Final = 206
_REFUSED: Final = 400
_MISSING: Final = 404
_CONFLICT: Final = (304, 412)
_NO_RANGE: Final = 416
LISTED_FIELDS: Final = "items(name,size,generation,crc32c,updated),prefixes,nextPageToken"
"""Of what a listing tells."""


class GcsBucket:
    """A bucket.

    Args:
        location: For messages.
        prefix: Of all names that are asked for; empty, or ends in `/`.
        http: Sends the requests.
        threads: Where files are read.
    """

    def __init__(self, location: str, prefix: str, http: GcsHttp, threads: Threads) -> None:
        self._location = location
        self._prefix = prefix
        self._http = http
        self._threads = threads
        self._seen = False

    async def head(self, operation: str, key: str, name: str) -> ObjectInfo | None:
        """What is known of an object; `None`: there is none."""
        try:
            resource = await self._http.metadata(operation, key, name)
        except NotFoundError:
            await self._check_bucket(operation)
            return None
        self._seen = True
        return info_of_resource(operation, key, resource)

    async def open(
        self, stack: AsyncExitStack, key: str, name: str, wanted: tuple[int, int | None], version: str | None
    ) -> tuple[ObjectInfo, AsyncGenerator[bytes, None]]:
        """Open an object, or a range of it; `stack` closes it."""
        start, length = wanted
        if length == 0 or (version is not None and not is_generation(version)):
            return await self._only_info(key, name, version), _nothing()
        params = {"alt": "media"} | ({} if version is None else {"ifGenerationMatch": version})
        headers = {"Accept-Encoding": "gzip"}  # objects come as they are stored
        ranged = start > 0 or length is not None
        end = "" if length is None else start + length - 1
        async with AsyncExitStack() as opening:
            response = await opening.enter_async_context(
                self._http.request(
                    "GET",
                    self._http.object_url(name),
                    operation="get",
                    key=key,
                    params=params,
                    headers=headers | ({"Range": f"bytes={start}-{end}"} if ranged else {}),
                )
            )
            if response.status in (_OK, _PARTIAL):
                info = info_of_headers(key, response.headers, ranged=response.status == _PARTIAL)
                _check_version(info, version)
                self._seen = True
                stack.push_async_exit(opening.pop_all())
                return info, body_chunks(response, key)
            if response.status == _MISSING:
                await self._check_bucket("get")
                raise no_object("get", key, self._location)
            if response.status in _CONFLICT:
                raise _replaced(key)
            if response.status != _NO_RANGE:
                raise await self._http.failure(response, "get", key)
        info = await self._only_info(key, name, version)
        if start < info.size_bytes:
            raise StorageError(
                f"get of {key!r}: it changed meanwhile", operation="get", key=key, retryable=True
            )
        return info, _nothing()

    async def _only_info(self, key: str, name: str, version: str | None) -> ObjectInfo:
        info = await self.head("get", key, name)
        if info is None:
            raise no_object("get", key, self._location)
        _check_version(info, version)
        return info

    async def put(self, key: str, name: str, data: Source, params: Mapping[str, str], crc32c: int) -> Outcome:
        """Store an object; `params` are its condition."""
        boundary = secrets.token_hex(16)
        # the name is in the query alone: damaged in the body it would be another object's
        metadata = json.dumps({"crc32c": crc32c_text(crc32c)})
        before = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{metadata}\r\n"
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        ).encode()
        after = f"\r\n--{boundary}--\r\n".encode()
        source = read_source(data, self._threads, operation="put", key=key, crc32c=crc32c)
        async with self._http.request(
            "POST",
            self._http.uploads_url,
            operation="put",
            key=key,
            params={"uploadType": "multipart", "name": name, **params},
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
            body=SentBody(_between(before, source, after), len(before) + source_size(data) + len(after)),
        ) as response:
            if response.status == _OK:
                info = info_of_resource("put", key, await reply_json(response, "put", key))
                await self._check_stored(info, name, crc32c, "put")
                return Stored(info.version)
            if response.status in _CONFLICT and params:
                return Conflict()
            # without a condition none can fail: then it is the server that is wrong
            raise await self._refusal(response, "put", key)

    async def _check_stored(self, info: ObjectInfo, name: str, crc32c: int | None, operation: str) -> None:
        """A server that does not look at checksums may have stored damaged bytes: they have to go."""
        self._seen = True
        if crc32c is not None and info.crc32c not in (None, crc32c):
            with suppress(NotFoundError):
                await self._http.delete(info.key, name, {"ifGenerationMatch": info.version})
            raise _damaged(operation, info.key)

    async def _refusal(self, response: aiohttp.ClientResponse, operation: str, key: str) -> StorageError:
        if response.status == _MISSING:
            return self._no_bucket(operation)
        error = await self._http.failure(response, operation, key)
        # The source was found right before: the bytes were damaged on their way.
        refused = response.status == _REFUSED and CHECKSUM_REFUSED.search(str(error))
        return _damaged(operation, key) if refused else error

    async def delete(self, key: str, name: str) -> None:
        """Delete an object; a missing one is fine."""
        try:
            await self._http.delete(key, name)
        except NotFoundError:
            await self._check_bucket("delete")

    async def page(self, operation: str, params: Mapping[str, str]) -> dict[str, Any]:
        """One page of a listing."""
        try:
            page = await self._http.listing(operation, params)
        except NotFoundError:
            raise self._no_bucket(operation) from None
        self._seen = True
        return page

    async def begin(
        self, key: str, name: str, size_bytes: int, params: Mapping[str, str], crc32c: int | None
    ) -> str | None:
        """Begin a session: its URI, or `None`, where the condition does not hold."""
        metadata = {} if crc32c is None else {"crc32c": crc32c_text(crc32c)}
        async with self._http.request(
            "POST",
            self._http.uploads_url,
            operation="begin_upload",
            key=key,
            params={"uploadType": "resumable", "name": name, **params},
            headers={
                "Content-Type": "application/json; charset=UTF-8",
                "X-Upload-Content-Type": "application/octet-stream",
                "X-Upload-Content-Length": str(size_bytes),
            },
            body=json.dumps(metadata).encode(),
        ) as response:
            if response.status in _CONFLICT and params:
                return None
            if response.status != _OK or "Location" not in response.headers:
                raise await self._refusal(response, "begin_upload", key)
            await reply_text(response, "begin_upload", key)
            self._seen = True
            return response.headers["Location"]

    async def completed(self, upload: Upload, name: str, resource: Mapping[str, Any]) -> Stored:
        """The object that a session made, if its checksum is right."""
        info = info_of_resource("complete_upload", upload.key, resource)
        try:
            await self._check_stored(info, name, upload.crc32c, "complete_upload")
        except StorageError:
            if upload.crc32c is None:
                raise
            raise mismatch("complete_upload", upload.key, upload.crc32c, info.crc32c) from None
        return Stored(info.version)

    async def _check_bucket(self, operation: str) -> None:
        """A 404 is the same for a missing bucket: look once whether it is there."""
        if not self._seen:
            await self.page(operation, {"prefix": self._prefix, "maxResults": "1", "fields": LISTED_FIELDS})

    def _no_bucket(self, operation: str) -> StorageError:
        return StorageError(
            f"{operation}: there is no bucket for {self._location}",
            operation=operation,
            hint="check its name, and the project; asynctune makes no buckets",
        )


def _check_version(info: ObjectInfo, version: str | None) -> None:
    if version is not None and info.version != version:
        raise _replaced(info.key)


def _replaced(key: str) -> ConditionFailedError:
    return ConditionFailedError(f"get of {key!r}: it was replaced", operation="get", key=key)


def _damaged(operation: str, key: str) -> StorageError:
    return StorageError(
        f"{operation} of {key!r}: the bytes were damaged on their way, and are not stored",
        operation=operation,
        key=key,
        retryable=True,
    )


async def _nothing() -> AsyncGenerator[bytes, None]:
    return
    yield b""


async def _between(
    before: bytes, source: AsyncGenerator[bytes, None], after: bytes
) -> AsyncGenerator[bytes, None]:
    async with aclosing(source) as chunks:
        yield before
        async for chunk in chunks:
            yield chunk
        yield after
