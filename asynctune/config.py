"""Owns what a user may set: the config classes, and every environment variable, read in this one place.

Checks values when they are made, so that a wrong one fails at its line and not hours later. Does no I/O.

==================================== =======================================================================
variable                             meaning
==================================== =======================================================================
`TUNE_GLOBAL_CHECKPOINT_S`           seconds between commits of the experiment state; unset or `auto`: the
                                     5 % rule
`TUNE_RESULT_DIR`                    where the Tuner makes its experiments, unless `RunConfig(local_dir=...)`
                                     says so; unset: `~/asynctune_results`
==================================== =======================================================================
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from asynctune.checking import (
    OF_CALLBACKS,
    OF_SCHEDULERS,
    OF_SEARCHERS,
    check_object,
    check_syncing,
    is_uri,
    without_credentials,
)
from asynctune.errors import ConfigError
from asynctune.protocols import Syncer

__all__ = [
    "CheckpointConfig",
    "FailureConfig",
    "RunConfig",
    "SyncConfig",
    "TuneConfig",
    "checkpoint_period_s",
    "result_dir",
]

CHECKPOINT_PERIOD_VARIABLE: Final = "TUNE_GLOBAL_CHECKPOINT_S"
RESULT_DIR_VARIABLE: Final = "TUNE_RESULT_DIR"
DEFAULT_RESULT_DIR: Final = "~/asynctune_results"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How many checkpoints of each trial are kept, and which.

    Attributes:
        num_to_keep: Keep the best this many of each trial (the newest is always kept too); `None`: all.
        checkpoint_score_attribute: The metric that ranks them, `"a/b"` for nested ones; `None`: the newest rank best.
        checkpoint_score_order: `"max"` or `"min"`: which end of the attribute is best.
        checkpoint_frequency: For class trainables: a checkpoint every so many iterations; 0: never.
        checkpoint_at_end: For class trainables: one more when the trial ends.

    Raises:
        ConfigError: A value that cannot work.
    """

    num_to_keep: int | None = None
    checkpoint_score_attribute: str | None = None
    checkpoint_score_order: Literal["max", "min"] = "max"
    checkpoint_frequency: int = 0
    checkpoint_at_end: bool | None = None

    def __post_init__(self) -> None:
        keep = self.num_to_keep
        if keep is not None and (not isinstance(keep, int) or isinstance(keep, bool) or keep < 1):
            msg = f"num_to_keep must be a whole number from 1, or None to keep all, not {keep!r}"
            raise ConfigError(msg)
        attribute = self.checkpoint_score_attribute
        if attribute is not None and (not isinstance(attribute, str) or not attribute.strip("/")):
            msg = f"checkpoint_score_attribute must name a metric, such as 'loss' or 'eval/acc', not {attribute!r}"
            raise ConfigError(msg)
        if self.checkpoint_score_order not in ("max", "min"):
            msg = f"checkpoint_score_order must be 'max' or 'min', not {self.checkpoint_score_order!r}"
            raise ConfigError(msg)
        if self.checkpoint_at_end not in (None, True, False):
            msg = f"checkpoint_at_end must be True, False or None, not {self.checkpoint_at_end!r}"
            raise ConfigError(msg)
        every = self.checkpoint_frequency
        if not isinstance(every, int) or isinstance(every, bool) or every < 0:
            msg = f"checkpoint_frequency must be a whole number from 0 (never), not {every!r}"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """Where the experiment is mirrored to, and how often.

    The mirror is `<upload_dir>/<name of the experiment>`. Without `upload_dir` the experiment's own directory is all
    there is, on a disk or on a filesystem that all machines share.

    Attributes:
        upload_dir: A directory's path, or a URI: `s3://`, `gs://`, `file://`, or with a `Syncer` whatever that takes.
            `None`: nothing is mirrored.
        syncer: `"auto"`: the built-in way to copy. A `Syncer`: this one. `None`: nothing is copied, as on a shared
            filesystem.
        sync_period: Seconds between two copies of the result files, and with `sync_on_checkpoint=False` of
            checkpoints. The state paces itself.
        sync_timeout: Seconds after which a copy that makes no progress, or a call of a `Syncer` that does not end,
            has failed. It is tried again. The built-in way waits for progress no longer than 300.
        sync_on_checkpoint: Whether each checkpoint is copied when it is committed.
        storage_options: Credentials and endpoint of a bucket. Never stored, never shown.

    Raises:
        ConfigError: A value that cannot work, or two that contradict each other.
    """

    upload_dir: str | os.PathLike[str] | None = None
    syncer: Literal["auto"] | Syncer | None = field(default="auto", repr=False, hash=False)
    sync_period: float = 300
    sync_timeout: float = 1800
    sync_on_checkpoint: bool = True
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False, hash=False)

    def __post_init__(self) -> None:
        for name in ("sync_period", "sync_timeout"):
            seconds = getattr(self, name)
            if not _is_number(seconds) or not 0 < seconds < math.inf:
                msg = f"{name} must be a finite number of seconds above 0, not {seconds!r}"
                raise ConfigError(msg)
        if not isinstance(self.sync_on_checkpoint, bool):
            msg = f"sync_on_checkpoint must be True or False, not {self.sync_on_checkpoint!r}"
            raise ConfigError(msg)
        options = self.storage_options
        if options is not None and not (
            isinstance(options, Mapping) and all(isinstance(k, str) for k in options)
        ):
            msg = f"storage_options must be a mapping of names to values, not {type(options).__name__}"
            raise ConfigError(msg)  # its type and no more: it may hold credentials
        place = check_syncing(self.upload_dir, self.syncer, options)
        object.__setattr__(self, "upload_dir", place)  # frozen, and being made


