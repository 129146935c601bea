"""Owns how a `Syncer` of the user's carries committed checkpoints and result files; the state is `state_exports`'.

The syncer gets directories that do not change while it reads them, each to a remote directory of its own::

    <remote>/<trial_name>/checkpoint_000005/   a committed checkpoint, with its manifest
    <remote>/.asynctune/results/               the result files of all trials, below their names
    <remote>/.asynctune/export/                the state

So it makes no difference whether it removes what it does not find in the source.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from asynctune.checkpoints.breathing import breathe
from asynctune.checkpoints.context import Emit, logger
from asynctune.checkpoints.disk import DiskThreads, disk_errors
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.checkpoints.scrubbing import scrubbed
from asynctune.checkpoints.syncer_calls import SyncerCalls, make_place
from asynctune.checkpoints.verify import VerifyReport, copy_verified, verify_directory
from asynctune.errors import StorageError, UploadError
from asynctune.files import LocalFiles

__all__ = ["SyncedResults", "SyncedTrees", "tell_unfenced"]

_RESULTS: Final = ".asynctune/results"


def tell_unfenced(calls: SyncerCalls, remote: str, emit: Emit) -> None:
    """Say once an opening what a `Syncer` cannot do: keep two machines from going on with one experiment."""
    message = (
        f"the mirror {scrubbed(remote)} is kept by the syncer {calls.name}, which cannot keep two machines from going "
        "on with this experiment at the same time: see to it that only one does"
    )
    logger.warning("%s", message)
    emit("mirror_unfenced", message=message, syncer=calls.name)


class SyncedTrees:
    """Copies of committed checkpoints, made by a `Syncer`: a `TreeCopies`.

    Args:
        calls: The syncer.
        remote: The experiment's remote place, spelled as the syncer knows it.
        files: The operating system.
        threads: Where the blocking calls go.
    """

    def __init__(self, calls: SyncerCalls, remote: str, *, files: LocalFiles, threads: DiskThreads) -> None:
        self._calls = calls
        self._remote = remote.rstrip("/")
        self._files = files
        self._threads = threads

    @property
    def location(self) -> str:
        """The place, for messages; without credentials."""
        return scrubbed(self._remote)

    async def put_tree(
        self,
        record: CheckpointRecord,
        path: str,
        *,
        new: bool,  # noqa: ARG002 - what is there already is the syncer's own affair
        progress: Callable[[int], None],
    ) -> int:
        """Copy a committed directory, after a look whether it is what was recorded.

        Args:
            record: The checkpoint.
            path: Absolute path of the directory, which does not change meanwhile.
            new: Makes no difference.
            progress: Told 0 while others have their turn, and all bytes at the end.

        Raises:
            UploadError: The directory is not what was recorded.
            StorageError: The syncer failed, or did not end in time.
        """
        progress(0)
        with disk_errors(f"read checkpoint {record.step} of trial {record.trial_id}", path):
            report = await verify_directory(
                path, record.manifest_sha256, files=self._files, threads=self._threads
            )
        if not report.ok:
            raise UploadError(
                f"checkpoint {record.step} of trial {record.trial_id} is not uploaded, because it is damaged: {report}"
            )
        await self._calls.up(path, self._place(record), waiting=lambda: progress(0))
        progress(record.size_bytes)
        return record.size_bytes

    async def delete_tree(self, record: CheckpointRecord) -> None:
        """Delete the remote directory.

        Raises:
            StorageError: The syncer failed.
        """
        await self._calls.delete(self._place(record))

    async def is_complete(self, record: CheckpointRecord) -> bool:  # noqa: ARG002 - it could only be fetched
        """Not known without fetching all of it, so no."""
        return False

    async def fetch_tree(self, record: CheckpointRecord, to: str) -> VerifyReport:
        """Bring the files, verified and without the manifest, into the empty directory `to`; they are durable there.

        Returns:
            What is wrong with the copy; nothing, normally. Where nothing came, the manifest is missing.

        Raises:
            StorageError: The syncer failed, or the disk said no.
        """
        beside = f"{to.rstrip('/')}.synced"
        with disk_errors(f"fetch checkpoint {record.step} of trial {record.trial_id}", beside):
            try:
                await self._threads.run(_make_empty, self._files, beside)
                await self._calls.down(self._place(record), beside)
                return await copy_verified(
                    beside,
                    record.manifest_sha256,
                    to,
                    files=self._files,
                    threads=self._threads,
                    durable=True,
                )
            finally:
                await self._threads.run(_remove, self._files, beside)

    def _place(self, record: CheckpointRecord) -> str:
        return f"{self._remote}/{record.directory}"


class SyncedResults:
    """The result files of all trials in a frozen tree, which a `Syncer` copies as a whole.

    What the mirror has of them is kept a second time on this disk: one call of the syncer then carries the files of any
    number of trials, and a trial may go on writing its own.

    Args:
        calls: The syncer.
        remote: The experiment's remote place.
        experiment_dir: Absolute path of the experiment.
        files: The operating system.
        threads: Where the blocking calls go.
    """

    def __init__(
        self,
        calls: SyncerCalls,
        remote: str,
        experiment_dir: str,
        *,
        files: LocalFiles,
        threads: DiskThreads,
    ) -> None:
        self._calls = calls
        self._remote = f"{remote.rstrip('/')}/{_RESULTS}"
        self._experiment_dir = experiment_dir
        self._tree = os.path.join(experiment_dir, *_RESULTS.split("/"))
        self._files = files
        self._threads = threads
        self._is_due = False

    async def begin(self) -> bool:
        """Make the tree if it is missing; whether it was there. If not, everything has to be sent once.

        Raises:
            StorageError: The disk said no.
        """
        with disk_errors("make the directory", self._tree):
            was_there = await self._threads.run(self._begin)
        self._is_due = was_there  # the opening before may have been killed between `send` and `finish`
        return was_there

    async def send(self, key: str, path: str, *, size_bytes: int, crc32c: int) -> None:  # noqa: ARG002 - kept whole
        """Take a frozen file away, into the tree: nothing is copied.

        Raises:
            StorageError: The disk said no.
        """
        target = os.path.join(self._tree, *key.split("/"))
        with disk_errors(f"keep the result file {key}", path):
            await self._threads.run(self._take, path, target)
        self._is_due = True

    async def finish(self) -> None:
        """Return when the mirror has everything that was sent.

        Raises:
            StorageError: The syncer failed; what was sent is carried by the next call.
        """
        if self._is_due:
            self._is_due = False
            try:
                await self._calls.up(self._tree, self._remote)
            except BaseException:
                self._is_due = True
                raise

    async def fetch(self, *, may_make: bool = False) -> int:
        """Bring all result files of the mirror to where the trials go on writing them; how many there were.

        For an opening on an empty directory, before anything is written there.

        Args:
            may_make: As for `StateExports.fetch`: a mirror may have a state and no result files yet.

        Raises:
            StorageError: The syncer failed, or the disk said no.
        """
        with disk_errors("fetch result files", self._tree):
            await self._threads.run(self._begin)
            try:
                await self._calls.down(self._remote, self._tree)
            except StorageError:
                if not may_make:
                    raise
                await make_place(
                    self._calls, f"{self._remote}/.place", self._tree, self._files, self._threads
                )
                await self._calls.down(self._remote, self._tree)
            return await self._threads.run(self._hand_out)

    # -- in a thread -------------------------------------------------------------------------------------------

    def _begin(self) -> bool:
        try:
            self._files.make_dir(self._tree)
        except FileExistsError:
            return True
        return False

    def _take(self, path: str, target: str) -> None:
        with suppress(FileExistsError):
            self._files.make_plain_dir(os.path.dirname(target))
        self._files.rename(path, target)

    def _hand_out(self) -> int:
        count = 0
        for trial_name in self._files.list_dir(self._tree):
            source = os.path.join(self._tree, trial_name)
            target = os.path.join(self._experiment_dir, trial_name)
            # What came from elsewhere never leads elsewhere: no hidden directory, and no link.
            if trial_name.startswith(".") or not stat.S_ISDIR(self._files.stat(source).st_mode):
                continue
            with suppress(FileExistsError):
                self._files.make_plain_dir(target)
            for name in self._files.list_dir(source):
                file = os.path.join(source, name)
                if stat.S_ISREG(self._files.stat(file).st_mode):
                    self._copy(file, os.path.join(target, name))
                    count += 1
            breathe()
        return count

    def _copy(self, source: str, target: str) -> None:
        """Not by a link: the one is appended to, and the other is not to change."""
        fresh = f"{target}.new"
        with suppress(FileNotFoundError):
            self._files.unlink(fresh)
        fd = self._files.create(fresh, 0o644)
        try:
            offset = 0
            while data := self._files.read_from(source, offset, 1 << 20):
                self._files.write_all(fd, data)
                offset += len(data)
            self._files.sync_data(fd)
        finally:
            self._files.close(fd)
        self._files.rename(fresh, target)


def _make_empty(files: LocalFiles, path: str) -> None:
    _remove(files, path)
    files.make_dir(path)


def _remove(files: LocalFiles, path: str) -> None:
    with suppress(FileNotFoundError):
        files.remove_tree(path)
