"""Owns what can be asked of one trial by name: the fields a table can show and an order can sort by. Pure.

A name is one of `FIELDS`, else `config/<hyperparameter>`, else a metric of the last result; nested values are
`outer/inner`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from asynctune.inspect.text import flatten
from asynctune.metrics import find_value
from asynctune.trial import Trial, TrialStatus

__all__ = [
    "BOOKKEEPING",
    "FIELDS",
    "duration_s",
    "field_value",
    "is_number",
    "iteration",
    "metrics_of",
    "settings_of",
]

BOOKKEEPING: Final = frozenset(
    {
        "config",
        "date",
        "done",
        "hostname",
        "node_ip",
        "pid",
        "time_this_iter_s",
        "time_total_s",
        "timestamp",
        "training_iteration",
        "trial_id",
    }
)
"""What every result row has beside the user's metrics: shown when asked for, never chosen as a column."""


def iteration(trial: Trial) -> int:
    """The `training_iteration` of the last result; where there is none, how many results there are."""
    value = trial.last_result.get("training_iteration")
    return value if isinstance(value, int) and not isinstance(value, bool) else trial.num_results


def duration_s(trial: Trial, as_of: float) -> float | None:
    """Seconds from the first start to the end, or to `as_of` for a trial that has not ended."""
    if trial.started_at is None:
        return None
    end = trial.ended_at if trial.ended_at is not None else as_of
    return max(0.0, end - trial.started_at)


def _latest_step(trial: Trial) -> int | None:
    return trial.checkpoints[-1].step if trial.checkpoints else None


_ORDER: Final[list[TrialStatus]] = list(TrialStatus)

FIELDS: Final[Mapping[str, Callable[[Trial, float], Any]]] = {
    "trial": lambda trial, _: trial.trial_id,
    "name": lambda trial, _: trial.trial_name,
    "status": lambda trial, _: _ORDER.index(trial.status),
    "iteration": lambda trial, _: iteration(trial),
    "results": lambda trial, _: trial.num_results,
    "checkpoint": lambda trial, _: _latest_step(trial),
    "duration": duration_s,
    "failures": lambda trial, _: trial.num_failures,
    "error": lambda trial, _: trial.error,
    "created": lambda trial, _: trial.created_at,
    "started": lambda trial, _: trial.started_at,
    "ended": lambda trial, _: trial.ended_at,
}
"""Name of each fixed field, with how to read it from a trial and the time the report speaks of."""


def field_value(trial: Trial, name: str, as_of: float) -> Any:
    """What `name` says of the trial: a field, a hyperparameter, or a metric; `None` where it has none.

    Args:
        trial: The trial.
        name: See the module.
        as_of: The time the report speaks of, seconds since the Unix epoch.
    """
    if name in FIELDS:
        return FIELDS[name](trial, as_of)
    if name.startswith("config/"):
        return find_value(trial.config, name.removeprefix("config/"))
    return find_value(trial.last_result, name)


def metrics_of(trial: Trial) -> Iterator[tuple[str, Any]]:
    """The user's own part of the last result."""
    own = {name: value for name, value in trial.last_result.items() if name not in BOOKKEEPING}
    return flatten(own)


def settings_of(trial: Trial) -> Iterator[tuple[str, Any]]:
    """The hyperparameters, named `config/<name>`."""
    return flatten(trial.config, "config/")


def is_number(value: object) -> bool:
    """Whether `value` can be ranked: a number other than NaN."""
    return isinstance(value, int | float) and not (isinstance(value, float) and math.isnan(value))
