"""Owns the storage that is memory: the reference for what every storage has to do, and the fastest one in tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import ClassVar, Final, Literal

from asynctune.clock import Clock, SystemClock
from asynctune.errors import ConditionFailedError, ConfigError
from asynctune.storage.base import Body
from asynctune.storage.checks import (
    check_condition,
    check_part,
    check_parts,
    closed,
    no_object,
    no_upload,
)
from asynctune.storage.keys import MAX_KEY_BYTES, check_key, check_prefix
from asynctune.storage.memory_bucket import IN_ANY_ORDER, PAGE, Begun, Held, MemoryBucket, held_of, slices
from asynctune.storage.streams import (
    check_range,
    check_source,
    mismatch,
    open_body,
    range_of,
    read_source,
    read_whole,
)
from asynctune.storage.threads import Threads
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
    Stored,
    Upload,
    UploadedPart,
    UploadRules,
)

__all__ = ["MemoryStorage"]

_ALWAYS: Final = Always()


class MemoryStorage:
    """A prefix of a `MemoryBucket` as an `ObjectStorage`.

    Args:
        bucket: Where the objects are; `None`: a new one of its own.
        prefix: As in `StorageURI.prefix`.
        rules: Which parts uploads have: `IN_ANY_ORDER` like S3, `IN_ORDER` like GCS (`memory_bucket`), or others.
        supports_conditions: Whether it has conditional writes.
        clock: What time it is, for `modified_at`.
        name: For messages.
    """

    _named: ClassVar[dict[str, MemoryBucket]] = {}

    def __init__(
        self,
        bucket: MemoryBucket | None = None,
        prefix: str = "",
        *,
        rules: UploadRules = IN_ANY_ORDER,
        supports_conditions: bool = True,
        clock: Clock | None = None,
        name: str = "bucket",
    ) -> None:
        self._bucket = MemoryBucket() if bucket is None else bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._rules = rules
        self._conditions = supports_conditions
        self._clock = SystemClock() if clock is None else clock
        self._location = f"memory://{name}/{prefix}".rstrip("/")
        self._threads = Threads("memory", 2)
        self._closed = False

    @classmethod
    def named(cls, name: str, prefix: str = "") -> MemoryStorage:
        """A prefix of the bucket of this name, which lives until the process ends or `forget` is called."""
        return cls(cls._named.setdefault(name, MemoryBucket()), prefix, name=name)

    @classmethod
    def forget(cls, name: str) -> None:
        """Let the bucket of this name go; a later `named` makes an empty one."""
        cls._named.pop(name, None)

    @property
    def location(self) -> str:
        """`memory://name/prefix`."""
        return self._location

    @property
    def supports_conditions(self) -> bool:
        """As it was made."""
        return self._conditions

    @property
    def upload_rules(self) -> UploadRules:
        """As it was made."""
        return self._rules

    @property
    def max_key_bytes(self) -> int:
        """As on S3 and GCS."""
        return MAX_KEY_BYTES - len(self._prefix.encode())

    # -- whole objects ---------------------------------------------------------------------------------------

    async def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStorage.head`."""
        full = self._full("head", key)
        await asyncio.sleep(0)
        there = self._bucket.objects.get(full)
        return None if there is None else self._info(there[0])

    @asynccontextmanager
    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, version: str | None = None
    ) -> AsyncGenerator[Body, None]:
        """See `ObjectStorage.get`."""
        full = self._full("get", key)
        check_range(key, start, length)
        await asyncio.sleep(0)
        there = self._bucket.objects.get(full)
        if there is None:
            raise no_object("get", key, self._location)
        info, held = self._info(there[0]), there[1]
        if version is not None and info.version != version:
            raise ConditionFailedError(f"get of {key!r}: it was replaced", operation="get", key=key)
        begin, end = range_of(info.size_bytes, start, length)
        async with open_body(slices(held, begin, end), info, start=start, length=length) as body:
            yield body

    async def read(self, key: str, *, max_bytes: int = 16 << 20) -> ObjectContent:
        """See `ObjectStorage.read`."""
        return await read_whole(self.get(key), max_bytes)

    async def put(
        self, key: str, data: Source, *, condition: Condition = _ALWAYS, crc32c: int | None = None
    ) -> Outcome:
        """See `ObjectStorage.put`."""
        full = self._full("put", key)
        check_condition(condition, self._conditions, self._location)
        check_source(data)
        held = await self._hold(data, "put", key, crc32c)
        return self._bucket.store(full, held, condition, self._clock.time())

    async def delete(self, keys: Collection[str]) -> None:
        """See `ObjectStorage.delete`."""
        for number, full in enumerate([self._full("delete", key) for key in keys]):
            if number % PAGE == 0:
                await asyncio.sleep(0)
            self._bucket.remove(full)

    async def list_objects(
        self, prefix: str = "", *, delimiter: Literal["/"] | None = None, start_after: str | None = None
    ) -> AsyncGenerator[ObjectInfo | Directory, None]:
        """See `ObjectStorage.list_objects`."""
        self._check_open("list")
        whole = self._prefix + check_prefix(prefix)
        last = max(whole, self._prefix + (start_after or ""))
        directory = ""
        inclusive = start_after is None or last != self._prefix + start_after
        while True:
            await asyncio.sleep(0)
            page = self._bucket.after(last, inclusive=inclusive)
            inclusive = False
            for full in page:
                if not full.startswith(whole):
                    return
                last = full
                name, slash, _ = full.removeprefix(whole).partition("/")
                if delimiter is not None and slash:
                    if directory != (directory := f"{prefix}{name}/") and directory > (start_after or ""):
                        yield Directory(directory)
                elif (there := self._bucket.objects.get(full)) is not None:
                    yield self._info(there[0])
            if not page:
                return

    # -- uploads in parts ------------------------------------------------------------------------------------

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
        self._rules.check(size_bytes, part_bytes)
        await asyncio.sleep(0)
        upload = Upload(
            key=key,
            upload_id=f"upload-{self._bucket.number()}",
            size_bytes=size_bytes,
            part_bytes=part_bytes,
            condition=condition,
            crc32c=crc32c,
        )
        self._bucket.uploads[upload.upload_id] = Begun(full, upload, self._clock.time())
        return upload

    async def put_part(
        self, upload: Upload, number: int, data: Source, *, crc32c: int | None = None
    ) -> UploadedPart:
        """See `ObjectStorage.put_part`."""
        _, size_bytes = check_part(upload, number, data)
        parts = self._begun("put_part", upload).parts
        if self._rules.in_order:
            if number in parts:
                return parts[number][0]
            if number != len(parts) + 1:
                raise ConfigError(f"upload of {upload.key!r}: part {len(parts) + 1} comes next, not {number}")
        held = await self._hold(data, "put_part", upload.key, crc32c)
        part = UploadedPart(number, size_bytes, self._bucket.number(), held.crc32c)
        self._begun("put_part", upload).parts[number] = part, held
        return part

    async def list_parts(self, upload: Upload) -> list[UploadedPart]:
        """See `ObjectStorage.list_parts`."""
        await asyncio.sleep(0)
        parts = self._begun("list_parts", upload).parts
        return [parts[number][0] for number in sorted(parts)]

    async def complete_upload(self, upload: Upload, parts: Sequence[UploadedPart]) -> Outcome:
        """See `ObjectStorage.complete_upload`."""
        ordered = check_parts(upload, parts)
        await asyncio.sleep(0)
        begun = self._begun("complete_upload", upload)
        chunks: list[bytes] = []
        for part in ordered:
            if begun.parts.get(part.number, (None,))[0] != part:
                raise no_upload("complete_upload", f"{upload.key} (part {part.number})")
            chunks += begun.parts[part.number][1].chunks
        held = held_of(chunks)
        if upload.crc32c is not None and held.crc32c != upload.crc32c:
            raise mismatch("complete_upload", upload.key, upload.crc32c, held.crc32c)
        outcome = self._bucket.store(begun.full, held, upload.condition, self._clock.time())
        if isinstance(outcome, Stored):
            del self._bucket.uploads[upload.upload_id]
        return outcome

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """See `ObjectStorage.abort_upload`."""
        self._full("abort_upload", key)
        await asyncio.sleep(0)
        self._bucket.uploads.pop(upload_id, None)

    async def list_uploads(self, prefix: str = "") -> AsyncGenerator[PendingUpload, None]:
        """See `ObjectStorage.list_uploads`."""
        self._check_open("list_uploads")
        whole = self._prefix + check_prefix(prefix)
        await asyncio.sleep(0)
        for upload_id, begun in list(self._bucket.uploads.items()) if self._rules.listed else []:
            if begun.full.startswith(whole):
                yield PendingUpload(begun.upload.key, upload_id, begun.begun_at)

    # -- the end ---------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """See `ObjectStorage.aclose`. What is stored stays."""
        self._closed = True
        self._threads.close()

    # -- small things ----------------------------------------------------------------------------------------

    def _check_open(self, operation: str) -> None:
        if self._closed:
            raise closed(operation, self._location)

    def _full(self, operation: str, key: str) -> str:
        self._check_open(operation)
        return self._prefix + check_key(key, self.max_key_bytes)

    def _info(self, info: ObjectInfo) -> ObjectInfo:
        key = info.key.removeprefix(self._prefix)
        return ObjectInfo(key, info.size_bytes, info.version, info.crc32c, info.modified_at)

    def _begun(self, operation: str, upload: Upload) -> Begun:
        full = self._full(operation, upload.key)
        begun = self._bucket.uploads.get(upload.upload_id)
        if begun is None or begun.full != full:
            raise no_upload(operation, upload.key)
        return begun

    async def _hold(self, data: Source, operation: str, key: str, crc32c: int | None) -> Held:
        chunks = []
        async with aclosing(
            read_source(data, self._threads, operation=operation, key=key, crc32c=crc32c)
        ) as arriving:
            async for chunk in arriving:
                chunks.append(chunk)
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        return held_of(chunks)
