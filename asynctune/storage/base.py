"""Owns the protocol of a storage, and who settles what when a reply is lost; knows no storage. No I/O.

A storage holds *objects*: bytes under a key, replaced whole or not at all. Each has a version that changes with
every replacement.

**Outcomes that callers branch on are values, failures are exceptions.** A conditional write answers `Stored` or
`Conflict`; `head` answers `None` where nothing is. Whatever else goes wrong is a `StorageError`
(`AuthenticationError`, `NotFoundError`) with `operation`, `key`, `retryable` and `hint`, raised after the storage's
own retries (`asynctune.storage.retry`). Wrong arguments (a key, a range, a part that cannot be) are a `ConfigError`.
No message holds a credential, a signed URL or an upload id.

**Ambiguous replies.** A write can be applied and its reply lost. Storages, and the HTTP clients below them, send
such a write again; the second copy then meets the first. So of a write there are three endings, and two prove little:

- `Stored(version)`: it was applied, as this version.
- `Conflict(version)`: some copy of it met another state than the condition names. That may be its *own* first copy:
  a conflict alone never means that somebody else wrote.
- An exception or a cancellation: it may have been applied, or not.

Who does what: the *storage* may repeat a write, because no condition lets one be applied twice; it never guesses.
The *caller* that cares puts something into the content that nobody else writes (a nonce), and after anything but
`Stored` reads the object back and compares: `asynctune.storage.settling.put_settled` does that for a small object.
`complete_upload` is settled the same way, by `head`: size and crc32c of an object whose key is used once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, runtime_checkable

from asynctune.storage.values import (
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

__all__ = ["Body", "ObjectStorage"]


class Body(Protocol):
    """The bytes of an object as they arrive, inside `async with storage.get(...)`. To be iterated once.

    Raises while it is iterated:
        StorageError: The bytes end too early, or do not match the checksum; retryable. Nothing read so far can be
            trusted more than its own checksum says.
    """

    @property
    def info(self) -> ObjectInfo:
        """The object as it was when the reply began; its `size_bytes` is that of the whole object."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Chunks of at most a few MiB, none empty."""
        ...


