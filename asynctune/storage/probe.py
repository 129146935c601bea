"""Owns the question whether a storage keeps conditions, and answers it by trying; what follows is for others.

Some servers take a condition, ignore it, and answer as if all were well (measured: the gateway of JuiceFS). Two
drivers would then both believe that they own an experiment. So four writes to one new object are tried, of which
the second and the fourth must not happen:

1. create it; 2. create it again, with other bytes; 3. replace the version that is there; 4. replace the version that
was there before.

What is *there* decides, and not a reply alone: bytes that no kept condition lets in prove that conditions are not
kept, whichever reply came, or none. And conditions are kept only if both forbidden writes were answered by a conflict
and the object is what it was. Whatever leaves a doubt is an error, never an answer.
"""

from __future__ import annotations

import logging
import secrets
from typing import Final

from asynctune.errors import AuthenticationError, NotFoundError, StorageError
from asynctune.storage.base import ObjectStorage
from asynctune.storage.values import Conflict, IfVersion, ObjectContent, OnlyCreate, Outcome, Stored

__all__ = ["PROBE_PREFIX", "keeps_conditions"]

logger = logging.getLogger(__name__)

PROBE_PREFIX: Final = ".asynctune/probe-"
"""What the keys of probes begin with."""

_TRIES: Final = 3
_MOST_BYTES: Final = 1024


async def keeps_conditions(storage: ObjectStorage, *, prefix: str = PROBE_PREFIX) -> bool:
    """Whether `OnlyCreate` and `IfVersion` are kept. Writes one small object, and removes it again.

    A storage that says so itself (`supports_conditions` false) is not asked. One that refuses conditional writes,
    and takes the same write without a condition, does not keep them either.

    A cancellation, or a storage that is away at the end, may leave the object behind; it does no harm.

    Args:
        storage: What is asked.
        prefix: What the object's key begins with; 32 random hex digits follow.

    Raises:
        StorageError: It could not be found out: the storage is away, or may not be written to.
    """
    if not storage.supports_conditions:
        return False
    nonce = secrets.token_hex(16)
    probe = _Probe(storage, f"{prefix}{nonce}", nonce)
    try:
        kept = await probe.run()
    except Exception:
        await probe.remove()
        raise
    await probe.remove()
    return kept


class _Probe:
    def __init__(self, storage: ObjectStorage, key: str, nonce: str) -> None:
        self._storage = storage
        self._key = key
        self._nonce = nonce
        self._may_be_there = False

    async def run(self) -> bool:
        first = await self._right(1, OnlyCreate())
        if first is None or not await self._keeps_out(2, OnlyCreate(), present=1):
            return False
        second = await self._right(3, IfVersion(first))
        return second is not None and await self._keeps_out(4, IfVersion(first), present=3)

    async def remove(self) -> None:
        if not self._may_be_there:  # who may not write, may not delete either, and a warning would be wrong
            return
        try:
            await self._storage.delete([self._key])
        except StorageError as error:
            logger.warning("the object of a probe stays behind: %s", error)

    async def _right(self, number: int, condition: OnlyCreate | IfVersion) -> str | None:
        """Do a write whose condition holds: the version that is there then, or `None` if it is refused."""
        data = self._data(number)
        lost: StorageError | None = None
        for _ in range(_TRIES):
            lost, outcome = await self._put(data, condition)
            if isinstance(outcome, Stored):
                return outcome.version
            if lost is not None and not lost.retryable:
                return None
            found = await self._look()
            if found is not None and found.data == data:
                return found.info.version
        if lost is not None:
            raise lost
        return None

    async def _keeps_out(self, number: int, condition: OnlyCreate | IfVersion, *, present: int) -> bool:
        """Try a write whose condition does not hold: whether it was answered so, and changed nothing."""
        lost: StorageError | None = None
        for _ in range(_TRIES):
            lost, outcome = await self._put(self._data(number), condition)
            if isinstance(outcome, Stored) or (lost is not None and not lost.retryable):
                return False
            found = await self._look()
            if found is None or found.data not in map(self._data, range(number + 1)):
                raise self._unclear("it vanished, or somebody else wrote it")
            if found.data in map(self._data, range(2, number + 1, 2)):
                return False
            if found.data != self._data(present):
                raise self._unclear("an older content was read")
            if isinstance(outcome, Conflict):
                return True
        raise lost or self._unclear("no reply came")

    async def _put(
        self, data: bytes, condition: OnlyCreate | IfVersion
    ) -> tuple[StorageError | None, Outcome | None]:
        """The outcome, or the error that leaves it open; one that is not retryable refuses conditions as such."""
        before, self._may_be_there = self._may_be_there, True
        try:
            return None, await self._storage.put(self._key, data, condition=condition)
        except (AuthenticationError, NotFoundError):
            self._may_be_there = before
            raise
        except StorageError as error:
            if not error.retryable:
                await self._put_plainly(data, error)
            return error, None

    async def _put_plainly(self, data: bytes, refused: StorageError) -> None:
        try:
            await self._storage.put(self._key, data)
        except StorageError:
            raise refused from None
        logger.debug("a write with a condition is refused, and without one it is not: %s", refused)

    async def _look(self) -> ObjectContent | None:
        try:
            return await self._storage.read(self._key, max_bytes=_MOST_BYTES)
        except NotFoundError:
            return None

    def _data(self, number: int) -> bytes:
        return f"asynctune probe {self._nonce} {number}".encode()

    def _unclear(self, why: str) -> StorageError:
        return StorageError(
            f"put of {self._key!r} in {self._storage.location}: whether conditions are kept cannot be told: {why}",
            operation="put",
            key=self._key,
            retryable=True,
            hint="open the experiment again; two drivers at once need a storage that keeps conditions",
        )
