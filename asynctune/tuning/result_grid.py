"""Owns what a finished (or interrupted) experiment is looked at through: `ResultGrid` and `Result`. Changes nothing.

Holds plain values; what is in files (histories) is read when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self, overload

from asynctune.config import SyncConfig
from asynctune.errors import CheckpointNotFoundError, ConfigError, MissingExtraError, StorageError
from asynctune.metrics import find_number, number_names
from asynctune.results.rows import TrialInfo
from asynctune.store.store import ExperimentStore
from asynctune.trial import Checkpoint, Trial, TrialStatus
from asynctune.tuning.origins import Origin

__all__ = ["Result", "ResultGrid"]

Scope = Literal["last", "all", "avg", "last-10-avg"]

_NAMES_SHOWN: Final = 20
_OF_EVERY_ROW: Final = frozenset({"config", "timestamp", "pid", "done"})
"""What every row has, and nobody tunes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one trial.

    Attributes:
        trial_id: Which.
        status: Where it stands.
        config: Its hyperparameters.
        metrics: Its last result row; empty before the first.
        checkpoint: Its newest checkpoint, or `None`.
        best_checkpoints: Each kept checkpoint with the metrics it was saved with, oldest first.
        error: The traceback of a failed one, or `None`.
        path: Its directory, or the URI of that.
        summary: Of the tuned metric over all rows: `min`, `max`, `avg` and `last-10-avg`; empty if none was tuned.
    """

    trial_id: str
    status: TrialStatus
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    checkpoint: Checkpoint | None
    best_checkpoints: Sequence[tuple[Checkpoint, Mapping[str, Any]]]
    error: str | None
    path: Path | str
    summary: Mapping[str, float] = field(default_factory=dict, repr=False)
    origin: Origin | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        trial: Trial,
        path: Path | str,
        summary: Mapping[str, float],
        origin: Origin | None = None,
    ) -> Self:
        """The result of a trial whose directory is `path`; of an experiment that is opened as `origin` says."""
        checkpoints = trial.checkpoints
        return cls(
            trial_id=trial.trial_id,
            status=trial.status,
            config=trial.config,
            metrics=trial.last_result,
            checkpoint=checkpoints[-1] if checkpoints else None,
            best_checkpoints=tuple((each, each.metrics) for each in checkpoints),
            error=trial.error if trial.status is TrialStatus.ERROR else None,
            path=path,
            summary=summary,
            origin=origin,
        )

    async def history(self) -> list[dict[str, Any]]:
        """Every result row of the trial, oldest first.

        Those included that its driver, when it was killed, had committed and not written to its result files.

        Raises:
            CorruptStateError, StorageError: They cannot be read, or are not where they were.
        """
        trial = TrialInfo(trial_id=self.trial_id, trial_name=os.path.basename(self.path), config=self.config)
        origin = self.origin or Origin(os.path.dirname(self.path), isinstance(self.path, str))
        try:
            return await origin.history(trial, last=self.metrics.get("training_iteration"))
        except OSError as error:
            raise StorageError(
                f"the results of trial {self.trial_id} cannot be read: {error}",
                operation="read",
                key=str(self.path),
            ) from error

    async def fetch_checkpoint(
        self, to: str | os.PathLike[str], checkpoint: Checkpoint | None = None
    ) -> Path:
        """Bring a verified copy of a checkpoint's files into a new or empty directory; its path.

        From the experiment's directory, or from its copy, where it is not there, or damaged.

        Args:
            to: The directory.
            checkpoint: One of `best_checkpoints`; by default the newest.

        Raises:
            CheckpointNotFoundError: There is none, or it was deleted or is damaged.
            ConfigError: Only the copy has it, which a syncer keeps that was not given.
            StorageError: The bucket or the disk refused.
        """
        wanted = self.checkpoint if checkpoint is None else checkpoint
        if wanted is None:
            raise CheckpointNotFoundError(f"trial {self.trial_id} has no checkpoint")
        async with (self.origin or Origin(os.path.dirname(self.path))).open() as store:
            return await store.fetch(wanted, to)


class ResultGrid(Sequence[Result]):
    """The results of an experiment, one for each trial, in the order they were added.

    Args:
        results: The results.
        location: Of the experiment.
        metric: That was tuned, the default of `get_best_result`.
        mode: `"min"` or `"max"`, likewise.
    """

    def __init__(
        self, results: Sequence[Result], *, location: str, metric: str | None = None, mode: str | None = None
    ) -> None:
        self._results = tuple(results)
        self.location = location
        self._metric = metric
        self._mode = mode

    @classmethod
    async def load(
        cls,
        path_or_uri: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
        *,
        sync_config: SyncConfig | None = None,
    ) -> ResultGrid:
        """The results of an experiment by its directory or URI; nothing but its state is read.

        Args:
            path_or_uri: Of the experiment.
            storage_options: Credentials and endpoint of a bucket; for a directory, of the one where its copy is.
            sync_config: With the `Syncer` that keeps the copy at this place, where one does.

        Raises:
            ExperimentNotFoundError: There is none.
            CorruptStateError: It cannot be read.
        """
        async with ExperimentStore.open(
            path_or_uri, mode="read", storage_options=storage_options, sync_config=sync_config
        ) as store:
            return await cls.of(store, storage_options=storage_options, sync_config=sync_config)

    @classmethod
    async def of(
        cls,
        store: ExperimentStore,
        *,
        storage_options: Mapping[str, Any] | None = None,
        sync_config: SyncConfig | None = None,
    ) -> ResultGrid:
        """The results so far of an open experiment; the settings as it was opened with, to read more of it later."""
        results = []
        where = store.location
        origin = await Origin.of(store, storage_options, sync_config)
        async for trial in store.iterate():
            path = f"{where}/{trial.trial_name}" if isinstance(where, str) else where / trial.trial_name
            results.append(Result.of(trial, path, store.metric_summary(trial.trial_id), origin))
        metric, mode = store.tracked_metric
        return cls(results, location=str(store.location), metric=metric, mode=mode)

    def __len__(self) -> int:
        return len(self._results)

    @overload
    def __getitem__(self, index: int) -> Result: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Result]: ...

    def __getitem__(self, index: int | slice) -> Result | Sequence[Result]:
        return self._results[index]

    def __iter__(self) -> Iterator[Result]:
        return iter(self._results)

    def __repr__(self) -> str:
        return f"<ResultGrid of {len(self)} trials, {self.num_terminated} terminated, {self.num_errors} with errors>"

    @property
    def errors(self) -> list[str]:
        """The tracebacks of the trials that failed."""
        return [result.error for result in self if result.error is not None]

    @property
    def num_errors(self) -> int:
        """How many trials failed."""
        return sum(result.status is TrialStatus.ERROR for result in self)

    @property
    def num_terminated(self) -> int:
        """How many trials ended well."""
        return sum(result.status is TrialStatus.TERMINATED for result in self)

    def get_best_result(
        self, metric: str | None = None, mode: str | None = None, scope: Scope = "last"
    ) -> Result:
        """The trial with the best metric.

        Args:
            metric: Which, `"a/b"` for nested ones; by default the tuned one.
            mode: `"min"` or `"max"`; by default the tuned one's.
            scope: What counts of each trial: its `"last"` row, the best of `"all"` rows, their average (`"avg"`), or
                that of the last ten (`"last-10-avg"`); all but the first for the tuned metric only.

        Raises:
            ConfigError: No metric is known, another one than the tuned one for such a scope, or none of the trials
                has a number for it (NaN is none).
        """
        metric, mode = metric or self._metric, mode or self._mode
        if metric is None or mode is None:
            raise ConfigError('name a metric and a mode: get_best_result("loss", "min")')
        if mode not in {"min", "max"}:
            raise ConfigError(f"mode must be 'min' or 'max', not {mode!r}")
        if scope not in {"last", "all", "avg", "last-10-avg"}:
            raise ConfigError(f"scope must be last, all, avg or last-10-avg, not {scope!r}")
        if scope != "last" and metric != self._metric:
            raise ConfigError(
                f"scope={scope!r} is kept for the tuned metric ({self._metric!r}) only; for {metric!r} use "
                'scope="last", or look at `await result.history()`'
            )
        best: Result | None = None
        best_value = 0.0
        for result in self:
            value = _value(result, metric, mode, scope)
            if value is None or value != value:  # noqa: PLR0124 - NaN, also for an integer beyond every float
                continue
            if best is None or (value > best_value if mode == "max" else value < best_value):
                best, best_value = result, value
        if best is None:
            raise ConfigError(
                f"none of {len(self)} trials has a number for {metric!r}; "
                f"there are {', '.join(_metric_names(self)) or 'no metrics at all'}"
            )
        return best

    def get_dataframe(self) -> Any:
        """A pandas DataFrame with a row for each trial: its last result, and its config as `config/<name>`.

        Nested values are columns `<name>/<name>`. `trial_id` and `status` are the trial's own, whatever it reported.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas as pd  # noqa: PLC0415 - the extra, when it is used
        except ImportError as error:
            raise MissingExtraError("dataframe", "pandas", "get_dataframe()") from error
        rows = []
        for result in self:
            row: dict[str, Any] = dict.fromkeys(("trial_id", "status"))  # the first columns
            row |= _flat({key: value for key, value in result.metrics.items() if key != "config"}, "")
            row |= {"trial_id": result.trial_id, "status": str(result.status)}
            row |= _flat(result.config, "config/")
            rows.append(row)
        return pd.DataFrame(rows, columns=None if rows else ["trial_id", "status"])


def _value(result: Result, metric: str, mode: str, scope: Scope) -> float | None:
    if scope == "last":
        return find_number(result.metrics, metric)
    return result.summary.get({"min": "min", "max": "max"}[mode] if scope == "all" else scope)


def _metric_names(results: Sequence[Result]) -> list[str]:
    names = sorted(
        {name for result in results for name in number_names(result.metrics) if _is_a_metric(name)}
    )
    return names if len(names) <= _NAMES_SHOWN else [*names[:_NAMES_SHOWN], "..."]


def _is_a_metric(name: str) -> bool:
    return name.partition("/")[0] not in _OF_EVERY_ROW


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            made |= _flat(value, f"{prefix}{key}/")
        else:
            made[f"{prefix}{key}"] = value
    return made
