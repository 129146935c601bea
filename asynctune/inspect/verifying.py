"""Owns the proof that an experiment is intact: opens it, then reads every frame and every checkpointed file.

What opening it in read mode reports is the first answer; the older generation of the state, which an opening
does not read, and the checkpoints come on top. Decides what is a problem; the rooms below compare.
"""

from __future__ import annotations

import asyncio

from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.checkpoints.verify import verify_directory
from asynctune.errors import ConfigError, CorruptStateError
from asynctune.files import LocalFiles
from asynctune.inspect.buckets import full_location
from asynctune.inspect.places import STATE_DIR
from asynctune.inspect.reading import Inspection, experiment
from asynctune.inspect.recorded import checkpoint_records
from asynctune.inspect.report import Head, Problem, VerifyReport
from asynctune.inspect.state_files import StateCheck, check_state
from asynctune.inspect.tallying import AT_ONCE, Progress, Tally, check_all, damaged, name_of
from asynctune.inspect.text import path_text, printable
from asynctune.inspect.verifying_copy import verify_copy
from asynctune.store.finding import is_copy
from asynctune.store.place import is_uri
from asynctune.store.remembering import recall

__all__ = ["Progress", "verify"]


async def verify(location: str, progress: Progress | None = None) -> VerifyReport:
    """Compare everything with its checksums.

    Args:
        location: Of the experiment, or of its copy.
        progress: Told how far the checkpoints are.

    Raises:
        ExperimentNotFoundError: There is none.
        ConfigError: It is a directory of experiments.
        UnsupportedFormatError: It was written by a newer release.
        StorageError, OSError: It cannot be told, because something cannot be read.
    """
    try:
        async with experiment(location) as opened:
            head = await opened.head()
            if opened.copy is not None:
                check, tally = await verify_copy(opened, opened.copy, head, progress)
            else:
                check, tally = await _verify_directory(opened, head, progress)
            unreadable = [problem async for problem in opened.unreadable_records()]
    except CorruptStateError as error:
        where = full_location(location)
        check, tally = await asyncio.to_thread(_of_what_cannot_be_opened, where), Tally()
        opening = Problem("state", printable(str(error)))
        unreadable = [problem for problem in check.problems if problem != opening]
        check.problems, head = [opening], None
    return VerifyReport(
        location=path_text(full_location(location)) if head is None else head.location,
        head=head,
        frames=check.frames,
        snapshots=check.snapshots,
        state_bytes=check.size_bytes,
        checkpoints=tally.checkpoints,
        files=tally.files,
        checkpoint_bytes=tally.size_bytes,
        problems=(*check.problems, *unreadable, *tally.problems),
        notes=tuple(tally.notes),
    )


def _of_what_cannot_be_opened(location: str) -> StateCheck:
    """What the walk finds in a directory; of a copy, nothing was read. Blocks."""
    files = LocalFiles()
    if is_uri(location) or is_copy(location, files):
        return StateCheck()
    return check_state(location, files, live=False)


async def _verify_directory(
    opened: Inspection, head: Head, progress: Progress | None
) -> tuple[StateCheck, Tally]:
    files, threads = LocalFiles(), DiskThreads(AT_ONCE)

    async def check_one(record: CheckpointRecord, tally: Tally) -> None:
        await _check_one(opened, head, record, files, threads, tally)

    try:
        check = await threads.run(_check_state, opened.path, files, head.is_driven)
        records = [
            record
            for record in checkpoint_records(check.records)
            if isinstance(record, Problem) or not record.deleting
        ]
        return check, await check_all(records, check_one, progress)
    finally:
        threads.close()


def _check_state(path: str, files: LocalFiles, live: bool) -> StateCheck:
    check = check_state(path, files, live=live)
    try:
        recall(f"{path}/{STATE_DIR}", files, {})
    except CorruptStateError as error:
        check.problems.append(Problem("state", printable(str(error))))
    except ConfigError:
        pass  # a Syncer keeps it, which only who writes has to have
    return check


async def _check_one(
    opened: Inspection,
    head: Head,
    record: CheckpointRecord,
    files: LocalFiles,
    threads: DiskThreads,
    tally: Tally,
) -> None:
    path, which = record.path(opened.path), name_of(record)
    try:
        found = await verify_directory(path, record.manifest_sha256, files=files, threads=threads)
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error}); whether it is intact cannot be told"
        tally.problems.append(damaged(record, f"{which} at {path_text(path)} {reason}"))
        return
    if not found.intact and not await opened.still_has(record.trial_id, record.step):
        return  # retention deleted it while it was read
    is_copied = record.mirrored and head.copy_uri is not None
    if found.absent and is_copied:
        tally.notes.append(
            f"{which} is not on this disk; its copy is in the bucket, verify {head.copy_uri} too"
        )
        return
    tally.count(record)
    if not found.intact:
        advice = (
            "a restore fetches it from the bucket" if is_copied else "a restore falls back to the one before"
        )
        tally.problems.append(
            damaged(record, f"{which} at {path_text(path)}: {printable(str(found))}; {advice}")
        )
    elif not found.ok:
        tally.notes.append(f"{which} is intact, with something beside it: {printable(str(found))}")
