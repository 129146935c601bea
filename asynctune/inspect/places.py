"""Owns looking at files: which experiments a directory has, when one changed, whether checkpoints are there.

Stats names, reads no content, changes nothing. All calls that take a path block and belong in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from asynctune.inspect.report import CheckpointEntry, Presence, Problem
from asynctune.inspect.text import path_text, printable
from asynctune.trial import MANIFEST_FILE, Checkpoint

__all__ = ["STATE_DIR", "experiments_in", "last_change", "look_for", "missing_problems"]

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


def look_for(checkpoints: Sequence[Checkpoint]) -> list[CheckpointEntry]:
    """Each checkpoint with where its files are, told by its manifest alone. Blocks."""
    return [CheckpointEntry(checkpoint, _presence(checkpoint)) for checkpoint in checkpoints]


def _presence(checkpoint: Checkpoint) -> Presence:
    if checkpoint.path is None:
        return "elsewhere" if checkpoint.mirrored else "missing"
    # The manifest is written last and removed first.
    if os.path.lexists(checkpoint.path / MANIFEST_FILE):
        return "present"
    return "elsewhere" if checkpoint.mirrored else "missing"


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


def missing_problems(entries: Iterable[CheckpointEntry]) -> Iterator[Problem]:
    """A problem for each checkpoint that is recorded and not there."""
    for entry in entries:
        if entry.presence == "missing":
            checkpoint = entry.checkpoint
            where = "" if checkpoint.path is None else f" at {path_text(checkpoint.path)}"
            which = f"checkpoint {checkpoint.step} of trial {printable(str(checkpoint.trial_id))}"
            yield Problem(
                "missing_checkpoint",
                f"the files of {which} are not there{where}; a restore falls back to the one before",
                trial_id=checkpoint.trial_id,
                step=checkpoint.step,
            )
