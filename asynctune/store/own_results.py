"""Owns that a result file in a bucket is replaced only by the opening that owns the copy, however late its bytes come.

The state has its compare-and-swap; result files are objects of their own. Each is put only in place of a version that
this opening knows: that of its own last put, or one that it looked up before it made sure that the copy was its own
still. Who took over since has replaced the file if that had to be, which the condition finds out; if it had not to,
what comes late holds nothing that the state which was taken over does not know.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from asynctune.errors import ConditionFailedError
from asynctune.storage.base import ObjectStorage
from asynctune.storage.transfer import Sent, Transfer
from asynctune.storage.values import Condition, IfVersion, OnlyCreate

__all__ = ["OwnResults"]

_TRIES: Final = 3
_MOST_KNOWN: Final = 20_000


class OwnResults:
    """Sends result files; a `ResultSender`.

    Args:
        storage: At the experiment's place.
        transfer: Sends files there.
        check_owner: Raises `FencedError` if another opening owns the copy by now.
    """

    def __init__(
        self, storage: ObjectStorage, transfer: Transfer, check_owner: Callable[[], Awaitable[None]]
    ) -> None:
        self._storage = storage
        self._transfer = transfer
        self._check_owner = check_owner
        self._known: dict[str, str] = {}

    async def send(self, key: str, path: str, *, size_bytes: int, crc32c: int) -> Sent:
        """See `ResultSender.send`.

        Raises:
            FencedError: Another opening owns the copy.
            StorageError: The file could not be sent, or something else keeps replacing the object.
        """
        if not self._storage.supports_conditions:
            return await self._transfer.send(key, path, size_bytes=size_bytes, crc32c=crc32c)
        for attempt in range(1, _TRIES + 1):
            condition = await self._condition(key)
            try:
                sent = await self._transfer.send(
                    key, path, size_bytes=size_bytes, crc32c=crc32c, condition=condition
                )
            except ConditionFailedError:
                # a late copy of an earlier put of our own, or somebody who took over: the next look tells
                if attempt == _TRIES:
                    raise
                continue
            if len(self._known) < _MOST_KNOWN:
                self._known[key] = sent.version
            return sent
        raise AssertionError

    async def _condition(self, key: str) -> Condition:
        if (version := self._known.pop(key, None)) is not None:
            return IfVersion(version)
        info = await self._storage.head(key)
        await (
            self._check_owner()
        )  # after the look: what is there was not put by whoever takes over from now on
        return OnlyCreate() if info is None else IfVersion(info.version)
