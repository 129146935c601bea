"""Owns finding CURRENT: the one object, or the newest of many where a storage has no conditional writes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final, Protocol

from asynctune.errors import CorruptStateError, NotFoundError, StorageError, UnsupportedFormatError
from asynctune.state.codec import FrameError
from asynctune.state.mirror.current import CURRENT_KEY, MAX_CURRENT_BYTES, Current, decode_current
from asynctune.state.mirror.listing import Entry, list_entries
from asynctune.state.mirror.objects import together
from asynctune.storage.base import ObjectStorage

__all__ = ["Named", "Register", "read_key", "read_named", "vanished"]

logger = logging.getLogger("asynctune")

_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Named:
    """CURRENT as it was found or put.

    Attributes:
        current: What it says.
        key: The object it was read from.
        version: Version of the object `.asynctune/CURRENT` at that time; `None`: there is none.
        modified_at: When it was stored, by the storage's clock; 0.0 where that is not known.
        size_bytes: Its size.
    """

    current: Current
    key: str
    version: str | None
    modified_at: float = 0.0
    size_bytes: int = 0


class Register(Protocol):
    """Where CURRENT is."""

    @property
    def fenced(self) -> bool:
        """Whether the storage keeps conditions, so that no two drivers can both go on."""
        ...

    @property
    def why_unfenced(self) -> str:
        """One sentence for people, where it does not; else empty."""
        ...

    @property
    def clock_offset_s(self) -> float:
        """By how much the storage's clock is ahead of ours, seconds; measured when opened for writing, else 0."""
        ...

    async def read(self) -> Named | None:
        """What CURRENT says; `None`: there is none.

        Raises:
            CorruptStateError, UnsupportedFormatError: It cannot be understood.
            StorageError: The storage refused.
        """
        ...

    async def swap(self, current: Current, expected: Named | None) -> Named:
        """Replace what `expected` is (`None`: nothing) by `current`; what is there afterwards.

        It was replaced if the `swap_nonce` of the answer is that of `current`. Otherwise somebody else's, or an
        earlier one of this opening, is there.

        Raises:
            StorageError: Not known whether it was replaced; or (not retryable) CURRENT has vanished.
        """
        ...


def vanished(storage: ObjectStorage) -> StorageError:
    """The error for a CURRENT that was there, and is never deleted."""
    return StorageError(
        f"{storage.location}/{CURRENT_KEY} has vanished: somebody has removed the mirror of this experiment",
        operation="put",
        key=CURRENT_KEY,
        hint="nothing more is mirrored by this opening; the local directory has everything, open it again",
    )


async def read_named(storage: ObjectStorage) -> Named | None:
    """The newest of what compare-and-swap and, on a storage without it, other ways have left.

    Raises:
        CorruptStateError, UnsupportedFormatError: It cannot be understood.
        StorageError: The storage refused.
    """
    seen = False
    for _ in range(_TRIES):
        # a bucket that is not there is an error of the listing, and no missing object
        swapped, entries = await together(read_key(storage, CURRENT_KEY), list_entries(storage))
        if seen and not entries and swapped is None:
            break  # never an empty place: something was there a moment ago
        seen = seen or bool(entries)
        try:
            listed = await _newest_listed(storage, entries)
        except NotFoundError:
            continue  # all that were listed have been replaced, and removed, since
        if listed is None or (swapped is not None and _order(swapped) >= _order(listed)):
            return swapped
        return Named(
            listed.current,
            listed.key,
            None if swapped is None else swapped.version,
            listed.modified_at,
            listed.size_bytes,
        )
    raise StorageError(
        f"read of the mirror at {storage.location}: it is replaced, or removed, faster than it can be read",
        operation="read",
        retryable=True,
    )


def _order(named: Named) -> tuple[int, str, int, int]:
    current = named.current
    return current.claim.epoch, current.claim.nonce.hex(), current.seq, current.swap


async def _newest_listed(storage: ObjectStorage, entries: list[Entry]) -> Named | None:
    """The highest entry that can be understood; `None`: there are none.

    Raises:
        NotFoundError: None is there any more.
        CorruptStateError, UnsupportedFormatError: None can be understood.
    """
    failure: Exception | None = None
    for entry in reversed(entries):
        try:
            found = await read_key(storage, entry.key)
        except CorruptStateError as error:
            logger.warning("%s; the one before it is taken", error)
            failure = error
            continue
        if found is not None:
            return found
    if failure is not None:
        raise failure
    if entries:
        raise NotFoundError("they are gone", operation="read", key=entries[-1].key)
    return None


async def read_key(storage: ObjectStorage, key: str) -> Named | None:
    """What one object says; `None`: it is not there.

    Raises:
        CorruptStateError, UnsupportedFormatError: It cannot be understood.
        StorageError: The storage refused.
    """
    try:
        found = await storage.read(key, max_bytes=MAX_CURRENT_BYTES)
    except NotFoundError:
        return None
    try:
        current = decode_current(found.data)
    except FrameError as error:
        path = f"{storage.location}/{key}"
        if error.newer:
            raise UnsupportedFormatError(
                f"{path} was written by a newer asynctune ({error}); upgrade asynctune"
            ) from error
        raise CorruptStateError(
            f"the mirror is damaged: {path}: {error}. Nothing was changed; keep a copy, and open the experiment from "
            "a local directory or a backup",
            path=path,
        ) from error
    info = found.info
    return Named(current, key, info.version, info.modified_at, info.size_bytes)
