"""Owns putting the checkpoints in order when an experiment is opened for writing, whatever happened before.

Half deletions go on. A checkpoint directory without a record is an orphan: it is set aside below
`.asynctune/quarantine/`, said aloud, and never adopted. The same happens to stages of a dead opening that
hold the only copy of somebody's files (taken by `move=True`, or complete with a manifest); unfinished copies
are removed, because their source was never touched. Private copies of restored checkpoints are removed.

It may run beside the use of the store: what this opening is doing itself is told apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from asynctune.checkpoints.breathing import breathe
from asynctune.checkpoints.context import Context, logger
from asynctune.checkpoints.deletion import Deletions
from asynctune.checkpoints.disk import disk_errors
from asynctune.checkpoints.records import is_checkpoint_name
from asynctune.checkpoints.stage import ensure_directory
from asynctune.checkpoints.staging import STAGED_PREFIX
from asynctune.files import LocalFiles
from asynctune.trial import MANIFEST_FILE

__all__ = ["Quarantine", "SettleReport", "settle"]

ADOPTION_GRACE_S: Final = 24 * 3600
"""How long a directory may wait for its adoption: its worker may outlive a driver and still announce it."""

_TRIALS_PER_SLICE: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleReport:
    """What was found.

    Attributes:
        resumed: Checkpoints whose deletion goes on, as (trial id, step).
        set_aside: Where orphans and leftovers are now.
        removed: Leftovers that are being removed.
        stuck: Orphans that could not be set aside; they are in nobody's way, and met again at the next opening.
    """

    resumed: tuple[tuple[str, int], ...] = ()
    set_aside: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()


async def settle(
    context: Context,
    deletions: Deletions,
    trial_of: Callable[[str], str | None],
    *,
    own_nonce: str,
    being_placed: Collection[str],
) -> SettleReport:
    """Put everything in order.

    Args:
        context: What the room shares.
        deletions: Told what to delete.
        trial_of: Id of the trial whose directory has this name, or `None`.
        own_nonce: Part of the name of every stage that is this opening's.
        being_placed: Directories, relative to the experiment, that this opening is committing; changes
            meanwhile.

    Raises:
        StorageError: The experiment's directories cannot be read.
        CorruptStateError: A record cannot be used.
    """
    quarantine = Quarantine(context, trial_of)
    resumed: list[tuple[str, int]] = []
    with disk_errors("look through the experiment", context.experiment_dir):
        stages = await context.threads.run(_list_stages, context, own_nonce)
        entries = await context.threads.run(_list_dir, context.files, context.experiment_dir)
    there = [name for name in entries if not name.startswith(".")]
    for start in range(0, len(there), _TRIALS_PER_SLICE):
        slice_ = {name: trial_of(name) for name in there[start : start + _TRIALS_PER_SLICE]}
        with disk_errors("look through the experiment", context.experiment_dir):
            found = await context.threads.run(_list_trials, context, slice_)
        # Read after the listing: whatever was committed meanwhile has its record by now.
        recorded: set[str] = set()
        for trial_id in filter(None, slice_.values()):
            for record in context.records.all(trial_id):
                recorded.add(record.directory)
                if record.deleting:
                    resumed.append((trial_id, record.step))
                    deletions.resume(trial_id, record.step)
            deletions.request(trial_id)
        for relative, what in found:
            if relative not in recorded and relative not in being_placed:
                await quarantine.take(relative, what)
    for name in stages.valuable:
        await quarantine.take(f".asynctune/staging/{name}", "an unfinished save")
    removed = [*stages.worthless, *stages.private]
    deletions.remove_soon(removed)
    return SettleReport(
        resumed=tuple(resumed),
        set_aside=tuple(quarantine.taken),
        removed=tuple(removed),
        stuck=tuple(quarantine.stuck),
    )


# -- looking, in a thread ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Stages:
    """Leftovers of another opening: names in `staging` to be set aside, and absolute paths to be removed."""

    valuable: list[str]
    worthless: list[str]
    private: list[str]


def _list_stages(context: Context, own_nonce: str) -> _Stages:
    files = context.files
    found = _Stages([], [], [])
    for name in _list_dir(files, context.below("staging")):
        if own_nonce in name:
            continue
        path = context.below("staging", name)
        complete = files.exists(os.path.join(path, MANIFEST_FILE))
        if complete or (name.startswith("move-") and os.path.isdir(path)):
            found.valuable.append(name)
        else:
            found.worthless.append(path)
    names = _list_dir(files, context.below("restored"))
    found.private += [context.below("restored", name) for name in names if own_nonce not in name]
    return found


def _list_dir(files: LocalFiles, path: str) -> list[str]:
    try:
        return files.list_dir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _list_trials(context: Context, trials: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """Directories of checkpoints, as (relative path, what it would be without a record)."""
    found = []
    for name, trial_id in trials.items():
        breathe()
        for entry in _list_dir(context.files, os.path.join(context.experiment_dir, name)):
            path = os.path.join(context.experiment_dir, name, entry)
            if is_checkpoint_name(entry) and (trial_id is not None or _has_manifest(path)):
                found.append((f"{name}/{entry}", "a checkpoint directory without a record"))
            elif entry.startswith(STAGED_PREFIX) and trial_id is not None and _is_old(context, path):
                found.append((f"{name}/{entry}", "a staged checkpoint that nobody adopted"))
    return found


def _has_manifest(path: str) -> bool:
    """Where no trial is known, a directory of this name may be anybody's."""
    return os.path.lexists(os.path.join(path, MANIFEST_FILE))


