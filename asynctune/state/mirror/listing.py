"""Owns the names of the objects that stand for CURRENT where a storage has no conditional writes.

`current-<epoch>-<nonce>-<seq>-<swap>`, numbers with leading zeros: the order of the names is the order of their
authority. Of two openings of one number the one with the greater nonce counts, however far the other writes.
"""

from __future__ import annotations

import re
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from asynctune.state.mirror.current import PREFIX, Current, mark_of
from asynctune.storage.base import ObjectStorage
from asynctune.storage.values import ObjectInfo

__all__ = ["KEPT_LISTED", "LISTED_PREFIX", "Entry", "entry_of", "list_entries"]

LISTED_PREFIX: Final = f"{PREFIX}current-"
"""What their keys begin with."""

KEPT_LISTED: Final = 3
"""How many of the newest stay: where the newest cannot be understood, the one before it counts."""

_KEY: Final = re.compile(
    rf"{re.escape(LISTED_PREFIX)}([0-9]{{10,15}})-([0-9a-f]{{12}})-([0-9]{{19}})-([0-9]{{10,19}})\Z"
)
_NEWEST: Final = 8


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One of them; orders by authority."""

    epoch: int
    mark: str
    seq: int
    swap: int

    @property
    def key(self) -> str:
        """Its key."""
        return f"{LISTED_PREFIX}{self.epoch:010d}-{self.mark}-{self.seq:019d}-{self.swap:010d}"


def entry_of(current: Current) -> Entry:
    """The entry that says this."""
    return Entry(current.claim.epoch, mark_of(current.claim), current.seq, current.swap)


async def list_entries(storage: ObjectStorage, after: Entry | None = None) -> list[Entry]:
    """The highest few, rising.

    Raises:
        StorageError: The storage refused.
    """
    found: list[Entry] = []
    listing = storage.list_objects(LISTED_PREFIX, start_after=None if after is None else after.key)
    async with aclosing(listing):
        async for item in listing:
            if isinstance(item, ObjectInfo) and (match := _KEY.match(item.key)):
                found.append(Entry(int(match[1]), match[2], int(match[3]), int(match[4])))
                found = found[-_NEWEST:]
    return sorted(found)
