"""Owns the question whether a copy may take the place of a damaged state: only if nothing is lost by it."""

from __future__ import annotations

import logging

from asynctune.errors import CorruptStateError
from asynctune.files import LocalFiles
from asynctune.state.mirror.relations import Position, relate
from asynctune.state.salvage import salvage
from asynctune.store.finding import storage_error
from asynctune.store.opening import Found
from asynctune.store.place import Remote

__all__ = ["replaceable"]

logger = logging.getLogger("asynctune")


def replaceable(
    damage: CorruptStateError, found: Found, remote: Remote, copy: Position | None, files: LocalFiles
) -> str:
    """Say that the copy has every commit that was on this disk, in a sentence. Blocking, for a thread.

    Args:
        damage: What opening the directory said.
        found: The directory.
        remote: Where the copy is.
        copy: Where it stands; `None`: it cannot be asked, or there is none.
        files: The disk.

    Raises:
        CorruptStateError: `damage`, for the copy does not have all of it.
        StorageError: The disk refused.
    """
    if copy is None:
        raise damage
    try:
        left = salvage(found.state_dir, files)
    except OSError as error:
        raise storage_error("read", found.path, error) from error
    here = Position(left.experiment_id, left.history, left.seq, left.crc)
    if left.experiment_id is None or relate(here, copy) not in {"same", "bucket_ahead"}:
        damage.add_note(
            f"{remote} has a copy up to commit {copy.seq}, and commit {left.seq} was on this disk: to go on "
            "from the copy, without the rest, move the directory away and open the URI"
        )
        raise damage
    message = f"{damage}. {remote} has all of it, up to commit {copy.seq}, and takes its place"
    logger.warning("%s", message)
    return message
