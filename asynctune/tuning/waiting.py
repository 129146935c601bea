"""Owns which trials wait to be started, what was decided about them before, and how long a failed one rests. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from asynctune.protocols import Decision
from asynctune.trial import Trial, TrialStatus

__all__ = ["DECIDED", "Rests", "Waiting", "decided"]

DECIDED: Final = "asynctune.decided"
"""Key of a trial's metadata: `[decision, iteration]` once it is to stop or to pause, should it not get as far."""

_FIRST_REST_S: Final = 0.05
_LAST_REST_S: Final = 30.0


def decided(trial: Trial) -> tuple[Decision, int] | None:
    """What was decided about a trial, and at which iteration; `None`: that it goes on."""
    found = trial.metadata.get(DECIDED)
    return None if found is None else (found[0], int(found[1]))


class Waiting:
    """The trials that are `PENDING` or `PAUSED`, in the order they came.

    Some of the former are owed an end: for the scheduler they have stopped or paused already, and a crash or a failure
    came between. Those are started first, and the scheduler is not asked about them.
    """

    def __init__(self) -> None:
        self._open: dict[str, bool] = {}  # True: paused
        self._owed: dict[str, None] = {}
        self._pending = 0

    def __len__(self) -> int:
        return len(self._open) + len(self._owed)

    @property
    def has_pending(self) -> bool:
        """Whether one that could be started for the first time, or again, waits."""
        return self._pending > 0

    def add(self, trial: Trial) -> None:
        """One more."""
        is_paused = trial.status is TrialStatus.PAUSED
        if not is_paused and decided(trial) is not None:
            self._owed[trial.trial_id] = None
        else:
            self._open[trial.trial_id] = is_paused
            self._pending += not is_paused

    def take(self, choose: Callable[[Iterable[str]], str | None]) -> str | None:
        """Remove and return the next one, or `None`; `choose` picks among those that it may."""
        trial_id = next(iter(self._owed), None)
        if trial_id is not None:
            del self._owed[trial_id]
            return trial_id
        trial_id = choose(self._open) if self._open else None
        if trial_id is not None:
            self._pending -= not self._open.pop(trial_id)
        return trial_id


class Rests:
    """How long a trial that failed rests before it is tried again: longer and longer, while it achieves nothing."""

    def __init__(self) -> None:
        self._fruitless: dict[str, int] = {}  # failures in a row without a report in between

    def after_failure(self, trial_id: str, *, has_reported: bool) -> float:
        """Seconds; 0 after the first failure, and after each with something to show for it."""
        if has_reported:
            self._fruitless.pop(trial_id, None)
            return 0.0
        count = self._fruitless[trial_id] = self._fruitless.get(trial_id, 0) + 1
        return 0.0 if count == 1 else min(_FIRST_REST_S * 2.0 ** min(count - 2, 20), _LAST_REST_S)
