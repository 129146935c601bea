"""Owns the objects that one opening puts for its CURRENT to name: segments and snapshots, under names used once.

Remembers which of them are not named yet, and counts bytes. Decides nothing about what is put, and when.
"""

from __future__ import annotations

import sys
from functools import partial

from asynctune.files import LocalFiles
from asynctune.state.mirror.current import Ref, segment_name, snapshot_name
from asynctune.state.mirror.local_snapshots import HeldSnapshot, hold_newest, newest_snapshot, release
from asynctune.state.mirror.objects import crc32c_of, put_object
from asynctune.state.mirror.offline import Identity
from asynctune.state.thread import WorkThread
from asynctune.storage.base import ObjectStorage
from asynctune.storage.values import FileRange

__all__ = ["Puts"]


class Puts:
    """What one opening puts.

    Args:
        storage: At the experiment's place.
        identity: Who mirrors.
        thread: In which the disk is read.
        state_dir: The `.asynctune` directory.
        files: The disk.

    Attributes:
        unnamed: Names of what was put, or named before, and is garbage unless the next CURRENT names it.
        put_bytes: What was put.
        snapshots: How many snapshots were put.
    """

    def __init__(
        self,
        storage: ObjectStorage,
        identity: Identity,
        *,
        thread: WorkThread,
        state_dir: str,
        files: LocalFiles,
    ) -> None:
        self.unnamed: set[str] = set()
        self.put_bytes = 0
        self.snapshots = 0
        self._storage = storage
        self._identity = identity
        self._thread = thread
        self._state_dir = state_dir
        self._files = files
        self._numbers = 0
        self._attempts: dict[int, int] = {}

    async def segment(self, data: bytes, first_seq: int, last_seq: int) -> Ref:
        """Put runs; they are unnamed for now.

        Raises:
            StorageError: The bucket refused.
        """
        self._numbers += 1
        name = segment_name(self._identity.claim, self._numbers)
        crc32c = await self._thread.run(crc32c_of, data)
        ref = Ref(name, len(data), crc32c, first_seq, last_seq)
        self.unnamed.add(name)
        await put_object(self._storage, ref, data)
        self.put_bytes += ref.size_bytes
        return ref

    async def is_ahead(self, seq: int) -> bool:
        """Whether there is a local snapshot of a later commit than `seq`.

        Raises:
            OSError: The disk refused.
        """
        newest = partial(newest_snapshot, self._state_dir, self._files, after=seq, upto=sys.maxsize)
        return await self._thread.run(newest) is not None

    async def hold(self, after: int, upto: int) -> HeldSnapshot | None:
        """The newest local snapshot of these, which nobody removes until it is put, or let go of.

        Raises:
            OSError: The disk refused.
        """

        def hold() -> HeldSnapshot | None:
            return hold_newest(
                self._state_dir,
                self._identity.history,
                self._identity.claim,
                self._files,
                after=after,
                upto=upto,
            )

        return await self._thread.run(hold)

    def let_go(self, held: HeldSnapshot) -> None:
        """It is not needed any more."""
        self._thread.call(_ignore, release, held, self._files)

    async def snapshot(self, held: HeldSnapshot) -> Ref:
        """Put a snapshot, and let it go. The caller keeps the answer, or adds its name to `unnamed`.

        Raises:
            StorageError: The bucket refused.
        """
        attempt = self._attempts[held.seq] = self._attempts.get(held.seq, -1) + 1
        name = snapshot_name(self._identity.claim, held.seq, attempt)
        ref = Ref(name, held.size_bytes, held.crc32c, 0, held.seq)
        try:
            await put_object(self._storage, ref, FileRange(held.path, 0, held.size_bytes))
        except BaseException:
            self.unnamed.add(ref.name)
            raise
        finally:
            self.let_go(held)
        self.snapshots += 1
        self.put_bytes += ref.size_bytes
        return ref


def _ignore(_result: object, _error: BaseException | None) -> None:
    """A second name that could not be removed is removed by the next opening."""
