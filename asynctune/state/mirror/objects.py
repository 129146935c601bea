"""Owns putting and getting the immutable objects of a mirror: each key is used once, each byte is checked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar, overload

import google_crc32c

from asynctune.breathing import breathe
from asynctune.errors import CorruptStateError, NotFoundError, StorageError
from asynctune.state.mirror.current import Ref
from asynctune.state.thread import WorkThread
from asynctune.storage.base import ObjectStorage
from asynctune.storage.values import Always, Condition, OnlyCreate, Source, Stored

__all__ = [
    "Damage",
    "crc32c_of",
    "damage_seen",
    "in_thread",
    "put_object",
    "read_object",
    "read_or_damage",
    "together",
]

_CHUNK_BYTES: Final = 1 << 20
_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Damage:
    """An object that CURRENT names, and that is not what was put there.

    Attributes:
        path: Where it is, or was.
        detail: What is wrong with it, as the end of a sentence that begins with the path.
    """

    path: str
    detail: str

    def __str__(self) -> str:
        return f"{self.path} {self.detail}"


T = TypeVar("T")
T2 = TypeVar("T2")


@overload
async def together(one: Coroutine[Any, Any, T], other: Coroutine[Any, Any, T2], /) -> tuple[T, T2]: ...
@overload
async def together(*calls: Coroutine[Any, Any, T]) -> tuple[T, ...]: ...
async def together(*calls: Coroutine[Any, Any, Any]) -> tuple[Any, ...]:
    """Await all, a few at a time; the first error ends them all, and is raised as it is."""
    turns = asyncio.Semaphore(_AT_ONCE)
    first: list[BaseException] = []

    async def one(call: Coroutine[Any, Any, Any]) -> Any:
        try:
            async with turns:
                return await call
        except Exception as error:
            first.append(error)
            raise

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(call)) for call in calls]
    except ExceptionGroup:
        raise first[0] from None
    finally:
        for call in calls:
            call.close()  # one whose turn never came
    return tuple(task.result() for task in tasks)


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """Call `function` once in a thread of its own."""
    thread = WorkThread("asynctune-mirror-once")
    try:
        return await thread.run(function, *args)
    finally:
        thread.stop()


def crc32c_of(data: bytes) -> int:
    """The checksum, in steps that let other threads run; for a thread, if it is much."""
    check = 0
    for start in range(0, len(data), _CHUNK_BYTES):
        check = google_crc32c.extend(check, data[start : start + _CHUNK_BYTES])
        breathe()
    return check


async def put_object(storage: ObjectStorage, ref: Ref, data: Source) -> None:
    """Put an object under a key that nobody uses for anything else.

    Raises:
        StorageError: It may be there or not; with other bytes it never is.
    """
    condition: Condition = OnlyCreate() if storage.supports_conditions else Always()
    failure: StorageError | None = None
    try:
        if isinstance(await storage.put(ref.key, data, condition=condition, crc32c=ref.crc32c), Stored):
            return
    except StorageError as error:
        if not error.retryable:
            raise
        failure = error
    try:
        # Lost the reply, or met its own first copy: what is there settles it.
        if await _is_there(storage, ref):
            return
        raise failure or StorageError(
            f"put of {ref.key!r}: something else is there, or it went again",
            operation="put",
            key=ref.key,
            retryable=True,
        )
    finally:
        del failure  # its traceback holds this frame, and so all of the data


async def _is_there(storage: ObjectStorage, ref: Ref) -> bool:
    info = await storage.head(ref.key)
    if info is None or info.size_bytes != ref.size_bytes:
        return False
    if info.crc32c is not None:
        return info.crc32c == ref.crc32c
    check = 0
    async with storage.get(ref.key) as body:
        async for chunk in body:
            check = google_crc32c.extend(check, chunk)
    return check == ref.crc32c


async def read_object(storage: ObjectStorage, ref: Ref) -> bytes:
    """The bytes of an object that CURRENT names.

    Raises:
        NotFoundError: It is not there.
        CorruptStateError: It is another one, or damaged.
        StorageError: The storage refused.
    """
    found = await _read(storage, ref)
    if isinstance(found, Damage):
        raise CorruptStateError(
            f"the mirror is damaged: {found}. Nothing was changed; keep a copy, and open the experiment from a local "
            "directory or a backup",
            path=found.path,
        )
    return found


async def read_or_damage(storage: ObjectStorage, ref: Ref) -> bytes | Damage:
    """The bytes of an object that is there, or should be.

    Raises:
        StorageError: The storage refused.
    """
    try:
        return await _read(storage, ref)
    except NotFoundError:
        return _missing(storage, ref)


async def damage_seen(storage: ObjectStorage, ref: Ref) -> Damage | None:
    """What is wrong with an object, as far as can be seen without reading it; `None`: nothing.

    Raises:
        StorageError: The storage refused.
    """
    info = await storage.head(ref.key)
    if info is None:
        return _missing(storage, ref)
    if info.size_bytes != ref.size_bytes:
        return _differs(storage, ref, f"{info.size_bytes:,} bytes")
    if info.crc32c not in (None, ref.crc32c):
        return _differs(storage, ref, f"checksum {info.crc32c:08x}")
    return None


async def _read(storage: ObjectStorage, ref: Ref) -> bytes | Damage:
    try:
        found = await storage.read(ref.key, max_bytes=max(ref.size_bytes, 1))
    except NotFoundError:
        raise
    except StorageError as error:
        if (
            error.retryable
            or (info := await storage.head(ref.key)) is None
            or info.size_bytes == ref.size_bytes
        ):
            raise
        return _differs(storage, ref, f"{info.size_bytes:,} bytes")
    data = found.data
    if len(data) != ref.size_bytes:
        return _differs(storage, ref, f"{len(data):,} bytes")
    small = len(data) <= _CHUNK_BYTES
    check = google_crc32c.value(data) if small else await in_thread(crc32c_of, data)
    if check != ref.crc32c:
        return _differs(storage, ref, f"checksum {check:08x}")
    return data


def _missing(storage: ObjectStorage, ref: Ref) -> Damage:
    return Damage(f"{storage.location}/{ref.key}", "is not there, and CURRENT names it")


def _differs(storage: ObjectStorage, ref: Ref, found: str) -> Damage:
    return Damage(
        f"{storage.location}/{ref.key}",
        f"has {found}, and CURRENT names {ref.size_bytes:,} bytes with the checksum {ref.crc32c:08x}",
    )
