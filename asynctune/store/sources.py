"""Owns where a reader reads from: a directory, or the copy of an experiment. Takes no lock, writes nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

from asynctune.checkpoints.bucket import Bucket
from asynctune.clock import Clock
from asynctune.errors import CheckpointNotFoundError, ExperimentNotFoundError
from asynctune.files import LocalFiles
from asynctune.results.backlog import Backlog
from asynctune.results.history import read_history
from asynctune.results.rows import TrialInfo
from asynctune.results.trial_files import RESULT_FILE
from asynctune.state.epochs import Claim, is_alive
from asynctune.state.mirror.current import same_owner
from asynctune.state.mirror.named import Named
from asynctune.state.mirror.reading import Mirrored, ObjectCache, read_mirror
from asynctune.state.mirror.register import open_register
from asynctune.state.recovered import Position
from asynctune.state.recovery import follow, recover
from asynctune.state.segments import Commit
from asynctune.state.thread import WorkThread
from asynctune.storage.base import ObjectStorage
from asynctune.store.access import Access, open_access
from asynctune.store.finding import STATE_DIR, is_copy, storage_error
from asynctune.store.lazy_copies import LazyCopies
from asynctune.store.opening import (
    OpenedForReading,
    describe,
    newest_claim,
    open_for_reading,
    projected_seq,
)
from asynctune.store.place import Place, Remote, copy_of
from asynctune.store.records import Records, check_format
from asynctune.store.remembering import noted, recall
from asynctune.store.unwritten import are_all_written, unwritten_of

__all__ = ["CopySource", "DirectorySource", "Look", "Source", "open_source"]

T = TypeVar("T")


class Look(NamedTuple):
    """What a look found: commits since the last one, where they end, who writes, and whether that process lives."""

    commits: list[Commit]
    position: Position
    claim: Claim | None
    alive: bool | None


class Source(Protocol):
    """Where a reader reads from."""

    experiment_dir: str
    """Where checkpoints are, or would be."""
    scratch_dir: str
    """Of this reader alone, for private copies; made when it is needed."""
    bucket: Bucket | None
    """Where checkpoints are fetched from."""
    copy_uri: str | None
    """Where the experiment's copy is, which may be what is read; `None`: there is none."""

    async def open(self) -> OpenedForReading:
        """Read everything. Errors: as for `open_for_reading`."""
        ...

    async def look(self, since: Position) -> Look | None:
        """What came after `since`; `None`: everything has to be read anew."""
        ...

    async def unwritten(self) -> Backlog:
        """The committed rows that the result files may lack, with others that they have.

        Raises:
            CorruptStateError, StorageError: They cannot be read.
        """
        ...

    async def history(self, trial: TrialInfo, *, has_rows: bool) -> list[dict[str, Any]]:
        """Every result row of a trial, oldest first, those included that its file lacks.

        Raises:
            OSError, CorruptStateError, StorageError: They cannot be read.
        """
        ...

    async def aclose(self) -> None:
        """Let go of what is open."""
        ...


async def open_source(place: Place, *, clock: Clock, files: LocalFiles) -> Source:
    """The source for a place. Looks at nothing that is there."""
    scratch = os.path.join(
        await _in_thread(tempfile.gettempdir),  # the first look for it tries to write a file
        f"asynctune-{os.getpid()}-{secrets.token_hex(8)}",
    )
    if place.path:
        if not await _in_thread(is_copy, place.path, files):
            return DirectorySource(place, scratch, clock=clock, files=files)
        place = copy_of(place.path, mode="read", local_dir=None, sync_config=None)
    assert place.remote is not None
    access = await open_access(place.remote, os.path.join(scratch, "experiment"), clock=clock, files=files)
    return CopySource(place.remote, access, scratch, clock=clock, files=files)


