"""Owns the proof that an experiment is intact: opens it, then reads every frame and every checkpointed file.

What opening it in read mode reports is the first answer; the older generation of the state, which an opening
does not read, and the checkpoints come on top. Decides what is a problem; the rooms below compare.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.checkpoints.verify import verify_directory
from asynctune.errors import CorruptStateError
from asynctune.files import LocalFiles
from asynctune.inspect.reading import Inspection, experiment
from asynctune.inspect.report import Problem, VerifyReport
from asynctune.inspect.state_files import StateCheck, check_state
from asynctune.inspect.text import path_text, printable
from asynctune.packing import UnpackError, unpack
from asynctune.store.finding import local_path

__all__ = ["Progress", "verify"]

Progress = Callable[[int, int], None]
"""Told how many checkpoints are done, and of how many."""

_AT_ONCE = 4


@dataclass(slots=True)
class _Tally:
    checkpoints: int = 0
    files: int = 0
    size_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


async def verify(location: str, progress: Progress | None = None) -> VerifyReport:
    """Compare everything with its checksums.

    Args:
        location: Of the experiment.
        progress: Told how far the checkpoints are.

    Raises:
        ExperimentNotFoundError: There is none.
        ConfigError: It is a directory of experiments.
        UnsupportedFormatError: It was written by a newer release.
        StorageError, OSError: It cannot be told, because something cannot be read.
    """
    try:
        async with experiment(location) as opened:
            return await _verify_opened(opened, progress)
    except CorruptStateError as error:
        path = local_path(location)
        check = await asyncio.to_thread(check_state, path, LocalFiles(), live=False)
        opening = Problem("state", printable(str(error)))
        others = [problem for problem in check.problems if problem != opening]
        return _of_state(path_text(path), check, (opening, *others))


async def _verify_opened(opened: Inspection, progress: Progress | None) -> VerifyReport:
    head = await opened.head()
    live = head.writer.state in {"live", "unknown"}
    files = LocalFiles()
    check = await asyncio.to_thread(check_state, opened.path, files, live=live)
    report = _of_state(
        head.location, check, (*check.problems, *[p async for p in opened.unreadable_records()])
    )
    tally = await _check_checkpoints(opened, list(_records(check)), files, progress)
    return replace(
        report,
        head=head,
        checkpoints=tally.checkpoints,
        files=tally.files,
        checkpoint_bytes=tally.size_bytes,
        problems=(*report.problems, *tally.problems),
        notes=tuple(tally.notes),
    )


def _of_state(location: str, check: StateCheck, problems: tuple[Problem, ...]) -> VerifyReport:
    return VerifyReport(
        location=location,
        head=None,
        frames=check.frames,
        snapshots=check.snapshots,
        state_bytes=check.size_bytes,
        problems=problems,
    )


def _records(check: StateCheck) -> Iterator[CheckpointRecord | Problem]:
    for key, packed in check.records.items():
        if not key.startswith("checkpoint/"):
            continue
        trial_id, _, step = key.removeprefix("checkpoint/").rpartition("/")
        try:
            record = CheckpointRecord.from_value(trial_id, int(step), unpack(packed))
        except (CorruptStateError, UnpackError, ValueError) as error:
            yield Problem(
                "state", f"the record {printable(key)!r}: {printable(str(error))}", trial_id=trial_id
            )
            continue
        if not record.deleting:
            yield record


async def _check_checkpoints(
    opened: Inspection,
    records: list[CheckpointRecord | Problem],
    files: LocalFiles,
    progress: Progress | None,
) -> _Tally:
    tally, threads, left = _Tally(), DiskThreads(_AT_ONCE), iter(records)

    async def work() -> None:
        for record in left:  # shared: each takes the next one
            if isinstance(record, Problem):
                tally.problems.append(record)
            else:
                await _check_one(opened, record, files, threads, tally)
            if progress is not None:
                progress(tally.checkpoints, len(records))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(work())
    finally:
        threads.close()
    tally.problems.sort(key=lambda problem: (problem.trial_id or "", problem.step or 0))
    return tally


async def _check_one(
    opened: Inspection, record: CheckpointRecord, files: LocalFiles, threads: DiskThreads, tally: _Tally
) -> None:
    path = record.path(opened.path)
    which = f"checkpoint {record.step} of trial {printable(record.trial_id)}"
    try:
        found = await verify_directory(path, record.manifest_sha256, files=files, threads=threads)
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error}); whether it is intact cannot be told"
        tally.problems.append(_damaged(record, f"{which} at {path_text(path)} {reason}"))
        return
    if not found.intact and not await opened.still_has(record.trial_id, record.step):
        return  # retention deleted it while it was read
    tally.checkpoints += 1
    tally.files += len(record.files)
    tally.size_bytes += record.size_bytes
    if not found.intact:
        advice = "a restore falls back to the one before"
        tally.problems.append(
            _damaged(record, f"{which} at {path_text(path)}: {printable(str(found))}; {advice}")
        )
    elif not found.ok:
        tally.notes.append(f"{which} is intact, with something beside it: {printable(str(found))}")


def _damaged(record: CheckpointRecord, message: str) -> Problem:
    return Problem("damaged_checkpoint", message, trial_id=record.trial_id, step=record.step)
