"""Owns one swap after the other: what is read from the journal, put as objects, and named by the next CURRENT.

Keeps no commits in memory: each swap reads what it needs from the local journal, and lets it go again. Decides
nothing about when; one call at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from asynctune.clock import Clock
from asynctune.errors import CorruptStateError, FencedError, StorageError, UnsupportedFormatError
from asynctune.files import LocalFiles
from asynctune.state.mirror.claiming import who
from asynctune.state.mirror.current import Current, Ref, key_of, same_owner, segment_name, snapshot_name
from asynctune.state.mirror.garbage import Garbage
from asynctune.state.mirror.journal_runs import JournalRuns
from asynctune.state.mirror.listing import KEPT_LISTED, LISTED_PREFIX
from asynctune.state.mirror.local_snapshots import HeldSnapshot, hold_newest, release
from asynctune.state.mirror.named import Named, Register
from asynctune.state.mirror.objects import crc32c_of, put_object, read_object, together
from asynctune.state.mirror.offline import Identity
from asynctune.state.mirror.planning import plan_swap
from asynctune.state.mirror.runs import Runs, join_runs
from asynctune.state.thread import WorkThread
from asynctune.storage.base import ObjectStorage
from asynctune.storage.values import FileRange

__all__ = ["Swapper"]

logger = logging.getLogger("asynctune")


@dataclass(slots=True)
class _Part:
    """Runs to be named."""

    data: bytes
    first_seq: int


class Swapper:
    """The mirror of one opening, once it is claimed.

    Args:
        storage: At the experiment's place.
        identity: Who mirrors.
        named: CURRENT, ours.
        register: How it is replaced.
        journal: The local journal.
        thread: In which that is read.
        state_dir: The `.asynctune` directory.
        files: The disk.
        clock: Time, for what is deleted later.
        project: Returns when the result files in the bucket are complete up to a commit.
    """

    def __init__(
        self,
        storage: ObjectStorage,
        identity: Identity,
        named: Named,
        register: Register,
        *,
        journal: JournalRuns,
        thread: WorkThread,
        state_dir: str,
        files: LocalFiles,
        clock: Clock,
        project: Callable[[int], Awaitable[None]],
    ) -> None:
        self.named = named
        self.register = register
        self.garbage = Garbage()
        self.swaps = 0
        self.put_bytes = 0
        self.snapshots = 0
        self._storage = storage
        self._identity = identity
        self._journal = journal
        self._thread = thread
        self._state_dir = state_dir
        self._files = files
        self._clock = clock
        self._project = project
        self._numbers = 0
        self._swap_number = named.current.swap
        self._unnamed: set[str] = set()
        self._ready: Ref | None = None
        self._attempts: dict[int, int] = {}
        self._asked = 0  # up to where the result files are known to be complete
        self._listed: list[str] = [named.key] if named.key.startswith(LISTED_PREFIX) else []

    @property
    def current(self) -> Current:
        """What CURRENT says, as far as is known."""
        return self.named.current

    def has_work(self, upto: int, projected: int, *, closed: bool) -> bool:
        """Whether CURRENT would say something new."""
        current = self.current
        if upto > current.seq or closed != current.closed or self._ready is not None:
            return True
        plan = plan_swap(current, 0, None, projected)
        return len(plan.kept) < len(current.segments)

    async def swap(self, upto: int, projected: int, *, closed: bool) -> None:
        """Name what is committed up to `upto`, or as much of it as goes at once.

        Args:
            upto: The last acknowledged commit.
            projected: Up to which commit the result files in the bucket are complete.
            closed: Whether the opening has ended; said only when everything is named.

        Raises:
            FencedError: Another opening owns the mirror.
            StorageError: The bucket refused; the next call goes on.
            CorruptStateError, OSError: The local journal, or what is in the bucket, cannot be read.
        """
        base, runs = self.current, None
        if upto > base.seq:
            runs = await self._thread.run(self._journal.read, base.seq, base.crc, upto)
            if runs is None:
                base, runs = await self._rebased(upto)
        projected = max(projected, base.projected)
        seq = base.seq if runs is None else runs.last_seq
        ready = self._ready if self._ready is not None and self._ready.last_seq <= seq else None
        plan = plan_swap(base, 0 if runs is None else len(runs.data), ready, projected)
        part = await self._joined(base, runs, plan.merged, keeps_tail=plan.keeps_tail)
        segments, tail, tail_first_seq = plan.kept, b"", 0
        if part is not None and plan.inline:
            tail, tail_first_seq = part.data, part.first_seq
        elif part is not None:
            segments = (*plan.kept, await self._put_segment(part, seq))
        self._swap_number = max(self._swap_number, base.swap) + 1
        content = replace(
            base.next(),
            experiment_id=self._identity.experiment_id,
            claim=self._identity.claim,
            node_ip=self._identity.node_ip,
            history=self._identity.history,
            seq=seq,
            crc=base.crc if runs is None else runs.crc,
            snapshot=plan.snapshot,
            segments=segments,
            projected=projected,
            swap=self._swap_number,
            closed=closed and seq == upto,
            tail=tail,
            tail_first_seq=tail_first_seq,
        )
        await self._replace(content)

    async def _replace(self, content: Current) -> None:
        answer = await self.register.swap(content, self.named)
        before = self.current
        if not same_owner(answer.current.claim, self._identity.claim):
            raise self._taken_over(answer)
        self.named = answer
        self._unnamed |= {ref.name for ref in before.refs}
        if answer.current.swap_nonce != content.swap_nonce:
            return  # an earlier one of ours, whose reply was lost: the next call goes on from there
        self.swaps += 1
        self.put_bytes += answer.size_bytes
        named = {ref.name for ref in content.refs}
        if self._ready is not None and (self._ready.name in named or _covers(content, self._ready)):
            self._unnamed.add(self._ready.name)
            self._ready = None
        now = self._clock.monotonic()
        self.garbage.add((key_of(name) for name in self._unnamed - named), now)
        self._unnamed.clear()
        if answer.key.startswith(LISTED_PREFIX):
            self._listed.append(answer.key)
            self.garbage.add(self._listed[:-KEPT_LISTED], now)
            del self._listed[:-KEPT_LISTED]

    async def remove_garbage(self) -> None:
        """Delete what has not been named for long enough; what cannot be deleted now is deleted later.

        Raises:
            FencedError: Another opening owns the mirror.
        """
        keys = self.garbage.due(self._clock.monotonic())
        if not keys:
            return
        try:
            if not self.register.fenced:
                # the other may have gone on from before the swap that stopped naming these
                found = await self.register.read()
                if found is not None and not same_owner(found.current.claim, self._identity.claim):
                    raise self._taken_over(found)
            await self._storage.delete(keys)
            self.garbage.deleted(keys)
        except (StorageError, CorruptStateError, UnsupportedFormatError) as error:
            logger.debug("what the mirror does not name any more is deleted later: %s", error)
            self.garbage.postpone(keys, self._clock.monotonic())

    def _taken_over(self, found: Named) -> FencedError:
        return FencedError(
            f"{who(found.current.claim)} has taken over the experiment's mirror at {self._storage.location}; this "
            "driver writes nothing any more. Everything that flush(mirror=True) acknowledged is there"
        )

    # -- segments ------------------------------------------------------------------------------------------

    async def _joined(
        self, base: Current, runs: Runs | None, merged: tuple[Ref, ...], *, keeps_tail: bool
    ) -> _Part | None:
        """What is merged, the tail and what is new, as one; `None`: nothing of it is there."""
        parts: list[_Part] = []
        if merged:
            objects = await together(*(read_object(self._storage, ref) for ref in merged))
            parts += [_Part(data, ref.first_seq) for data, ref in zip(objects, merged, strict=True)]
        if keeps_tail:
            parts.append(_Part(base.tail, base.tail_first_seq))
        if runs is not None:
            parts.append(_Part(runs.data, runs.first_seq))
        if len(parts) <= 1:
            return parts[0] if parts else None
        data = await self._thread.run(join_runs, [part.data for part in parts])
        return _Part(data, parts[0].first_seq)

    async def _put_segment(self, part: _Part, last_seq: int) -> Ref:
        self._numbers += 1
        name = segment_name(self._identity.claim, self._numbers)
        crc32c = await self._thread.run(crc32c_of, part.data)
        ref = Ref(name, len(part.data), crc32c, part.first_seq, last_seq)
        self._unnamed.add(name)
        await put_object(self._storage, ref, part.data)
        self.put_bytes += ref.size_bytes
        return ref

    # -- snapshots -----------------------------------------------------------------------------------------

    async def send_snapshot(self) -> bool:
        """Put the newest local snapshot that CURRENT can name; whether there was one. Beside `swap`, if need be.

        Raises:
            StorageError: The bucket refused.
            OSError: The disk refused.
        """
        current = self.current
        after = max(
            current.snapshot.last_seq if current.snapshot is not None else 0,
            self._ready.last_seq if self._ready is not None else 0,
        )
        held = await self._hold(after, current.seq)
        if held is None:
            return False
        ref = await self._put_held(held)
        if self._ready is not None:
            self._unnamed.add(self._ready.name)
        self._ready = ref
        return True

    async def _hold(self, after: int, upto: int) -> HeldSnapshot | None:
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

    async def _put_held(self, held: HeldSnapshot) -> Ref:
        """Put it, and let it go; it stays unnamed for now."""
        attempt = self._attempts[held.seq] = self._attempts.get(held.seq, -1) + 1
        name = snapshot_name(self._identity.claim, held.seq, attempt)
        ref = Ref(name, held.size_bytes, held.crc32c, 0, held.seq)
        try:
            await put_object(self._storage, ref, FileRange(held.path, 0, held.size_bytes))
        except BaseException:
            self._unnamed.add(ref.name)
            raise
        finally:
            self._thread.call(_ignore, release, held, self._files)
        self.snapshots += 1
        self.put_bytes += ref.size_bytes
        return ref

    async def _rebased(self, upto: int) -> tuple[Current, Runs | None]:
        """The journal does not reach back to what is mirrored: begin anew from the newest local snapshot.

        The frames in between are gone, and the result rows in them with them; so the result files go first.
        """
        held = await self._hold(self.current.seq, upto)
        if held is None:
            raise CorruptStateError(
                f"the mirror has commit {self.current.seq}; the local journal at {self._state_dir} does not reach "
                "back so far, and no snapshot is newer",
                path=self._state_dir,
            )
        if held.seq > max(self.current.projected, self._asked):
            try:
                await self._project(held.seq)
            except BaseException:
                self._thread.call(_ignore, release, held, self._files)
                raise
            self._asked = held.seq
        ref = await self._put_held(held)
        self._unnamed.add(ref.name)
        base = replace(
            self.current,
            seq=held.seq,
            crc=held.crc,
            snapshot=ref,
            segments=(),
            tail=b"",
            tail_first_seq=0,
            projected=max(self.current.projected, held.seq),
        )
        runs = None
        if upto > held.seq:
            runs = await self._thread.run(self._journal.read, held.seq, held.crc, upto)
        return base, runs


def _covers(content: Current, ref: Ref) -> bool:
    return content.snapshot is not None and content.snapshot.last_seq >= ref.last_seq


def _ignore(_result: object, _error: BaseException | None) -> None:
    """A second name that could not be removed is removed by the next opening."""
