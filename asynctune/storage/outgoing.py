"""Owns what is known of one file that is to become an object: its content, and whether the object is that already."""

from __future__ import annotations

import hashlib
import stat
from typing import Final

from asynctune.errors import ConditionFailedError, StorageError
from asynctune.storage.carrying import Means, confirmed, crc32c_of_file, feed
from asynctune.storage.local_lock import disk_errors
from asynctune.storage.values import Always, Condition, FileRange

__all__ = ["Outgoing"]

_UNSEEN: Final = (-1, -1, -1)


class Outgoing:
    """One file on its way to the bucket.

    Attributes:
        means: What the transfer works with.
        key: The object.
        path: The file.
        size_bytes: What it should have.
        condition: When to store it.
        crc32c: Of its content; known after `open`.
        patience: Of this transfer.
        sent_bytes: How many bytes were sent for it.
    """

    def __init__(self, means: Means, key: str, path: str, size_bytes: int, condition: Condition) -> None:
        self.means = means
        self.key = key
        self.path = path
        self.size_bytes = size_bytes
        self.condition = condition
        self.crc32c = 0
        self.patience = means.patience()
        self.sent_bytes = 0
        self._seen = _UNSEEN

    # -- the file ----------------------------------------------------------------------------------------------

    async def open(self, crc32c: int | None) -> None:
        """Look at the file, and compute its checksum if none is given.

        Raises:
            StorageError: It cannot be read, or has another size; not retryable.
        """
        self._seen = await self._look()
        if self._seen[0] != self.size_bytes:
            raise self.changed(f"has {self._seen[0]} bytes, not {self.size_bytes}")
        self.crc32c = await self.checksum(0, self.size_bytes) if crc32c is None else crc32c

    async def check_unchanged(self) -> None:
        """Look whether the file is the one that was opened.

        Raises:
            StorageError: It is not; not retryable.
        """
        if await self._look() != self._seen:
            raise self.changed("was changed while it was sent")

    async def checksum(self, offset: int, size_bytes: int) -> int:
        """The crc32c of a range of the file, as it is now.

        Raises:
            StorageError: It cannot be read, or is too short; not retryable.
        """
        source = FileRange(self.path, offset, size_bytes)
        return await self.means.threads.run_stoppable(lambda stop: crc32c_of_file(source, self.key, stop))

    async def md5(self, offset: int, size_bytes: int) -> str:
        """The MD5 of a range of the file, as it is now, in hexadecimal.

        Raises:
            StorageError: As for `checksum`.
        """
        source, digest = FileRange(self.path, offset, size_bytes), hashlib.md5(usedforsecurity=False)
        await self.means.threads.run_stoppable(lambda stop: feed(digest, source, self.key, stop))
        return digest.hexdigest()

    def changed(self, what: str) -> StorageError:
        """The error for a file that is not what it should be."""
        return StorageError(
            f"upload of {self.key!r}: the source {self.path} {what}",
            operation="read",
            key=self.key,
            hint="a file that is being stored must stay as it is; nothing was stored",
        )

    async def _look(self) -> tuple[int, int, int]:
        """Size, time of modification and inode."""
        with disk_errors("read", self.path):
            found = await self.means.threads.run(self.means.files.stat, self.path)
        if not stat.S_ISREG(found.st_mode):
            raise self.changed("is no regular file")
        return found.st_size, found.st_mtime_ns, found.st_ino

    # -- the object ----------------------------------------------------------------------------------------------

    async def settled(self, error: StorageError | None) -> str | None:
        """The version of the object if it is what was to be stored, after a conflict or an `error`.

        Raises:
            StorageError: There was a conflict, and the storage does not tell what is there.
        """
        if error is None:
            return await self.patience.run(self._confirmed, "head", self.key)
        try:
            return await self.patience.once(self._confirmed, "head", self.key)
        except StorageError as unknown:
            if not unknown.retryable:
                raise
            return None  # the storage is away: `error` is waited out

    async def _confirmed(self) -> str | None:
        return await confirmed(self.means, self.key, self.size_bytes, self.crc32c)

    def lost(self) -> StorageError:
        """The error for a conflict with what somebody else has put there."""
        if isinstance(self.condition, Always):
            return StorageError(
                f"put of {self.key!r}: it met another write", operation="put", key=self.key, retryable=True
            )
        return ConditionFailedError(
            f"put of {self.key!r} in {self.means.storage.location}: another object is there, so it was not stored",
            operation="put",
            key=self.key,
        )
