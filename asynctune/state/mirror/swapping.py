"""Owns one swap after the other: what is read from the journal, put as objects, and named by the next CURRENT.

Keeps no commits in memory: each swap reads what it needs from the local journal, and lets it go again. Decides
nothing about when; one call at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from asynctune.clock import Clock
from asynctune.errors import CorruptStateError, FencedError, StorageError, UnsupportedFormatError
from asynctune.files import LocalFiles
from asynctune.state.mirror.claiming import who
from asynctune.state.mirror.current import Current, Ref, key_of, same_owner
from asynctune.state.mirror.garbage import Garbage
from asynctune.state.mirror.journal_runs import JournalRuns
from asynctune.state.mirror.listing import KEPT_LISTED, LISTED_PREFIX
from asynctune.state.mirror.named import Named, Register, vanished
from asynctune.state.mirror.objects import Damage, damage_seen, read_or_damage, together
from asynctune.state.mirror.offline import Identity
from asynctune.state.mirror.planning import plan_swap
from asynctune.state.mirror.putting import Puts
from asynctune.state.mirror.rebasing import Rebasing
from asynctune.state.mirror.runs import Runs, join_runs
from asynctune.state.thread import WorkThread
from asynctune.storage.base import ObjectStorage

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
        happened: Is told `mirror_healed`.
        checked: What CURRENT names was read just now.
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
        happened: Callable[..., Any],
        checked: bool = False,
    ) -> None:
        self.named = named
        self.register = register
        self.garbage = Garbage()
        self.swaps = 0
        self._storage = storage
        self._identity = identity
        self._journal = journal
        self._thread = thread
        self._clock = clock
        self._happened = happened
        self._puts = Puts(storage, identity, thread=thread, state_dir=state_dir, files=files)
        self._rebasing = Rebasing(
            self._puts, journal=journal, thread=thread, state_dir=state_dir, project=project
        )
        self._swap_number = named.current.swap
        self._ready: Ref | None = None
        self._checked = checked or not named.current.refs
        self._damage: Damage | None = None
        self._current_bytes = 0
        self._listed: list[str] = [named.key] if named.key.startswith(LISTED_PREFIX) else []

    @property
    def current(self) -> Current:
        """What CURRENT says, as far as is known."""
        return self.named.current

    @property
    def put_bytes(self) -> int:
        """What was put, CURRENT included."""
        return self._puts.put_bytes + self._current_bytes

    @property
    def snapshots(self) -> int:
        """How many snapshots were put."""
        return self._puts.snapshots

    def has_work(self, upto: int, projected: int, *, closed: bool) -> bool:
        """Whether CURRENT would say something new."""
        current = self.current
        if upto > current.seq or closed != current.closed or self._ready is not None:
            return True
        if not self._checked or self._damage is not None:
            return True
        plan = plan_swap(current, 0, None, projected)
        return len(plan.kept) < len(current.segments)

    async def check(self) -> None:
        """Look once at what CURRENT named when it was claimed; what is damaged there is healed by the next swap.

        An opening that goes on from its own disk reads nothing of that: the next machine would find it out.

        Raises:
            StorageError: The bucket refused; the next call looks again.
        """
        if self._checked:
            return
        seen = await together(*(damage_seen(self._storage, ref) for ref in self.current.refs))
        self._damage = next((damage for damage in seen if damage is not None), None)
        self._checked = True

    async def swap(self, upto: int, projected: int, *, closed: bool) -> None:
        """Name what is committed up to `upto`, or as much of it as goes at once.

        Objects that turn out to be damaged in the bucket are replaced by what is on this disk, which has all of it.

        Args:
            upto: The last acknowledged commit.
            projected: Up to which commit the result files in the bucket are complete.
            closed: Whether the opening has ended; said only when everything is named.

        Raises:
            FencedError: Another opening owns the mirror.
            StorageError: The bucket refused; the next call goes on.
            CorruptStateError, OSError: The local journal cannot be read.
        """
        content: Current | None = None
        if self._damage is None:
            content = await self._going_on(upto, projected)
        if content is None:
            content = await self._anew(upto)
        self._swap_number = max(self._swap_number, self.current.swap) + 1
        content = replace(
            content.next(),
            experiment_id=self._identity.experiment_id,
            claim=self._identity.claim,
            node_ip=self._identity.node_ip,
            history=self._identity.history,
            projected=max(projected, content.projected),
            swap=self._swap_number,
            closed=closed and content.seq == upto,
        )
        if await self._replace(content):
            self._tell_healed()

    async def _going_on(self, upto: int, projected: int) -> Current | None:
        """What is named next; `None`: what is named now is damaged."""
        base, runs = self.current, None
        if upto > base.seq:
            runs = await self._thread.run(self._journal.read, base.seq, base.crc, upto)
            if runs is None:
                base, runs = await self._rebased(upto)
        seq = base.seq if runs is None else runs.last_seq
        ready = self._ready if self._ready is not None and self._ready.last_seq <= seq else None
        plan = plan_swap(base, 0 if runs is None else len(runs.data), ready, max(projected, base.projected))
        part = await self._joined(base, runs, plan.merged, keeps_tail=plan.keeps_tail)
        if isinstance(part, Damage):
            self._damage = part
            return None
        segments, tail, tail_first_seq = plan.kept, b"", 0
        if part is not None and plan.inline:
            tail, tail_first_seq = part.data, part.first_seq
        elif part is not None:
            segments = (*plan.kept, await self._puts.segment(part.data, part.first_seq, seq))
        return replace(
            base,
            seq=seq,
            crc=base.crc if runs is None else runs.crc,
            snapshot=plan.snapshot,
            segments=segments,
            tail=tail,
            tail_first_seq=tail_first_seq,
        )

    async def _rebased(self, upto: int) -> tuple[Current, Runs | None]:
        """The journal does not reach back to what is mirrored: begin anew from the newest local snapshot."""
        base, runs = await self._rebasing.beyond(self.current, upto), None
        if upto > base.seq:
            runs = await self._thread.run(self._journal.read, base.seq, base.crc, upto)
        return base, runs

    async def _anew(self, upto: int) -> Current:
        """The same commits of new objects; not before CURRENT was seen to be ours, and there."""
        found = await self.register.read()
        if found is None:
            raise vanished(self._storage)
        if not same_owner(found.current.claim, self._identity.claim):
            raise self._taken_over(found)
        return await self._rebasing.anew(self.current, upto)

    def _tell_healed(self) -> None:
        damage, self._damage = self._damage, None
        if damage is not None:
            message = (
                f"the mirror at {self._storage.location} was damaged ({damage}); it was made anew from this disk, up "
                f"to commit {self.current.seq}"
            )
            logger.warning("%s", message)
            self._happened("mirror_healed", message, object=damage.path, seq=self.current.seq)

    async def _replace(self, content: Current) -> bool:
        """Whether that is what CURRENT says now."""
        answer = await self.register.swap(content, self.named)
        before = self.current
        if not same_owner(answer.current.claim, self._identity.claim):
            raise self._taken_over(answer)
        self.named = answer
        self._puts.unnamed |= {ref.name for ref in before.refs}
        if answer.current.swap_nonce != content.swap_nonce:
            return False  # an earlier one of ours, whose reply was lost: the next call goes on from there
        self.swaps += 1
        self._current_bytes += answer.size_bytes
        named = {ref.name for ref in content.refs}
        if self._ready is not None and (self._ready.name in named or _covers(content, self._ready)):
            self._puts.unnamed.add(self._ready.name)
            self._ready = None
        now = self._clock.monotonic()
        self.garbage.add((key_of(name) for name in self._puts.unnamed - named), now)
        self._puts.unnamed.clear()
        if answer.key.startswith(LISTED_PREFIX):
            self._listed.append(answer.key)
            self.garbage.add(self._listed[:-KEPT_LISTED], now)
            del self._listed[:-KEPT_LISTED]
        return True

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
    ) -> _Part | Damage | None:
        """What is merged, the tail and what is new, as one; `None`: nothing of it is there."""
        parts: list[_Part] = []
        if merged:
            objects = await together(*(read_or_damage(self._storage, ref) for ref in merged))
            for data, ref in zip(objects, merged, strict=True):
                if isinstance(data, Damage):
                    return data
                parts.append(_Part(data, ref.first_seq))
        if keeps_tail:
            parts.append(_Part(base.tail, base.tail_first_seq))
        if runs is not None:
            parts.append(_Part(runs.data, runs.first_seq))
        if len(parts) <= 1:
            return parts[0] if parts else None
        data = await self._thread.run(join_runs, [part.data for part in parts])
        return _Part(data, parts[0].first_seq)

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
        held = await self._puts.hold(after, current.seq)
        if held is None:
            return False
        ref = await self._puts.snapshot(held)
        if self._ready is not None:
            self._puts.unnamed.add(self._ready.name)
        self._ready = ref
        return True


def _covers(content: Current, ref: Ref) -> bool:
    return content.snapshot is not None and content.snapshot.last_seq >= ref.last_seq
