"""Owns what each command answers, as plain values. Pure.

Times are seconds since the Unix epoch, texts are as stored unless they say that they are printable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from asynctune.trial import Checkpoint, Trial, TrialStatus

__all__ = [
    "BestReport",
    "CheckpointEntry",
    "CheckpointsReport",
    "ExperimentLine",
    "ExperimentsReport",
    "Head",
    "Presence",
    "Problem",
    "TrialReport",
    "TrialRow",
    "TrialsReport",
    "VerifyReport",
    "Writer",
]

Presence = Literal["present", "missing", "deleted", "elsewhere"]
"""Where a checkpoint's files are: here; not where they should be; deleted by retention since the record was
read; in the mirror alone."""


@dataclass(frozen=True, slots=True)
class Writer:
    """The driver that has the experiment open, or had it last.

    Attributes:
        state: `live`; `closed` (it closed the experiment); `dead` (it ended without doing so); `unknown` (it
            is on another host).
        pid: Its process, where it is known.
        hostname: Its host.
        since: When it opened the experiment.
        closed_at: When it closed it, where that is known.
    """

    state: Literal["live", "closed", "dead", "unknown"]
    pid: int | None = None
    hostname: str | None = None
    since: float | None = None
    closed_at: float | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """What is said of an experiment whatever was asked.

    Attributes:
        location: Its directory, printable.
        name: Last part of it.
        experiment_id: As stored.
        created_at: When it was created.
        last_change_at: When its state last changed on disk; `None` where that cannot be told.
        as_of: The moment the report speaks of.
        writer: Who has it open.
        tear: What a crash left behind at the end of the journal, or `None`.
        damage: Damaged files of the state that another generation made good.
        trials_total: How many trials it has.
        metadata: The driver's notes.
    """

    location: str
    name: str
    experiment_id: str
    created_at: float
    last_change_at: float | None
    as_of: float
    writer: Writer
    tear: str | None
    damage: tuple[str, ...]
    trials_total: int
    metadata: Mapping[str, Any]

    @property
    def trials_as_of(self) -> float:
        """Until when an unfinished trial has been running: to now, unless no driver is there to run it."""
        if self.writer.state in {"live", "unknown"} or self.last_change_at is None:
            return self.as_of
        return self.last_change_at


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it was recorded.

    Attributes:
        kind: `state`, `missing_checkpoint`, `damaged_checkpoint` or `unreadable`.
        message: What, where, and what to do next; printable.
        trial_id: Whose, where it is a trial's.
        step: Of which checkpoint.
    """

    kind: Literal["state", "missing_checkpoint", "damaged_checkpoint", "unreadable"]
    message: str
    trial_id: str | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial with what the report adds to it.

    Attributes:
        trial: As the store gave it.
        iteration: See `fields.iteration`.
        duration_s: See `fields.duration_s`.
        presence: Whether the files of its newest checkpoint are where they should be; `None` without one.
    """

    trial: Trial
    iteration: int
    duration_s: float | None
    presence: Presence | None = None


@dataclass(frozen=True, slots=True)
class CheckpointEntry:
    """One recorded checkpoint, and whether its files are there (`ExperimentStore` records, this looks)."""

    checkpoint: Checkpoint
    presence: Presence


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialsReport:
    """Answer of `summary` and `trials`.

    Attributes:
        head: The experiment.
        counts: Trials by status, every status present.
        matching: How many trials match the filter.
        left_out: By status, how many of those are not among `rows`.
        rows: The trials to show, in order.
        best: The best trial, where a metric was given.
        metric: That metric.
        problems: What was found.
    """

    head: Head
    counts: Mapping[TrialStatus, int]
    matching: int
    left_out: Mapping[TrialStatus, int]
    rows: tuple[TrialRow, ...]
    best: TrialRow | None = None
    metric: str | None = None
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReport:
    """Answer of `trial`."""

    head: Head
    row: TrialRow
    directory: str
    checkpoints: tuple[CheckpointEntry, ...]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointsReport:
    """Answer of `checkpoints`; `total` counts those that a limit left out too."""

    head: Head
    trial_id: str | None
    total: int
    size_bytes: int
    entries: tuple[CheckpointEntry, ...]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BestReport:
    """Answer of `best`: `ranking[0]` is the winner; `ranked` trials have a number for the metric."""

    head: Head
    metric: str
    mode: Literal["min", "max"]
    ranked: int
    ranking: tuple[TrialRow, ...]
    checkpoints: tuple[CheckpointEntry, ...]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """Answer of `verify`.

    Attributes:
        location: What was looked at, printable.
        head: The experiment, or `None` where its state cannot be read.
        frames: Journal frames whose checksums were compared.
        snapshots: Snapshots likewise.
        state_bytes: Size of all those files.
        checkpoints: Checkpoints compared with their manifests.
        files: Files in them.
        checkpoint_bytes: Bytes of those files that were read.
        problems: What does not match.
        notes: What is worth knowing and no problem.
    """

    location: str
    head: Head | None
    frames: int = 0
    snapshots: int = 0
    state_bytes: int = 0
    checkpoints: int = 0
    files: int = 0
    checkpoint_bytes: int = 0
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentLine:
    """One experiment of a directory of them; `error` instead of the rest where it cannot be read.

    One that is not `begun` has nothing in it yet: it is being created, or its creation was cut short.
    """

    name: str
    location: str
    head: Head | None = None
    counts: Mapping[TrialStatus, int] = field(default_factory=dict)
    best: TrialRow | None = None
    error: str | None = None
    begun: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentsReport:
    """Answer of `summary` for a directory of experiments."""

    location: str
    as_of: float
    lines: tuple[ExperimentLine, ...]
    metric: str | None = None
    problems: tuple[Problem, ...] = ()
