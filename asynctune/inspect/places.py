"""Owns looking at files: which experiments a directory has, when one changed, whether checkpoints are there.

Stats names, reads no content, changes nothing. All calls that take a path block and belong in a thread. Of a copy,
only what the records say is told: a look at each object would be a request each.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from asynctune.inspect.report import CheckpointEntry, Head, Presence, Problem
from asynctune.inspect.text import path_text, printable
from asynctune.trial import MANIFEST_FILE, Checkpoint

__all__ = [
    "STATE_DIR",
    "as_recorded",
    "experiments_in",
    "last_change",
    "look_for",
    "missing_problems",
    "never_arrived",
]

STATE_DIR: Final = ".asynctune"
_STATE_FILES: Final = ("wal-", "snap-", "epoch-")


def experiments_in(location: str) -> list[str]:
    """Names of the experiments directly below a directory, sorted; none below what is no directory. Blocks.

    Raises:
        OSError: It cannot be listed.
    """
    if not os.path.isdir(location):
        return []
    with os.scandir(location) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(entry.name for entry in visible if os.path.lexists(os.path.join(entry.path, STATE_DIR)))


def look_for(checkpoints: Sequence[tuple[Checkpoint, str | None]]) -> list[CheckpointEntry]:
    """Each checkpoint of a directory, given with the URI of its copy, told by its manifest alone. Blocks."""
    return [CheckpointEntry(checkpoint, _presence(checkpoint, uri), uri) for checkpoint, uri in checkpoints]


def _presence(checkpoint: Checkpoint, uri: str | None) -> Presence:
    # The manifest is written last and removed first.
    if checkpoint.path is not None and os.path.lexists(checkpoint.path / MANIFEST_FILE):
        return "present"
    return "missing" if uri is None else "elsewhere"


def as_recorded(checkpoint: Checkpoint, uri: str | None, *, driven: bool) -> CheckpointEntry:
    """A checkpoint of a copy. What is not there yet is missing only where no driver is left to bring it."""
    if uri is not None:
        return CheckpointEntry(checkpoint, "in_bucket", uri)
    return CheckpointEntry(checkpoint, "pending" if driven else "missing")


def last_change(location: str) -> float | None:
    """When a file of the state was last written, seconds since the Unix epoch. Blocks."""
    newest: float | None = None
    with os.scandir(os.path.join(location, STATE_DIR)) as entries:
        for entry in entries:
            if not entry.name.startswith(_STATE_FILES):
                continue
            try:
                changed = entry.stat(follow_symlinks=False).st_mtime
            except FileNotFoundError:
                continue  # a live driver replaced it
            newest = changed if newest is None else max(newest, changed)
    return newest


def missing_problems(entries: Iterable[CheckpointEntry], head: Head) -> Iterator[Problem]:
    """A problem for each checkpoint that is recorded and not there."""
    for entry in entries:
        if entry.presence == "missing":
            checkpoint = entry.checkpoint
            which = f"checkpoint {checkpoint.step} of trial {printable(str(checkpoint.trial_id))}"
            where = "" if checkpoint.path is None else f" at {path_text(checkpoint.path)}"
            message = f"the files of {which} are not there{where}; a restore falls back to the one before"
            if head.from_copy:
                message = never_arrived(which, head)
            yield Problem("missing_checkpoint", message, trial_id=checkpoint.trial_id, step=checkpoint.step)


def never_arrived(which: str, head: Head) -> str:
    """What is said of a checkpoint that was not uploaded, and no driver is there to do it."""
    host = "the driver's machine" if head.writer.hostname is None else printable(head.writer.hostname)
    return (
        f"{which} is not in the bucket, and no driver is left to bring it: its files are on {host}, if anywhere. Open "
        "the experiment there again, and they are uploaded; a restore from here falls back to the one before"
    )
