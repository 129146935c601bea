"""Owns one pass over all trials: counts by status, which ones match, in which order, how many. Pure.

Made for 100 000 trials: a trial is built, looked at and let go; what stays is its id and sort value.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from asynctune.inspect.fields import field_value, is_number, metrics_of, settings_of
from asynctune.trial import Trial, TrialStatus

__all__ = ["Order", "Scan"]

# What a table that has no room for all shows first: what needs a person, then what is going on.
_URGENCY: Final = {
    TrialStatus.RUNNING: 0,
    TrialStatus.ERROR: 1,
    TrialStatus.PAUSED: 2,
    TrialStatus.TERMINATED: 3,
    TrialStatus.PENDING: 4,
}
_SHAPES_LOOKED_AT: Final = 1000


@dataclass(frozen=True, slots=True)
class Order:
    """By what trials are sorted.

    Attributes:
        name: A field, hyperparameter or metric, as `fields.field_value` takes it.
        descending: Largest first. Trials without a value come last either way.
        numbers_only: Leave out trials whose value is no number, or NaN.
    """

    name: str
    descending: bool = False
    numbers_only: bool = False


class Scan:
    """Takes all trials, one by one in creation order, and then tells which to show.

    Without an `order` the trials stand in creation order, and when only `limit` of them fit, the running and
    failed ones are kept first, then the newest.

    Attributes:
        counts: How many trials have each status, matching or not.
        matched: How many trials match the filter, by status.
        with_value: How many of those have a value to sort by.
        failures: How often trials have failed, matching or not.
        failed_trials: How many trials have.
        retries: How many of the failures were not the end of their trial.
        metrics: Names of the metrics seen, in order of appearance; a sample where trials differ much.
        settings: Names of the hyperparameters seen, likewise.
    """

    def __init__(
        self,
        *,
        statuses: Iterable[TrialStatus] = (),
        order: Order | None = None,
        limit: int = 0,
        as_of: float = 0.0,
    ) -> None:
        self.counts: Counter[TrialStatus] = Counter()
        self.matched: Counter[TrialStatus] = Counter()
        self.with_value = 0
        self.failures = 0
        self.failed_trials = 0
        self.retries = 0
        self.metrics: dict[str, None] = {}
        self.settings: dict[str, None] = {}
        self._statuses = frozenset(statuses)
        self._order = order
        self._limit = limit
        self._as_of = as_of
        self._entries: list[tuple[Any, int, str]] = []
        self._shapes: set[tuple[Any, ...]] = set()

    def add(self, trial: Trial) -> None:
        """Take the next trial."""
        self.counts[trial.status] += 1
        if trial.num_failures:
            self.failed_trials += 1
            self.failures += trial.num_failures
            self.retries += trial.num_failures - (trial.status is TrialStatus.ERROR)
        self._remember_names(trial)
        if self._statuses and trial.status not in self._statuses:
            return
        self.matched[trial.status] += 1
        if self._order is None:
            value: Any = _URGENCY[trial.status]
        else:
            value = field_value(trial, self._order.name, self._as_of)
            has_value = is_number(value) if self._order.numbers_only else value is not None
            self.with_value += has_value
            if self._order.numbers_only and not has_value:
                return
        self._entries.append((value, len(self._entries), trial.trial_id))

    def chosen(self) -> list[str]:
        """Ids of the trials to show, in the order to show them."""
        if self._order is None:
            return [trial_id for _, _, trial_id in self._most_urgent()]
        present = [entry for entry in self._entries if not _is_missing(entry[0])]
        present.sort(key=lambda entry: _sort_key(entry[0]), reverse=self._order.descending)
        missing = [entry for entry in self._entries if _is_missing(entry[0])]
        ids = [trial_id for _, _, trial_id in present + missing]
        return ids[: self._limit] if self._limit else ids

    def _most_urgent(self) -> list[tuple[Any, int, str]]:
        if not self._limit or len(self._entries) <= self._limit:
            return self._entries
        kept = sorted(self._entries, key=lambda entry: (entry[0], -entry[1]))[: self._limit]
        return sorted(kept, key=lambda entry: entry[1])

    def _remember_names(self, trial: Trial) -> None:
        shape = (*trial.last_result, None, *trial.config)
        if shape in self._shapes or len(self._shapes) >= _SHAPES_LOOKED_AT:
            return
        self._shapes.add(shape)
        self.metrics.update((name, None) for name, _ in metrics_of(trial))
        self.settings.update((name, None) for name, _ in settings_of(trial))


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _sort_key(value: Any) -> tuple[int, Any]:
    """Comparable with every other: numbers before text before the rest."""
    if isinstance(value, int | float):
        return (0, value)
    return (1, value) if isinstance(value, str) else (2, repr(value))
