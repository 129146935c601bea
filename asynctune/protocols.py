"""Owns the seams: what users implement, and what rooms hand to each other.

Users implement `Searcher`, `TrialScheduler`, `Callback`, `TrialRunner` and `Syncer`. No code runs here. A class need
not inherit from any of these; having the methods is enough, and of a `Callback` having some of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, runtime_checkable

from asynctune.trial import Checkpoint, Trial

__all__ = [
    "CONTINUE",
    "PAUSE",
    "STOP",
    "Callback",
    "CheckpointPlace",
    "CommitSink",
    "Decision",
    "Searcher",
    "Stateful",
    "Syncer",
    "TrialReport",
    "TrialRunner",
    "TrialScheduler",
    "TrialTask",
]

Decision = Literal["CONTINUE", "PAUSE", "STOP"]
"""What becomes of a trial after a result."""

CONTINUE: Final = "CONTINUE"
PAUSE: Final = "PAUSE"
STOP: Final = "STOP"


@runtime_checkable
class Stateful(Protocol):
    """Something whose state the store keeps for it: a searcher, a scheduler.

    One with a method `state_saved()` is told by it that the state which `get_state` returned last was packed, and
    is durable with the next commit.
    """

    def get_state(self) -> Any:
        """The whole state as a msgpack value (nested dict, list, str, bytes, numbers) or opaque bytes.

        Called on the event loop, so it should be quick; the store spaces the calls by what they cost.
        """
        ...

    def set_state(self, state: Any) -> None:
        """Take back what `get_state` returned, in a new process."""
        ...


@runtime_checkable
class Searcher(Stateful, Protocol):
    """Proposes configurations.

    A Tuner also calls these methods, where a searcher has them:

    - `set_search_properties(metric, mode, space)`, first of all: what is tuned, and the `param_space` (or `None`).
      A searcher without it cannot be given a `param_space`.
    - `add_past_trial(trial, rows, *, ended, failed)`, when an experiment is restored, after `set_state`: once for
      each trial that the saved state knows, oldest first, with the result rows that it knows, and the end, if it does.
    - `on_trial_add(trial_id, config)`: a trial that it did not propose just now runs too, or an ended one again.
    - `on_trial_rewind(trial_id, iteration)`: a trial that ran before goes on from this iteration (0: from the
      beginning); what it reported after it does not count any more, and is reported anew.
    """

    def suggest(self, trial_id: str) -> Mapping[str, Any] | None:
        """A configuration for a new trial, or `None` when there is nothing (more) to try."""
        ...

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """A trial has reported a result row."""
        ...

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial has ended: with its last result, or with an error."""
        ...


@runtime_checkable
class TrialScheduler(Stateful, Protocol):
    """Decides which trial runs, and whether it goes on after a result.

    A Tuner also calls `on_trial_complete(trial_id, result, error)` and `on_trial_rewind(trial_id, iteration)`, with the
    meaning that they have for a `Searcher`, where a scheduler has them.
    """

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> Decision:
        """One of `"CONTINUE"`, `"PAUSE"`, `"STOP"`."""
        ...

    def choose_trial_to_run(self, trial_ids: Sequence[str]) -> str | None:
        """Which of the pending or paused trials to start next, or `None` to wait."""
        ...


