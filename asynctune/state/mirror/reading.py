"""Owns reading a mirror back: CURRENT, the objects it names, and the same recovery as on a disk.

A mirror is handed to `state.recovery` as the files that a disk would hold, in memory, so that every check of recovery
is a check of the mirror too. Behind the runs stands the header of a segment that was never written: it says what
CURRENT says, so that a mirror that does not end at the commit that CURRENT names is refused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

from asynctune.clock import Clock, SystemClock
from asynctune.errors import CorruptStateError, NotFoundError, StorageError
from asynctune.files import LocalFiles
from asynctune.state.codec import FrameError
from asynctune.state.mirror.current import PREFIX, Current, Ref
from asynctune.state.mirror.named import Named, read_named
from asynctune.state.mirror.objects import in_thread, read_object, together
from asynctune.state.mirror.runs import check_follows, header_of, split_runs
from asynctune.state.recovered import Recovered
from asynctune.state.recovery import recover
from asynctune.state.segments import SegmentHeader, SegmentName, encode_segment_header
from asynctune.storage.base import ObjectStorage

__all__ = ["HeldFiles", "Mirrored", "ObjectCache", "end_name", "read_mirror"]

_TRIES: Final = 5
_SETTLE_S: Final = 0.5


class ObjectCache:
    """Immutable objects of a mirror that were read before, for somebody who looks again and again.

    Args:
        max_bytes: How much it keeps; larger objects are read anew.
    """

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[Ref, bytes] = OrderedDict()
        self._size = 0

    def get(self, ref: Ref) -> bytes | None:
        """The object, if it is there."""
        return self._held.get(ref)

    def keep(self, objects: dict[Ref, bytes]) -> None:
        """Have these, and no others, as far as they fit."""
        self._held.clear()
        self._size = 0
        for ref, data in objects.items():
            if self._size + len(data) <= self._max_bytes:
                self._held[ref] = data
                self._size += len(data)


@dataclass(slots=True)
class Mirrored:
    """A mirror that was read.

    Attributes:
        named: CURRENT.
        recovered: The state, as `state.recovery.recover` hands it over.
        contents: The bytes it was read from, by the names that local files would have.
    """

    named: Named
    recovered: Recovered
    contents: dict[str, bytes]

    @property
    def current(self) -> Current:
        """What CURRENT says."""
        return self.named.current


class HeldFiles:
    """As much of a disk as recovery needs, in memory."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self._contents = contents

    def list_dir(self, path: str) -> list[str]:  # noqa: ARG002 - there is one directory
        """See `LocalFiles.list_dir`."""
        return list(self._contents)

    def read(self, path: str) -> bytes:
        """See `LocalFiles.read`."""
        return self._contents[path.rpartition("/")[2]]

    def read_from(self, path: str, offset: int, limit: int | None = None) -> bytes:
        """See `LocalFiles.read_from`."""
        return self.read(path)[offset : None if limit is None else offset + limit]


async def read_mirror(
    storage: ObjectStorage,
    *,
    clock: Clock | None = None,
    cache: ObjectCache | None = None,
    rows_after: Callable[[dict[str, bytes], Current], int] | None = None,
    named: Named | None = None,
) -> Mirrored | None:
    """Read the state that a bucket holds; `None`: there is no mirror.

    Args:
        storage: At the experiment's place.
        clock: For waiting when objects vanish meanwhile.
        cache: Objects known from before; brought up to date.
        rows_after: Given the final records and CURRENT, says after which seq result rows are wanted; `None`: no rows.
        named: CURRENT, if it was read just now.

    Raises:
        CorruptStateError: Damage; names the object.
        UnsupportedFormatError: Written by a newer release.
        StorageError: The storage refused.
    """
    clock = clock or SystemClock()
    missing: NotFoundError | None = None
    for attempt in range(_TRIES):
        if named is None and (named := await read_named(storage)) is None:
            return None
        try:
            objects = await _objects(storage, named.current, cache)
        except NotFoundError as error:
            # replaced since CURRENT was read, or really gone
            before, named = named, await read_named(storage)
            if named is not None and named.current.swap_nonce == before.current.swap_nonce:
                raise _missing(storage, error) from error
            missing = error
            await clock.sleep(_SETTLE_S * attempt)
            continue
        if cache is not None:
            cache.keep(objects)
        contents, recovered = await in_thread(_recover, storage.location, named, objects, rows_after)
        return Mirrored(named, recovered, contents)
    raise StorageError(
        f"read of the mirror at {storage.location}: its objects are replaced faster than they can be read ({missing})",
        operation="read",
        retryable=True,
    )


