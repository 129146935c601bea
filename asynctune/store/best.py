"""Owns which trial is best by its last result. No I/O."""

from __future__ import annotations

from asynctune.errors import ConfigError
from asynctune.metrics import find_number
from asynctune.store.trials import TrialTable

__all__ = ["best_trial_id"]


def best_trial_id(table: TrialTable, metric: str, mode: str) -> str | None:
    """Id of the trial whose last result is best; NaN and missing values never are. Looks at every trial.

    Raises:
        ConfigError: A mode that is neither `min` nor `max`.
    """
    if mode not in {"min", "max"}:
        msg = f"mode must be 'min' or 'max', not {mode!r}"
        raise ConfigError(msg)
    best_id, best_value = None, 0.0
    for trial_id in table.listed():
        value = find_number(table.run(trial_id).metrics, metric)
        if value is None or value != value:  # noqa: PLR0124 - NaN, also for an integer beyond every float
            continue
        if best_id is None or (value > best_value if mode == "max" else value < best_value):
            best_id, best_value = trial_id, value
    return best_id
