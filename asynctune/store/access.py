"""Owns the ways to an experiment's copy: the built-in one, through a storage, and that through a `Syncer`.

Whoever uses the copy sees one thing: a storage that holds the state's objects, something that carries checkpoints, and
something that carries result files.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Final, Protocol

from asynctune.checkpoints.bucket import TreeCopies
from asynctune.checkpoints.mirroring import BucketCopies
from asynctune.clock import Clock
from asynctune.files import LocalFiles
from asynctune.results.fetching import fetch_results
from asynctune.results.mirroring import ResultSender
from asynctune.storage.base import ObjectStorage
from asynctune.storage.notes import UploadNotes
from asynctune.storage.transfer import Transfer
from asynctune.storage.uri import open_storage
from asynctune.store.finding import STATE_DIR
from asynctune.store.own_results import OwnResults
from asynctune.store.place import Remote

__all__ = ["Access", "BucketAccess", "open_access"]

_MOST_S: Final = 300.0
"""A transfer of which nothing comes for so long fails, is told, and is tried again, however long it may take in all."""


class Access(Protocol):
    """A way to the copy of one experiment. Made by `open_access`; nothing of the copy is looked at before it is used.

    Attributes:
        copies: Carries checkpoints.
        finish: Awaited after some were sent; `None`: they are there at once.
    """

    copies: TreeCopies
    finish: Callable[[], Awaitable[None]] | None

    @property
    def storage(self) -> ObjectStorage:
        """Holds the objects of the state's mirror."""
        ...

    async def look(self, *, may_make: bool = False) -> None:
        """Let `storage` show the copy as it is at this moment.

        Args:
            may_make: Something may be put into a place where nothing is, to see whether it can be reached.

        Raises:
            StorageError: It cannot be reached.
        """
        ...

    def announce(self, emit: Callable[..., None]) -> None:
        """Say what people should know of this way to a copy, at an opening for writing."""
        ...

    async def begin(self) -> bool:
        """Get ready to write, with the experiment's directory locked; whether all result files have to be sent anew.

        Raises:
            StorageError: The disk refused.
        """
        ...

    def sender(self, check_owner: Callable[[], Awaitable[None]]) -> ResultSender:
        """What carries result files there.

        Args:
            check_owner: Raises `FencedError` if another opening owns the copy by now.
        """
        ...

    async def noted_uploads(self) -> Collection[str]:
        """Ids of the uploads in parts that this directory can go on with.

        Raises:
            StorageError: The disk refused.
        """
        ...

    async def fetch_results(self, path: str, wanted: Callable[[str], bool]) -> None:
        """Bring the result files of the trials that are wanted by name to the experiment's directory.

        Raises:
            StorageError: The copy or the disk refused.
        """
        ...

    async def fetch_file(self, key: str, path: str) -> bool:
        """Bring one result file to a new path; whether there is one.

        Raises:
            StorageError: The copy or the disk refused.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections and threads; again: does nothing."""
        ...


async def open_access(remote: Remote, path: str, *, clock: Clock, files: LocalFiles) -> Access:
    """The way to a copy.

    Args:
        remote: The copy.
        path: The experiment's directory, which need not be there; for a reader one of its own.
        clock: Time.
        files: The disk.

    Raises:
        ConfigError: The location or its options cannot be.
        MissingExtraError: The client for it is not installed.
    """
    if remote.uri is None:
        from asynctune.store.synced import SyncerAccess  # noqa: PLC0415 - few have a syncer of their own

        return SyncerAccess(remote, path, clock=clock, files=files)
    storage = await open_storage(remote.uri, remote.options)
    return BucketAccess(
        storage, path, timeout_s=min(remote.sync.sync_timeout, _MOST_S), clock=clock, files=files
    )


class BucketAccess:
    """Through an object storage; its root is the experiment."""

    def __init__(
        self, storage: ObjectStorage, path: str, *, timeout_s: float, clock: Clock, files: LocalFiles
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._notes = notes = UploadNotes(
            f"{path}/{STATE_DIR}/uploads", location=storage.location, files=files
        )
        self._transfer = Transfer(storage, clock=clock, notes=notes, files=files, timeout_s=timeout_s)
        self._copies = BucketCopies(storage, self._transfer, notes=notes, files=files)
        self.copies: TreeCopies = self._copies
        self.finish: Callable[[], Awaitable[None]] | None = None
        self._files = files

    @property
    def storage(self) -> ObjectStorage:
        """As it was opened."""
        return self._storage

    async def look(self, *, may_make: bool = False) -> None:
        """A storage always shows what is there."""

    def announce(self, emit: Callable[..., None]) -> None:
        """Nothing is to be said."""

    async def begin(self) -> bool:
        """Nothing has to be made ready."""
        return False

    def sender(self, check_owner: Callable[[], Awaitable[None]]) -> ResultSender:
        """See `Access.sender`."""
        return OwnResults(self._storage, self._transfer, check_owner)

    async def noted_uploads(self) -> Collection[str]:
        """See `Access.noted_uploads`."""
        return {upload.upload_id for upload in await self._notes.every()}

    async def fetch_results(self, path: str, wanted: Callable[[str], bool]) -> None:
        """See `Access.fetch_results`."""
        await fetch_results(
            self._storage, self._transfer, path, wanted=wanted, files=self._files, clock=self._clock
        )

    async def fetch_file(self, key: str, path: str) -> bool:
        """See `Access.fetch_file`."""
        if (info := await self._storage.head(key)) is None:
            return False
        await self._transfer.receive(key, path, size_bytes=info.size_bytes, version=info.version)
        return True

    async def aclose(self) -> None:
        """See `Access.aclose`."""
        self._copies.close()
        self._transfer.close()
        await self._storage.aclose()
