"""Owns what it means that a copy is kept in another place than before: which place the records speak of, what is there.

Records say of each checkpoint whether it is in the copy, and not in which. The record `copy` does: it is put when the
checkpoints have been compared with that place, so a crash before it has them compared anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from asynctune.breathing import breathe
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.errors import CorruptStateError
from asynctune.files import LocalFiles
from asynctune.packing import unpack
from asynctune.store.finding import storage_error
from asynctune.trial import MANIFEST_FILE

__all__ = ["COPY", "kept_at", "left_behind", "was_moved"]

COPY: Final = "copy"
"""Key of the record: the place of the copy that the checkpoints' records speak of."""


def was_moved(known: object, place: str) -> bool:
    """Whether what records say of the copy is said of another place; `known` is the record, `None` without one."""
    return known is not None and known != place


def kept_at(records: Mapping[str, bytes]) -> object:
    """The place that packed records speak of; `None`: of none."""
    return unpack(records[COPY]) if COPY in records else None


def left_behind(records: Mapping[str, bytes], path: str, place: str, files: LocalFiles) -> str | None:
    """Look for checkpoints that only the former place of the copy has. Blocking, for a thread.

    Args:
        records: Of the state on this disk, packed.
        path: The experiment's directory.
        place: Where its copy is to be kept now.
        files: The disk.

    Returns:
        Why the copy cannot be kept there, for the user; `None`: it can.

    Raises:
        StorageError: The disk refused.
    """
    known = kept_at(records)
    if not was_moved(known, place):
        return None
    left = 0
    try:
        for key, value in records.items():
            breathe()
            kind, _, name = key.partition("/")
            if kind == "checkpoint":
                left += _is_left(name, value, path, files)
    except OSError as error:
        raise storage_error("look through", path, error) from error
    if not left:
        return None
    return (
        f"{left} checkpoints of {path} are only in {known}, where its copy was kept until now, and {place} would never "
        f"get them. Copy the whole of {known} to {place} first, and open the experiment by that location; or go on "
        "with the former upload_dir"
    )


def _is_left(name: str, value: bytes, path: str, files: LocalFiles) -> bool:
    trial_id, _, step = name.rpartition("/")
    try:
        record = CheckpointRecord.from_value(trial_id, int(step), unpack(value))
    except (CorruptStateError, ValueError):
        return False  # it stays as it is, and says so when it is asked for
    if record.deleting or not record.mirrored:
        return False
    return not files.exists(f"{record.path(path)}/{MANIFEST_FILE}")
