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
    "Mode",
    "Presence",
    "Problem",
    "SavedState",
    "TrialReport",
    "TrialRow",
    "TrialsReport",
    "Tuning",
    "VerifyReport",
    "Writer",
]

Presence = Literal["present", "missing", "deleted", "elsewhere", "in_bucket", "pending"]
"""Where a checkpoint's files are. Of a directory: here; not where they should be; deleted by retention since the record
was read; in the bucket alone. Of a copy, as recorded: in the bucket; not there yet; not there, and nobody brings it."""

Mode = Literal["min", "max"]
"""Which end of a metric is best."""


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
class SavedState:
    """How far the saved state of a searcher, a scheduler or the like is.

    Attributes:
        seq: The commit whose events it knows; `None` where the record cannot be read.
        events_behind: How many later events a Tuner would tell it again when it restores; `None` where nobody knows.
        error: Why it cannot be read, printable.
    """

    seq: int | None
    events_behind: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What a Tuner stored of itself; texts are printable, and `None` is what is not known, unless it says more.

    Attributes:
        form: Of its settings.
        trainable: Name of it.
        kind: `function`, `coroutine` or `class`.
        runner: Name of a given one; `None`: the one for this kind.
        searcher: Name of a given one; `None`: the built-in one; `unknown`.
        search: What searches, in words.
        scheduler: Name of a given one; `None`: first in, first out; `unknown`.
        callbacks: Names of them.
        metric: What is tuned.
        mode: Which end of it is best.
        num_samples: As given; -1: without end.
        grid_size: Combinations of the grids, each of which is a sample; 1 for a given searcher.
        samples_planned: How many configs are proposed in all; `None` also for a search without end.
        samples_proposed: How many were.
        max_concurrent_trials: As given.
        stop: As given, where that was a mapping.
        stop_function: Name of it.
        max_failures: How often a trial is tried again; -1: without end.
        fail_fast: Whether one failure ends all.
        restores: How often the experiment was restored and went on.
        finished: Whether nothing is left to do.
    """

    form: int | None
    trainable: str | None
    kind: str | None
    runner: str | None
    searcher: str | None
    search: str
    scheduler: str | None
    callbacks: tuple[str, ...]
    metric: str | None
    mode: str | None
    num_samples: int | None
    grid_size: int | None
    samples_planned: int | None
    samples_proposed: int
    max_concurrent_trials: int | None
    stop: Mapping[Any, Any] | None
    stop_function: str | None
    max_failures: int | None
    fail_fast: bool | str | None
    restores: int
    finished: bool | None


@dataclass(frozen=True, slots=True)
class Head:
    """What is said of an experiment whatever was asked.

    Attributes:
        location: Its directory, or the URI of its copy, printable.
        name: Last part of it.
        experiment_id: As stored.
        created_at: When it was created.
        last_change_at: When its state last changed there; `None` where that cannot be told.
        as_of: The moment the report speaks of.
        writer: Who has it open.
        tear: What a crash left behind at the end of the journal, or `None`.
        damage: Damaged files of the state that another generation made good.
        trials_total: How many trials it has, those that were started over left out.
        metadata: The driver's notes, and a Tuner's settings.
        epoch: How often it was opened for writing.
        seq: Its newest commit.
        tuning: What a Tuner stored of itself; `None` where it is none's.
        states: Saved states by what they belong to, `searcher`, `scheduler` or `callbacks`.
        objective: Its own metric and mode.
        started_over: Ids of trials that were started over, each with the id of the new one.
        in_place_of: The inverse.
        copy_uri: Where its copy is, printable, which is `location` for a copy; `None` without one.
        from_copy: Whether a copy was looked at, and not the driver's own directory.
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
    epoch: int = 0
    seq: int = 0
    tuning: Tuning | None = None
    states: Mapping[str, SavedState] = field(default_factory=dict)
    objective: tuple[str, Mode] | None = None
    started_over: Mapping[str, str] = field(default_factory=dict)
    in_place_of: Mapping[str, str] = field(default_factory=dict)
    copy_uri: str | None = None
    from_copy: bool = False

    @property
    def is_driven(self) -> bool:
        """Whether a driver is at work, or may be."""
        return self.writer.state in {"live", "unknown"}

    @property
    def trials_as_of(self) -> float:
        """Until when an unfinished trial has been running: to now, unless no driver is there to run it."""
        if self.is_driven or self.last_change_at is None:
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
        started_over_as: Id of the trial that was made to start this one over, where one was.
        in_place_of: Id of the failed trial that this one started over, where it did.
    """

    trial: Trial
    iteration: int
    duration_s: float | None
    presence: Presence | None = None
    started_over_as: str | None = None
    in_place_of: str | None = None


@dataclass(frozen=True, slots=True)
class CheckpointEntry:
    """One recorded checkpoint, and whether its files are there (`ExperimentStore` records, this looks).

    `uri` is where its copy is, printable; `None` where there is none, or not all of it.
    """

    checkpoint: Checkpoint
    presence: Presence
    uri: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialsReport:
    """Answer of `summary` and `trials`.

    Attributes:
        head: The experiment.
        counts: Trials by status, every status present.
        matching: How many trials match the filter.
        left_out: By status, how many of those are not among `rows`.
        rows: The trials to show, in order.
        best: The best trial by `metric`.
        metric: As asked for, else the experiment's own; `None` without any.
        mode: Which end of it is best.
        failures: Of all trials together, those that were tried again included.
        failed_trials: How many trials have failed, for good or not.
        retries: How many of the failures were not the end of their trial.
        problems: What was found.
    """

    head: Head
    counts: Mapping[TrialStatus, int]
    matching: int
    left_out: Mapping[TrialStatus, int]
    rows: tuple[TrialRow, ...]
    best: TrialRow | None = None
    metric: str | None = None
    mode: Mode | None = None
    failures: int = 0
    failed_trials: int = 0
    retries: int = 0
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
    mode: Mode
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

    `best` is by `metric`, the one that was asked for or its own. One that is not `begun` has nothing in it yet: it
    is being created, or its creation was cut short.
    """

    name: str
    location: str
    head: Head | None = None
    counts: Mapping[TrialStatus, int] = field(default_factory=dict)
    best: TrialRow | None = None
    metric: str | None = None
    mode: Mode | None = None
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