class DirectorySource:
    """An experiment's directory. Its copy is reached only for checkpoints that the directory lacks."""

    def __init__(self, place: Place, scratch_dir: str, *, clock: Clock, files: LocalFiles) -> None:
        self.experiment_dir = place.path
        self.scratch_dir = scratch_dir
        self.bucket: Bucket | None = None
        self.copy_uri: str | None = None
        self._place = place
        self._copies: LazyCopies | None = None
        self._unwritten: Backlog | None = None
        self._looks = 0
        self._clock = clock
        self._files = files

    async def open(self) -> OpenedForReading:
        """Read everything. Errors: as for `open_for_reading`."""
        opened = await _in_thread(self._open)
        if self.copy_uri is not None and self._copies is None:
            stand_in = os.path.join(self.scratch_dir, "experiment")
            self._copies = LazyCopies(
                self.copy_uri, self._copy, stand_in, clock=self._clock, files=self._files
            )
            self.bucket = Bucket.for_reading(self._copies)
        return opened

    def _open(self) -> OpenedForReading:
        opened = open_for_reading(self.experiment_dir, self._files)
        self._forget_unwritten()
        if are_all_written(opened):
            self._unwritten = Backlog()
        with contextlib.suppress(OSError):  # what was read is worth more than where else it is
            self.copy_uri = noted(f"{self.experiment_dir}/{STATE_DIR}", self._files)
        return opened

    def _copy(self) -> Remote:
        """In a thread: the copy, as it was given or noted."""
        if self._place.remote is not None:
            return self._place.remote
        state_dir = f"{self.experiment_dir}/{STATE_DIR}"
        try:
            remote = recall(state_dir, self._files, dict(self._place.options))
        except OSError as error:
            raise storage_error("read", state_dir, error) from error
        if remote is None:
            msg = f"{self.experiment_dir} has no copy any more; there was one at {self.copy_uri}"
            raise CheckpointNotFoundError(msg)
        return remote

    async def look(self, since: Position) -> Look | None:
        """What came after `since`; `None`: everything has to be read anew."""
        try:
            return await _in_thread(self._look, since)
        except OSError:
            return None

    def _look(self, since: Position) -> Look | None:
        state_dir = f"{self.experiment_dir}/{STATE_DIR}"
        found = follow(state_dir, self._files, since)
        if found is None:
            return None
        if found[0]:
            self._forget_unwritten()
        claim = newest_claim(state_dir, self._files)
        return Look(*found, claim, is_alive(claim) if claim is not None else False)

    async def unwritten(self) -> Backlog:
        """The committed rows that the result files may lack, with others that they have.

        Raises:
            CorruptStateError, StorageError: They cannot be read.
        """
        if (unwritten := self._unwritten) is None:
            looks = self._looks
            unwritten = await _in_thread(self._read_unwritten)
            if looks == self._looks:  # else it may lack what was found meanwhile
                self._unwritten = unwritten
        return unwritten

    def _forget_unwritten(self) -> None:
        """There are others: they are read when somebody asks."""
        self._looks += 1
        self._unwritten = None

    def _read_unwritten(self) -> Backlog:
        state_dir = f"{self.experiment_dir}/{STATE_DIR}"
        try:
            return unwritten_of(recover(state_dir, self._files, rows_after=projected_seq, live=True).rows)
        except OSError as error:
            raise storage_error("read", state_dir, error) from error

    async def history(self, trial: TrialInfo, *, has_rows: bool) -> list[dict[str, Any]]:
        """Every result row of a trial, oldest first, those included that its file lacks.

        Raises:
            OSError, CorruptStateError, StorageError: They cannot be read.
        """
        path = os.path.join(self.experiment_dir, trial.trial_name)
        rows = (await self.unwritten()).of_one(trial.trial_id)
        return await read_history(path, has_rows=has_rows, trial=trial, unwritten=rows)

    async def aclose(self) -> None:
        """Close the connection, if there is one; remove the directory of private copies, which are gone by now."""
        try:
            if self._copies is not None:
                await self._copies.aclose()
        finally:
            await _in_thread(_remove, self.scratch_dir, self._files)


