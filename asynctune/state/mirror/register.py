"""Owns the replacing of CURRENT by compare-and-swap, and the choice of another way where a storage has none.

Settles replies that were lost. Decides nothing about what CURRENT says, and nothing about who may go on.
"""

from __future__ import annotations

import contextlib
import secrets

from asynctune.clock import Clock
from asynctune.errors import NotFoundError, StorageError
from asynctune.state.mirror.current import CURRENT_KEY, Current, encode_current
from asynctune.state.mirror.named import Named, Register, read_key, read_named, vanished
from asynctune.state.mirror.objects import together
from asynctune.state.mirror.unfenced import ListingRegister
from asynctune.storage.base import ObjectStorage
from asynctune.storage.probe import PROBE_PREFIX, keeps_conditions
from asynctune.storage.settling import put_settled
from asynctune.storage.values import Condition, IfVersion, OnlyCreate, Stored

__all__ = ["SwapRegister", "open_register"]


async def open_register(storage: ObjectStorage, *, writing: bool, clock: Clock) -> Register:
    """The register of a mirror. For writing, both conditions are probed, and the storage's clock is read.

    Raises:
        StorageError: The storage refused.
    """
    if not writing:
        return SwapRegister(storage) if storage.supports_conditions else ListingRegister(storage)
    keeps, offset_s = await together(keeps_conditions(storage), _clock_offset_s(storage, clock))
    if keeps:
        return SwapRegister(storage, offset_s)
    says_so = "" if not storage.supports_conditions else ", though it says so"
    return ListingRegister(storage, f"{storage.location} does not keep conditional writes{says_so}", offset_s)


async def _clock_offset_s(storage: ObjectStorage, clock: Clock) -> float:
    """By how much the storage's clock is ahead of ours: it stamps a small object, which is removed again.

    A cancellation leaves the object behind, so that a storage that hangs holds up nobody; `find_leaks` finds it.
    """
    key = f"{PROBE_PREFIX}{secrets.token_hex(16)}"
    try:
        before = clock.time()
        await storage.put(key, b"what time is it?")
        between = (before + clock.time()) / 2
        info = await storage.head(key)
    except Exception:
        await _remove(storage, key)
        raise
    await _remove(storage, key)
    return 0.0 if info is None else info.modified_at - between


async def _remove(storage: ObjectStorage, key: str) -> None:
    with contextlib.suppress(StorageError):  # what stays is found by `find_leaks`
        await storage.delete([key])


class SwapRegister:
    """The one object `.asynctune/CURRENT`, replaced by compare-and-swap.

    Args:
        storage: At the experiment's place.
        clock_offset_s: As was found by probing.
    """

    def __init__(self, storage: ObjectStorage, clock_offset_s: float = 0.0) -> None:
        self._storage = storage
        self.fenced = True
        self.why_unfenced = ""
        self.clock_offset_s = clock_offset_s

    async def read(self) -> Named | None:
        """See `Register.read`."""
        return await read_named(self._storage)

    async def swap(self, current: Current, expected: Named | None) -> Named:
        """See `Register.swap`."""
        version = None if expected is None else expected.version
        condition: Condition = OnlyCreate() if version is None else IfVersion(version)
        data = encode_current(current)
        try:
            outcome = await put_settled(self._storage, CURRENT_KEY, data, condition=condition)
        except NotFoundError as error:
            raise vanished(self._storage) from error
        if isinstance(outcome, Stored):
            return Named(current, CURRENT_KEY, outcome.version, size_bytes=len(data))
        # A conflict alone proves nothing: what is there says who it was.
        found = await read_key(self._storage, CURRENT_KEY)
        if found is not None:
            return found
        if version is not None:
            raise vanished(self._storage)
        raise StorageError(
            f"{self._storage.location}/{CURRENT_KEY} was there and is not: the mirror is being removed",
            operation="put",
            key=CURRENT_KEY,
            retryable=True,
        )
