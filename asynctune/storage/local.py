"""Owns the storage that is a directory: what is asynchronous about it. How objects lie there: `local_files`.

Every call is one hop into a thread. Files are 0600, directories as the umask has them. Symbolic links below the root
are no objects. No checksum is kept: `ObjectInfo.crc32c` is `None`, and the filesystem is trusted to give back what it
was given; checksums of what is written are checked.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, Literal, TypeVar

from asynctune.clock import Clock, SystemClock
from asynctune.errors import ConditionFailedError, ConfigError, StorageError
from asynctune.files import LocalFiles
from asynctune.storage.base import Body
from asynctune.storage.checks import check_condition, check_part, check_parts, closed
from asynctune.storage.keys import MAX_KEY_BYTES, check_key, check_prefix
from asynctune.storage.local_files import STAGING, ObjectFiles
from asynctune.storage.local_listing import list_entries
from asynctune.storage.local_lock import REMEMBERED_S, REPLACED, disk_errors
from asynctune.storage.local_parts import PartFiles
from asynctune.storage.streams import CHUNK_BYTES, check_range, check_source, open_body, range_of, read_whole
from asynctune.storage.threads import Stop, Threads
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

__all__ = ["LocalStorage"]

T = TypeVar("T")

_RULES: Final = UploadRules(
    min_part_bytes=1, max_part_bytes=1 << 40, max_parts=100_000, max_put_bytes=1 << 60
)
_PAGE: Final = 500
_ALWAYS: Final = Always()


class LocalStorage:
    """A directory as an `ObjectStorage`; other processes may use the same one at the same time.

    Args:
        root: Absolute path. It need not be there, but its parent must, or every call fails: a disk that is not
            mounted is no empty storage.
        files: The disk; tests replace it.
        clock: What time it is.
    """

    def __init__(self, root: str, *, files: LocalFiles | None = None, clock: Clock | None = None) -> None:
        if not root.startswith("/"):
            raise ConfigError(f"the directory of a storage must be an absolute path, not {root!r}")
        self._location = root.rstrip("/") or "/"
        self._clock = SystemClock() if clock is None else clock
        self._objects = ObjectFiles(self._location, LocalFiles() if files is None else files, self._clock)
        self._parts = PartFiles(self._objects)
        self._threads = Threads("local-storage")
        self._closed = False

    @property
    def location(self) -> str:
        """The directory."""
        return self._location

    @property
    def supports_conditions(self) -> bool:
        """True; on a filesystem without locks `IfVersion` fails when it is asked for."""
        return True

    @property
    def upload_rules(self) -> UploadRules:
        """Parts of any size, in any order."""
        return _RULES

    @property
    def max_key_bytes(self) -> int:
        """As on S3 and GCS; the path may be too long for the filesystem before that."""
        return MAX_KEY_BYTES

    # -- whole objects ---------------------------------------------------------------------------------------

    async def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStorage.head`."""
        self._check("head", key)
        return await self._run("head", key, lambda _: self._objects.head(key))

    @asynccontextmanager
    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, version: str | None = None
    ) -> AsyncGenerator[Body, None]:
        """See `ObjectStorage.get`. A replaced object is read to its end as it was."""
        self._check("get", key)
        check_range(key, start, length)
        opened: list[int] = []
        try:
            info = await self._run("get", key, lambda _: self._objects.open(key, opened))
            if version is not None and info.version != version:
                raise ConditionFailedError(f"get of {key!r}: it was replaced", operation="get", key=key)
            begin, end = range_of(info.size_bytes, start, length)
            chunks = self._read(opened[0], key, begin, end)
            async with open_body(chunks, info, start=start, length=length) as body:
                yield body
        finally:
            for fd in opened:
                self._threads.start(lambda fd=fd: os.close(fd))  # type: ignore[misc]

    async def read(self, key: str, *, max_bytes: int = 16 << 20) -> ObjectContent:
        """See `ObjectStorage.read`."""
        give_up = self._clock.monotonic() + REMEMBERED_S
        while True:
            try:
                return await read_whole(self.get(key), max_bytes)
            except StorageError as error:
                replaced = isinstance(error.__cause__, OSError) and error.__cause__.errno in REPLACED
                if not replaced or self._clock.monotonic() >= give_up:
                    raise
            await self._clock.sleep(0.02)

    async def put(
        self, key: str, data: Source, *, condition: Condition = _ALWAYS, crc32c: int | None = None
    ) -> Outcome:
        """See `ObjectStorage.put`."""
        self._check("put", key)
        check_condition(condition, supported=True, location=self._location)
        check_source(data)

        def put(stop: Stop) -> Outcome:
            temp = self._objects.stage(data, key, crc32c, stop)
            try:
                return self._objects.commit(temp, key, condition, stop)
            finally:
                with suppress(FileNotFoundError):
                    self._objects.files.unlink(temp)

        return await self._run("put", key, put)

    async def delete(self, keys: Collection[str]) -> None:
        """See `ObjectStorage.delete`."""
        asked = list(keys)
        for key in asked:
            self._check("delete", key)
        await self._run("delete", None, lambda stop: self._objects.delete(asked, stop))

    async def list_objects(
        self, prefix: str = "", *, delimiter: Literal["/"] | None = None, start_after: str | None = None
    ) -> AsyncGenerator[ObjectInfo | Directory, None]:
        """See `ObjectStorage.list_objects`."""
        self._check_open("list")
        entries = list_entries(self._objects, check_prefix(prefix), delimiter, start_after or "")
        while page := await self._run(
            "list", prefix or None, lambda _: list(itertools.islice(entries, _PAGE))
        ):
            for entry in page:
                yield entry

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
        self._check("begin_upload", key)
        check_condition(condition, supported=True, location=self._location)
        _RULES.check(size_bytes, part_bytes)
        upload = Upload(
            key=key,
            upload_id=self._objects.token(),
            size_bytes=size_bytes,
            part_bytes=part_bytes,
            condition=condition,
            crc32c=crc32c,
        )
        await self._run("begin_upload", key, lambda _: self._parts.begin(upload))
        return upload

    async def put_part(
        self, upload: Upload, number: int, data: Source, *, crc32c: int | None = None
    ) -> UploadedPart:
        """See `ObjectStorage.put_part`."""
        self._check("put_part", upload.key)
        check_part(upload, number, data)
        return await self._run(
            "put_part", upload.key, lambda stop: self._parts.put(upload, number, data, crc32c, stop)
        )

    async def list_parts(self, upload: Upload) -> list[UploadedPart]:
        """See `ObjectStorage.list_parts`."""
        self._check("list_parts", upload.key)
        return await self._run("list_parts", upload.key, lambda _: self._parts.parts(upload))

    async def complete_upload(self, upload: Upload, parts: Sequence[UploadedPart]) -> Outcome:
        """See `ObjectStorage.complete_upload`."""
        self._check("complete_upload", upload.key)
        ordered = check_parts(upload, parts)
        return await self._run(
            "complete_upload", upload.key, lambda stop: self._parts.complete(upload, ordered, stop)
        )

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """See `ObjectStorage.abort_upload`."""
        self._check("abort_upload", key)
        await self._run("abort_upload", key, lambda _: self._parts.abort(upload_id))

    async def list_uploads(self, prefix: str = "") -> AsyncGenerator[PendingUpload, None]:
        """See `ObjectStorage.list_uploads`."""
        self._check_open("list_uploads")
        check_prefix(prefix)
        found = await self._run("list_uploads", None, lambda _: list(self._parts.pending(prefix)))
        for upload in found:
            yield upload

    # -- the end ---------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """See `ObjectStorage.aclose`."""
        if not self._closed:
            self._closed = True
            try:
                await self._threads.run(self._tidy)
            finally:
                self._threads.close()

    def _tidy(self) -> None:
        with suppress(OSError):  # others have uploads there, or it is not there
            self._objects.files.remove_dir(self._objects.staging)

    # -- small things ----------------------------------------------------------------------------------------

    def _check_open(self, operation: str) -> None:
        if self._closed:
            raise closed(operation, self._location)

    def _check(self, operation: str, key: str) -> None:
        self._check_open(operation)
        if STAGING in check_key(key).split("/"):
            raise ConfigError(f"{key!r} cannot be a key: the storage keeps its own files at {STAGING}")

    async def _run(self, operation: str, key: str | None, function: Callable[[Stop], T]) -> T:
        with disk_errors(operation, key):
            return await self._threads.run_stoppable(function)

    async def _read(self, fd: int, key: str, begin: int, end: int) -> AsyncGenerator[bytes, None]:
        while begin < end:
            size, at = min(CHUNK_BYTES, end - begin), begin
            chunk = await self._run("get", key, lambda _, size=size, at=at: os.pread(fd, size, at))  # type: ignore[misc]
            if not chunk:
                return
            yield chunk
            begin += len(chunk)
