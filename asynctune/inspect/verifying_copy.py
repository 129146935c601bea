"""Owns the proof that the copy of an experiment is intact: its state as it was read, every checkpoint in the bucket.

A checkpoint is fetched as a restore would fetch it, into a directory of a moment on this machine, which is removed at
once. So the disk needs room for the few that are under way. One that is not in the bucket yet is no damage.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from typing import Final

from asynctune.checkpoints.disk import DiskThreads, disk_errors
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.errors import AuthenticationError, StorageError
from asynctune.files import LocalFiles
from asynctune.inspect.places import never_arrived
from asynctune.inspect.reading import Inspection
from asynctune.inspect.recorded import checkpoint_records
from asynctune.inspect.report import Head, Problem
from asynctune.inspect.state_files import StateCheck, check_copied_state
from asynctune.inspect.tallying import AT_ONCE, Progress, Tally, check_all, damaged, name_of
from asynctune.inspect.text import count, path_text, printable
from asynctune.store.sources import CopySource

__all__ = ["verify_copy"]

_MODE: Final = 0o700


async def verify_copy(
    opened: Inspection, source: CopySource, head: Head, progress: Progress | None
) -> tuple[StateCheck, Tally]:
    """Compare everything that the copy has with its checksums.

    Args:
        opened: The experiment.
        source: Its copy.
        head: What is said of it.
        progress: Told how far the checkpoints are.

    Raises:
        UnsupportedFormatError: It was written by a newer release.
        StorageError: The bucket or the disk refused, so that it cannot be told.
    """
    assert source.mirrored is not None
    threads = DiskThreads(AT_ONCE)
    try:
        check = await threads.run(check_copied_state, source.mirrored, opened.path)
        records: list[CheckpointRecord | Problem] = []
        absent: list[CheckpointRecord] = []
        for record in await threads.run(lambda: list(checkpoint_records(check.records))):
            if isinstance(record, Problem) or (record.mirrored and not record.deleting):
                records.append(record)
            elif not record.deleting:
                absent.append(record)
        async with _directory_of_a_moment(threads) as directory:
            work = _Fetching(opened, source, directory, threads)
            tally = await check_all(records, work.check, progress)
        _tell_absent(absent, head, tally)
        return check, tally
    finally:
        threads.close()


def _tell_absent(records: list[CheckpointRecord], head: Head, tally: Tally) -> None:
    if not records:
        return
    if head.is_driven:
        verb = "is" if len(records) == 1 else "are"
        tally.notes.append(f"{count(len(records), 'checkpoint')} {verb} not in the bucket yet")
        return
    tally.problems += [
        Problem(
            "missing_checkpoint",
            never_arrived(name_of(record), head),
            trial_id=record.trial_id,
            step=record.step,
        )
        for record in records
    ]


@contextlib.asynccontextmanager
async def _directory_of_a_moment(threads: DiskThreads) -> AsyncIterator[str]:
    with disk_errors("fetch checkpoints to verify them", ""):
        directory = await threads.run(lambda: tempfile.mkdtemp(prefix="asynctune-verify-"))
    try:
        yield directory
    finally:
        await threads.run(lambda: shutil.rmtree(directory, ignore_errors=True))


class _Fetching:
    """Fetches checkpoints, compares them, and removes them again."""

    def __init__(self, opened: Inspection, source: CopySource, directory: str, threads: DiskThreads) -> None:
        assert source.bucket is not None
        self._opened = opened
        self._copies = source.bucket.copies
        self._directory = directory
        self._threads = threads
        self._files = LocalFiles()
        self._number = 0

    async def check(self, record: CheckpointRecord, tally: Tally) -> None:
        """Compare one."""
        self._number += 1
        to = os.path.join(self._directory, str(self._number))
        which, where = name_of(record), path_text(f"{self._opened.path}/{record.directory}")
        try:
            with disk_errors(f"fetch {which} to verify it", to):
                await self._threads.run(os.mkdir, to, _MODE)
                found = await self._copies.fetch_tree(record, to)
        except StorageError as error:
            if error.retryable or isinstance(error, AuthenticationError):
                raise  # of the next one nothing else can be told
            reason = f"cannot be read ({printable(str(error))}); whether it is intact cannot be told"
            tally.problems.append(damaged(record, f"{which} at {where} {reason}"))
            return
        finally:
            await self._threads.run(lambda: shutil.rmtree(to, ignore_errors=True))
        if not found.intact and not await self._opened.still_has(record.trial_id, record.step):
            return  # retention deleted it while it was read
        tally.count(record)
        if not found.intact:
            advice = "a restore from here falls back to the one before"
            tally.problems.append(damaged(record, f"{which} at {where}: {printable(str(found))}; {advice}"))