class Callback(Protocol):
    """Is told what happens in an experiment. Each method is optional, and plain or `async`.

    Called one after the other, in the order of events; what one raises is logged, and changes nothing else. One
    that has `get_state` and `set_state` too (see `Stateful`) gets its state back when the experiment is restored.
    """

    def on_trial_start(self, trial: Trial) -> Any:
        """A trial starts to run, for the first time or again."""

    def on_trial_result(self, trial: Trial, result: Mapping[str, Any]) -> Any:
        """A trial has reported a result row."""

    def on_checkpoint(self, trial: Trial, checkpoint: Checkpoint) -> Any:
        """A checkpoint of a trial was committed."""

    def on_trial_complete(self, trial: Trial) -> Any:
        """A trial is `TERMINATED`."""

    def on_trial_error(self, trial: Trial) -> Any:
        """A trial is `ERROR`, or `PENDING` to be tried again; `trial.error` says why."""

    def on_experiment_end(self, trials: Sequence[Trial]) -> Any:
        """Nothing runs any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPlace:
    """Where a committed checkpoint is, for a runner whose machines read it there. Nobody has looked at it.

    Attributes:
        checkpoint: What it is, without a `path`.
        directory: Below the experiment's directory, and below its copy, with slashes.
        manifest_sha256: SHA-256 of the `.manifest.json` there, 64 hex digits; that has those of all files.
        path: Absolute path on the driver's disk; `None`: it never was there.
        is_in_copy: Whether a complete copy was recorded.
    """

    checkpoint: Checkpoint
    directory: str
    manifest_sha256: str
    path: str | None
    is_in_copy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialTask:
    """One start of a trial, as its runner gets it.

    Attributes:
        trial_id: Which trial.
        trial_name: Name of its directory.
        trial_dir: Absolute path of that directory, which exists.
        config: Its hyperparameters.
        iteration: The iteration it goes on from; 0 for one that starts afresh.
        checkpoint: What it goes on from: a private copy of its files. `None` for one that starts afresh, and where
            there is a `place`.
        place: Where the one is that it goes on from; only for a runner that `can_fetch` it there.
        epoch: Number of the opening that runs it: what a runner elsewhere says of it carries that.
        copy: URI of the experiment's copy, where a runner on other machines may bring checkpoints straight to
            (`ArrivingCheckpoint`); `None`: there is none, or a `Syncer` of the user's keeps it.
    """

    trial_id: str
    trial_name: str
    trial_dir: str
    config: Mapping[str, Any]
    iteration: int = 0
    checkpoint: Checkpoint | None = None
    place: CheckpointPlace | None = None
    epoch: int = 0
    copy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReport:
    """What a running trial reports.

    Attributes:
        metrics: The result row; `None`: only a checkpoint, which belongs to the result before.
        checkpoint: A checkpoint that the trial made in this process (`Checkpoint`), one that is staged already
            beside the trial (`StagedCheckpoint`), one that its worker brings when it is told where to
            (`ArrivingCheckpoint`), or `None`. The runner sees to it that the `bring` of each of the latter ends soon
            after `run_trial` has returned or raised.
        move: The directory of `checkpoint` is given away.
    """

    metrics: Mapping[str, Any] | None
    checkpoint: Any = None
    move: bool = False


@runtime_checkable
class TrialRunner(Protocol):
    """Where trials run. One driver at a time calls `start`, `run_trial` for many trials, and `aclose`.

    One whose machines reach what is committed by themselves may have a further method, `can_fetch(place, copy)`: are
    they able to read the checkpoint at a `CheckpointPlace`, of an experiment with this copy (a URI, or `None`)? Where
    it says so, the task has that place instead of a private copy, and the driver's machine carries nothing.

    `asynctune.testing.TrialRunnerTests` checks one.
    """

    @property
    def capacity(self) -> int:
        """How many trials it runs at the same time at most."""
        ...

    async def start(self, trainable: Any, options: Mapping[str, Any]) -> None:
        """Get ready to run trials of `trainable`.

        Args:
            trainable: See `asynctune.trainable.kind_of`.
            options: `checkpoint_frequency` (int) and `checkpoint_at_end` (bool) for classes; `log_to_file` (bool);
                `sync_config` (`SyncConfig`), `checkpoint_config` (`CheckpointConfig`) and `storage_options`, for
                runners on other machines.

        Raises:
            ConfigError: It cannot run such a trainable, or is in use by another driver. One that raised is not closed.
        """
        ...

    async def run_trial(self, task: TrialTask, report: Callable[[TrialReport], Awaitable[Decision]]) -> None:
        """Run one start of a trial; returns when it has ended, stopped or paused as it was told.

        Args:
            task: What to run.
            report: Awaited for each report; what it returns is obeyed.

        Raises:
            TrialFailedError: The trial raised, or whatever ran it died; `str()` of it is stored.
            CheckpointNotFoundError: Nothing has run, as what is at `task.place` could not be read, or is damaged. The
                driver calls again, with a private copy of that checkpoint, or of an older one.
        """
        ...

    async def aclose(self) -> None:
        """End everything that runs. Again: does nothing."""
        ...


@runtime_checkable
class Syncer(Protocol):
    """Copies directories to and from a place that only it has to understand.

    Each method is plain or `async`. A plain one may block: it is called in a thread. It returns when its work is done;
    one that only begins it has a further method `wait()`, called after each of the others, that returns then. One that
    returns `False` or raises has failed, and is called again later. One that does not return within
    `SyncConfig.sync_timeout` has failed too; an `async` one is cancelled then.

    At most one `sync_up` or `delete`, and beside it one `sync_down`, is called at a time. asynctune copies each thing
    to a remote directory of its own; whether a `sync_up` removes remote files that are not in `local_dir` makes no
    difference to it.

    `asynctune.testing.SyncerTests` checks one.
    """

    def sync_up(self, local_dir: str, remote_dir: str, exclude: list[str] | None = None) -> Any:
        """Make `remote_dir`, with what it lies in, and copy to it what is in `local_dir`.

        Args:
            local_dir: Absolute path of a directory that does not change meanwhile.
            remote_dir: A place below `upload_dir`, spelled like it.
            exclude: Patterns such as `"*.tmp"` or `"logs/*"` of paths relative to `local_dir` that are left out, as
                `fnmatch` has them: `*` goes across slashes. `None` from asynctune itself.
        """
        ...

    def sync_down(self, remote_dir: str, local_dir: str, exclude: list[str] | None = None) -> Any:
        """Copy to `local_dir`, an existing directory, what is in `remote_dir`.

        Where nothing is, it copies nothing, or fails: asynctune looks at what came.
        """
        ...

    def delete(self, remote_dir: str) -> Any:
        """Delete `remote_dir` with all in it, and nothing beside it. That it is gone already is no failure."""
        ...


class CommitSink(Protocol):
    """Through which a room below the store reads and writes records; the store binds it to the journal.

    Loop only. Reads see what was put, whether it is durable yet or not.
    """

    def get(self, key: str) -> Any | None:
        """The record's value, unpacked afresh (the caller may change it), or `None` if there is none."""
        ...

    def steps(self, trial_id: str) -> Sequence[int]:
        """Steps of the trial's `checkpoint/<trial_id>/<step>` records, rising; a copy."""
        ...

    def put(self, key: str, value: Any) -> None:
        """Set a record (packed at once). Durable with the next commit. No I/O.

        Raises:
            ConfigError: The value cannot be stored.
            FencedError: Another opening owns the experiment.
            StorageError: The disk failed for good earlier.
            StoreClosedError: The store is closed.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove a record. Durable with the next commit. No I/O. Errors as for `put`."""
        ...

    async def commit(self) -> int:
        """Return when everything put so far is on this disk; the commit's seq.

        Cancelling the caller cancels the waiting only; the commit goes on.

        Raises:
            StorageError: The disk failed for good.
            FencedError: Another opening owns the experiment.
        """
        ...
