"""Owns how a node gets what a trial goes on with: its checkpoint, and files of its own.

A checkpoint comes from where it is committed, if the node reaches that: the directory that all machines share, or
the bucket. Otherwise the driver lends it over the connection, as it does the trial's own files.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

from asynctune.checkpoints.borrowing import fetch_tree
from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.travelling import Call
from asynctune.checkpoints.trial_paths import check_trial_path
from asynctune.checkpoints.verify import VerifyReport, copy_verified
from asynctune.errors import CheckpointNotFoundError, StorageError
from asynctune.files import LocalFiles
from asynctune.runners.bucket_bringing import NodeBucket

__all__ = ["fetch_from_head", "fetch_in_place", "fetch_own_files"]

_ATTEMPTS: Final = 3
_BETWEEN_S: Final = 1.0

_T = TypeVar("_T")


async def fetch_from_head(call: Call, to: str, *, threads: DiskThreads) -> None:
    """Bring the checkpoint that the driver lends into a new directory.

    Raises:
        StorageError: A disk refuses, or a file is damaged.
    """
    await _again(lambda: fetch_tree(call, to, threads=threads))


async def fetch_own_files(call: Call, to: str, *, threads: DiskThreads) -> None:
    """Bring the files that earlier starts of the trial wrote into its directory, which is empty.

    Raises:
        StorageError: A disk refuses.
    """

    async def call_for_own(op: str, arguments: Mapping[str, Any]) -> Any:
        return await call(op.replace("away.", "own."), arguments)

    await _again(lambda: fetch_tree(call_for_own, to, threads=threads, check=check_trial_path))


async def fetch_in_place(
    place: Mapping[str, Any],
    to: str,
    *,
    is_shared: bool,
    bucket: Callable[[], Awaitable[NodeBucket]] | None,
    threads: DiskThreads,
) -> None:
    """Bring a committed checkpoint from where it is into a new directory, verified.

    Args:
        place: Attributes of a `CheckpointPlace`, without its checkpoint.
        to: The directory; it is not there if this fails.
        is_shared: Whether this node sees the driver's disk.
        bucket: Opens the experiment's copy, where this node reaches it; called if it is needed.
        threads: Where blocking calls go.

    Raises:
        CheckpointNotFoundError: It is damaged, missing, or cannot be reached; why.
        ConfigError, MissingExtraError: This node cannot open the bucket.
    """
    digest = place["manifest_sha256"]
    said: list[str] = []
    if is_shared and (path := place["path"]) is not None:

        async def copied() -> VerifyReport:
            return await copy_verified(path, digest, to, files=LocalFiles(), threads=threads, durable=False)

        if await _filled(to, copied, said):
            return
    if bucket is not None and place["is_in_copy"]:
        copy = await bucket()

        async def fetched() -> VerifyReport:
            async def attempt() -> VerifyReport:
                await asyncio.to_thread(_empty, to)  # of what the one before has left
                return await copy.fetch(place["directory"], digest, to)

            return await _again(attempt)

        if await _filled(to, fetched, said):
            return
    raise CheckpointNotFoundError(
        "; ".join(said) or f"{place['directory']} is nowhere that this node reaches"
    )


async def _filled(to: str, fill: Callable[[], Awaitable[VerifyReport]], said: list[str]) -> bool:
    """Make the directory and fill it; otherwise it is gone again, and it was said why."""
    is_filled = False
    try:
        await asyncio.to_thread(os.makedirs, to, 0o700)
        report = await fill()
        is_filled = report.intact
        if not is_filled:
            said.append(str(report))
    except (OSError, StorageError) as error:
        said.append(str(error))
    finally:
        if not is_filled:
            await asyncio.to_thread(shutil.rmtree, to, True)
    return is_filled


async def _again(attempt: Callable[[], Awaitable[_T]]) -> _T:
    """Once more after an error that may pass; a few times."""
    failures = 0
    while True:
        try:
            return await attempt()
        except StorageError as error:
            failures += 1
            if not error.retryable or failures > _ATTEMPTS:
                raise
        await asyncio.sleep(_BETWEEN_S)


def _empty(directory: str) -> None:
    """In a thread: leave the directory as it was made."""
    shutil.rmtree(directory)
    os.mkdir(directory, 0o700)
