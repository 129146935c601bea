"""Owns the value that an opening for writing hands over: the directory, its copy, and what is known of both."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from asynctune.state.mirror.claiming import Claimed
from asynctune.storage.values import PendingUpload
from asynctune.store.access import Access
from asynctune.store.opening import OpenedForWriting
from asynctune.store.place import Remote
from asynctune.store.undoing import let_go

__all__ = ["Opened"]

logger = logging.getLogger("asynctune")


@dataclass(slots=True)
class Opened:
    """An experiment opened for writing, with what is known of its copy.

    Attributes:
        path: Its directory.
        directory: What was found there, and its claim.
        remote: Where the copy is; `None`: there is none.
        access: The way to it; whoever gets this closes it.
        claimed: The claim of the copy; `None`: there is no copy, or it could not be reached.
        leftovers: Uploads to the copy that nobody goes on with.
        results_anew: All result files have to be sent anew.
        notes: What people should know, as (kind of event, sentence).
    """

    path: str
    directory: OpenedForWriting
    remote: Remote | None = None
    access: Access | None = None
    claimed: Claimed | None = None
    leftovers: Sequence[PendingUpload] = ()
    results_anew: bool = False
    notes: list[tuple[str, str]] = field(default_factory=list)

    @property
    def from_copy(self) -> bool:
        """Whether the state is the copy's, so that the disk may lack what it names."""
        return self.claimed is not None and self.claimed.mirrored is not None

    async def let_go(self) -> None:
        """Close what is open, for an opening that cannot be used; again: does nothing."""
        claimed, self.claimed = self.claimed, None
        access, self.access = self.access, None
        left = await let_go(claimed, access, self.directory, self.directory.lock)
        if left is not None:
            logger.warning("%s", left)
