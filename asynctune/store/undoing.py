"""Owns the end of an opening that cannot be used: all that it got hold of is let go, whatever of that fails."""

from __future__ import annotations

from contextlib import AsyncExitStack

from asynctune.errors import AsynctuneError
from asynctune.state.epochs import HostLock
from asynctune.state.mirror.claiming import Claimed, give_up
from asynctune.store.access import Access
from asynctune.store.opening import OpenedForWriting

__all__ = ["let_go"]


async def let_go(
    claimed: Claimed | None,
    access: Access | None,
    directory: OpenedForWriting | None,
    lock: HostLock | None,
) -> str | None:
    """Give the copy back, close the way to it, end the journal, release the lock; `None`: there is none of it.

    The lock is released even if this is cancelled meanwhile.

    Returns:
        In a sentence, that the copy could not be given back; `None`: it was.
    """
    async with AsyncExitStack() as last_comes_first:
        if lock is not None:
            last_comes_first.callback(lock.release)
        if directory is not None:
            last_comes_first.callback(directory.journal.close)
        if access is not None:
            last_comes_first.push_async_callback(access.aclose)
        if claimed is not None:
            try:
                await give_up(claimed)
            except AsynctuneError as error:
                return f"the copy could not be given back, the next opening has to wait for it: {error}"
    return None