@dataclass(frozen=True, kw_only=True)
class FailureConfig:
    """What a failed trial means.

    Attributes:
        max_failures: How often each trial is tried again, from its latest checkpoint; -1: without end.
        fail_fast: True: the first trial that is `ERROR` ends the experiment, which can be restored. `"raise"`: and
            its error is raised. False: the others go on.

    Raises:
        ConfigError: A value that cannot work.
    """

    max_failures: int = 0
    fail_fast: bool | Literal["raise"] = False

    def __post_init__(self) -> None:
        count = self.max_failures
        if not isinstance(count, int) or isinstance(count, bool) or count < -1:
            msg = f"max_failures must be a whole number from 0, or -1 for no limit, not {count!r}"
            raise ConfigError(msg)
        if self.fail_fast not in (True, False, "raise"):
            msg = f'fail_fast must be True, False or "raise", not {self.fail_fast!r}'
            raise ConfigError(msg)
        if self.fail_fast and count != 0:
            msg = f"fail_fast={self.fail_fast!r} ends all at the first failure; leave max_failures at 0"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What is searched for, and how.

    Attributes:
        metric: Name of the metric that is tuned, `"a/b"` for nested ones; `None`: none is.
        mode: `"min"` or `"max"`: which end of it is best; `None`: as for `metric`.
        num_samples: How many configs are tried; with grids, how often the whole grid is. -1: without end.
        max_concurrent_trials: How many trials run at the same time at most; `None`: as many as the runner takes.
        search_alg: A `Searcher`; `None`: random and grid search over `param_space`.
        scheduler: A `TrialScheduler`; `None`: first in, first out, and none is stopped early.
        time_budget_s: After so many seconds all trials are ended, and with them the experiment; `None`: never. A
            restored experiment has it anew.

    Raises:
        ConfigError: A value that cannot work.
    """

    metric: str | None = None
    mode: Literal["min", "max"] | None = None
    num_samples: int = 1
    max_concurrent_trials: int | None = None
    search_alg: Any = None
    scheduler: Any = None
    time_budget_s: float | None = None

    def __post_init__(self) -> None:
        if self.metric is not None and (not isinstance(self.metric, str) or not self.metric.strip("/")):
            msg = f"metric must name a metric, such as 'loss' or 'eval/acc', not {self.metric!r}"
            raise ConfigError(msg)
        if self.mode not in (None, "min", "max"):
            msg = f"mode must be 'min' or 'max', not {self.mode!r}"
            raise ConfigError(msg)
        if (self.metric is None) != (self.mode is None):
            given, missing = ("metric", "mode") if self.mode is None else ("mode", "metric")
            msg = f"{given} was given without {missing}; give both, or none"
            raise ConfigError(msg)
        count = self.num_samples
        if not isinstance(count, int) or isinstance(count, bool) or (count < 1 and count != -1):
            msg = f"num_samples must be a whole number from 1, or -1 for no end, not {count!r}"
            raise ConfigError(msg)
        limit = self.max_concurrent_trials
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            msg = f"max_concurrent_trials must be a whole number from 1, or None, not {limit!r}"
            raise ConfigError(msg)
        budget = self.time_budget_s
        if budget is not None and not (_is_number(budget) and 0 < budget < math.inf):
            msg = f"time_budget_s must be a number of seconds above 0, or None, not {budget!r}"
            raise ConfigError(msg)
        check_object("search_alg", self.search_alg, OF_SEARCHERS)
        check_object("scheduler", self.scheduler, OF_SCHEDULERS)
        owner = getattr(self.scheduler, "belongs_to", None)
        if owner is not None and owner is not self.search_alg:
            kind = type(owner).__name__
            msg = (
                f"the scheduler belongs to another {kind} than search_alg is; give both of the same one: "
                "search_alg=searcher, scheduler=searcher.scheduler()"
            )
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How an experiment is run and kept.

    `None` for one of the configs, or for `callbacks`, is the default.

    Attributes:
        name: Of the experiment, and of its directory; `None`: the trainable's name and the time.
        local_dir: Where that directory is made; `None`: `TUNE_RESULT_DIR`, else `~/asynctune_results`.
        stop: When a trial has done enough: `{metric: value}` (reached or passed), or a function
            `(trial_id, result) -> bool`.
        sync_config: Where it is mirrored to.
        checkpoint_config: How many checkpoints are kept, and when classes make them.
        failure_config: What a failed trial means.
        callbacks: See `Callback`.
        verbose: 0: only warnings; 1: progress, and what ends it; 2 or 3: each result, too.
        tensorboard: Whether results go to TensorBoard events, too; needs the extra `tensorboard`.
        log_to_file: Whether a trial's standard output and error go to `stdout` and `stderr` in its directory.

    Raises:
        ConfigError: A value that cannot work.
    """

    name: str | None = None
    local_dir: str | os.PathLike[str] | None = None
    stop: Mapping[str, Any] | Callable[[str, Mapping[str, Any]], bool] | None = None
    sync_config: SyncConfig = field(default_factory=SyncConfig)
    checkpoint_config: CheckpointConfig = field(default_factory=CheckpointConfig)
    failure_config: FailureConfig = field(default_factory=FailureConfig)
    callbacks: Sequence[Any] = ()
    verbose: int = 1
    log_to_file: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.name is not None and (not isinstance(self.name, str) or not self.name):
            msg = f"name must be a text, not {self.name!r}"
            raise ConfigError(msg)
        _check_stop(self.stop)
        if self.local_dir is not None:
            _check_place("local_dir", self.local_dir)
        self._check_parts()
        if self.verbose not in (0, 1, 2, 3):  # 3 is the most that scripts for Ray Tune ask for
            msg = f"verbose must be 0, 1, 2 or 3, not {self.verbose!r}"
            raise ConfigError(msg)
        if not isinstance(self.log_to_file, bool):
            msg = f"log_to_file must be True or False, not {self.log_to_file!r}; the files are stdout and stderr"
            raise ConfigError(msg)

    def _check_parts(self) -> None:
        if self.callbacks is None:
            object.__setattr__(self, "callbacks", ())
        for name, kind in (
            ("sync_config", SyncConfig),
            ("checkpoint_config", CheckpointConfig),
            ("failure_config", FailureConfig),
        ):
            if getattr(self, name) is None:
                object.__setattr__(self, name, kind())  # frozen, and being made
            if not isinstance(getattr(self, name), kind):
                msg = f"{name} must be a {kind.__name__}, not {type(getattr(self, name)).__name__}"
                raise ConfigError(msg)
        if isinstance(self.callbacks, str) or not isinstance(self.callbacks, Sequence):
            msg = f"callbacks must be a list, not {self.callbacks!r}"
            raise ConfigError(msg)
        for callback in self.callbacks:
            check_object("callback", callback, OF_CALLBACKS)


