"""Owns the replacing of CURRENT on a storage without conditional writes: ever new objects, the highest of which counts.

Two drivers that open in the same moment, or one that is slow between a look and a write, can both go on for one swap:
what they acknowledged in it may be lost. It is said once, loudly, and there is no way around it.
"""

from __future__ import annotations

from asynctune.errors import StorageError
from asynctune.state.mirror.current import Current, encode_current, same_owner
from asynctune.state.mirror.listing import Entry, entry_of, list_entries
from asynctune.state.mirror.named import Named, read_key, read_named
from asynctune.storage.base import ObjectStorage
from asynctune.storage.settling import put_settled
from asynctune.storage.values import Always

__all__ = ["ListingRegister"]


class ListingRegister:
    """An object for each swap, found by listing.

    Args:
        storage: At the experiment's place.
        why_unfenced: As was found by probing.
        clock_offset_s: Likewise.
    """

    def __init__(
        self, storage: ObjectStorage, why_unfenced: str = "not probed", clock_offset_s: float = 0.0
    ) -> None:
        self._storage = storage
        self.fenced = False
        self.why_unfenced = why_unfenced
        self.clock_offset_s = clock_offset_s

    async def read(self) -> Named | None:
        """See `Register.read`."""
        return await read_named(self._storage)

    async def swap(self, current: Current, expected: Named | None) -> Named:
        """See `Register.swap`."""
        mine = entry_of(current)
        floor = None if expected is None else entry_of(expected.current)
        if rivals := await self._rivals(mine, floor):
            return await self._said_by(rivals[-1])
        data = encode_current(current)
        # nobody else uses this key; equal bytes settle a reply that was lost
        await put_settled(self._storage, mine.key, data, condition=Always())
        if expected is None or not same_owner(expected.current.claim, current.claim):
            # A claim: whoever claimed in the same moment has put its own by now, or will see ours. Of two that only
            # claimed, the greater nonce goes on; one that has gone further already is not overruled.
            for rival in reversed(await self._rivals(mine, floor)):
                if rival > mine or rival.seq > mine.seq or rival.swap > mine.swap:
                    found = await self._said_by(rival)
                    await self._storage.delete([mine.key])
                    return found
        return Named(current, mine.key, None if expected is None else expected.version, size_bytes=len(data))

    async def _rivals(self, mine: Entry, floor: Entry | None) -> list[Entry]:
        """Somebody else's above what was expected, rising."""
        entries = await list_entries(self._storage, floor)
        return [entry for entry in entries if (entry.epoch, entry.mark) != (mine.epoch, mine.mark)]

    async def _said_by(self, rival: Entry) -> Named:
        found = await read_key(self._storage, rival.key)
        if found is None:
            raise StorageError(
                f"{self._storage.location}/{rival.key} was listed and is not there: the mirror is replaced meanwhile",
                operation="read",
                key=rival.key,
                retryable=True,
            )
        return found
