"""Owns what this room has to be told of a bucket: how trees get there and back, when a commit is there, and how often.

The store fills it in; the bytes are `mirroring`'s (or a syncer's of the user's own), the rules are `uploads`'. No I/O.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from asynctune.checkpoints.records import CheckpointRecord
from asynctune.checkpoints.verify import VerifyReport

__all__ = ["DEFAULT_CONCURRENCY", "Bucket", "TreeCopies"]

DEFAULT_CONCURRENCY: Final = 4
"""How many checkpoints are uploaded at once."""


class TreeCopies(Protocol):
    """Copies of committed checkpoints in one bucket, each below its own directory name.

    A directory name is used for one content only, so every method may be repeated after any failure.
    """

    @property
    def location(self) -> str:
        """The place, for messages; without credentials."""
        ...

    async def put_tree(
        self, record: CheckpointRecord, path: str, *, new: bool, progress: Callable[[int], None]
    ) -> int:
        """Copy a committed directory: its files, and its manifest last. Durable and complete when it returns.

        It ends by itself, with an error, when nothing comes of it for the time that the user has set (`sync_timeout`).

        Args:
            record: The checkpoint.
            path: Absolute path of the directory, which does not change meanwhile.
            new: Nothing of it can be in the bucket; otherwise what is there is looked for and not sent again.
            progress: Told a number of bytes whenever some are acknowledged, for statistics.

        Returns:
            How many bytes were sent.

        Raises:
            UploadError: The directory is not what was recorded.
            StorageError: The bucket or the disk said no.
        """
        ...

    async def delete_tree(self, record: CheckpointRecord) -> None:
        """Delete whatever the bucket may hold of it: the manifest first. What is not there is fine.

        Raises:
            StorageError: Some of it is still there.
        """
        ...

    async def is_complete(self, record: CheckpointRecord) -> bool:
        """Whether the whole copy is there, by its manifest, though no record says so: a crash came between the two.

        Raises:
            StorageError: The bucket cannot be asked.
        """
        ...

    async def fetch_tree(self, record: CheckpointRecord, to: str) -> VerifyReport:
        """Bring the files, verified and without the manifest, into the empty directory `to`.

        What `to` holds after a failure, or a report that is not `intact`, is of no use and the caller's to remove.

        Returns:
            What is wrong with the copy; nothing, normally.

        Raises:
            StorageError: The bucket cannot be asked, or the disk said no: that tells nothing of the copy.
        """
        ...


async def _at_once() -> None:
    """Nothing is waited for."""


async def _never(_seq: int) -> None:
    msg = "a reader waits for no commit"
    raise AssertionError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The bucket of one opening, as the checkpoints see it.

    Attributes:
        copies: How trees get there and back.
        reached: Returns when the mirror names the commit of this seq; does not hurry it.
        flush: The same, at once: for the close. `None`: `reached`.
        claimed: Returns when this opening owns the bucket. Nothing is put or deleted before. By default it does.
        max_concurrency: How many checkpoints are uploaded at once.
        sync_on_checkpoint: Upload each checkpoint when it is committed; otherwise only every `sync_period_s`.
        sync_period_s: Seconds between the beginnings of uploads with `sync_on_checkpoint=False`.
        direct: Whether workers may put trees there themselves: it is no `Syncer`'s.
        patience_s: For how many seconds a close without a limit waits for deletions there: the bucket may be away.
    """

    copies: TreeCopies
    reached: Callable[[int], Awaitable[None]]
    flush: Callable[[int], Awaitable[None]] | None = None
    claimed: Callable[[], Awaitable[None]] = field(default=_at_once)
    max_concurrency: int = DEFAULT_CONCURRENCY
    sync_on_checkpoint: bool = True
    sync_period_s: float = 300.0
    direct: bool = True
    patience_s: float = 1800.0

    @classmethod
    def for_reading(cls, copies: TreeCopies) -> Bucket:
        """For a reader, who fetches only."""
        return cls(copies=copies, reached=_never)
