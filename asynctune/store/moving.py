"""Owns what it means that a copy is kept in another place than before: which place the records speak of, what is there.

Records say of each checkpoint whether it is in the copy, and not in which. The record `copy` does: it is put when the
checkpoints have been compared with that place, so a crash before it has them compared anew.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from asynctune.breathing import breathe
from asynctune.checkpoints.bucket import TreeCopies
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.errors import CorruptStateError, StorageError
from asynctune.files import LocalFiles
from asynctune.packing import unpack
from asynctune.store.finding import storage_error
from asynctune.trial import MANIFEST_FILE

__all__ = ["COPY", "LeftBehind", "kept_at", "left_behind", "was_moved"]

COPY: Final = "copy"
"""Key of the record: the place of the copy that the checkpoints' records speak of."""

_AT_ONCE: Final = 16


def was_moved(known: object, place: str) -> bool:
    """Whether what records say of the copy is said of another place; `known` is the record, `None` without one."""
    return known is not None and known != place


def kept_at(records: Mapping[str, bytes]) -> object:
    """The place that packed records speak of; `None`: of none."""
    return unpack(records[COPY]) if COPY in records else None


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """Checkpoints that are not on this disk, and that records say are in another place than the copy is to be kept in.

    Attributes:
        records: Theirs; some at least.
        path: The experiment's directory.
        former: The place that the records speak of.
        place: Where the copy is to be kept.
    """

    records: tuple[CheckpointRecord, ...]
    path: str
    former: object
    place: str

    @property
    def again(self) -> str:
        """How the experiment goes on with the former place, for the user: the copy is named as its directory is."""
        above, _, name = str(self.former).rpartition("/")
        given = f"sync_config=SyncConfig(upload_dir={above!r})"
        renamed = os.path.join(os.path.dirname(self.path), name)
        return given if renamed == self.path else f"{given}, when the directory was renamed to {renamed}"

    def __str__(self) -> str:
        """Why the copy cannot be kept there, for the user."""
        return (
            f"{len(self.records)} checkpoints of {self.path} are only in {self.former}, where its copy was kept until "
            f"now, and {self.place} would never get them. Copy the whole of {self.former} to {self.place} first; or go "
            f"on with that one ({self.again})"
        )

    async def lacked_by(self, copies: TreeCopies) -> LeftBehind | None:
        """What the place lacks of them, told by their manifests; `None`: somebody has copied all of them there.

        Raises:
            StorageError: The place cannot be asked.
        """
        waiting, lacking = iter(self.records), list[CheckpointRecord]()

        async def look() -> None:
            for record in waiting:
                if not await copies.is_complete(record):
                    lacking.append(record)

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(_AT_ONCE, len(self.records))):
                    tasks.create_task(look())
        except* StorageError as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            failure = error
        else:
            return replace(self, records=tuple(lacking)) if lacking else None
        raise failure


def left_behind(records: Mapping[str, bytes], path: str, place: str, files: LocalFiles) -> LeftBehind | None:
    """Look for checkpoints that only the former place of the copy has, as far as this disk tells. For a thread.

    Args:
        records: Of the state on this disk, packed.
        path: The experiment's directory.
        place: Where its copy is to be kept now.
        files: The disk.

    Returns:
        Them; `None`: there are none, or the copy is kept where it was.

    Raises:
        StorageError: The disk refused.
    """
    known = kept_at(records)
    if not was_moved(known, place):
        return None
    left = []
    try:
        for key, value in records.items():
            breathe()
            kind, _, name = key.partition("/")
            if kind == "checkpoint" and (record := _left(name, value, path, files)) is not None:
                left.append(record)
    except OSError as error:
        raise storage_error("look through", path, error) from error
    return LeftBehind(tuple(left), path, known, place) if left else None


def _left(name: str, value: bytes, path: str, files: LocalFiles) -> CheckpointRecord | None:
    trial_id, _, step = name.rpartition("/")
    try:
        record = CheckpointRecord.from_value(trial_id, int(step), unpack(value))
    except (CorruptStateError, ValueError):
        return None  # it stays as it is, and says so when it is asked for
    if record.deleting or not record.mirrored or files.exists(f"{record.path(path)}/{MANIFEST_FILE}"):
        return None
    return record
