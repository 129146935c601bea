"""Owns the end of uploads in parts that other machines left unfinished: they cost money, and nobody sees them.

They are looked for once, when the copy has just been claimed and nothing of this opening is under way, so that no
upload of its own can be among them; and aborted beside everything else. Only those of keys that an experiment has:
below a copy there may be another experiment's, with a driver that lives, or files of somebody else.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

from asynctune.checkpoints.records import is_checkpoint_name
from asynctune.clock import Clock
from asynctune.errors import ConfigError, StorageError
from asynctune.results.freezing import is_result_file
from asynctune.state.mirror.claiming import Claimed
from asynctune.storage.keys import check_key
from asynctune.storage.values import PendingUpload
from asynctune.store.access import Access
from asynctune.store.finding import STATE_DIR

__all__ = ["abort_leftovers", "find_leftovers", "is_own_key"]

logger = logging.getLogger("asynctune")

_LOOK_S: Final = 10.0
"""How long an opening looks for them, seconds; what was found until then is aborted, the rest by the next opening."""


async def find_leftovers(claimed: Claimed, access: Access, clock: Clock) -> Sequence[PendingUpload]:
    """The uploads below the copy that are not written down in this experiment's directory; never an error.

    A claim that keeps nobody out proves nothing: on a storage without conditions another driver may be at work.
    """
    storage = access.storage
    if not claimed.register.fenced or not storage.upload_rules.listed:
        return []
    found: list[PendingUpload] = []
    try:
        async with clock.timeout(_LOOK_S):
            known = await access.noted_uploads()
            async with aclosing(storage.list_uploads()) as listing:
                async for upload in listing:
                    if upload.upload_id not in known and is_own_key(upload.key):
                        found.append(upload)  # noqa: PERF401 - what was found before an error counts
    except (StorageError, TimeoutError) as error:
        logger.warning(
            "%s was not looked through for uploads that other machines left unfinished: %s",
            storage.location,
            str(error) or f"it took more than {_LOOK_S:.0f} s",
        )
    return found


def is_own_key(key: str) -> bool:
    """Whether it is a key of this experiment's state, or looks like one of a trial, which no record need name yet."""
    try:
        check_key(key)  # other tools may write keys that no storage here takes
    except ConfigError:
        return False
    first, _, rest = key.partition("/")
    name, slash, _ = rest.partition("/")
    return first == STATE_DIR or (is_checkpoint_name(name) if slash else is_result_file(name))


async def abort_leftovers(left: Sequence[PendingUpload], access: Access) -> None:
    """Abort them, one after the other. What fails stays, and is said once."""
    storage = access.storage
    for number, upload in enumerate(left):
        try:
            await storage.abort_upload(upload.key, upload.upload_id)
        except StorageError as error:
            logger.warning(
                "%d uploads that other machines left unfinished stay in %s until the next opening: %s",
                len(left) - number,
                storage.location,
                error,
            )
            return
    if left:
        logger.info(
            "%d uploads that other machines left unfinished were aborted in %s", len(left), storage.location
        )
