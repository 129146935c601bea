"""Owns the way from an experiment's directory to its copy, for who reads: opened when a checkpoint is only there.

Reading the directory needs no network, no client of a cloud and no credentials, so nothing of the copy is touched
before. Nothing is written there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn

from asynctune.checkpoints.bucket import TreeCopies
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.checkpoints.verify import VerifyReport
from asynctune.clock import Clock
from asynctune.errors import StorageError
from asynctune.files import LocalFiles
from asynctune.state.mirror.register import open_register
from asynctune.state.thread import WorkThread
from asynctune.store.access import Access, open_access
from asynctune.store.place import Remote

__all__ = ["LazyCopies"]


class LazyCopies:
    """Copies of checkpoints in a bucket that nobody has asked yet. See `TreeCopies`, of which a reader uses a part.

    Args:
        uri: Where the copy is, for messages.
        find: Tells the copy, in a thread; may raise whatever is to be said instead.
        path: Of a directory that stands for the experiment's, and need not be there.
        clock: Time.
        files: The disk.
    """

    def __init__(
        self, uri: str, find: Callable[[], Remote], path: str, *, clock: Clock, files: LocalFiles
    ) -> None:
        self._uri = uri
        self._find = find
        self._path = path
        self._clock = clock
        self._files = files
        self._turn = asyncio.Lock()
        self._access: Access | None = None

    @property
    def location(self) -> str:
        """The place, for messages; without credentials."""
        return self._uri

    async def put_tree(
        self, record: CheckpointRecord, path: str, *, new: bool, progress: Callable[[int], None]
    ) -> NoReturn:
        """A reader sends nothing."""
        del record, path, new, progress
        raise AssertionError

    async def delete_tree(self, record: CheckpointRecord) -> NoReturn:
        """A reader deletes nothing."""
        del record
        raise AssertionError

    async def is_complete(self, record: CheckpointRecord) -> bool:
        """See `TreeCopies`."""
        return await (await self._copies()).is_complete(record)

    async def fetch_tree(self, record: CheckpointRecord, to: str) -> VerifyReport:
        """See `TreeCopies`.

        Raises:
            ConfigError: The copy is kept by a syncer, which was not given; or what was given cannot be.
            CorruptStateError: What says where the copy is cannot be read.
            MissingExtraError: The client for the bucket is not installed.
            StorageError: The bucket or the disk refused.
        """
        return await (await self._copies()).fetch_tree(record, to)

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        access, self._access = self._access, None
        if access is not None:
            await access.aclose()

    async def _copies(self) -> TreeCopies:
        async with self._turn:  # who comes meanwhile uses the same
            if self._access is None:
                self._access = await self._open()
            return self._access.copies

    async def _open(self) -> Access:
        thread = WorkThread("asynctune-read")
        try:
            remote = await thread.run(self._find)
        finally:
            thread.stop()
        access = await open_access(remote, self._path, clock=self._clock, files=self._files)
        try:
            # a transfer is patient with a bucket that is away; who has just asked for it wants to know
            await access.look()
            await (await open_register(access.storage, writing=False, clock=self._clock)).read()
        except BaseException as error:
            await access.aclose()
            if isinstance(error, StorageError) and error.retryable:
                raise StorageError(
                    f"the checkpoint is not, or not whole, on this disk, and {self._uri} cannot be reached: {error}",
                    operation=error.operation,
                    key=error.key,
                    retryable=True,
                ) from error
            raise
        return access