class CopySource:
    """The copy of an experiment. Downloads its state, and checkpoints only when they are asked for."""

    def __init__(
        self, remote: Remote, access: Access, scratch_dir: str, *, clock: Clock, files: LocalFiles
    ) -> None:
        self.scratch_dir = scratch_dir
        self.experiment_dir = os.path.join(scratch_dir, "experiment")
        self._access = access
        self._uri = str(remote)
        self.copy_uri: str | None = self._uri
        self._clock = clock
        self._files = files
        self._cache = ObjectCache()
        self._named: Named | None = None
        self.bucket: Bucket | None = Bucket.for_reading(access.copies)
        self.mirrored: Mirrored | None = None
        """As read last."""
        self._unwritten = Backlog()

    async def open(self) -> OpenedForReading:
        """Read everything.

        Raises:
            ExperimentNotFoundError: There is none.
            CorruptStateError, UnsupportedFormatError: It cannot be read.
            StorageError: The bucket refused.
        """
        await self._access.look()
        mirrored = await read_mirror(
            self._access.storage,
            clock=self._clock,
            cache=self._cache,
            rows_after=lambda _records, current: current.projected,
        )
        if mirrored is None:
            raise ExperimentNotFoundError(f"there is no experiment at {self._uri}; check the location")
        self._named, self.mirrored = mirrored.named, mirrored
        return await _in_thread(self._understand, mirrored)

    def _understand(self, mirrored: Mirrored) -> OpenedForReading:
        recovered, claim = mirrored.recovered, mirrored.current.claim
        self._unwritten = unwritten_of(recovered.rows)
        recovered.rows = []
        if recovered.seq == 0 or recovered.claim is None:
            raise ExperimentNotFoundError(
                f"the experiment at {self._uri} was never begun: nothing of it reached the bucket"
            )
        check_format(recovered.records, self._uri)
        records = Records.index(recovered.records)
        recovered.records = {}
        opening = describe(recovered.claim, records, recovered, resumed=True)
        alive = False if mirrored.current.closed else is_alive(claim)
        return OpenedForReading(records, recovered, claim, alive, opening)

    @property
    def storage(self) -> ObjectStorage:
        """The copy's own storage, or what a syncer brought of the state."""
        return self._access.storage

    @property
    def changed_at(self) -> float | None:
        """When the copy's state was replaced last, by the storage's clock; `None` where that is not known."""
        return None if self._named is None else self._named.modified_at or None

    async def look(self, since: Position) -> Look | None:
        """Nothing new, or `None`: the copy was replaced."""
        await self._access.look()
        register = await open_register(self._access.storage, writing=False, clock=self._clock)
        named = await register.read()
        before = self._named
        if named is None or before is None or named.current.swap_nonce != before.current.swap_nonce:
            return None
        if not same_owner(named.current.claim, before.current.claim):
            return None
        claim = named.current.claim
        alive = False if named.current.closed else await _in_thread(is_alive, claim)
        return Look([], since, claim, alive)

    async def unwritten(self) -> Backlog:
        """The committed rows that the result files in the copy may lack, with others that they have."""
        return self._unwritten

    async def history(self, trial: TrialInfo, *, has_rows: bool) -> list[dict[str, Any]]:
        """Every result row of a trial, oldest first, those included that its file in the copy lacks.

        Raises:
            StorageError, OSError: They cannot be read.
        """
        place = os.path.join(self.scratch_dir, f"history-{secrets.token_hex(4)}")
        path = os.path.join(place, RESULT_FILE)
        try:
            await _in_thread(os.makedirs, place)
            await self._access.fetch_file(f"{trial.trial_name}/{RESULT_FILE}", path)
            rows = self._unwritten.of_one(trial.trial_id)
            found = await read_history(path, trial=trial, unwritten=rows)
        finally:
            await _in_thread(shutil.rmtree, place, True)
        if has_rows and not found:
            raise FileNotFoundError(
                errno.ENOENT, "it is not in the copy, and should be", f"{trial.trial_name}/{RESULT_FILE}"
            )
        return found

    async def aclose(self) -> None:
        """Close the connection, and remove the directory of private copies."""
        await self._access.aclose()
        await _in_thread(_remove, self.scratch_dir, self._files)


def _remove(path: str, files: LocalFiles) -> None:
    # not empty: a copy could not be removed, which was said already
    with contextlib.suppress(OSError):
        files.remove_dir(path)


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    thread = WorkThread("asynctune-read")
    try:
        return await thread.run(function, *args)
    finally:
        thread.stop()
