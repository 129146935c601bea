"""Owns what the suite for storages does again and again: contents, files, listings, cancellations."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Iterable
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from asynctune.storage.base import ObjectStorage
from asynctune.storage.values import Directory, Outcome, Stored

__all__ = [
    "at_once",
    "cancelled",
    "entries",
    "expected_entries",
    "file_of",
    "get",
    "key_of",
    "let_run",
    "pattern",
    "sparse_file",
    "version_of",
]

T = TypeVar("T")

_AT_ONCE: Final = 16


def pattern(size_bytes: int, seed: int = 1) -> bytes:
    """Bytes in which each place differs from the others."""
    return random.Random(seed).randbytes(size_bytes)  # noqa: S311 - content, no secret


async def file_of(directory: Path, data: bytes, name: str = "source") -> str:
    """The path of a file with this content."""
    path = directory / name
    await asyncio.to_thread(path.write_bytes, data)
    return str(path)


async def sparse_file(directory: Path, size_bytes: int) -> str:
    """The path of a file of so many zeros, which takes no space."""
    path = await file_of(directory, b"", "sparse")
    await asyncio.to_thread(os.truncate, path, size_bytes)
    return path


async def get(storage: ObjectStorage, key: str, **options: Any) -> bytes:
    """The bytes of a body."""
    async with storage.get(key, **options) as body:
        return b"".join([chunk async for chunk in body])


async def entries(
    storage: ObjectStorage,
    prefix: str = "",
    delimiter: Literal["/"] | None = None,
    start_after: str | None = None,
) -> list[str]:
    """Keys, and names of directories, as they are listed."""
    listing = storage.list_objects(prefix, delimiter=delimiter, start_after=start_after)
    return [entry.name if isinstance(entry, Directory) else entry.key async for entry in listing]


def expected_entries(
    keys: Iterable[str], prefix: str, delimiter: str | None, start_after: str | None
) -> list[str]:
    """What `entries` has to answer when there are these keys."""
    found = set()
    for key in keys:
        rest = key.removeprefix(prefix)
        if key.startswith(prefix):
            summed_up = delimiter is not None and "/" in rest
            found.add(f"{prefix}{rest.partition('/')[0]}/" if summed_up else key)
    return sorted((name for name in found if name > (start_after or "")), key=str.encode)


def version_of(outcome: Outcome) -> str:
    """The version that was stored."""
    assert isinstance(outcome, Stored)
    return outcome.version


def key_of(size_bytes: int) -> str:
    """A key of so many bytes in UTF-8, in several names."""
    name, names = "é" * 100, []
    while size_bytes > (taken := len(f"{name}/".encode())):
        names.append(name)
        size_bytes -= taken
    return "/".join([*names, "n" * size_bytes])


async def at_once(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Await all, not too many at a time; their results in order."""
    turn = asyncio.Semaphore(_AT_ONCE)

    async def one(call: Awaitable[T]) -> T:
        async with turn:
            return await call

    return await asyncio.gather(*map(one, calls))


async def let_run(turns: int) -> None:
    """Let other tasks go on for so many turns of the loop."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and wait for its end; whether it was done before does not matter."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error
