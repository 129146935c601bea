"""Owns beginning a mirror anew from this disk, where its frames do not go on, or are damaged in the bucket.

From the newest local snapshot that will do, and the frames after it. Result rows ride in frames: so the result files
in the bucket are asked for before a snapshot takes the place of frames.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from asynctune.errors import CorruptStateError, StorageError
from asynctune.state.mirror.current import Current, Ref
from asynctune.state.mirror.journal_runs import JournalRuns
from asynctune.state.mirror.local_snapshots import HeldSnapshot
from asynctune.state.mirror.putting import Puts
from asynctune.state.thread import WorkThread

__all__ = ["Rebasing"]


class Rebasing:
    """Begins the mirror of one opening anew.

    Args:
        puts: Puts what is to be named.
        journal: The local journal.
        thread: In which that is read.
        state_dir: The `.asynctune` directory.
        project: Returns when the result files in the bucket are complete up to a commit.
    """

    def __init__(
        self,
        puts: Puts,
        *,
        journal: JournalRuns,
        thread: WorkThread,
        state_dir: str,
        project: Callable[[int], Awaitable[None]],
    ) -> None:
        self._puts = puts
        self._journal = journal
        self._thread = thread
        self._state_dir = state_dir
        self._project = project
        self._asked = 0  # up to where the result files are known to be complete

    async def beyond(self, current: Current, upto: int) -> Current:
        """What the next CURRENT is based on where the journal does not reach back to this one: a newer snapshot.

        Raises:
            CorruptStateError: There is none up to commit `upto`.
            StorageError: The bucket refused; or the journal was cut meanwhile, which passes.
            OSError: The disk refused.
        """
        held = await self._puts.hold(current.seq, upto)
        if held is None:
            if await self._puts.is_ahead(upto):
                # pruned to a snapshot of a commit that was made since `upto` was read: the next turn knows it
                raise StorageError(
                    f"the local journal at {self._state_dir} was cut while commit {upto} was to be mirrored",
                    operation="read",
                    retryable=True,
                )
            raise CorruptStateError(
                f"the mirror has commit {current.seq}; the local journal at {self._state_dir} does not reach back so "
                "far, and no snapshot is newer",
                path=self._state_dir,
            )
        return await self._from_snapshot(current, held)

    async def anew(self, current: Current, upto: int) -> Current:
        """What takes the place of CURRENT, of which an object is damaged: the same commits, of new objects.

        It never says less than CURRENT said. A snapshot that is not ahead of it is taken if there is one, because
        result files should not get ahead of the state; then frames follow, up to the very same commit.

        Args:
            current: What CURRENT says.
            upto: The last acknowledged commit.

        Raises:
            CorruptStateError: This disk does not have them.
            StorageError: The bucket refused.
            OSError: The disk refused.
        """
        held = await self._puts.hold(0, current.seq)
        if held is None and await self._thread.run(self._journal.read, 0, 0, 1) is None:
            held = await self._puts.hold(current.seq, upto)
        base = replace(current, seq=0, crc=0, snapshot=None, segments=(), tail=b"", tail_first_seq=0)
        if held is not None:
            base = await self._from_snapshot(current, held)
        segments: list[Ref] = []
        while base.seq < current.seq:
            runs = await self._thread.run(self._journal.read, base.seq, base.crc, current.seq)
            if runs is None:
                raise self._lacks(current, f"the journal does not reach back to commit {base.seq + 1}")
            segments.append(await self._puts.segment(runs.data, runs.first_seq, runs.last_seq))
            base = replace(base, seq=runs.last_seq, crc=runs.crc)
        if base.seq == current.seq and base.crc != current.crc:
            raise self._lacks(current, f"commit {current.seq} is another one here")
        return replace(base, segments=tuple(segments))

    def _lacks(self, current: Current, why: str) -> CorruptStateError:
        return CorruptStateError(
            f"the mirror is damaged, and cannot be made anew up to commit {current.seq} from {self._state_dir}: {why}",
            path=self._state_dir,
        )

    async def _from_snapshot(self, current: Current, held: HeldSnapshot) -> Current:
        if held.seq > max(current.projected, self._asked):
            try:
                await self._project(held.seq)
            except BaseException:
                self._puts.let_go(held)
                raise
            self._asked = held.seq
        ref = await self._puts.snapshot(held)
        self._puts.unnamed.add(ref.name)
        return replace(
            current,
            seq=held.seq,
            crc=held.crc,
            snapshot=ref,
            segments=(),
            tail=b"",
            tail_first_seq=0,
            projected=max(current.projected, held.seq),
        )
