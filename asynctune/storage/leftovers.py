"""Owns the end of uploads that nobody goes on with: they are aborted until the storage lists none."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import aclosing
from functools import partial

from asynctune.errors import StorageError
from asynctune.storage.carrying import Means, Patience
from asynctune.storage.values import PendingUpload

__all__ = ["abort_leftovers"]


async def abort_leftovers(
    means: Means, prefix: str, known: Collection[str], *, key: str | None = None
) -> int:
    """See `asynctune.storage.transfer.Transfer.abort_leftovers`; with `key`, only the uploads of this object."""
    storage, patience = means.storage, means.patience()
    if not storage.upload_rules.listed:
        return 0
    aborted: set[str] = set()
    kept = frozenset(known)

    def is_left(upload: PendingUpload) -> bool:
        return upload.upload_id not in kept and key in (None, upload.key)

    failed = 0
    while left := await patience.run(partial(_listed, means, prefix, is_left), "list_uploads", prefix):
        if aborted.issuperset(upload.upload_id for upload in left):
            # Aborted before: a part that was under way came after that, or the listing is behind.
            failed += 1
            await _pause(patience, left[0], failed)
        for upload in left:
            await patience.run(
                partial(storage.abort_upload, upload.key, upload.upload_id), "abort_upload", upload.key
            )
            aborted.add(upload.upload_id)
    return len(aborted)


async def _listed(means: Means, prefix: str, is_left: Callable[[PendingUpload], bool]) -> list[PendingUpload]:
    async with aclosing(means.storage.list_uploads(prefix)) as listing:
        return [upload async for upload in listing if is_left(upload)]


async def _pause(patience: Patience, upload: PendingUpload, failed: int) -> None:
    error = StorageError(
        f"abort_upload of {upload.key!r}: it is listed again and again",
        operation="abort_upload",
        key=upload.key,
        retryable=True,
        hint="something goes on sending parts of it, or the listing is behind",
    )
    await patience.pause(error, failed)