async def _objects(storage: ObjectStorage, current: Current, cache: ObjectCache | None) -> dict[Ref, bytes]:
    objects = {
        ref: data for ref in current.refs if cache is not None and (data := cache.get(ref)) is not None
    }
    wanted = [ref for ref in current.refs if ref not in objects]
    found = await together(*(read_object(storage, ref) for ref in wanted))
    return objects | dict(zip(wanted, found, strict=True))


def _missing(storage: ObjectStorage, error: NotFoundError) -> CorruptStateError:
    path = f"{storage.location}/{error.key}"
    return CorruptStateError(
        f"the mirror is damaged: CURRENT names {path}, which is not there. Nothing was changed; open the experiment "
        "from a local directory or a backup",
        path=path,
    )


# -- in a thread ---------------------------------------------------------------------------------------------


def _recover(
    location: str,
    named: Named,
    objects: dict[Ref, bytes],
    rows_after: Callable[[dict[str, bytes], Current], int] | None,
) -> tuple[dict[str, bytes], Recovered]:
    current = named.current
    contents: dict[str, bytes] = {}
    keys: dict[str, str] = {}  # of the object that holds what would be this file
    if current.snapshot is not None:
        name = f"snap-{current.snapshot.last_seq}"
        contents[name], keys[name] = objects[current.snapshot], current.snapshot.key
    parts = [(ref.key, objects[ref], ref.first_seq, ref.last_seq) for ref in current.segments]
    if current.tail:
        parts.append((named.key, current.tail, current.tail_first_seq, current.seq))
    for key, data, first_seq, last_seq in parts:
        try:
            runs = split_runs(data)
            check_follows(runs, first_seq, last_seq)
            for run in runs:
                header_of(data, run)
        except FrameError as error:
            raise _damaged(f"{location}/{key}", None, str(error)) from error
        for run in runs:
            contents[str(run.name)], keys[str(run.name)] = data[run.start : run.end], key
    contents[end_name(current)] = _end(current)
    directory = f"{location}/{PREFIX}".rstrip("/")
    rows = None if rows_after is None else partial(_wanted, rows_after, current)
    try:
        recovered = recover(directory, cast("LocalFiles", HeldFiles(contents)), rows_after=rows)
    except CorruptStateError as error:
        name = (error.path or "").rpartition("/")[2]
        key = keys.get(name, named.key)
        raise _damaged(f"{location}/{key}", error.offset, str(error)) from error
    except FileNotFoundError as error:
        raise _damaged(f"{location}/{named.key}", None, str(error)) from error
    if recovered.seq != current.seq or recovered.notices:
        what = recovered.notices[0].message if recovered.notices else f"it ends at commit {recovered.seq}"
        raise _damaged(f"{location}/{named.key}", None, what)
    return contents, recovered


def _wanted(
    rows_after: Callable[[dict[str, bytes], Current], int], current: Current, records: dict[str, bytes]
) -> int:
    return rows_after(records, current)


def end_name(current: Current) -> str:
    """Name of the segment that a mirror is read as if it had, behind the newest commit."""
    return str(SegmentName(current.claim.epoch, current.seq + 1))


def _end(current: Current) -> bytes:
    return encode_segment_header(
        SegmentHeader(
            current.experiment_id,
            current.claim,
            current.seq + 1,
            current.crc,
            current.history,
            current.node_ip,
        )
    )


def _damaged(path: str, offset: int | None, detail: str) -> CorruptStateError:
    return CorruptStateError(
        f"the mirror is damaged: {path}: {detail}. Nothing was changed; keep a copy, and open the experiment from a "
        "local directory or a backup",
        path=path,
        offset=offset,
    )