def _is_old(context: Context, path: str) -> bool:
    try:
        return context.clock.time() - context.files.stat(path).st_mtime > ADOPTION_GRACE_S
    except FileNotFoundError:
        return False


class Quarantine:
    """Where orphans go: `.asynctune/quarantine/<epoch>-<count>/<where it was>`."""

    def __init__(self, context: Context, trial_of: Callable[[str], str | None]) -> None:
        self._context = context
        self._trial_of = trial_of
        self.taken: list[str] = []
        self.stuck: list[str] = []

    async def take(self, relative: str, what: str) -> None:
        """Set aside what lies at this path below the experiment; `what` it is, for people."""
        context = self._context
        source = os.path.join(context.experiment_dir, relative)
        trial_id = self._trial_of(relative.partition("/")[0])
        try:
            target = await context.threads.run(self._move, source, relative)
        except OSError as error:
            # No reason to keep the experiment closed: a name that is taken is never used for a new checkpoint.
            self.stuck.append(source)
            message = f"{what} cannot be set aside: {error}; remove {source} when it is of no use"
            logger.warning("%s", message)
            context.emit("write_failed", trial_id=trial_id, message=message, path=source)
            return
        if target is None:
            return
        self.taken.append(target)
        message = f"{what} was set aside: {source} is now {target}; delete it when it is of no use"
        logger.warning("%s", message)
        context.emit("orphan_set_aside", trial_id=trial_id, message=message, path=target, was=source)

    def _move(self, source: str, relative: str) -> str | None:
        files, context = self._context.files, self._context
        ensure_directory(files, context.below("quarantine"), private=True)
        folder, count = "", 0
        while not folder or files.exists(folder):
            folder = context.below("quarantine", f"{context.epoch}-{count}")
            count += 1
        files.make_dir(folder)
        target = os.path.join(folder, relative.replace("/", "~").removeprefix(".asynctune~staging~"))
        try:
            files.rename(source, target)
        except FileNotFoundError:  # gone meanwhile, together with the need
            files.remove_dir(folder)
            return None
        files.sync_dir(folder)
        files.sync_dir(context.below("quarantine"))
        files.sync_dir(os.path.dirname(source))
        return target