@runtime_checkable
class ObjectStorage(Protocol):
    """A bucket with a prefix, or a directory. Used from one event loop, by any number of tasks at once.

    Keys are relative to the storage's prefix (see `asynctune.storage.keys`). After a write is acknowledged, every
    read and listing, of any process, sees it. A bucket that does not exist is a `StorageError`, never a missing object.

    Every method can be cancelled at any moment, and leaves no connection, descriptor, thread or half object behind;
    of an upload in parts what was acknowledged stays, to be continued or aborted.
    """

    @property
    def location(self) -> str:
        """The place as a URI or path, for messages; without credentials."""
        ...

    @property
    def supports_conditions(self) -> bool:
        """Whether `OnlyCreate` and `IfVersion` are kept. Otherwise they are refused with a `ConfigError`."""
        ...

    @property
    def upload_rules(self) -> UploadRules:
        """Which parts uploads may have, and in which order they go."""
        ...

    @property
    def max_key_bytes(self) -> int:
        """Greatest length of a key: `MAX_KEY_BYTES` less the storage's prefix."""
        ...

    # -- whole objects ---------------------------------------------------------------------------------------

    async def head(self, key: str) -> ObjectInfo | None:
        """What is known of the object, its crc32c included if the storage keeps one; `None`: there is none."""
        ...

    def get(
        self, key: str, *, start: int = 0, length: int | None = None, version: str | None = None
    ) -> AbstractAsyncContextManager[Body]:
        """Open an object, or a range of it, for reading in bounded memory.

        Leaving the block ends the transfer, read to its end or not. Only the opening is retried: who goes on after a
        broken body asks for the rest, with `start` and `version`. A body of the whole object is checked against the
        crc32c, where the storage keeps one.

        Args:
            key: The object.
            start: First byte. A start at or behind the end is an empty body.
            length: How many bytes at most; `None`: to the end.
            version: Read only this version, so that ranges fit together.

        Raises:
            NotFoundError: There is no such object.
            ConditionFailedError: It has another version by now.
        """
        ...

    async def read(self, key: str, *, max_bytes: int = 16 << 20) -> ObjectContent:
        """Read a small object whole, with its version; retried whole.

        Raises:
            NotFoundError: There is no such object.
            StorageError: It is larger than `max_bytes`; not retryable, and not read.
        """
        ...

    async def put(
        self, key: str, data: Source, *, condition: Condition = ..., crc32c: int | None = None
    ) -> Outcome:
        """Store an object at once, at most `upload_rules.max_put_bytes`. Durable when it returns.

        Args:
            key: The object.
            data: Its bytes, or where they are.
            condition: When to store; `Always()` if not given. Each storage keeps it atomically.
            crc32c: Of `data`. Bytes with another checksum are never stored: the server checks what it can, the client
                the rest while it reads them.

        Raises:
            StorageError: It may be stored or not, unless the checksum was refused (`retryable` is false then).
        """
        ...

    async def delete(self, keys: Collection[str]) -> None:
        """Delete any number of objects; a missing one is fine.

        Raises:
            StorageError: Some are still there; `key` names the first.
        """
        ...

    def list_objects(
        self, prefix: str = "", *, delimiter: Literal["/"] | None = None, start_after: str | None = None
    ) -> AsyncGenerator[ObjectInfo | Directory, None]:
        """Every object whose key begins with `prefix`, in the order of the keys' UTF-8 bytes, page by page.

        Close it early with `contextlib.aclosing`. What is written meanwhile may be listed or not.

        Args:
            prefix: Any beginning of keys, `"a/b"` as well as `"a/"`.
            delimiter: With `"/"`, keys with one behind the prefix are summed up as one `Directory` each, in its place.
            start_after: Only entries whose key or name is greater.
        """
        ...

    # -- uploads in parts -----------------------------------------------------------------------------------

    async def begin_upload(
        self,
        key: str,
        *,
        size_bytes: int,
        part_bytes: int,
        condition: Condition = ...,
        crc32c: int | None = None,
    ) -> Upload | Conflict:
        """Begin an object that is put in parts. Write the `Upload` down before the first part is sent.

        Args:
            key: The object. Nothing of it can be seen until `complete_upload`.
            size_bytes: Its size, above 0.
            part_bytes: Size of each part but the last; see `upload_rules.part_bytes`.
            condition: Kept when the upload completes; an early `Conflict` is possible.
            crc32c: Of the whole object, if known; kept when the upload completes.
        """
        ...

    async def put_part(
        self, upload: Upload, number: int, data: Source, *, crc32c: int | None = None
    ) -> UploadedPart:
        """Send one part, for the first time or again. If this fails, `list_parts` tells whether it is there.

        With `upload_rules.in_order`, parts go one after the other, from the first that `list_parts` does not have; one
        that is there already is acknowledged and not sent. A storage may keep the *last* part aside (a `FileRange`, or
        the bytes) and send it with `complete_upload`; another process then has to put it again.

        Raises:
            NotFoundError: The upload was completed, aborted or given up by the storage; begin anew.
            ConfigError: `data` has not the size of this part, or it is not its turn.
        """
        ...

    async def list_parts(self, upload: Upload) -> list[UploadedPart]:
        """The parts that the storage holds whole, by number, after a restart too.

        Raises:
            NotFoundError: As for `put_part`.
        """
        ...

    async def complete_upload(self, upload: Upload, parts: Sequence[UploadedPart]) -> Outcome:
        """Make the object of all its parts, if the upload's condition holds. Durable when it returns.

        After a `Conflict` the upload is still there, or not: abort it.

        Args:
            upload: As begun.
            parts: Each part once, as `put_part` or `list_parts` returned it.

        Raises:
            NotFoundError: The upload is gone. A reply that was lost looks the same: settle it by `head`.
            StorageError: Not retryable if the checksum of the whole does not match; nothing is stored then.
        """
        ...

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """Give an upload up and free what it holds; one that is gone is fine.

        A part that is under way in another process may outlive this: abort until `list_uploads` has none.
        """
        ...

    def list_uploads(self, prefix: str = "") -> AsyncGenerator[PendingUpload, None]:
        """Uploads neither completed nor aborted, of keys that begin with `prefix`; see `upload_rules.listed`."""
        ...

    # -- the end --------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close connections and threads; may be called twice. Other calls raise a `StorageError` afterwards."""
        ...
