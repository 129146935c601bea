"""Owns the settling of a write whose reply does not say what became of it; see `asynctune.storage.base`."""

from __future__ import annotations

from asynctune.errors import NotFoundError, StorageError
from asynctune.storage.base import ObjectStorage
from asynctune.storage.values import Condition, Conflict, ObjectContent, Outcome, Stored

__all__ = ["put_settled"]


async def put_settled(storage: ObjectStorage, key: str, data: bytes, *, condition: Condition) -> Outcome:
    """Put a small object, and read back whose it is when the reply does not say.

    `data` must hold something that no other writer puts there, such as a nonce: equal bytes mean that this call's
    write, in one of its copies, is what the object is now. A `Conflict` of this function means that it is not now;
    it may have been, and replaced since: only the content that is there can tell.

    Raises:
        StorageError: The reply was lost or bad, and what is there now is not `data` (or could not be read).
    """
    try:
        outcome = await storage.put(key, data, condition=condition)
    except StorageError as error:
        if not error.retryable:
            raise
        if (found := await _found(storage, key, len(data))) is not None and found.data == data:
            return Stored(found.info.version)
        raise
    if isinstance(outcome, Stored):
        return outcome
    found = await _found(storage, key, len(data))
    if found is None:
        return Conflict()
    return Stored(found.info.version) if found.data == data else Conflict(found.info.version)


async def _found(storage: ObjectStorage, key: str, size_bytes: int) -> ObjectContent | None:
    info = await storage.head(key)
    if info is None:
        return None
    if info.size_bytes != size_bytes:
        return ObjectContent(info, b"")
    try:
        return await storage.read(key, max_bytes=max(size_bytes, 1))
    except NotFoundError:
        return None
    except StorageError:
        # replaced by something larger between the two looks?
        now = await storage.head(key)
        if now is not None and now.version == info.version:
            raise
        return None if now is None else ObjectContent(now, b"")
