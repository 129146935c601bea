"""Owns what the parts of this room share: the experiment's place, and ways to records, disk and events."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.records import CheckpointRecord, Records
from asynctune.clock import Clock
from asynctune.files import LocalFiles
from asynctune.trial import Checkpoint

__all__ = ["Context", "Emit", "logger"]

logger: Final = logging.getLogger("asynctune")


class Emit(Protocol):
    """Publishes an event of the store. Loop only, no I/O."""

    def __call__(
        self,
        kind: str,
        /,
        *,
        trial_id: str | None = None,
        step: int | None = None,
        message: str = "",
        **data: Any,
    ) -> None:
        """Publish `kind`; `data` are msgpack values."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the parts of this room share; all of it is given from above.

    Attributes:
        experiment_dir: Absolute path.
        scratch_dir: Where private copies of restored checkpoints go, made when needed.
        epoch: Number of this opening.
        nonce: Part of each name that only this opening uses.
        local: Whether this machine has the experiment's directory at all.
        absent: Checkpoints that are known to be elsewhere only, as (trial id, step).
    """

    experiment_dir: str
    scratch_dir: str
    epoch: int
    nonce: str
    records: Records
    files: LocalFiles
    threads: DiskThreads
    clock: Clock
    emit: Emit
    local: bool = True
    absent: set[tuple[str, int]] = field(default_factory=set)

    def path_of(self, record: CheckpointRecord) -> str:
        """Absolute path of a checkpoint's directory."""
        return record.path(self.experiment_dir)

    def value_of(self, record: CheckpointRecord) -> Checkpoint:
        """The value users get; without a path where the files are known to be elsewhere."""
        is_elsewhere = record.bucket_only or (record.trial_id, record.step) in self.absent
        here = self.local and not is_elsewhere
        return record.checkpoint(self.path_of(record) if here else None)

    def record_of(self, checkpoint: Checkpoint) -> CheckpointRecord | None:
        """The record of a value that stands for a committed checkpoint of this experiment, or `None`."""
        if checkpoint.trial_id is None or checkpoint.step is None or checkpoint.value is not None:
            return None
        record = self.records.get(checkpoint.trial_id, checkpoint.step)
        if record is None or record.deleting:
            return None
        if checkpoint.path is None:
            return record if record.mirrored else None
        return record if self.path_of(record) == os.fspath(checkpoint.path) else None

    def below(self, *parts: str) -> str:
        """Absolute path below the experiment's own `.asynctune`."""
        return os.path.join(self.experiment_dir, ".asynctune", *parts)
