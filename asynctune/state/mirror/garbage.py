"""Owns what a mirror does not name any more: when it goes, and how leaks of crashed drivers are found."""

from __future__ import annotations

from asynctune.clock import Clock
from asynctune.storage.base import ObjectStorage
from asynctune.storage.values import ObjectInfo

__all__ = ["find_leaks"]


async def find_leaks(
    storage: ObjectStorage, *, clock: Clock, older_than_s: float = 3600.0
) -> list[ObjectInfo]:
    """Objects of the mirror that no CURRENT names, and that are older than an hour; nothing is deleted.

    Raises:
        CorruptStateError, UnsupportedFormatError: CURRENT cannot be understood.
        StorageError: The storage refused.
    """
    raise NotImplementedError