def _check_stop(stop: Any) -> None:
    if isinstance(stop, Mapping):
        for metric, value in stop.items():
            if not isinstance(metric, str) or not isinstance(value, int | float) or value != value:  # noqa: PLR0124
                msg = f"stop must have numbers by metric, such as {{'training_iteration': 10}}, not {stop!r}"
                raise ConfigError(msg)
    elif stop is not None and not callable(stop):
        msg = f"stop must be a mapping of metrics to values, or a function, not {stop!r}"
        raise ConfigError(msg)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_place(name: str, place: Any) -> None:
    if not isinstance(place, str | os.PathLike) or isinstance(os.fspath(place), bytes):
        msg = f"{name} must be a directory's path, not {place!r}"
        raise ConfigError(msg)
    if is_uri(text := os.fspath(place)):
        msg = (
            f"{name}={without_credentials(text)!r}: trials run in a directory on the local disk only; give its path, "
            "and a bucket as sync_config=SyncConfig(upload_dir=...)"
        )
        raise ConfigError(msg)


def result_dir(setting: str | os.PathLike[str] | None, environ: Mapping[str, str] | None = None) -> str:
    """The absolute directory in which the Tuner makes experiments.

    Args:
        setting: As given in `RunConfig.local_dir`; it goes before `TUNE_RESULT_DIR`.
        environ: Environment to read instead of the process's own.

    Raises:
        ConfigError: It is no path.
    """
    environ = os.environ if environ is None else environ
    chosen = setting if setting is not None else environ.get(RESULT_DIR_VARIABLE) or DEFAULT_RESULT_DIR
    _check_place("local_dir" if setting is not None else RESULT_DIR_VARIABLE, chosen)
    path = os.path.expanduser(os.fspath(chosen))
    # not abspath, which asks for the working directory even where it is not needed
    return os.path.normpath(path if os.path.isabs(path) else os.path.join(os.getcwd(), path))


def checkpoint_period_s(
    setting: float | str = "auto", environ: Mapping[str, str] | None = None
) -> float | None:
    """The fixed period between commits of the state in seconds, or `None` for the 5 % rule.

    `TUNE_GLOBAL_CHECKPOINT_S` (source of the name and of `auto`: Ray Tune's storage guide) overrides `setting`.

    Args:
        setting: Seconds from 0, or `"auto"`.
        environ: Environment to read instead of the process's own.

    Raises:
        ConfigError: Neither a finite number of seconds from 0 nor `"auto"`; the message names the source.
    """
    text = (os.environ if environ is None else environ).get(CHECKPOINT_PERIOD_VARIABLE)
    source = "checkpoint_period" if text is None else f"the environment variable {CHECKPOINT_PERIOD_VARIABLE}"
    value: float | str = setting if text is None else text.strip()
    if isinstance(value, str) and value.lower() == "auto":
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        msg = f"{source} must be a number of seconds from 0, or 'auto', not {value!r}"
        raise ConfigError(msg) from None
    return seconds
