"""Owns looking through a bucket for what crashed drivers left there. Only lists and reads; `leaks` says what a leak is.

Everything is listed before the records are read: what is recorded later was not there then, or is young.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

from asynctune.clock import Clock, SystemClock
from asynctune.errors import ConfigError, ExperimentNotFoundError, NotFoundError
from asynctune.inspect.leaks import (
    OLDER_THAN_S,
    GarbageReport,
    Known,
    Leak,
    Piles,
    is_needed,
    largest_first,
    leaks_among,
)
from asynctune.inspect.reading import experiment
from asynctune.inspect.report import Head
from asynctune.inspect.text import path_text
from asynctune.state.mirror.garbage import find_leaks
from asynctune.state.mirror.objects import in_thread
from asynctune.state.mirror.reading import read_mirror
from asynctune.storage.base import ObjectStorage
from asynctune.storage.values import ObjectInfo, PendingUpload, Upload
from asynctune.store.leftovers import is_own_key
from asynctune.store.sources import CopySource

__all__ = ["find_garbage"]

_ANY: Final = 1 << 20  # sizes that `Upload` wants, and a listing of its parts does not look at


async def find_garbage(location: str, limit: int = 0, clock: Clock | None = None) -> GarbageReport:
    """What is in the bucket of an experiment, and nothing needs.

    Args:
        location: Of the copy.
        limit: List the largest so many; 0: all.
        clock: Time.

    Raises:
        ConfigError: It is no copy.
        AsynctuneError: As for `experiment`, and what the bucket says.
    """
    clock = clock or SystemClock()
    async with experiment(location, clock) as opened:
        head = await opened.head()
        if opened.copy is None:
            where = "and has none" if head.copy_uri is None else f"which is at {head.copy_uri}: look there"
            raise ConfigError(
                f"gc looks through the copy of an experiment; {head.location} is the experiment itself, {where}"
            )
        return await _look_through(head, opened.copy, limit, clock)


async def _look_through(head: Head, source: CopySource, limit: int, clock: Clock) -> GarbageReport:
    storage, before = source.storage, clock.time() - OLDER_THAN_S
    piles = Piles()
    async with aclosing(storage.list_objects()) as listing:
        async for item in listing:
            if isinstance(item, ObjectInfo):
                piles.add(item)
    uploads = await _uploads(storage, before)
    state = [_of_state(info) for info in await find_leaks(storage, clock=clock, older_than_s=OLDER_THAN_S)]
    mirrored = await read_mirror(storage, clock=clock)
    if mirrored is None:
        raise ExperimentNotFoundError(f"the experiment at {storage.location} was removed meanwhile")
    known = await in_thread(Known.of, mirrored.recovered.records)
    left = [upload for upload in uploads if not is_needed(upload.key, known, driven=head.is_driven)]
    unfinished = [each for upload in left if (each := await _unfinished(storage, upload)) is not None]
    leaks = largest_first([*state, *leaks_among(piles, known, before), *unfinished])
    return GarbageReport(
        head=head,
        older_than_s=OLDER_THAN_S,
        leaks=leaks[:limit] if limit else leaks,
        leaks_total=len(leaks),
        objects=sum(leak.objects for leak in leaks),
        size_bytes=sum(leak.size_bytes or 0 for leak in leaks),
        uploads_listed=storage.upload_rules.listed,
        uploads_under_way=len(uploads) - len(left),
        other_objects=piles.other.objects,
        other_bytes=piles.other.size_bytes,
        problems=tuple(known.problems),
    )


def _of_state(info: ObjectInfo) -> Leak:
    return Leak(
        kind="state",
        name=path_text(info.key),
        objects=1,
        size_bytes=info.size_bytes,
        modified_at=info.modified_at,
        reason="CURRENT does not name it",
    )


async def _uploads(storage: ObjectStorage, before: float) -> list[PendingUpload]:
    if not storage.upload_rules.listed:
        return []
    async with aclosing(storage.list_uploads()) as listing:
        return [upload async for upload in listing if upload.begun_at < before and is_own_key(upload.key)]


async def _unfinished(storage: ObjectStorage, upload: PendingUpload) -> Leak | None:
    """What an unfinished upload takes; `None`: it is gone."""
    size_bytes: int | None = None
    parts = 0
    if "://" in storage.location:  # a directory knows the sizes of parts from the upload alone
        try:
            held = await storage.list_parts(
                Upload(key=upload.key, upload_id=upload.upload_id, size_bytes=_ANY, part_bytes=_ANY)
            )
        except NotFoundError:
            return None
        size_bytes, parts = sum(part.size_bytes for part in held), len(held)
    return Leak(
        kind="upload",
        name=path_text(upload.key),
        objects=parts,
        size_bytes=size_bytes,
        modified_at=upload.begun_at,
        reason="nobody goes on with it",
    )
