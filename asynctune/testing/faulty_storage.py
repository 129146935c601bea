"""Owns a storage that fails when told to: any `ObjectStorage`, with faults set at chosen operations.

Every operation is counted and kept in a log. A fault hits the n-th operation of some kinds, counted from the moment
it is set. Without faults it is the storage that it wraps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Final, Literal, TypeVar

from asynctune.errors import StorageError
from asynctune.storage.base import Body, ObjectStorage
from asynctune.storage.streams import StreamBody
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
from asynctune.testing.storage_faults import STORAGE_OPERATIONS, StorageCall, StorageFault, operations_of

__all__ = ["FaultyStorage"]

T = TypeVar("T")

_OUTCOMES: Final = frozenset({"put", "complete_upload"})
_ALWAYS: Final = Always()


class FaultyStorage:
    """An `ObjectStorage` with faults, around another.

    Example::

        storage = FaultyStorage(MemoryStorage())
        storage.fail(on="put", applied=True)  # stored, and the reply lost
        storage.hang(on="put_part", nth=3)
        ...
        storage.heal()

    Args:
        storage: What does the work; closed with this one.
        ignore_conditions: Conditional writes are done whatever is there, and answered as `Stored`, as some storages
            do that say otherwise.
    """

    def __init__(self, storage: ObjectStorage, *, ignore_conditions: bool = False) -> None:
        self.storage = storage
        self.log: list[StorageCall] = []
        self._ignore_conditions = ignore_conditions
        self._faults: list[StorageFault] = []
        self._healed = asyncio.Event()

    # -- faults ----------------------------------------------------------------------------------------------

    def fail(
        self,
        error: Exception | None = None,
        *,
        on: str | Collection[str] = (),
        nth: int = 1,
        lasting: bool = False,
        applied: bool = False,
    ) -> StorageFault:
        """Make the n-th operation from now on raise; with `applied`, after it was done.

        Args:
            error: What is raised; `None`: a `StorageError` that is retryable.
            on: The operations that count; none given: all.
            nth: Which of them: 1 is the next.
            lasting: The ones after it fail as well, until `heal`.
            applied: It is done nevertheless.

        Raises:
            ValueError: There is no such operation, or `nth` is below 1.
        """
        raised = StorageError("a fault that was asked for", retryable=True) if error is None else error
        return self._set(StorageFault(operations_of(on), nth, lasting, applied, raised))

    def conflict(
        self, *, on: str | Collection[str] = "put", nth: int = 1, applied: bool = True
    ) -> StorageFault:
        """Make the n-th write answer `Conflict()`; with `applied`, after it was done: its own copy was in its way.

        Raises:
            ValueError: As for `fail`, or the operation has no such outcome.
        """
        operations = operations_of(on)
        if not operations <= _OUTCOMES:
            msg = f"only {', '.join(sorted(_OUTCOMES))} answer with a conflict"
            raise ValueError(msg)
        return self._set(StorageFault(operations, nth, applied=applied, conflict=True))

    def hang(
        self, *, on: str | Collection[str] = (), nth: int = 1, lasting: bool = False, applied: bool = False
    ) -> StorageFault:
        """Make the n-th operation wait until it is cancelled, or until `heal`; it is done before, or then.

        Raises:
            ValueError: As for `fail`.
        """
        return self._set(StorageFault(operations_of(on), nth, lasting, applied, hangs=True))

    def truncate(self, after_bytes: int, *, nth: int = 1, lasting: bool = False) -> StorageFault:
        """Make the n-th body break off after so many bytes, with a retryable `StorageError`.

        Raises:
            ValueError: As for `fail`.
        """
        return self._set(StorageFault(frozenset({"get"}), nth, lasting, after_bytes=after_bytes))

    def damage(self, at_byte: int, *, nth: int = 1, lasting: bool = False) -> StorageFault:
        """Change a bit of the object's byte `at_byte` in the n-th body, if it is in there, seen by no check before.

        Raises:
            ValueError: As for `fail`.
        """
        return self._set(StorageFault(frozenset({"get"}), nth, lasting, damaged_at=at_byte))

    def call(
        self,
        function: Callable[[StorageCall], Awaitable[object] | None],
        *,
        on: str | Collection[str] = (),
        nth: int = 1,
        lasting: bool = False,
    ) -> StorageFault:
        """Call `function` before the n-th operation, and await what it returns; what it raises is raised there.

        Raises:
            ValueError: As for `fail`.
        """
        return self._set(StorageFault(operations_of(on), nth, lasting, call=function))

    def heal(self) -> None:
        """Remove every fault, and let go on what hangs."""
        self._faults.clear()
        self._healed.set()
        self._healed = asyncio.Event()

    def count(self, on: str | Collection[str] = ()) -> int:
        """How many such operations there were; none given: of all.

        Raises:
            ValueError: There is no such operation.
        """
        operations = operations_of(on) or STORAGE_OPERATIONS
        return sum(call.operation in operations for call in self.log)

    def _set(self, fault: StorageFault) -> StorageFault:
        if fault.nth < 1:
            msg = f"nth counts from 1, not {fault.nth}"
            raise ValueError(msg)
        self._faults.append(fault)
        return fault

    # -- the one gate ----------------------------------------------------------------------------------------

    async def _enter(self, operation: str, key: str) -> StorageFault | None:
        call = StorageCall(len(self.log) + 1, operation, key)
        self.log.append(call)
        due = [fault for fault in self._faults if fault.due(operation)]
        self._faults = [fault for fault in self._faults if fault.lasting or fault.nth > 0]
        kept = None
        for fault in due:
            fault.hits += 1
            fault.struck.set()
            if fault.call is None:
                kept = kept or fault
            elif (awaited := fault.call(call)) is not None:
                await awaited
        if kept is not None and not kept.applied:
            await self._strike(kept)
        return kept

    async def _strike(self, fault: StorageFault) -> None:
        if fault.hangs:
            await self._healed.wait()
        if fault.error is not None:
            raise fault.error

    async def _do(self, operation: str, key: str, function: Callable[[], Awaitable[T]]) -> T:
        fault = await self._enter(operation, key)
        result = await function()
        if fault is not None and fault.applied:
            await self._strike(fault)
        return result

    async def _write(self, operation: str, key: str, function: Callable[[], Awaitable[Outcome]]) -> Outcome:
        fault = await self._enter(operation, key)
        if fault is not None and fault.conflict and not fault.applied:
            return Conflict()
        outcome = await function()
        if fault is not None and fault.applied:
            await self._strike(fault)
        return Conflict() if fault is not None and fault.conflict else outcome

    # -- what it is asked ------------------------------------------------------------------------------------

    @property
    def location(self) -> str:
        """That of the storage inside."""
        return self.storage.location

    @property
    def supports_conditions(self) -> bool:
        """What the storage inside says."""
        return self.storage.supports_conditions

    @property
    def upload_rules(self) -> UploadRules:
        """Those of the storage inside."""
        return self.storage.upload_rules

    @property
    def max_key_bytes(self) -> int:
        """That of the storage inside."""
        return self.storage.max_key_bytes

    async def head(self, key: str) -> ObjectInfo | None:
        """`ObjectStorage.head`, counted."""
        return await self._do("head", key, lambda: self.storage.head(key))

    @asynccontextmanager
    async def get(
        self, key: str, *, start: int = 0, length: int | None = None, version: str | None = None
    ) -> AsyncGenerator[Body, None]:
        """`ObjectStorage.get`, counted when it is opened; its body may break off."""
        fault = await self._enter("get", key)
        async with self.storage.get(key, start=start, length=length, version=version) as body:
            if fault is not None and fault.applied:
                await self._strike(fault)
            if fault is not None and fault.after_bytes is not None:
                chunks = _cut(body, fault.after_bytes)
            elif fault is not None and fault.damaged_at is not None:
                chunks = _damaged(body, fault.damaged_at - start)
            else:
                yield body
                return
            async with aclosing(chunks):
                yield StreamBody(body.info, chunks)

    async def read(self, key: str, *, max_bytes: int = 16 << 20) -> ObjectContent:
        """`ObjectStorage.read`, counted."""
        return await self._do("read", key, lambda: self.storage.read(key, max_bytes=max_bytes))

    async def put(
        self, key: str, data: Source, *, condition: Condition = _ALWAYS, crc32c: int | None = None
    ) -> Outcome:
        """`ObjectStorage.put`, counted."""
        kept = _ALWAYS if self._ignore_conditions else condition
        return await self._write(
            "put", key, lambda: self.storage.put(key, data, condition=kept, crc32c=crc32c)
        )

    async def delete(self, keys: Collection[str]) -> None:
        """`ObjectStorage.delete`, counted."""
        await self._do("delete", next(iter(keys), ""), lambda: self.storage.delete(keys))

    async def list_objects(
        self, prefix: str = "", *, delimiter: Literal["/"] | None = None, start_after: str | None = None
    ) -> AsyncGenerator[ObjectInfo | Directory, None]:
        """`ObjectStorage.list_objects`, counted."""
        fault = await self._enter("list_objects", prefix)
        entries = self.storage.list_objects(prefix, delimiter=delimiter, start_after=start_after)
        async with aclosing(entries):
            async for entry in entries:
                yield entry
        if fault is not None and fault.applied:
            await self._strike(fault)

    async def begin_upload(
        self,
        key: str,
        *,
        size_bytes: int,
        part_bytes: int,
        condition: Condition = _ALWAYS,
        crc32c: int | None = None,
    ) -> Upload | Conflict:
        """`ObjectStorage.begin_upload`, counted."""
        kept = _ALWAYS if self._ignore_conditions else condition
        return await self._do(
            "begin_upload",
            key,
            lambda: self.storage.begin_upload(
                key, size_bytes=size_bytes, part_bytes=part_bytes, condition=kept, crc32c=crc32c
            ),
        )

    async def put_part(
        self, upload: Upload, number: int, data: Source, *, crc32c: int | None = None
    ) -> UploadedPart:
        """`ObjectStorage.put_part`, counted."""
        return await self._do(
            "put_part", upload.key, lambda: self.storage.put_part(upload, number, data, crc32c=crc32c)
        )

    async def list_parts(self, upload: Upload) -> list[UploadedPart]:
        """`ObjectStorage.list_parts`, counted."""
        return await self._do("list_parts", upload.key, lambda: self.storage.list_parts(upload))

    async def complete_upload(self, upload: Upload, parts: Sequence[UploadedPart]) -> Outcome:
        """`ObjectStorage.complete_upload`, counted."""
        return await self._write(
            "complete_upload", upload.key, lambda: self.storage.complete_upload(upload, parts)
        )

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """`ObjectStorage.abort_upload`, counted."""
        await self._do("abort_upload", key, lambda: self.storage.abort_upload(key, upload_id))

    async def list_uploads(self, prefix: str = "") -> AsyncGenerator[PendingUpload, None]:
        """`ObjectStorage.list_uploads`, counted."""
        fault = await self._enter("list_uploads", prefix)
        async with aclosing(self.storage.list_uploads(prefix)) as uploads:
            async for upload in uploads:
                yield upload
        if fault is not None and fault.applied:
            await self._strike(fault)

    async def aclose(self) -> None:
        """Close the storage inside; never fails by a fault."""
        await self.storage.aclose()


async def _cut(body: Body, after_bytes: int) -> AsyncGenerator[bytes, None]:
    left = after_bytes
    async for chunk in body:
        if left > 0:
            yield chunk[:left]
        left -= len(chunk)
        if left <= 0:
            break
    raise StorageError(
        f"get: the body broke off after {after_bytes} bytes, as was asked for",
        operation="get",
        retryable=True,
    )


async def _damaged(body: Body, at: int) -> AsyncGenerator[bytes, None]:
    async for chunk in body:
        if 0 <= at < len(chunk):
            yield chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]
        else:
            yield chunk
        at -= len(chunk)
