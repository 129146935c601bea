"""Owns uploads in parts to S3: parts with their checksums, the condition at the end, aborts that leave nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from botocore.exceptions import ClientError

from asynctune.errors import StorageError
from asynctune.storage.checks import check_condition, check_part, check_parts, no_upload
from asynctune.storage.crc import crc32c_joined, crc32c_of_text, crc32c_text
from asynctune.storage.keys import check_prefix
from asynctune.storage.s3_bucket import MISSING, PAGE, S3Bucket, is_conflict, sent
from asynctune.storage.s3_errors import code_of, status_of
from asynctune.storage.s3_values import RULES, conditions, decoded, prepared, told, version_of
from asynctune.storage.streams import mismatch
from asynctune.storage.values import (
    Always,
    Condition,
    Conflict,
    Outcome,
    PendingUpload,
    Source,
    Stored,
    Upload,
    UploadedPart,
)

__all__ = ["S3Uploads"]

T = TypeVar("T")

_ALWAYS: Final = Always()


class S3Uploads(S3Bucket):
    """The part of `S3Storage` that is about uploads in parts."""

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
        full = self._full("begin_upload", key)
        check_condition(condition, self._conditions, self._location)
        RULES.check(size_bytes, part_bytes)
        kind = {"ChecksumAlgorithm": "CRC32C", "ChecksumType": "FULL_OBJECT"}
        begun: str = await self._call(
            "begin_upload",
            key,
            "create_multipart_upload",
            lambda reply: told(reply, "UploadId"),
            Key=full,
            **kind,
        )
        return Upload(
            key=key,
            upload_id=begun,
            size_bytes=size_bytes,
            part_bytes=part_bytes,
            condition=condition,
            crc32c=crc32c,
        )

    async def put_part(
        self, upload: Upload, number: int, data: Source, *, crc32c: int | None = None
    ) -> UploadedPart:
        """See `ObjectStorage.put_part`."""
        full = self._full("put_part", upload.key)
        _, size_bytes = check_part(upload, number, data)
        body, check = await prepared(data, self._threads, operation="put_part", key=upload.key, crc32c=crc32c)

        async def send() -> UploadedPart:
            reply = await self._client.upload_part(
                Bucket=self._bucket,
                Key=full,
                UploadId=upload.upload_id,
                PartNumber=number,
                Body=body,
                ContentLength=size_bytes,
                ChecksumAlgorithm="CRC32C",
                ChecksumCRC32C=crc32c_text(check),
            )
            return UploadedPart(number, size_bytes, told(reply, "ETag"), check)

        return await self._run(
            "put_part",
            upload.key,
            lambda: _of_upload("put_part", upload, lambda: sent(send, body)),
            size_bytes,
        )

    async def list_parts(self, upload: Upload) -> list[UploadedPart]:
        """See `ObjectStorage.list_parts`."""
        full = self._full("list_parts", upload.key)
        found: list[UploadedPart] = []
        marker = 0
        while True:
            parts, following = await self._page_of(upload, full, marker)
            found += parts
            if following <= marker:
                return found
            marker = following

    async def _page_of(self, upload: Upload, full: str, marker: int) -> tuple[list[UploadedPart], int]:
        """A page of the parts behind a number, and the number that the next one is behind; 0 of the last."""

        async def understood() -> tuple[list[UploadedPart], int]:
            page = await self._parts_page(full, upload.upload_id, marker)
            following = int(page.get("NextPartNumberMarker") or 0) if told(page, "IsTruncated") else 0
            return [_part_of(part) for part in page.get("Parts", ())], following

        return await self._run("list_parts", upload.key, lambda: _of_upload("list_parts", upload, understood))

    async def _parts_page(self, full: str, upload_id: str, marker: int) -> Any:
        return await self._client.list_parts(
            Bucket=self._bucket, Key=full, UploadId=upload_id, PartNumberMarker=marker, MaxParts=PAGE
        )

    async def complete_upload(self, upload: Upload, parts: Sequence[UploadedPart]) -> Outcome:
        """See `ObjectStorage.complete_upload`."""
        full = self._full("complete_upload", upload.key)
        ordered = check_parts(upload, parts)
        known = [(part.crc32c, part.size_bytes) for part in ordered if part.crc32c is not None]
        if upload.crc32c is not None and len(known) == len(ordered):
            joined = await self._threads.run(crc32c_joined, known)
            if joined != upload.crc32c:
                raise mismatch("complete_upload", upload.key, upload.crc32c, joined)
        listed = [
            {"PartNumber": part.number, "ETag": part.tag}
            | ({} if part.crc32c is None else {"ChecksumCRC32C": crc32c_text(part.crc32c)})
            for part in ordered
        ]

        async def send() -> Outcome:
            try:
                reply = await self._client.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=full,
                    UploadId=upload.upload_id,
                    MultipartUpload={"Parts": listed},
                    **conditions(upload.condition),
                )
            except ClientError as error:
                # A 409 ends the upload: what was met is for the caller to read.
                if is_conflict(error, upload.condition) or code_of(error) == "ConditionalRequestConflict":
                    return Conflict()
                raise
            return Stored(version_of(reply))

        return await self._run(
            "complete_upload", upload.key, lambda: _of_upload("complete_upload", upload, send)
        )

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """See `ObjectStorage.abort_upload`."""
        full = self._full("abort_upload", key)
        await self._run("abort_upload", key, lambda: self._abort(key, full, upload_id))

    async def _abort(self, key: str, full: str, upload_id: str) -> None:
        """Abort, and look: a part that was under way may have come after the first abort."""
        try:
            await self._client.abort_multipart_upload(Bucket=self._bucket, Key=full, UploadId=upload_id)
            page = await self._parts_page(full, upload_id, 0)
        except ClientError as error:
            if not _is_gone(error):
                raise
            return
        if page.get("Parts"):
            raise StorageError(
                f"abort_upload of {key!r}: a part came meanwhile",
                operation="abort_upload",
                key=key,
                retryable=True,
            )

    async def list_uploads(self, prefix: str = "") -> AsyncGenerator[PendingUpload, None]:
        """See `ObjectStorage.list_uploads`."""
        self._check_open("list_uploads")
        more: dict[str, Any] = {"Prefix": self._prefix + check_prefix(prefix), "EncodingType": "url"}
        while True:
            uploads, markers = await self._call(
                "list_uploads", None, "list_multipart_uploads", _uploads_of, **more
            )
            for full, upload_id, begun_at in uploads:
                if full.startswith(more["Prefix"]):
                    yield PendingUpload(full.removeprefix(self._prefix), upload_id, begun_at)
            if not markers or markers.items() <= more.items():
                return
            more |= markers


def _part_of(part: Mapping[str, Any]) -> UploadedPart:
    tag = told(part, "ETag")
    crc32c = crc32c_of_text(part.get("ChecksumCRC32C"))
    md5 = tag.strip('"').lower() if crc32c is None else None
    return UploadedPart(told(part, "PartNumber"), told(part, "Size"), tag, crc32c, md5)


def _uploads_of(page: Mapping[str, Any]) -> tuple[list[tuple[str, str, float]], dict[str, str]]:
    """The uploads of a page, with their whole keys, and where the next page begins; nothing, of the last."""
    uploads = [
        (decoded(told(each, "Key"), page), told(each, "UploadId"), told(each, "Initiated").timestamp())
        for each in page.get("Uploads", ())
    ]
    if not told(page, "IsTruncated"):
        return uploads, {}
    key = decoded(page.get("NextKeyMarker", ""), page)
    return uploads, {"KeyMarker": key, "UploadIdMarker": page.get("NextUploadIdMarker", "")}


async def _of_upload(operation: str, upload: Upload, request: Callable[[], Awaitable[T]]) -> T:
    try:
        return await request()
    except ClientError as error:
        if _is_gone(error) or code_of(error) == "InvalidPart":
            raise no_upload(operation, upload.key) from None
        raise


def _is_gone(error: ClientError) -> bool:
    return code_of(error) == "NoSuchUpload" or (
        status_of(error) == MISSING and code_of(error) != "NoSuchBucket"
    )
