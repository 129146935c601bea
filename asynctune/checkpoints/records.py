"""Owns the record of a checkpoint in the experiment's state: its key, its fields, and how they are checked.

No I/O: reads and writes go through the `CommitSink`. The record `checkpoint/<trial_id>/<step>` is a map:

================= ===================================================================================
field             meaning
================= ===================================================================================
`v`               1, the form of the record
`dir`             directory below the experiment, `<trial_name>/checkpoint_000005[-<epoch>.<attempt>]`
`sha256`          SHA-256 of its `.manifest.json`, 64 hex digits
`files`           packed map, path of each file: its size in bytes
`size`            sum of the sizes
`committed_at`    seconds since the Unix epoch
`metrics`         the metrics it was saved with
`mirrored`        whether a complete copy is in the bucket
`state`           `live`, or `deleting`: retired, its files may be gone already
`epoch`           number of the opening that committed it
`attempt`         which start of the trial wrote it
`timeline`        where the trial's results stood at the save; a map that only the store interprets
`bucket_deleting` whether its copy in the bucket is being deleted, or gone; only of one that is `deleting`.
                  Old records have no such field: it is not
`bucket_only`     there, and true, where the files never were on the experiment's own disk: they were
                  put into the bucket by their worker
================= ===================================================================================

No record, no checkpoint.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from asynctune.checkpoints.manifest import MAX_STEP
from asynctune.checkpoints.sizes import FileSizes
from asynctune.errors import ConfigError, CorruptStateError
from asynctune.protocols import CommitSink
from asynctune.trial import Checkpoint

__all__ = ["CheckpointRecord", "Records", "check_step", "directory_name", "is_checkpoint_name"]

_FORM: Final = 1
_LIVE: Final = "live"
_DELETING: Final = "deleting"
_NAME: Final = re.compile(r"checkpoint_\d{6,13}(-\d{1,19}\.\d{1,19})?")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def directory_name(step: int, *, epoch: int | None = None, attempt: int = 0) -> str:
    """Name of a checkpoint's directory; with an epoch, the name that no other opening or attempt uses."""
    plain = f"checkpoint_{step:06d}"
    return plain if epoch is None else f"{plain}-{epoch}.{attempt}"


def is_checkpoint_name(name: str) -> bool:
    """Whether asynctune could have given a directory this name."""
    return _NAME.fullmatch(name) is not None


def check_step(step: Any) -> int:
    """Take a step from a user.

    Raises:
        ConfigError: Not a whole number from 0 to 10**12.
    """
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= MAX_STEP:
        raise ConfigError(f"step must be a whole number from 0 to {MAX_STEP:,}, not {step!r}")
    return step


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """One committed checkpoint; see the table above for the fields."""

    trial_id: str
    step: int
    directory: str
    manifest_sha256: str
    files: Mapping[str, int]
    size_bytes: int
    committed_at: float
    metrics: Mapping[str, Any]
    epoch: int
    attempt: int
    timeline: Mapping[str, Any] = field(default_factory=dict)
    mirrored: bool = False
    deleting: bool = False
    bucket_deleting: bool = False
    bucket_only: bool = False

    def to_value(self) -> dict[str, Any]:
        """The map that is stored."""
        few = {"bucket_only": True} if self.bucket_only else {}
        return {
            "v": _FORM,
            "dir": self.directory,
            "sha256": self.manifest_sha256,
            "files": FileSizes.of(self.files).packed,
            "size": self.size_bytes,
            "committed_at": self.committed_at,
            "metrics": dict(self.metrics),
            "mirrored": self.mirrored,
            "state": _DELETING if self.deleting else _LIVE,
            "epoch": self.epoch,
            "attempt": self.attempt,
            "timeline": dict(self.timeline),
            "bucket_deleting": self.bucket_deleting,
            **few,
        }

    @classmethod
    def from_value(cls, trial_id: str, step: int, value: Any) -> CheckpointRecord:
        """Take back a stored map.

        Raises:
            CorruptStateError: Not such a map, or one written by a newer asynctune.
        """
        try:
            return _from_value(trial_id, step, value)
        except (KeyError, TypeError, ValueError) as error:
            detail = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise CorruptStateError(
                f"the record {key_of(trial_id, step)!r} cannot be used: {detail}; it was left as it is"
            ) from error

    def path(self, experiment_dir: str) -> str:
        """Absolute path of the directory."""
        return os.path.join(experiment_dir, *self.directory.split("/"))

    def checkpoint(self, path: str | None) -> Checkpoint:
        """The value users get, with its files at `path`."""
        return Checkpoint(
            path=None if path is None else Path(path),
            trial_id=self.trial_id,
            step=self.step,
            metrics=self.metrics,
            files=self.files,
            size_bytes=self.size_bytes,
            committed_at=self.committed_at,
            mirrored=self.mirrored,
        )


