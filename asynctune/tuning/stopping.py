"""Owns when a trial has done enough: what `RunConfig.stop` means, and `done` in a result. Pure."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from asynctune.errors import UserCodeError
from asynctune.metrics import find_number, number_names

__all__ = ["DONE", "StopRule"]

logger = logging.getLogger("asynctune")

_ROWS_BEFORE_A_WARNING: Final = 10

DONE = "done"
"""The metric with which a trial says itself that it has done enough."""


class StopRule:
    """A `stop` setting.

    Args:
        stop: `{metric: value}`: reached or passed by any of them; or a function `(trial_id, result) -> bool`, which
            may have a method `stop_all() -> bool` that ends the whole experiment.
        metric: The tuned one, which ought to be in results, too; or `None`.
    """

    def __init__(
        self,
        stop: Mapping[str, float] | Callable[[str, Mapping[str, Any]], bool] | None,
        *,
        metric: str | None = None,
    ) -> None:
        self._stop = stop
        self._rows = 0
        self._unseen = {*(stop if isinstance(stop, Mapping) else ()), *(() if metric is None else (metric,))}

    def should_stop(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Whether the trial ends with this result (a full row).

        Raises:
            UserCodeError: The user's function failed.
        """
        if self._unseen:
            self._look_for_unseen(result)
        if result.get(DONE):
            return True
        if self._stop is None:
            return False
        if isinstance(self._stop, Mapping):
            return any(_reached(result, metric, value) for metric, value in self._stop.items())
        return self._ask(self._stop, f"the stop function failed for trial {trial_id}", trial_id, result)

    def should_stop_all(self) -> bool:
        """Whether the experiment ends.

        Raises:
            UserCodeError: The user's function failed.
        """
        stop_all = getattr(self._stop, "stop_all", None)
        return callable(stop_all) and self._ask(stop_all, "stop_all() of the stop function failed")

    def _ask(self, function: Callable[..., Any], failed: str, *args: Any) -> bool:
        try:
            answer = function(*args)
            if not inspect.isawaitable(answer):
                return bool(answer)
        except Exception as error:
            raise UserCodeError(f"{failed}: {error!r}") from error
        if inspect.iscoroutine(answer):
            answer.close()
        # true, whatever it would have said
        raise UserCodeError(f"{failed}: it must be a plain function, not async")

    def _look_for_unseen(self, result: Mapping[str, Any]) -> None:
        """Say once that a metric seems to be misspelled: without it a run looks like one that works."""
        self._unseen = {metric for metric in self._unseen if find_number(result, metric) is None}
        self._rows += 1
        if self._unseen and self._rows == _ROWS_BEFORE_A_WARNING:
            logger.warning(
                "none of the first %d results has a number for %s, which stop or metric names; there are %s",
                self._rows,
                " or ".join(map(repr, sorted(self._unseen))),
                ", ".join(number_names(result)),
            )
            self._unseen = set()


def _reached(result: Mapping[str, Any], metric: str, value: float) -> bool:
    found = find_number(result, metric)
    return found is not None and found >= value  # NaN has not reached anything
