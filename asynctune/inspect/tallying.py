"""Owns what is counted while checkpoints are verified, a few at a time, wherever they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from asynctune.checkpoints.records import CheckpointRecord
from asynctune.inspect.report import Problem
from asynctune.inspect.text import printable

__all__ = ["AT_ONCE", "Progress", "Tally", "check_all", "damaged", "name_of"]

Progress = Callable[[int, int], None]
"""Told how many checkpoints are done, and of how many."""

AT_ONCE: Final = 4
"""How many checkpoints are verified at once."""


@dataclass(slots=True)
class Tally:
    """What was compared, and what was found; see `VerifyReport`."""

    checkpoints: int = 0
    files: int = 0
    size_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, record: CheckpointRecord) -> None:
        """This one was compared."""
        self.checkpoints += 1
        self.files += len(record.files)
        self.size_bytes += record.size_bytes


async def check_all(
    records: Sequence[CheckpointRecord | Problem],
    check: Callable[[CheckpointRecord, Tally], Awaitable[None]],
    progress: Progress | None,
) -> Tally:
    """Check each record, `AT_ONCE` at a time; the first error ends all of it.

    Args:
        records: What the state has; a problem of a record is one.
        check: Compares one checkpoint, and adds to the tally.
        progress: Told how far this is.
    """
    tally, left = Tally(), iter(records)

    async def work() -> None:
        for record in left:  # shared: each takes the next one
            if isinstance(record, Problem):
                tally.problems.append(record)
            else:
                await check(record, tally)
            if progress is not None:
                progress(tally.checkpoints, len(records))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    tally.problems.sort(key=lambda problem: (problem.trial_id or "", problem.step or 0))
    tally.notes.sort()
    return tally


def name_of(record: CheckpointRecord) -> str:
    """How a checkpoint is called in messages."""
    return f"checkpoint {record.step} of trial {printable(record.trial_id)}"


def damaged(record: CheckpointRecord, message: str) -> Problem:
    """The problem that a checkpoint is not what was recorded."""
    return Problem("damaged_checkpoint", message, trial_id=record.trial_id, step=record.step)
