"""Owns the transfer of files to and from a storage, as the rest of asynctune asks for it. Knows no checkpoint.

Files of any size go through a few MiB of memory. What is under way is bounded in bytes by a `ByteBudget`, which
several transfers may share; how many files are under way is the caller's business.
"""

from __future__ import annotations

import random
from collections.abc import Collection

from asynctune.clock import Clock, SystemClock
from asynctune.errors import ConfigError
from asynctune.files import FILE_MODE, LocalFiles
from asynctune.storage.base import ObjectStorage
from asynctune.storage.budget import ByteBudget
from asynctune.storage.carrying import Means, confirmed
from asynctune.storage.leftovers import abort_leftovers
from asynctune.storage.notes import UploadNotes
from asynctune.storage.receiving import receive_file
from asynctune.storage.sending import Sent, send_file
from asynctune.storage.threads import Threads
from asynctune.storage.values import Always, Condition, ObjectContent

__all__ = ["Sent", "Transfer"]

_ALWAYS = Always()


class Transfer:
    """Sends files to a storage and receives them from it. Used from one event loop, by any number of tasks at once.

    Every method can be cancelled at any moment, and leaves no half object, task or descriptor behind; an upload in
    parts only if it is noted.

    Args:
        storage: Where to and from; not closed with this.
        budget: Bounds the bytes in flight.
        clock: Reads the time, and waits.
        notes: Where uploads in parts are written down, so that another process can go on with them; `None`: nothing
            is resumed, and an upload that fails is aborted.
        files: The disk; tests replace it.
        part_bytes: Size of the parts that larger files are sent and received in; the storage's rules may raise it.
        put_bytes: Greatest file that is sent at once.
        parts_at_once: How many parts of one file are under way at once, where the storage takes them in any order.
        timeout_s: Seconds after which a transfer fails of which nothing has come.
        rng: Where the jitter of pauses comes from.

    Raises:
        ConfigError: A value that cannot work.
    """

    def __init__(
        self,
        storage: ObjectStorage,
        *,
        budget: ByteBudget | None = None,
        clock: Clock | None = None,
        notes: UploadNotes | None = None,
        files: LocalFiles | None = None,
        part_bytes: int = 16 << 20,
        put_bytes: int = 16 << 20,
        parts_at_once: int = 4,
        timeout_s: float = 300.0,
        rng: random.Random | None = None,
    ) -> None:
        for name, value in (("part_bytes", part_bytes), ("parts_at_once", parts_at_once)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value!r}")
        if put_bytes < 0 or not timeout_s > 0:
            raise ConfigError("put_bytes must not be below 0, and timeout_s must be above 0")
        self._threads = Threads("transfer")
        self._means = Means(
            storage=storage,
            budget=ByteBudget() if budget is None else budget,
            clock=SystemClock() if clock is None else clock,
            files=LocalFiles() if files is None else files,
            threads=self._threads,
            notes=notes,
            rng=random.Random() if rng is None else rng,  # noqa: S311 - jitter is no secret
            part_bytes=part_bytes,
            put_bytes=put_bytes,
            parts_at_once=parts_at_once,
            timeout_s=timeout_s,
        )

    @property
    def storage(self) -> ObjectStorage:
        """As it was made."""
        return self._means.storage

    async def send(
        self,
        key: str,
        path: str,
        *,
        size_bytes: int,
        crc32c: int | None = None,
        condition: Condition = _ALWAYS,
    ) -> Sent:
        """Make an object of a local file; one call for a key at a time. Durable when it returns.

        An upload that is noted is gone on with: parts that the storage holds, and whose checksums fit the file's, are
        not sent again. A reply that was lost is settled by looking at the object, by its checksum where the storage
        keeps one, else by reading it.

        Args:
            key: The object.
            path: Absolute path of a regular file, which must not change meanwhile.
            size_bytes: Its size, as it should be.
            crc32c: Its checksum, as it should be; `None`: as it is found now, by reading it once more.
            condition: When to store.

        Raises:
            ConditionFailedError: The condition does not hold, and another content is there.
            StorageError: The storage fails; or the file cannot be read, or is not (or is no longer) what it should be,
                which is not retryable. Nothing is stored, unless the error is retryable: then it may be.
            ConfigError: The key cannot be one, or the file is too large for this storage.
        """
        return await send_file(
            self._means, key, path, size_bytes=size_bytes, crc32c=crc32c, condition=condition
        )

    async def receive(
        self,
        key: str,
        path: str,
        *,
        size_bytes: int,
        crc32c: int | None = None,
        sha256: str | None = None,
        version: str | None = None,
        mode: int = FILE_MODE,
        durable: bool = True,
    ) -> None:
        """Make a new local file of an object, checked and synced (its name in the directory is not).

        Broken bodies are continued; bytes that turn out to be damaged are fetched again a few times. After an error,
        or when it is cancelled, the file is removed.

        Args:
            key: The object.
            path: Absolute path of a file that is not there, in a directory that is.
            size_bytes: The object's size, as it should be.
            crc32c: Its checksum, as it should be; `None`: the storage's, where it keeps one.
            sha256: In hexadecimal; `None`: not looked at.
            version: Only this one; `None`: any, but all bytes of the same one.
            mode: The file's permission bits.
            durable: Whether it is synced; if not, the caller has to, before anything says that the file is there.

        Raises:
            NotFoundError: There is no such object.
            ConditionFailedError: It has another version by now.
            DamagedObjectError: The object has another size or checksum (of `asynctune.storage.receiving`).
            StorageError: The storage or the disk fails.
        """
        await receive_file(
            self._means,
            key,
            path,
            size_bytes=size_bytes,
            crc32c=crc32c,
            sha256=sha256,
            version=version,
            mode=mode,
            durable=durable,
        )

    async def read(self, key: str, *, max_bytes: int) -> ObjectContent:
        """Read a small object whole, checked by what the storage keeps. With no patience: `receive` has that.

        Raises:
            NotFoundError: There is no such object.
            StorageError: It is larger, or the storage fails.
        """
        patience = self._means.patience()
        return await patience.once(lambda: self.storage.read(key, max_bytes=max_bytes), "read", key)

    async def holds(self, key: str, *, size_bytes: int, crc32c: int) -> str | None:
        """The version of the object if it has this size and checksum; `None`: there is none, or another.

        Where the storage keeps no checksum (a directory) the object is read.

        Raises:
            StorageError: The storage fails.
        """
        patience = self._means.patience()
        return await patience.run(lambda: confirmed(self._means, key, size_bytes, crc32c), "head", key)

    async def abort_leftovers(self, prefix: str = "", known: Collection[str] = ()) -> int:
        """Abort uploads in parts of keys with this prefix, until none is listed; how many there were.

        Only for who alone writes there. A storage that does not list its uploads removes them by itself after some
        days (`upload_rules.listed`).

        Args:
            prefix: Of keys.
            known: Ids of uploads that are to stay, such as those of `UploadNotes.every`.

        Raises:
            StorageError: The storage fails, or lists an upload again and again.
        """
        return await abort_leftovers(self._means, prefix, known)

    def close(self) -> None:
        """Let the threads end, when no transfer is under way; the notes' too."""
        self._threads.close()
        if self._means.notes is not None:
            self._means.notes.close()
