"""Owns the copy of an open experiment at work: joins the state's mirror and the transfer of files, for the store.

Everything of it lives below one storage, whose root is the experiment. What a checkpoint's upload is, or a swap, is the
rooms' below; when they begin and end with the store is said here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, Protocol

from asynctune.checkpoints.bucket import DEFAULT_CONCURRENCY, Bucket
from asynctune.checkpoints.upload_reasons import reasons_told
from asynctune.checkpoints.uploads import UploadLeft
from asynctune.clock import Clock
from asynctune.errors import AsynctuneError, FencedError, StorageError, UploadError
from asynctune.files import LocalFiles
from asynctune.results.mirroring import ResultUploads
from asynctune.state.mirror.claiming import Claimed, give_up
from asynctune.state.mirror.current import same_owner
from asynctune.state.mirror.mirror import StateMirror
from asynctune.state.mirror.offline import Identity
from asynctune.state.mirror.register import open_register
from asynctune.store import reconcile
from asynctune.store.access import Access
from asynctune.store.leftovers import abort_leftovers
from asynctune.store.opened import Opened
from asynctune.store.place import Remote
from asynctune.store.projections import Projections
from asynctune.store.records import Records

__all__ = ["Emit", "Mirroring"]

logger = logging.getLogger("asynctune")

_NAMES_AT_ONCE: Final = 1000
_SHARE_OF_UPLOADS: Final = 0.8
_MOST_KEPT_BYTES: Final = 256 << 20  # of journal, and as much of snapshots, for a bucket that is away


class Emit(Protocol):
    """Publishes an event of the store."""

    def __call__(self, kind: str, /, *, message: str = "", **data: Any) -> None:
        """Publish `kind`."""
        ...


class Mirroring:
    """The copy of one opening.

    Args:
        opened: As it was opened, with a copy.
        projections: The result files on this disk.
        files: The disk.
        clock: Time.
        emit: Publishes events.

    Attributes:
        bucket: What the checkpoints are told of it.
        mirror: The state's.
        results: The result files'.
    """

    def __init__(
        self,
        opened: Opened,
        projections: Projections,
        *,
        files: LocalFiles,
        clock: Clock,
        emit: Emit,
    ) -> None:
        assert opened.remote is not None
        assert opened.access is not None
        self.remote: Remote = opened.remote
        self._access: Access = opened.access
        self.is_new = opened.claimed is not None and opened.claimed.named.current.seq == 0
        self._claimed = opened.claimed
        self._leftovers = opened.leftovers
        self._clock = clock
        self._emit = emit
        self._committed = opened.directory.journal.seq
        self._claim = opened.directory.journal.claim
        self._behind_bytes = [0, 0]
        self._reconciled = asyncio.Event()
        self._owned = asyncio.Event()
        if opened.claimed is not None:
            self._owned.set()
        sync, journal = opened.remote.sync, opened.directory.journal
        self.mirror = StateMirror(
            self._access.storage,
            opened.claimed,
            identity=Identity(
                journal.experiment_id, journal.claim, journal.history, opened.directory.node_ip
            ),
            committed_seq=journal.seq,
            state_dir=journal.directory,
            files=files,
            clock=clock,
            observer=self,
            quiet_s=reconcile.QUIET_S,
        )
        self.bucket = Bucket(
            copies=self._access.copies,
            reached=self.mirror.reached,
            flush=self._flush,
            claimed=self.owned,
            # a syncer is called once at a time
            max_concurrency=DEFAULT_CONCURRENCY if opened.remote.uri is not None else 1,
            sync_on_checkpoint=sync.sync_on_checkpoint,
            sync_period_s=sync.sync_period,
            direct=opened.remote.uri is not None,
            patience_s=sync.sync_timeout,
        )

        self.results = ResultUploads(
            self._access.sender(self._check_owner),
            projections,
            root=opened.path,
            stage_dir=f"{journal.directory}/frozen",
            files=files,
            clock=clock,
            emit=emit,
            period_s=sync.sync_period,
            covered=self.mirror.projected,
            finish=self._access.finish,
            named=self._named,
        )
        self._state_waits = asyncio.Event()
        self._behind = opened.results_anew or _is_behind(opened)
        self._access.announce(emit)

    @property
    def runs(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What the store's TaskGroup runs."""
        return [self._run_mirror, self._run_results, partial(abort_leftovers, self._leftovers, self._access)]

    async def begin(self, records: Records) -> None:
        """Find out which result files the copy may lack.

        Raises:
            StorageError: The disk refused.
        """
        await self.results.begin()
        if not self._behind:
            return
        given = set()
        for count, name in enumerate(list(records.named("name")), 1):
            self.results.changed(name)
            given.add(str(records.get(f"name/{name}")))
            if count % _NAMES_AT_ONCE == 0:
                await asyncio.sleep(0)
        for count, trial_id in enumerate(list(records.trial_ids), 1):
            if trial_id not in given:
                self.results.changed(trial_id)
            if count % _NAMES_AT_ONCE == 0:
                await asyncio.sleep(0)

    def reconciled(self) -> None:
        """What the records say of the copy is true now, as far as that can be found out. Before, nothing is mirrored.

        They may tell of another bucket, and that must not get into this one.
        """
        self._reconciled.set()

    async def _run_mirror(self) -> None:
        await self._reconciled.wait()
        await self.mirror.run()

    async def _run_results(self) -> None:
        await self._owned.wait()
        await self.results.run()

    async def patiently(self, event: asyncio.Event, timeout_s: float | None = None) -> None:
        """Wait for something that needs the copy.

        Args:
            event: What is waited for.
            timeout_s: Seconds; `None`: `sync_timeout`.

        Raises:
            UploadError: It has not come.
        """
        limit_s = self.remote.sync.sync_timeout if timeout_s is None else timeout_s
        if not await self._clock.wait(event, limit_s):
            raise UploadError(
                f"{self.remote} has not been reached since the opening, and not for {limit_s:g} s now. All is safe on "
                "this disk, and is brought there when it answers, or by the next opening; the log says what it answered"
            )

    async def flush(self, seq: int) -> int:
        """Return when the copy names commit `seq`; what it names then.

        Raises:
            UploadError: Nothing has come of it for `sync_timeout`.
            FencedError, StorageError, CorruptStateError: As for `StateMirror.flush`.
        """
        limit_s = self.remote.sync.sync_timeout
        while True:
            swaps = self.mirror.stats.swaps
            try:
                async with self._clock.timeout(limit_s):
                    return await self.mirror.flush(seq)
            except TimeoutError:
                if self.mirror.stats.swaps > swaps:
                    continue  # a long backlog goes in several steps
                raise UploadError(
                    f"the copy at {self.remote} has not been brought up to date for {limit_s:g} s (sync_timeout): it "
                    f"has what was committed up to {self.mirror.mirrored_seq}, and not {seq}. All of it is safe on "
                    "this disk, the copy catches up when the bucket answers; the log says what it answered"
                ) from None

    async def _flush(self, seq: int) -> None:
        await self.mirror.flush(seq)

    async def _named(self) -> None:
        """Return when the mirror names all that is committed, or itself waits for the result files (`project`)."""
        waiting = asyncio.ensure_future(self._state_waits.wait())
        flushing = asyncio.ensure_future(self.mirror.flush(self._committed))
        try:
            await asyncio.wait([waiting, flushing], return_when=asyncio.FIRST_COMPLETED)
            if flushing.done():
                flushing.result()
        finally:
            waiting.cancel()
            flushing.cancel()
            await asyncio.gather(waiting, flushing, return_exceptions=True)

    def may_forget(self, seq: int) -> bool:
        """Whether the local journal may be without the commits up to `seq`, as far as the copy is concerned.

        A copy that cannot be brought up to date commit by commit gets a snapshot, and before it result files that are
        ahead of its state: a machine that is lost just then leaves a state whose rows are not those of its files.
        """
        return self.mirror.mirrored_seq >= seq or sum(self._behind_bytes) > _MOST_KEPT_BYTES

    async def _check_owner(self) -> None:
        """Look whether the copy is this opening's still.

        Raises:
            FencedError: It is not.
            CorruptStateError, StorageError: That cannot be told.
        """
        storage = self._access.storage
        register = await open_register(storage, writing=False, clock=self._clock)
        named = await register.read()
        if named is None or not same_owner(named.current.claim, self._claim):
            raise FencedError(
                f"another driver has taken over the copy at {self.remote}; this one writes nothing there any more"
            )

    def committed(self, seq: int, size_bytes: int) -> None:
        """Commit `seq` is durable on the local disk. Loop only, no I/O."""
        self._committed = seq
        self._behind_bytes[-1] += size_bytes
        self.mirror.committed(seq)

    @property
    def is_owned(self) -> bool:
        """Whether the copy is this opening's."""
        return self._owned.is_set()

    async def owned(self) -> None:
        """Return when it is."""
        await self._owned.wait()

    # -- what the mirror tells, and asks (`state.mirror.mirror.Observer`) --------------------------------------

    def happened(self, kind: str, message: str, **data: Any) -> None:
        """Publish what the mirror met."""
        if kind == "mirror_claimed":
            self.is_new = data["seq"] == 0
            self._owned.set()
        elif kind == "mirrored":
            # what was committed while the swap was under way is not in it
            self._behind_bytes = [self._behind_bytes[-1], 0]
        self._emit(kind, message=message, **data)

    async def project(self, seq: int) -> None:
        """Bring the result files in the bucket up to commit `seq`.

        Raises:
            StorageError: They cannot be put there at present.
        """
        self._state_waits.set()
        try:
            await self.results.project(seq)
        finally:
            self._state_waits.clear()

    # -- the end -----------------------------------------------------------------------------------------------

    def times_for_close(self, timeout_s: float | None) -> tuple[float | None, float | None]:
        """How many seconds the close may take, and how many of them uploads: the state is small, and worth more.

        Without a limit they take what they need, but `sync_timeout` for a bucket that is away.
        """
        stats = self.mirror.stats
        if timeout_s is None and not (stats.claimed and stats.away_s is None):
            timeout_s = self.remote.sync.sync_timeout
        return timeout_s, None if timeout_s is None else _SHARE_OF_UPLOADS * timeout_s

    async def finish(self, left: Sequence[UploadLeft], timeout_s: float | None) -> None:
        """Bring the rest of the state there, and mark the copy as closed.

        Args:
            left: Checkpoints that were not uploaded.
            timeout_s: Seconds for it; `None`: `sync_timeout`.

        Raises:
            UploadError: Something is not in the bucket; the next opening brings it there.
            FencedError: Another opening owns the copy.
        """
        limit_s = self.remote.sync.sync_timeout if timeout_s is None else timeout_s
        end = self._clock.monotonic() + limit_s
        await self._finish_results(limit_s / 2)
        closed = await self.mirror.close(max(0.0, end - self._clock.monotonic()))
        if closed and not left:
            return
        missing = [] if closed else [f"what was committed after {self.mirror.mirrored_seq}"]
        if left:
            missing.append(reasons_told((each.trial_id, each.step, each.reason) for each in left))
        raise UploadError(
            f"not everything is in {self.remote}: {'; '.join(missing)}. All of it is safe on this disk; open the "
            "experiment again from here, and the rest is brought there"
        )

    async def _finish_results(self, limit_s: float) -> None:
        """Bring the result files there. The state goes without them if need be: it has the rows that they lack."""
        try:
            async with self._clock.timeout(limit_s):
                await self._owned.wait()
                await self.results.project()
        except (StorageError, TimeoutError) as error:
            logger.warning(
                "the result files in %s are not up to date: %s", self.remote, str(error) or "no time left"
            )

    def forget(self) -> None:
        """Let go without waiting, for a store that was never closed; from any thread, and after the loop has ended.

        Pools of threads and connections end when nobody holds them any more.
        """
        self.mirror.forget()

    async def aclose(self, *, give_back: bool) -> None:
        """Let go of threads and connections, after the tasks have ended.

        Args:
            give_back: The opening failed: mark the copy as closed, so that the next one needs not wait.
        """
        try:
            await self.results.aclose()
        finally:
            try:
                await self.mirror.aclose()
                if give_back and self._claimed is not None:
                    await self._give_back(self._claimed)
            finally:
                await self._access.aclose()

    async def _give_back(self, claimed: Claimed) -> None:
        try:
            await give_up(claimed)
        except AsynctuneError as error:
            logger.warning(
                "%s could not be given back, the next opening waits for it: %s", self.remote, error
            )


def _is_behind(opened: Opened) -> bool:
    """Whether result files in the bucket may lack rows that no file on this disk will be written for at the opening.

    The opening writes the rows after the commit up to which the files on this disk are known to be whole.
    """
    current = None if opened.claimed is None else opened.claimed.named.current
    return current is None or current.projected < int(opened.directory.records.get("projected") or 0)
