"""Owns resumable upload sessions: where one stands, its bytes in order, its end. Knows parts, and no object by name.

A session's URI is a secret: who has it may write. It is in no message, and requests to it are not signed.

The server may take a part of what is sent, and tells in the `Range` of its 308 how much it holds; sending goes on
from there. What it holds cannot be replaced. So a part whose checksum is known is read and checked before its first
byte is sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from asynctune.errors import ConfigError, StorageError
from asynctune.storage.checks import no_upload
from asynctune.storage.gcs_errors import CHECKSUM_REFUSED
from asynctune.storage.gcs_http import GcsHttp, SentBody, reply_json, reply_text
from asynctune.storage.streams import mismatch, read_source
from asynctune.storage.threads import Threads
from asynctune.storage.values import Conflict, FileRange, Source, Upload, UploadedPart

__all__ = ["Finished", "GcsSessions"]

_DONE: Final = (200, 201)
_INCOMPLETE: Final = 308
_REFUSED: Final = 400
_CONFLICT: Final = 412
_GONE: Final = (404, 410, 499)
_RANGE: Final = re.compile(r"bytes=0-(\d+)")
_MAX_KNOWN: Final = 1000


@dataclass(frozen=True, slots=True)
class Finished:
    """The session has made its object, which the server describes so."""

    resource: dict[str, Any]


class GcsSessions:
    """What this process knows of sessions: how many bytes they hold, and the last parts that are kept aside."""

    def __init__(self, http: GcsHttp, threads: Threads) -> None:
        self._http = http
        self._threads = threads
        self._held: dict[str, int] = {}
        self._aside: dict[str, tuple[Source, int | None]] = {}

    def begun(self, upload_id: str) -> None:
        """A session was begun, and holds nothing yet."""
        self._know(upload_id, 0)

    def _know(self, upload_id: str, held: int) -> None:
        if len(self._held) >= _MAX_KNOWN:
            self._held.clear()
        self._held[upload_id] = held

    def last_part(self, upload: Upload) -> tuple[Source, int | None]:
        """What was kept.

        Raises:
            ConfigError: Nothing was, in this process.
        """
        if upload.upload_id not in self._aside:
            raise ConfigError(
                f"upload of {upload.key!r}: the last part is sent by complete_upload; "
                "this process has to put it (again) before"
            )
        return self._aside[upload.upload_id]

    def forget(self, upload_id: str) -> None:
        """The session is over."""
        self._held.pop(upload_id, None)
        self._aside.pop(upload_id, None)

    async def held(self, upload: Upload, operation: str, *, ask: bool = False) -> int | Finished:
        """How many bytes the session holds.

        Args:
            upload: Whose session.
            operation: For messages.
            ask: Whether to ask the server, also where it is known.

        Raises:
            NotFoundError: The session is gone.
        """
        if not ask and upload.upload_id in self._held:
            return self._held[upload.upload_id]
        state = await self._put(upload, operation, {"Content-Range": f"bytes */{upload.size_bytes}"}, b"")
        if isinstance(state, Conflict):
            raise no_upload(operation, upload.key)
        return state

    async def send(
        self,
        upload: Upload,
        operation: str,
        start: int,
        part: tuple[int, int],
        data: Source,
        crc32c: int | None,
    ) -> int | Finished | Conflict:
        """Send the bytes of a part from `start` on; how many the session holds then.

        Args:
            upload: Whose session.
            operation: For messages.
            start: How many bytes it holds; inside of the part.
            part: Offset and size of the part.
            data: All of the part.
            crc32c: Of all of the part.
        """
        offset, size_bytes = part
        left = offset + size_bytes - start
        if start > offset:
            data, crc32c = _rest(data, start - offset), None
        body = SentBody(
            read_source(data, self._threads, operation=operation, key=upload.key, crc32c=crc32c), left
        )
        headers = {"Content-Range": f"bytes {start}-{start + left - 1}/{upload.size_bytes}"}
        return await self._put(upload, operation, headers, body)

    # -- parts ------------------------------------------------------------------------------------------------

    async def parts(self, upload: Upload) -> list[UploadedPart]:
        """The parts that the session holds whole; the last one is never there."""
        held = await self.held(upload, "list_parts", ask=True)
        if isinstance(held, Finished):
            raise no_upload("list_parts", upload.key)
        return [UploadedPart(n, upload.part_bytes) for n in range(1, held // upload.part_bytes + 1)]

    async def put_part(self, upload: Upload, number: int, data: Source, crc32c: int | None) -> UploadedPart:
        """One attempt at `ObjectStorage.put_part`."""
        offset, size_bytes = upload.part_range(number)
        held = await self.held(upload, "put_part")
        if isinstance(held, int) and held < offset:  # another process may have gone on
            held = await self.held(upload, "put_part", ask=True)
        if isinstance(held, Finished):
            raise no_upload("put_part", upload.key)
        if held < offset:
            comes = held // upload.part_bytes + 1
            raise ConfigError(f"upload of {upload.key!r}: part {comes} comes next, not {number}")
        if number == upload.num_parts:
            self._aside[upload.upload_id] = data, crc32c
        elif held < offset + size_bytes:
            state = await self.send(upload, "put_part", held, (offset, size_bytes), data, crc32c)
            if not isinstance(state, int):
                raise no_upload("put_part", upload.key)
            if state < offset + size_bytes:
                raise _not_all("put_part", upload.key)
        return UploadedPart(number, size_bytes, crc32c=crc32c)

    async def complete(self, upload: Upload) -> Finished | Conflict:
        """One attempt at `ObjectStorage.complete_upload`."""
        operation = "complete_upload"
        held = await self.held(upload, operation)
        if isinstance(held, Finished):
            return held  # by an earlier attempt, whose reply was lost
        part = upload.part_range(upload.num_parts)
        if held < part[0]:
            raise no_upload(operation, f"{upload.key} (part {held // upload.part_bytes + 1})")
        data, crc32c = self.last_part(upload)
        state = await self.send(upload, operation, held, part, data, crc32c)
        if isinstance(state, int):
            raise _not_all(operation, upload.key)
        return state

    async def _put(
        self, upload: Upload, operation: str, headers: dict[str, str], body: SentBody | bytes
    ) -> int | Finished | Conflict:
        key, upload_id = upload.key, upload.upload_id
        self._held.pop(upload_id, None)  # unknown, until there is an answer
        async with self._http.request(
            "PUT",
            _checked(upload_id, operation, key),
            operation=operation,
            key=key,
            headers=headers,
            body=body,
            signed=False,
        ) as response:
            status = response.status
            if status in _DONE:
                return Finished(await reply_json(response, operation, key))
            if status == _INCOMPLETE:
                found = _RANGE.fullmatch(response.headers.get("Range", ""))
                held = 0 if found is None else int(found[1]) + 1
                await reply_text(response, operation, key)
                self._know(upload_id, held)
                return held
            if status == _CONFLICT:
                return Conflict()
            if status in _GONE:
                raise no_upload(operation, key)
            if status == _REFUSED and upload.crc32c is not None:
                text = await reply_text(response, operation, key)
                if CHECKSUM_REFUSED.search(text):
                    raise mismatch(operation, key, upload.crc32c)
            raise await self._failure(response, operation, key)

    async def _failure(self, response: Any, operation: str, key: str) -> StorageError:
        # The server's words may have the session's name in them.
        return await self._http.failure(response, operation, key, show=False)

    async def abort(self, key: str, upload_id: str) -> None:
        """End a session; one that is gone is fine."""
        self.forget(upload_id)
        if _is_uri(upload_id):
            async with self._http.request(
                "DELETE",
                upload_id,
                operation="abort_upload",
                key=key,
                headers={"Content-Length": "0"},
                signed=False,
            ) as response:
                if response.status not in (*_GONE, *_DONE, 204):
                    raise await self._failure(response, "abort_upload", key)
                if response.status in _DONE and '"error"' in await reply_text(response, "abort_upload", key):
                    raise _not_done("abort_upload", key)


def _not_done(operation: str, key: str) -> StorageError:
    return StorageError(
        f"{operation} of {key!r}: the server answers with success and tells of an error",
        operation=operation,
        key=key,
        retryable=True,
    )


def _not_all(operation: str, key: str) -> StorageError:
    return StorageError(
        f"{operation} of {key!r}: the server did not take all of it",
        operation=operation,
        key=key,
        retryable=True,
    )


def _is_uri(upload_id: str) -> bool:
    return urlsplit(upload_id).scheme in ("http", "https")


def _checked(upload_id: str, operation: str, key: str) -> str:
    if not _is_uri(upload_id):
        raise no_upload(operation, key)
    return upload_id


def _rest(data: Source, skipped: int) -> Source:
    if isinstance(data, FileRange):
        return FileRange(data.path, data.offset + skipped, data.size_bytes - skipped)
    return data[skipped:]
