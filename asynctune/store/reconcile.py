"""Owns the start of a store that may have a copy: what the disk and the copy hold become one experiment.

The order: the directory is locked and looked at; the copy is claimed, with an epoch above both; where the copy is
ahead, or the two have parted, its state replaces the one on the disk, which is set aside; then the directory is claimed
with the same epoch, and read. How two copies compare, and how they are claimed, is `state.mirror`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from asynctune.clock import Clock
from asynctune.errors import ConfigError, CorruptStateError, StorageError
from asynctune.files import LocalFiles
from asynctune.state.epochs import Claim, claim_epoch, list_epochs
from asynctune.state.mirror.claiming import Claimed, claim_mirror
from asynctune.state.mirror.current import Current
from asynctune.state.mirror.installing import is_being_replaced, replacing_error
from asynctune.state.mirror.relations import Position
from asynctune.state.thread import WorkThread
from asynctune.storage.values import PendingUpload
from asynctune.store import replacing
from asynctune.store.access import Access, open_access
from asynctune.store.finding import STATE_DIR, storage_error
from asynctune.store.healing import replaceable
from asynctune.store.leftovers import find_leftovers
from asynctune.store.looking import check_place, look_at_copy, may_do_without
from asynctune.store.moving import LeftBehind, kept_at, left_behind
from asynctune.store.opened import Opened
from asynctune.store.opening import (
    Found,
    OpenedForWriting,
    exists_error,
    find,
    is_dead,
    look,
    node_ip,
    take,
)
from asynctune.store.place import Place
from asynctune.store.remembering import forget, recall, remember
from asynctune.store.undoing import let_go

__all__ = ["open_place"]

logger = logging.getLogger("asynctune")

T = TypeVar("T")

QUIET_S = 30.0
"""How long the copy's last driver has to have been silent, unless it is known to be dead."""


async def open_place(
    place: Place, mode: str, *, files: LocalFiles, clock: Clock, waiting: Callable[[str], object]
) -> Opened:
    """Open the experiment for writing. A caller that is cancelled meanwhile leaves neither lock nor claim behind.

    Args:
        place: Where.
        mode: As for `ExperimentStore.open`.
        files: The disk.
        clock: Time.
        waiting: Told in a sentence that another driver's copy is waited for.

    Raises:
        ConfigError, ExperimentExistsError, ExperimentNotFoundError: The place does not fit the mode.
        ExperimentLockedError, FencedError: Another opening has it.
        CorruptStateError, UnsupportedFormatError: It cannot be read.
        StorageError: The disk or the bucket refused.
    """
    opening = _Opening(place, mode, files, clock, waiting)
    try:
        return await opening.run()
    except BaseException as error:
        await opening.undo(error)
        raise
    finally:
        opening.thread.stop()


