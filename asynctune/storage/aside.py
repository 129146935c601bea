"""Owns a storage that lives on an event loop of its own, in a thread of its own, so that the caller's loop only waits.

The clients of buckets compute a few milliseconds for each request: parsing, signing, checksums. With many requests at
once that is more than an event loop may be kept from its other work. What a storage does is that of the one inside.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, Literal, TypeVar

from asynctune.storage.base import Body, ObjectStorage
from asynctune.storage.checks import closed
from asynctune.storage.side_loop import HandOver, SideLoop
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

__all__ = ["StorageAside"]

T = TypeVar("T")

_ALWAYS: Final = Always()
_CHUNKS_AHEAD: Final = 2
_ENTRIES_AT_ONCE: Final = 500


class StorageAside:
    """An `ObjectStorage` around another one, which is made, called and closed in its own thread. See `open`."""

    def __init__(self) -> None:
        # Not for users: `open` does what must be awaited.
        self._side = SideLoop("asynctune-storage")
        self._storage: ObjectStorage | None = None
        self._closing: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, make: Callable[[], Coroutine[Any, Any, ObjectStorage]]) -> StorageAside:
        """Make a storage aside.

        Args:
            make: Makes the inner one; awaited on its loop.

        Raises:
            Whatever `make` raises; nothing is left of it then.
        """
        made = cls()
        try:
            made._storage = await made._side.call(make)
        except BaseException:
            made._closing = asyncio.get_running_loop().create_future()
            made._closing.set_result(None)
            made._side.stop()
            raise
        return made

    def _use(self, operation: str) -> ObjectStorage:
        if self._storage is None or self._closing is not None:
            raise closed(operation, "" if self._storage is None else self._storage.location)
        return self._storage

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def inner(self) -> ObjectStorage:
        """The storage inside; its methods belong to its own loop."""
        assert self._storage is not None
        return self._storage

    @property
    def location(self) -> str:
        """That of the storage inside."""
        return self.inner.location

    @property
    def supports_conditions(self) -> bool:
        """As the storage inside says."""
        return self.inner.supports_conditions

    @property
    def upload_rules(self) -> UploadRules:
        """Those of the storage inside."""
        return self.inner.upload_rules

    @property
    def max_key_bytes(self) -> int:
        """That of the storage inside."""
        return self.inner.max_key_bytes

    # -- whole objects ---------------------------------------------------------------------------------------

    async def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStorage.head`."""
        inner = self._use("head")
        return await self._side.call(lambda: inner.head(key))

    @asynccontextmanager
    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, version: str | None = None
    ) -> AsyncGenerator[Body, None]:
        """See `ObjectStorage.get`. A few chunks are read ahead."""
        inner = self._use("get")

        async def pump(out: HandOver[ObjectInfo | bytes]) -> None:
            async with inner.get(key, start=start, length=length, version=version) as body:
                await out.put(body.info)
                async for chunk in body:
                    await out.put(chunk)

        async with self._side.stream(pump, _CHUNKS_AHEAD) as items:
            info = await anext(items)  # raises what kept it from being opened
            assert isinstance(info, ObjectInfo)
            yield _AsideBody(info, items)

    async def read(self, key: str, *, max_bytes: int = 16 << 20) -> ObjectContent:
        """See `ObjectStorage.read`."""
        inner = self._use("read")
        return await self._side.call(lambda: inner.read(key, max_bytes=max_bytes))

    async def put(
        self, key: str, data: Source, *, condition: Condition = _ALWAYS, crc32c: int | None = None
    ) -> Outcome:
        """See `ObjectStorage.put`."""
        inner = self._use("put")
        return await self._side.call(lambda: inner.put(key, data, condition=condition, crc32c=crc32c))

    async def delete(self, keys: Collection[str]) -> None:
        """See `ObjectStorage.delete`."""
        inner = self._use("delete")
        await self._side.call(lambda: inner.delete(keys))

    async def list_objects(
        self, prefix: str = "", *, delimiter: Literal["/"] | None = None, start_after: str | None = None
    ) -> AsyncGenerator[ObjectInfo | Directory, None]:
        """See `ObjectStorage.list_objects`."""
        inner = self._use("list_objects")
        listed = self._listed(
            lambda: inner.list_objects(prefix, delimiter=delimiter, start_after=start_after)
        )
        async with aclosing(listed) as entries:
            async for entry in entries:
                yield entry

    # -- uploads in parts -----------------------------------------------------------------------------------

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
        inner = self._use("begin_upload")
        return await self._side.call(
            lambda: inner.begin_upload(
                key, size_bytes=size_bytes, part_bytes=part_bytes, condition=condition, crc32c=crc32c
            )
        )

    async def put_part(
        self, upload: Upload, number: int, data: Source, *, crc32c: int | None = None
    ) -> UploadedPart:
        """See `ObjectStorage.put_part`."""
        inner = self._use("put_part")
        return await self._side.call(lambda: inner.put_part(upload, number, data, crc32c=crc32c))

    async def list_parts(self, upload: Upload) -> list[UploadedPart]:
        """See `ObjectStorage.list_parts`."""
        inner = self._use("list_parts")
        return await self._side.call(lambda: inner.list_parts(upload))

    async def complete_upload(self, upload: Upload, parts: Sequence[UploadedPart]) -> Outcome:
        """See `ObjectStorage.complete_upload`."""
        inner = self._use("complete_upload")
        return await self._side.call(lambda: inner.complete_upload(upload, parts))

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """See `ObjectStorage.abort_upload`."""
        inner = self._use("abort_upload")
        await self._side.call(lambda: inner.abort_upload(key, upload_id))

    async def list_uploads(self, prefix: str = "") -> AsyncGenerator[PendingUpload, None]:
        """See `ObjectStorage.list_uploads`."""
        inner = self._use("list_uploads")
        async with aclosing(self._listed(lambda: inner.list_uploads(prefix))) as entries:
            async for entry in entries:
                yield entry

    async def _listed(self, listing: Callable[[], AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:

        async def pump(out: HandOver[list[T]]) -> None:
            async with aclosing(listing()) as entries:
                some: list[T] = []
                async for entry in entries:
                    some.append(entry)
                    if len(some) == _ENTRIES_AT_ONCE:
                        await out.put(some)
                        some = []
                await out.put(some)

        async with self._side.stream(pump, 1) as pages:
            async for page in pages:
                for entry in page:
                    yield entry

    # -- the end --------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close the storage inside, after calls under way were cancelled, and end its thread. Again: only waits."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        side, inner = self._side, self._storage

        async def close() -> None:
            await side.cancel_others()
            if inner is not None:
                await inner.aclose()

        try:
            await side.call(close)
        finally:
            side.stop()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "_closing", self) is not None:
            return
        _warn(f"{self!r} was never closed; `await storage.aclose()`", ResourceWarning, source=self)
        self._side.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'' if self._storage is None else self._storage.location}>"


class _AsideBody:
    """See `Body`."""

    def __init__(self, info: ObjectInfo, chunks: AsyncIterator[Any]) -> None:
        self._info = info
        self._chunks = chunks

    @property
    def info(self) -> ObjectInfo:
        """As the storage inside told it."""
        return self._info

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks
