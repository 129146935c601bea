"""Owns what becomes of checkpoint records after an opening: which are lost, and which of the retired live again.

When the state was taken from the bucket, this disk may be another one, or an older one, or hold checkpoints of a line
that the bucket's replaces. What a record says is `mirrored` is in the bucket; what it does not say so of is here, or
lost. Half the rule is pure (`plan_reconciliation`); looking at the disk is for a thread.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from asynctune.checkpoints.breathing import breathe
from asynctune.checkpoints.manifest import digest_of
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.checkpoints.retention import Candidate, plan_retention
from asynctune.config import CheckpointConfig
from asynctune.files import LocalFiles
from asynctune.trial import MANIFEST_FILE

__all__ = ["Local", "ReconcileReport", "Reconciliation", "look_for", "plan_reconciliation"]

Local = Literal["here", "other", "broken", "missing"]
"""What is on this disk at a checkpoint's place: itself, another one, files without a manifest, or nothing."""

_NOTHING: Final = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileReport:
    """What was found, as (trial id, step) each.

    Attributes:
        lost: Checkpoints that were neither on this disk nor complete in the bucket; they are not listed any more.
        revived: Retired ones that are listed again, because their copy in the bucket replaces what was lost.
        set_aside: Local directories of another content, and where they are now.
        pending: How many checkpoints are to be uploaded.
    """

    lost: tuple[tuple[str, int], ...] = ()
    revived: tuple[tuple[str, int], ...] = ()
    set_aside: tuple[str, ...] = ()
    pending: int = 0


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What to do with the records of one trial; steps, rising."""

    lost: tuple[int, ...] = ()
    revived: tuple[int, ...] = ()


def plan_reconciliation(
    records: Sequence[CheckpointRecord], here: frozenset[int], config: CheckpointConfig
) -> Reconciliation:
    """What the records of one trial come to, after its state was taken from the bucket. Pure.

    Lost are live ones of which nothing complete is left. Where some are, or where no live one is left, retired ones
    whose copies the bucket still holds are ranked with the live ones, and those that retention would keep live again.

    Args:
        records: All of the trial's records.
        here: Steps whose directory on this disk is what was recorded.
        config: How many to keep, and by what.
    """
    live = [record for record in records if not record.deleting]
    lost = [record.step for record in live if not record.mirrored and record.step not in here]
    left = [record for record in live if record.step not in lost]
    held = [
        record for record in records if record.deleting and record.mirrored and not record.bucket_deleting
    ]
    if not held or (left and not lost):
        return Reconciliation(tuple(lost))
    candidates = [Candidate(record.step, record.metrics) for record in [*left, *held]]
    if config.num_to_keep is None:
        # Retired under another setting: the newest that there is, if nothing else is left.
        kept = set() if left else {max(candidate.step for candidate in candidates)}
    else:
        kept = {candidate.step for candidate in candidates} - set(plan_retention(candidates, config).delete)
    return Reconciliation(tuple(lost), tuple(record.step for record in held if record.step in kept))


def look_for(
    files: LocalFiles, experiment_dir: str, records: Sequence[CheckpointRecord]
) -> dict[tuple[str, int], Local]:
    """In a thread: what is on this disk of each checkpoint, told by its manifest alone.

    Raises:
        OSError: It cannot be told.
    """
    found: dict[tuple[str, int], Local] = {}
    for record in records:
        breathe()
        found[record.trial_id, record.step] = _look(
            files, record.path(experiment_dir), record.manifest_sha256
        )
    return found


def _look(files: LocalFiles, path: str, digest: str) -> Local:
    try:
        encoded = files.read(os.path.join(path, MANIFEST_FILE))
    except _NOTHING:
        return "broken" if files.exists(path) else "missing"
    return "here" if digest_of(encoded) == digest else "other"
