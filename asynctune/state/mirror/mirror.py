"""Owns the running mirror: when it swaps, who waits for it, and what happens while the bucket is away.

One swap is in flight at a time. While the bucket is away nothing piles up here: the local journal is what is behind,
and is read again when the bucket is back.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Final

from asynctune.clock import Clock
from asynctune.errors import (
    AsynctuneError,
    CorruptStateError,
    FencedError,
    StorageError,
    StoreClosedError,
    UnsupportedFormatError,
)
from asynctune.files import LocalFiles
from asynctune.state.codec import FrameError
from asynctune.state.epochs import Claim
from asynctune.state.mirror.claiming import Claimed
from asynctune.state.mirror.health import Health, least_interval_s, passes
from asynctune.state.mirror.journal_runs import JournalRuns
from asynctune.state.mirror.local_snapshots import newest_snapshot, remove_leftovers
from asynctune.state.mirror.named import Named, Register
from asynctune.state.mirror.objects import together
from asynctune.state.mirror.observing import MirrorStats, Observer
from asynctune.state.mirror.offline import Identity, claim_later
from asynctune.state.mirror.snapshot_sending import SnapshotSending
from asynctune.state.mirror.swapping import Swapper
from asynctune.state.mirror.waiting import Waiters
from asynctune.state.pacing import CostBudget
from asynctune.state.thread import WorkThread
from asynctune.storage.base import ObjectStorage

__all__ = ["StateMirror"]

logger = logging.getLogger("asynctune")

_MAX_REST_S: Final = 30.0  # what a takeover may miss, however slow the bucket is
_CLOSED: Final = "the store is closed; what was not mirrored by then is not in the bucket"
_PASSING: Final = (StorageError, CorruptStateError, UnsupportedFormatError, FrameError, OSError)


class StateMirror:
    """Brings what the local journal acknowledges into the bucket.

    Args:
        storage: At the experiment's place.
        claimed: As `claim_mirror` returned it; `None`: opened without the bucket, it is claimed when that is back.
        identity: Who mirrors what.
        committed_seq: Newest local commit at the opening.
        state_dir: The `.asynctune` directory.
        files: The disk.
        clock: Time.
        observer: The store above.
        interval_s: Least seconds between two swaps; `None`: 1.0 on Google Cloud Storage, which asks for it, else 0.
        quiet_s: As for `claim_mirror`, for a claim made later.
        is_dead: Likewise.
        rng: Where the jitter comes from.
    """

    def __init__(
        self,
        storage: ObjectStorage,
        claimed: Claimed | None,
        *,
        identity: Identity,
        committed_seq: int,
        state_dir: str,
        files: LocalFiles,
        clock: Clock,
        observer: Observer,
        interval_s: float | None = None,
        quiet_s: float = 30.0,
        is_dead: Callable[[Claim], bool] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._storage = storage
        self._identity = identity
        self._files = files
        self._state_dir = state_dir
        self._clock = clock
        self._observer = observer
        self._interval_s = least_interval_s(storage.location) if interval_s is None else interval_s
        self._quiet_s = quiet_s
        self._is_dead = is_dead
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._thread = WorkThread("asynctune-mirror")
        self._journal = JournalRuns(state_dir, identity.history, files)
        self._swapper: Swapper | None = None
        if claimed is not None:
            was_read = claimed.mirrored is not None
            self._swapper = self._made(claimed.named, claimed.register, checked=was_read)
        # an opening without the bucket has compared nothing of its records with what is there
        self._settled = claimed is not None
        # what is to be mirrored
        self._committed = committed_seq
        self._projected = 0
        # when
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._budget = CostBudget()
        self._hurry = False
        # the storage's own pace; the claim was the swap before
        self._not_before = 0.0 if claimed is None else clock.monotonic() + self._interval_s
        self._last_end = 0.0
        self._health = Health(storage.location, clock=clock, rng=self._rng, happened=observer.happened)
        self._closing = False
        self._snapshots = SnapshotSending(clock, self._rng, self._wake.set)
        # who waits
        self._failure: AsynctuneError | None = None
        self._flushes = Waiters()
        self._waiters = Waiters()
        self._seconds = 0.0

    def _made(self, named: Named, register: Register, *, checked: bool = False) -> Swapper:
        return Swapper(
            self._storage,
            self._identity,
            named,
            register,
            journal=self._journal,
            thread=self._thread,
            state_dir=self._state_dir,
            files=self._files,
            clock=self._clock,
            project=self._observer.project,
            happened=self._observer.happened,
            checked=checked,
        )

    # -- what the store tells (loop, no I/O) ---------------------------------------------------------------

    def committed(self, seq: int) -> None:
        """Commit `seq` is durable on the local disk."""
        if seq > self._committed:
            self._committed = seq
            self._wake.set()

    def snapshot_written(self, seq: int, size_bytes: int) -> None:
        """A local snapshot of commit `seq` is durable."""
        if self._snapshots.written(seq, size_bytes):
            self._want_snapshot()

    def projected(self, seq: int) -> None:
        """The result files in the bucket are complete up to commit `seq`."""
        if seq > self._projected:
            self._projected = seq
            self._wake.set()

    def settled(self) -> None:
        """What the records say of the bucket is true. After a late claim nothing is named before."""
        self._settled = True
        self._wake.set()

    # -- what the store asks -------------------------------------------------------------------------------

    @property
    def mirrored_seq(self) -> int:
        """Newest commit that the bucket holds; 0 while that is not known."""
        return 0 if self._swapper is None else self._swapper.current.seq

    @property
    def stats(self) -> MirrorStats:
        """Figures as of the present moment."""
        swapper, away = self._swapper, self._health.away_since
        return MirrorStats(
            mirrored_seq=self.mirrored_seq,
            swaps=0 if swapper is None else swapper.swaps,
            swap_seconds=self._seconds,
            put_bytes=0 if swapper is None else swapper.put_bytes,
            snapshots=0 if swapper is None else swapper.snapshots,
            refs=0 if swapper is None else len(swapper.current.segments),
            away_s=None if away is None else self._clock.monotonic() - away,
            claimed=swapper is not None,
        )

    async def flush(self, seq: int) -> int:
        """Return when CURRENT names commit `seq`, without waiting for the pace; what it names then.

        While the bucket is away this waits until it is back: put a deadline around it. A cancelled caller stops
        waiting, and nothing else.

        Raises:
            FencedError: Another opening owns the mirror.
            StorageError, CorruptStateError: The bucket, or the local journal, refused in a way that does not pass by
                itself.
            StoreClosedError: The mirror was closed before.
        """
        self._check()
        if self.mirrored_seq < seq:
            self._hurry = True
            self._wake.set()
            await self._flushes.wait(seq)
        return self.mirrored_seq

    async def reached(self, seq: int) -> None:
        """Return when CURRENT names commit `seq`, without hurrying anything. Raises as `flush`, fenced or closed."""
        self._check()
        if self.mirrored_seq < seq:
            await self._waiters.wait(seq)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    # -- the task ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Mirror what is committed when it is due, until cancelled. Owned by the store's TaskGroup.

        Raises:
            FencedError: Another opening owns the mirror.
        """
        if self._swapper is not None:
            self._health.tell_unfenced(self._swapper.register.why_unfenced)
        try:
            await self._thread.run(remove_leftovers, self._state_dir, self._files)
            newest = partial(newest_snapshot, after=0, upto=self._committed)
            found = await self._thread.run(newest, self._state_dir, self._files)
        except OSError as error:
            logger.warning("the state directory cannot be looked through for the mirror: %s", error)
            found = None
        if found is not None:
            self.snapshot_written(*found)
        await together(self._swap_on(), self._snapshots.run())

    async def _swap_on(self) -> None:
        while True:
            self._wake.clear()
            rest_s = self._rest_s()
            if rest_s is None or rest_s > 0:
                await self._clock.wait(self._wake, rest_s)
                continue
            async with self._turn:
                if not self._closing:
                    await self._take_turn(closed=False)

    def _rest_s(self) -> float | None:
        """How long there is nothing to do; `None`: until something happens."""
        if self._closing or self._failure is not None:
            return None
        now, retry_at = self._clock.monotonic(), self._health.retry_at
        due = []
        swapper = self._swapper
        if swapper is not None and not self._settled:
            return None
        if swapper is None or swapper.has_work(self._committed, self._projected, closed=False):
            at = now
            if retry_at is not None and not self._hurry:
                at = retry_at
            elif not (self._hurry or self._flushes):
                at = min(self._budget.next_start, self._last_end + _MAX_REST_S)
            due.append(max(at, self._not_before))
        if swapper is not None and (at_garbage := swapper.garbage.next_due) is not None:
            due.append(at_garbage if retry_at is None else max(at_garbage, retry_at))
        return max(0.0, min(due) - now) if due else None

    async def _take_turn(self, *, closed: bool) -> AsynctuneError | None:
        """Claim, swap, and remove what is due; what went wrong and may pass is returned."""
        self._hurry = False
        began = self._clock.monotonic()
        upto = self._committed
        try:
            if self._swapper is None:
                await self._claim()
            assert self._swapper is not None
            if not self._settled:
                return None
            await self._swapper.check()
            if self._swapper.has_work(upto, self._projected, closed=closed):
                await self._swapper.swap(upto, self._projected, closed=closed)
                self._swapped(upto, self._clock.monotonic() - began)
            await self._swapper.remove_garbage()
        except FencedError as error:
            self._observer.happened("mirror_fenced", str(error))
            self._fail(error)
            raise
        except _PASSING as error:
            # not kept here: its traceback holds this frame, and what was to be put
            return self._failed(error)
        finally:
            self._last_end = self._clock.monotonic()
            self._seconds += self._last_end - began
            self._not_before = self._last_end + self._interval_s
        return None

    async def _claim(self) -> None:
        named, register = await claim_later(
            self._storage,
            self._identity,
            self._committed,
            partial(self._thread.run, self._journal.crc_of),
            clock=self._clock,
            quiet_s=self._quiet_s,
            is_dead=self._is_dead,
        )
        self._swapper = self._made(named, register)
        self._observer.happened(
            "mirror_claimed", f"the mirror at {self._storage.location} was claimed", seq=named.current.seq
        )
        self._health.tell_unfenced(register.why_unfenced)

    def _swapped(self, upto: int, cost_s: float) -> None:
        assert self._swapper is not None
        seq = self._swapper.current.seq
        if seq >= upto:
            self._budget.spent(self._clock.monotonic(), cost_s)  # a backlog is not made to wait
        self._health.succeeded()
        self._observer.happened("mirrored", f"commit {seq} is in the bucket", seq=seq)
        self._flushes.reached(seq)
        self._waiters.reached(seq)
        self._want_snapshot()

    def _want_snapshot(self) -> None:
        self._snapshots.consider(self._swapper, away=self._health.away_since is not None)

    def _failed(self, error: Exception) -> AsynctuneError:
        shown = self._health.failed(error)
        if not passes(shown):
            self._flushes.fail(shown)
        return shown

    def _fail(self, error: AsynctuneError) -> None:
        if self._failure is None:
            self._failure = error
        self._flushes.fail(error)
        self._waiters.fail(error)

    # -- the end -------------------------------------------------------------------------------------------

    async def close(self, timeout_s: float | None = None) -> bool:
        """Bring the rest into the bucket and mark it as closed; whether that is done. Call it while `run` runs.

        Nothing is brought there that was never settled (`settled`): the next opening does it.

        Args:
            timeout_s: After so many seconds what is left stays for the next opening; `None`: until it is done, or
                refused in a way that does not pass by itself.

        Raises:
            FencedError: Another opening owns the mirror.
        """
        self._check()
        self._closing = True
        self._wake.set()
        error: AsynctuneError | None = None
        try:
            async with self._clock.timeout(timeout_s):
                while self._settled and not self._is_closed():
                    async with self._turn:
                        await self._clock.sleep(max(0.0, self._not_before - self._clock.monotonic()))
                        error = await self._take_turn(closed=True)
                    if error is not None and not passes(error):
                        break
                    if (retry_at := self._health.retry_at) is not None:
                        await self._clock.sleep(retry_at - self._clock.monotonic())
        except TimeoutError:
            pass
        if not self._is_closed():
            left = self._committed - self.mirrored_seq
            message = f"{left} commits are not in the bucket yet; the next opening brings them there"
            logger.warning("%s%s", message, "" if error is None else f" ({error})")
            self._observer.happened("mirror_behind", message, commits=left)
        self._fail(StoreClosedError(_CLOSED))
        return self._is_closed()

    def _is_closed(self) -> bool:
        swapper = self._swapper
        return swapper is not None and swapper.current.closed and swapper.current.seq >= self._committed

    def forget(self) -> None:
        """Let the thread end without waiting; from any thread, and after the loop has ended."""
        self._thread.stop()

    async def aclose(self) -> None:
        """End the thread, after `run` was cancelled. Waiters get a `StoreClosedError`."""
        self._fail(StoreClosedError(_CLOSED))
        try:
            await self._thread.run(lambda: None)
        finally:
            self._thread.stop()