class _Opening:
    """One opening, step by step; what each step got hold of is kept here, to be let go of after a failure."""

    def __init__(
        self, place: Place, mode: str, files: LocalFiles, clock: Clock, waiting: Callable[[str], object]
    ) -> None:
        self._place = place
        self._mode = mode
        self._files = files
        self._clock = clock
        self._waiting = waiting
        self.thread = WorkThread("asynctune-open")
        self._remote = place.remote
        self._access: Access | None = None
        self._away: StorageError | None = None
        self._copy: Position | None = None
        self._void = False
        self._half = False
        self._found: Found | None = None
        self._claimed: Claimed | None = None
        self._directory: OpenedForWriting | None = None
        self._leftovers: Sequence[PendingUpload] = ()
        self._results_anew = False
        self._left: LeftBehind | None = None
        self._notes: list[tuple[str, str]] = []

    async def run(self) -> Opened:
        await self._in_thread(check_place, self._place, self._files)
        exists = self._remote is not None and await self._look_at_copy()
        await self._in_thread(self._find, exists)
        if self._remote is None:
            await self._in_thread(self._take, None)
            return self._result()
        if self._access is None:  # the experiment itself told where its copy is
            await self._look_at_copy()
        local = await self._in_thread(self._look)
        assert self._access is not None
        self._results_anew = await self._access.begin()
        if self._away is not None:
            self._check_can_do_without(local)
            await self._in_thread(self._take, None)
        else:
            await self._meet(local)
        return self._result()

    def _result(self) -> Opened:
        assert self._directory is not None
        return Opened(
            path=self._place.path,
            directory=self._directory,
            remote=self._remote,
            access=self._access,
            claimed=self._claimed,
            leftovers=self._leftovers,
            results_anew=self._results_anew,
            notes=self._notes,
        )

    # -- the copy, before the directory --------------------------------------------------------------------

    async def _look_at_copy(self) -> bool:
        """Whether the copy holds an experiment. Errors: as for `look_at_copy`; a bucket that is away is none."""
        assert self._remote is not None
        place, clock = self._place, self._clock
        self._access = access = await open_access(self._remote, place.path, clock=clock, files=self._files)
        known = await self._in_thread(may_do_without, place, self._mode, self._files)
        seen = await look_at_copy(access, self._remote, place, self._mode, clock=clock, known=known)
        self._away, self._copy, self._void = seen.away, seen.position, seen.is_void
        return seen.exists

    def _check_can_do_without(self, local: Position | None) -> None:
        """The bucket is away: an experiment that is on this disk goes on, a new one may be in the bucket already."""
        assert self._away is not None
        assert self._remote is not None
        if local is None or local.seq == 0 or self._place.by_uri or self._left is not None:
            raise self._away
        message = (
            f"{self._remote} cannot be reached ({self._away}); the experiment goes on from {self._place.path}, and "
            "its copy is brought up to date when the bucket is back. If another machine went on meanwhile, this "
            "one will be fenced then"
        )
        self._note("mirror_away", message)

    def _note(self, kind: str, message: str) -> None:
        logger.warning("%s", message)
        self._notes.append((kind, message))

    # -- the directory (in the thread) ---------------------------------------------------------------------

    def _find(self, exists: bool) -> None:
        place = self._place
        if place.makes_parent:
            os.makedirs(os.path.dirname(place.path), exist_ok=True)
        if self._away is not None and not self._files.exists(f"{place.path}/{STATE_DIR}"):
            raise self._away  # whether there is an experiment cannot be told
        mode = "auto" if exists else self._mode
        self._found = found = find(place.path, mode, self._files)
        if found.sharing.warning is not None:
            self._note("sharing_warning", found.sharing.warning)
        try:
            if place.remembers:
                self._remote = recall(found.state_dir, self._files, dict(place.options))
            elif self._remote is None and (was := forget(found.state_dir, self._files)) is not None:
                self._note("mirror_given_up", self._given_up(was, found))
        except OSError as error:
            raise storage_error("open", place.path, error) from error

    def _given_up(self, was: str, found: Found) -> str:
        """What it means that a copy is not kept any more."""
        path = self._place.path
        message = f"{path} was mirrored to {was}, and goes on without a copy, as it was opened now"
        try:
            left = left_behind(look(found, self._files).records, path, "", self._files)
        except CorruptStateError:  # the opening itself says so
            left = None
        if left is None:
            return message
        count = len(left.records)
        only = "1 checkpoint is" if count == 1 else f"{count:,} checkpoints are"
        reach = f"out of reach until it is opened with that again ({left.again})"
        return f"{message}; {only} in {left.former} only, and {reach}"

    def _look(self) -> Position | None:
        """Where the state on this disk stands; `None`: there is none that counts."""
        assert self._found is not None
        if is_being_replaced(self._found.state_dir, self._files):
            if self._away is not None:
                raise replacing_error(self._found.state_dir)
            self._half = True
            return None
        try:
            recovered = look(self._found, self._files)
        except CorruptStateError as error:
            assert self._remote is not None
            message = replaceable(error, self._found, self._remote, self._copy, self._files)
            self._notes.append(("recovered_damage", message))
            return None
        if self._mode == "create" and recovered.seq > 0:
            raise exists_error(self._place.path)  # nothing was claimed yet, and nothing put into the bucket
        if recovered.experiment_id is None:
            return None
        if self._void and kept_at(recovered.records) == str(self._remote):
            logger.warning(
                "%s has no state of this experiment any more, somebody has removed it; the copy is made anew from %s",
                self._remote,
                self._place.path,
            )
        if not self._place.by_uri:
            self._left = left_behind(recovered.records, self._place.path, str(self._remote), self._files)
        return Position(recovered.experiment_id, recovered.history, recovered.seq, recovered.crc)

    def _take(self, made: Claim | None) -> None:
        assert self._found is not None
        state_dir = self._found.state_dir
        if self._remote is None and is_being_replaced(state_dir, self._files):
            raise replacing_error(state_dir)
        self._directory = take(
            self._found,
            self._mode if made is None else "auto",
            self._files,
            self._clock,
            made,
            None if self._claimed is None else self._claimed.experiment_id,
        )
        if self._remote is not None:
            try:
                remember(state_dir, self._remote, self._files)
            except OSError as error:
                raise storage_error("open", self._found.path, error) from error

    # -- both ----------------------------------------------------------------------------------------------

    async def _meet(self, local: Position | None) -> None:
        found = self._found
        assert found is not None
        assert self._access is not None
        if self._left is not None:
            self._left = await self._left.lacked_by(self._access.copies)
        epochs, address = await self._in_thread(self._facts)
        self._claimed = claimed = await claim_mirror(
            self._access.storage,
            local,
            clock=self._clock,
            node_ip=address,
            at_least=epochs,
            quiet_s=QUIET_S,
            waiting=self._wait,
            is_dead=lambda owner: is_dead(owner, found, self._files),
            check=self._check,
            rows_after=lambda _records, current: current.projected,
        )
        if claimed.mirrored is not None:
            await self._replace(claimed)
        else:
            await self._in_thread(self._claim_here, claimed.claim)
        await self._in_thread(self._take, claimed.claim)
        self._leftovers = await find_leftovers(claimed, self._access, self._clock)

    def _claim_here(self, claim: Claim) -> None:
        assert self._found is not None
        try:
            claim_epoch(self._found.state_dir, self._files, self._clock, given=claim)
        except OSError as error:
            raise storage_error("claim", self._found.path, error) from error

    def _facts(self) -> tuple[int, str]:
        """In the thread: the least epoch that is free here, and this host's address."""
        assert self._found is not None
        epochs = list_epochs(self._found.state_dir, self._files)
        return (epochs[-1] if epochs else 0) + 1, node_ip()

    def _wait(self, message: str) -> None:
        logger.warning("%s", message)
        self._waiting(message)

    def _check(self, relation: str, current: Current | None) -> None:
        assert self._remote is not None
        if self._half and (current is None or current.seq == 0):
            assert self._found is not None
            error = replacing_error(self._found.state_dir)
            error.add_note(f"{self._remote} has no state of it any more")
            raise error
        if self._left is not None and relation in {"same", "local_ahead"}:
            raise ConfigError(str(self._left))
        if current is not None and current.seq > 0 and self._mode == "create":
            raise exists_error(str(self._remote))

    async def _replace(self, claimed: Claimed) -> None:
        assert self._access is not None
        assert self._found is not None
        aside, parted = await replacing.replace(
            claimed, self._access, self._found, self._files, self._clock, self._in_thread
        )
        if parted:
            path, count = self._found.path, f"{claimed.set_aside} commits"
            if claimed.relation != "fork":  # that was found by an opening that was cut short
                aside, count = f"{self._found.state_dir}/quarantine", "the commits"
            message = (
                f"{path} and {self._remote} had parted: the copy goes on, and {count} that only this disk had were "
                f"set aside in {aside}"
            )
            self._note("fork_set_aside", message)

    # -- threads, and the end of a failure -----------------------------------------------------------------

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run a step in the thread. A cancelled caller waits for it: what it gets hold of must not be lost."""
        task = asyncio.ensure_future(self.thread.run(function, *args))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # looked at: the cancellation is what the caller gets
            raise

    async def undo(self, error: BaseException) -> None:
        """Let go of everything."""
        lock = None if self._found is None else self._found.lock
        left = await let_go(self._claimed, self._access, self._directory, lock)
        if left is not None:
            error.add_note(left)
