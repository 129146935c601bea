"""Owns when a trial has done enough: what `RunConfig.stop` means, and `done` in a result. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from asynctune.errors import UserCodeError
from asynctune.metrics import find_number

__all__ = ["DONE", "StopRule"]

DONE = "done"
"""The metric with which a trial says itself that it has done enough."""


class StopRule:
    """A `stop` setting.

    Args:
        stop: `{metric: value}`: reached or passed by any of them; or a function `(trial_id, result) -> bool`, which
            may have a method `stop_all() -> bool` that ends the whole experiment.
    """

    def __init__(self, stop: Mapping[str, float] | Callable[[str, Mapping[str, Any]], bool] | None) -> None:
        self._stop = stop

    def should_stop(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether the trial ends with this result (a full row).

        Raises:
            UserCodeError: The user's function failed.
        """
        if result.get(DONE):
            return True
        if self._stop is None:
            return False
        if isinstance(self._stop, Mapping):
            return any(_reached(result, metric, value) for metric, value in self._stop.items())
        try:
            return bool(self._stop(trial_id, result))
        except Exception as error:
            raise UserCodeError(f"the stop function failed for trial {trial_id}: {error!r}") from error

    def should_stop_all(self) -> bool:
        """Whether the experiment ends."""
        stop_all = getattr(self._stop, "stop_all", None)
        return bool(stop_all()) if callable(stop_all) else False


def _reached(result: Mapping[str, Any], metric: str, value: float) -> bool:
    found = find_number(result, metric)
    return found is not None and not math.isnan(found) and found >= value
