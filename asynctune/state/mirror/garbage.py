"""Owns what a mirror does not name any more: when it goes, and how leaks of crashed drivers are found.

A driver deletes only what a swap of its own stopped naming, or what it put itself and never named, ten minutes after
that swap was acknowledged: a reader may have read the CURRENT before. Never from a listing.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing
from typing import Final

from asynctune.clock import Clock
from asynctune.state.mirror.current import CURRENT_KEY, PREFIX
from asynctune.state.mirror.listing import KEPT_LISTED, LISTED_PREFIX, list_entries
from asynctune.state.mirror.named import read_named
from asynctune.storage.base import ObjectStorage
from asynctune.storage.probe import PROBE_PREFIX
from asynctune.storage.values import ObjectInfo

__all__ = ["GRACE_S", "Garbage", "find_leaks"]

GRACE_S: Final = 600.0
"""For how long an object stays that is not named any more, seconds."""

_LISTED_GRACE_S: Final = 60.0
_AGAIN_S: Final = 60.0
_PAGE: Final = 500


class Garbage:
    """Keys that are to be deleted, and when. Calculates only."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._due)

    def add(self, keys: Iterable[str], now: float) -> None:
        """A swap that was acknowledged at `now`, monotonic seconds, does not name these."""
        for key in keys:
            grace_s = _LISTED_GRACE_S if key.startswith(LISTED_PREFIX) else GRACE_S
            self._due.setdefault(key, now + grace_s)

    def due(self, now: float) -> list[str]:
        """Keys whose time has come, a page of them at most."""
        return [key for key, at in self._due.items() if at <= now][:_PAGE]

    @property
    def next_due(self) -> float | None:
        """When the next may be deleted, monotonic seconds."""
        return min(self._due.values(), default=None)

    def postpone(self, keys: Iterable[str], now: float) -> None:
        """These could not be deleted at `now`."""
        for key in keys:
            self._due[key] = now + _AGAIN_S

    def deleted(self, keys: Iterable[str]) -> None:
        """These are gone."""
        for key in keys:
            self._due.pop(key, None)


async def find_leaks(
    storage: ObjectStorage, *, clock: Clock, older_than_s: float = 3600.0
) -> list[ObjectInfo]:
    """Objects of the mirror that no CURRENT names, and that are older than an hour; nothing is deleted.

    Raises:
        CorruptStateError, UnsupportedFormatError: CURRENT cannot be understood.
        StorageError: The storage refused.
    """
    # listed first: what is named later was there then, or is young
    found: list[ObjectInfo] = []
    for prefix in (f"{PREFIX}seg-", f"{PREFIX}snap-", LISTED_PREFIX, PROBE_PREFIX):
        async with aclosing(storage.list_objects(prefix)) as listing:
            found += [
                item
                async for item in listing
                if isinstance(item, ObjectInfo) and item.modified_at < clock.time() - older_than_s
            ]
    named = await read_named(storage)
    if named is None:
        return found
    kept = {CURRENT_KEY, named.key, *(ref.key for ref in named.current.refs)}
    if named.key.startswith(LISTED_PREFIX):
        kept |= {entry.key for entry in (await list_entries(storage))[-KEPT_LISTED:]}
    return [info for info in found if info.key not in kept]