def key_of(trial_id: str, step: int) -> str:
    """Key of the record."""
    return f"checkpoint/{trial_id}/{step}"


def _from_value(trial_id: str, step: int, value: Any) -> CheckpointRecord:
    if not isinstance(value, dict):
        raise TypeError(f"it holds {type(value).__name__}, not a map")
    if value["v"] != _FORM:
        raise ValueError(f"its form is {value['v']!r}, and this asynctune knows {_FORM}; upgrade asynctune")
    directory, state, files, metrics = value["dir"], value["state"], value["files"], value["metrics"]
    if not isinstance(directory, str):
        raise TypeError(f"its directory is {directory!r}")
    if state not in {_LIVE, _DELETING}:
        raise ValueError(f"its state is {state!r}")
    # What is deleted later is found by this path: it must never lead elsewhere.
    trial_name, _, name = directory.partition("/")
    if not trial_name or trial_name.startswith(".") or "\0" in trial_name or not is_checkpoint_name(name):
        raise ValueError(f"its directory is {directory!r}")
    if not isinstance(files, bytes):
        raise TypeError(f"its files are {type(files).__name__}, not a packed map")
    if not isinstance(metrics, dict) or not isinstance(value["timeline"], dict):
        raise TypeError("its metrics or timeline are not a map")
    if not _SHA256.fullmatch(value["sha256"]):
        raise ValueError(f"its sha256 is {value['sha256']!r}")
    return CheckpointRecord(
        trial_id=trial_id,
        step=step,
        directory=directory,
        manifest_sha256=value["sha256"],
        files=FileSizes(files),
        size_bytes=int(value["size"]),
        committed_at=float(value["committed_at"]),
        metrics=metrics,
        epoch=int(value["epoch"]),
        attempt=int(value["attempt"]),
        timeline=value["timeline"],
        mirrored=bool(value["mirrored"]),
        deleting=state == _DELETING,
        bucket_deleting=bool(value.get("bucket_deleting", False)),
        bucket_only=bool(value.get("bucket_only", False)),
    )


class Records:
    """The checkpoint records of an experiment, read and written through its `CommitSink`. Loop only."""

    def __init__(self, sink: CommitSink) -> None:
        self._sink = sink

    def steps(self, trial_id: str) -> list[int]:
        """All recorded steps, rising, those being deleted included."""
        return list(self._sink.steps(trial_id))

    def get(self, trial_id: str, step: int) -> CheckpointRecord | None:
        """One record, or `None`."""
        value = self._sink.get(key_of(trial_id, step))
        return None if value is None else CheckpointRecord.from_value(trial_id, step, value)

    def live(self, trial_id: str) -> list[CheckpointRecord]:
        """The trial's checkpoints, oldest first, without those being deleted."""
        return [record for record in self.all(trial_id) if not record.deleting]

    def all(self, trial_id: str) -> Iterator[CheckpointRecord]:
        """Every record of the trial, oldest first."""
        for step in self.steps(trial_id):
            if (record := self.get(trial_id, step)) is not None:
                yield record

    def put(self, record: CheckpointRecord) -> None:
        """Set a record; durable with the next commit."""
        self._sink.put(key_of(record.trial_id, record.step), record.to_value())

    def retire(self, record: CheckpointRecord) -> None:
        """Mark it as being deleted."""
        self.put(replace(record, deleting=True))

    def remove(self, trial_id: str, step: int) -> None:
        """Remove the record itself, after its files."""
        self._sink.delete(key_of(trial_id, step))

    async def commit(self) -> int:
        """Return when everything above is on the disk; the commit's seq."""
        return await self._sink.commit()
