"""Owns the values users hold: `TrialStatus`, `Trial`, `Checkpoint`. Immutable, and they hold no store.

A `Checkpoint` reads and writes plain local directories when asked to (`to_directory`, `as_directory`,
`to_dict`): synchronous methods for trial code and notebooks, the only I/O in this room.
"""

from __future__ import annotations

import enum
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from asynctune.errors import CheckpointNotFoundError, ConfigError
from asynctune.packing import UnpackError, pack, unpack

__all__ = ["Checkpoint", "Trial", "TrialStatus"]

DICT_FILE: Final = ".checkpoint-value.msgpack"
"""The one file of a checkpoint made by `Checkpoint.from_dict`."""

MANIFEST_FILE: Final = ".manifest.json"
"""Written last into each committed checkpoint directory; never part of the user's files."""


class TrialStatus(enum.StrEnum):
    """Where a trial stands. The values are stored, and stay."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    TERMINATED = "TERMINATED"
    ERROR = "ERROR"

    @property
    def is_finished(self) -> bool:
        """Whether the trial runs no more: `TERMINATED` or `ERROR`."""
        return self in {TrialStatus.TERMINATED, TrialStatus.ERROR}


ALLOWED_TRANSITIONS: Final[Mapping[TrialStatus, frozenset[TrialStatus]]] = {
    TrialStatus.PENDING: frozenset({TrialStatus.RUNNING, TrialStatus.TERMINATED, TrialStatus.ERROR}),
    TrialStatus.RUNNING: frozenset(
        {TrialStatus.PAUSED, TrialStatus.TERMINATED, TrialStatus.ERROR, TrialStatus.PENDING}
    ),
    TrialStatus.PAUSED: frozenset(
        {TrialStatus.PENDING, TrialStatus.RUNNING, TrialStatus.TERMINATED, TrialStatus.ERROR}
    ),
    TrialStatus.ERROR: frozenset({TrialStatus.PENDING}),
    TrialStatus.TERMINATED: frozenset({TrialStatus.PENDING}),
}
"""Which status may follow which. Setting the present one again is no transition and always allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A directory of a trial's files: made by a user, or committed by the store.

    A user makes one with `from_directory` or `from_dict`. One that the store returned also says what it is
    (`trial_id` to `mirrored`); those fields are `None` or empty before. A plain value: it may be sent to
    another process, and it keeps no store alive.

    Attributes:
        path: Local directory with the files, or `None` where the bytes are elsewhere.
        value: What `from_dict` was given, until it is written into a directory.
        trial_id: Whose it is.
        step: Its number within the trial, rising.
        metrics: The metrics it was saved with.
        files: Relative POSIX path of each file with its size in bytes.
        size_bytes: Sum of those sizes.
        committed_at: When it was recorded, seconds since the Unix epoch.
        mirrored: Whether a complete copy was in `upload_dir`, as of the moment this value was made.
    """

    path: Path | None = None
    value: Any = field(default=None, repr=False)
    trial_id: str | None = None
    step: int | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict, repr=False)
    size_bytes: int = 0
    committed_at: float | None = None
    mirrored: bool = False

    @classmethod
    def from_directory(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """A checkpoint of the files below `path`, which is read when the store saves it, not now.

        Raises:
            ConfigError: `path` is not a directory.
        """
        directory = Path(path)
        if not directory.is_dir():
            msg = f"no directory at {directory}; write the checkpoint's files there first"
            raise ConfigError(msg)
        return cls(path=directory)

    @classmethod
    def from_dict(cls, value: Any) -> Checkpoint:
        """A checkpoint of one msgpack value (dict, list, numbers, str, bytes, tuples, ...), never pickled.

        Raises:
            ConfigError: The value cannot be stored; the message says which part.
        """
        pack(value, "checkpoint value")
        return cls(value=value)

    def __fspath__(self) -> str:
        """The directory, for whatever takes a path. No I/O."""
        if self.path is None:
            msg = "this checkpoint has no directory on this machine; use to_directory(), or `await store.fetch()` it"
            raise TypeError(msg)
        return str(self.path)

    def to_directory(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Copy the files to `path` (made if missing; default: a new temporary directory) and return it.

        Raises:
            CheckpointNotFoundError: The files are not on this machine; `await store.fetch(checkpoint)` first.
        """
        target = Path(tempfile.mkdtemp(prefix="asynctune-")) if path is None else Path(path)
        if self.path is None and self.value is not None:
            target.mkdir(parents=True, exist_ok=True)
            (target / DICT_FILE).write_bytes(pack(self.value, "checkpoint value"))
            return target
        source = self._local()
        shutil.copytree(
            source,
            target,
            dirs_exist_ok=True,
            symlinks=True,
            ignore=lambda _, names: {MANIFEST_FILE} & set(names),
        )
        return target

    @contextmanager
    def as_directory(self) -> Iterator[Path]:
        """The files as a directory to read: the present one if local, else one removed afterwards.

        Raises:
            CheckpointNotFoundError: The files are not on this machine.
        """
        if self.path is not None:
            yield self._local()
            return
        target = self.to_directory()
        try:
            yield target
        finally:
            shutil.rmtree(target)

    def to_dict(self) -> Any:
        """The value given to `from_dict`.

        Raises:
            CheckpointNotFoundError: The files are not on this machine.
            ConfigError: The checkpoint was made from a directory, not from a value.
        """
        if self.path is None and self.value is not None:
            return unpack(pack(self.value, "checkpoint value"))
        file = self._local() / DICT_FILE
        if not file.is_file():
            msg = f"the checkpoint at {self.path} was not made by from_dict; use to_directory()"
            raise ConfigError(msg)
        try:
            return unpack(file.read_bytes())
        except UnpackError as error:
            msg = f"{file} is damaged ({error}); store.restore_checkpoint() verifies and falls back"
            raise CheckpointNotFoundError(msg) from error

    def _local(self) -> Path:
        if self.path is None or not self.path.is_dir():
            where = f" (was at {self.path})" if self.path is not None else ""
            msg = f"the files of this checkpoint are not on this machine{where}; `await store.fetch(checkpoint)`"
            raise CheckpointNotFoundError(msg)
        return self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of the trainable with one configuration, as it stood when this value was made.

    Attributes:
        trial_id: Unique within the experiment, never reused.
        trial_name: Name of its directory below the experiment; the id unless given.
        status: See `TrialStatus`.
        config: The hyperparameters.
        metadata: The driver's own notes, such as the id of a remote job.
        last_result: Metrics of the newest result row; empty before the first.
        num_results: How many result rows the present timeline has.
        error: What went wrong, for status `ERROR` and for a retried trial's last failure.
        num_failures: How often it went to `ERROR`, or back to `PENDING` with an error.
        created_at: Seconds since the Unix epoch, like all times here.
        started_at: When it first ran.
        ended_at: When it finished; `None` while it has not.
        checkpoints: Its recorded checkpoints, oldest first.
    """

    trial_id: str
    trial_name: str
    status: TrialStatus
    config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    last_result: Mapping[str, Any]
    num_results: int
    error: str | None
    num_failures: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    checkpoints: tuple[Checkpoint, ...] = ()
