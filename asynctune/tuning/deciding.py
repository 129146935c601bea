"""Owns what the searcher and the scheduler are asked and told, and what becomes of an answer that makes no sense.

Each is told the same events, in order, which also go to the log that a restored experiment replays.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from asynctune.errors import ConfigError, UserCodeError
from asynctune.packing import pack
from asynctune.protocols import CONTINUE, PAUSE, STOP, Decision, Searcher, TrialScheduler
from asynctune.tuning.basic import BasicSearcher
from asynctune.tuning.following import ADDED, COMPLETED, REPORTED, REWOUND, SUGGESTED, Event, EventLog

__all__ = ["Deciding"]

logger = logging.getLogger("asynctune")

_DECISIONS: Final = (CONTINUE, PAUSE, STOP)
_REMEDY: Final = "the trials are kept: correct it, and go on with Tuner.restore()"


class Deciding:
    """Searcher, scheduler, and the log of what they were told.

    Args:
        searcher: Proposes configs.
        scheduler: Decides about trials; `None`: first in, first out, and none is stopped early.
        log: Where events go.
        max_suggestions: How many configs are asked for in all; `None`: as many as there are.
        suggestions: How many were before.
        on_failure: Told which of them raised.
    """

    def __init__(
        self,
        searcher: Searcher,
        scheduler: TrialScheduler | None,
        log: EventLog,
        *,
        max_suggestions: int | None,
        suggestions: int = 0,
        on_failure: Callable[[Any], None] = lambda _who: None,
    ) -> None:
        self._searcher = searcher
        self._scheduler = scheduler
        self._log = log
        self._left = None if max_suggestions is None else max(0, max_suggestions - suggestions)
        # The built-in ones learn nothing from results: no event has to be kept for them.
        self._on_failure = on_failure
        self._differed = False
        self._logs_results = scheduler is not None or not isinstance(searcher, BasicSearcher)

    # -- asking --------------------------------------------------------------------------------------------

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A config for a new trial, or `None`.

        Raises:
            UserCodeError: The searcher raised, or proposed something that is no config.
        """
        if self._left == 0:
            return None
        config = self._call(self._searcher.suggest, trial_id)
        if config is None:
            return None
        if not isinstance(config, Mapping):
            raise self._nonsense(self._searcher, "suggest", f"returned {config!r:.80}, which is no config")
        if self._left is not None:
            self._left -= 1
        return dict(config)

    def choose(self, waiting: Iterable[str]) -> str | None:
        """Which of these trials starts next, or `None`.

        Raises:
            UserCodeError: The scheduler raised, or chose another one.
        """
        if self._scheduler is None:
            return next(iter(waiting), None)
        ids = list(waiting)
        chosen: str | None = self._call(self._scheduler.choose_trial_to_run, ids)
        if chosen is not None and chosen not in ids:
            problem = f"chose {chosen!r}, which is not waiting"
            raise self._nonsense(self._scheduler, "choose_trial_to_run", problem)
        return chosen

    # -- telling -------------------------------------------------------------------------------------------

    def suggested(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """The trial was added with the config that the searcher proposed."""
        self._log.append((SUGGESTED, trial_id, _checksum(config), False))

    def rewound(self, trial_id: str, iteration: int) -> None:
        """A trial goes on from this iteration; what it reported after it does not count any more.

        Raises:
            UserCodeError: One of them raised.
        """
        if self._logs_results:
            self._log.append((REWOUND, trial_id, iteration, False))
        for each in (self._searcher, self._scheduler):
            self._tell(each, "on_trial_rewind", trial_id, iteration)

    # Their events are told with all others when the searcher catches up.

    def note_added(self, trial_id: str, config: Mapping[str, Any], *, had_failed: bool) -> None:
        """A trial runs that the searcher did not propose just now: a new one, or one that had failed."""
        self._log.append((ADDED, trial_id, dict(config), had_failed))

    def note_completed(self, trial_id: str, result: Mapping[str, Any] | None) -> None:
        """A trial has ended by the way in which the experiment was restored."""
        if self._logs_results:
            self._log.append((COMPLETED, trial_id, None if result is None else dict(result), False))

    def reported(self, trial_id: str, result: Mapping[str, Any]) -> Decision:
        """A trial has reported; what becomes of it.

        Raises:
            UserCodeError: One of them raised, or the scheduler decided something that there is not.
        """
        if not self._logs_results:
            return CONTINUE
        self._log.append((REPORTED, trial_id, dict(result), False))
        # Each its own copy: what one of them does to it is nobody else's business.
        self._call(self._searcher.on_trial_result, trial_id, _copied(result))
        if self._scheduler is None:
            return CONTINUE
        decision = self._call(self._scheduler.on_trial_result, trial_id, _copied(result))
        if decision not in _DECISIONS:
            problem = f"returned {decision!r:.80}; there are {', '.join(_DECISIONS)}"
            raise self._nonsense(self._scheduler, "on_trial_result", problem)
        made: Decision = decision
        return made

    def completed(self, trial_id: str, result: Mapping[str, Any] | None, *, failed: bool) -> None:
        """A trial has ended for good.

        Raises:
            UserCodeError: One of them raised.
        """
        if self._logs_results:
            self._log.append((COMPLETED, trial_id, None if result is None else dict(result), failed))
        self._call(self._searcher.on_trial_complete, trial_id, result, failed)
        # schedulers may want to know, and need not
        self._tell(self._scheduler, "on_trial_complete", trial_id, result, failed)

    # -- telling again -------------------------------------------------------------------------------------

    def tell_searcher(self, event: Event) -> None:
        """An event that the searcher's saved state does not know."""
        kind, trial_id, data, failed = event
        if kind == SUGGESTED:
            # the same again, which the trial has already
            again = self._call(self._searcher.suggest, trial_id)
            if _checksum(again) != data and not self._differed:
                self._differed = True
                logger.warning(
                    "%s proposes another config for trial %s than before the restart, from the same state and "
                    "results: it depends on something that its get_state() leaves out; the trial keeps its config",
                    type(self._searcher).__name__,
                    trial_id,
                )
        elif kind == REPORTED:
            self._call(self._searcher.on_trial_result, trial_id, data)
        elif kind == COMPLETED:
            self._call(self._searcher.on_trial_complete, trial_id, data, failed)
        elif kind == REWOUND:
            self._tell(self._searcher, "on_trial_rewind", trial_id, data)
        else:
            self._tell(self._searcher, "on_trial_add", trial_id, data)

    def tell_scheduler(self, event: Event) -> None:
        """Likewise for the scheduler; what it decides was done already."""
        kind, trial_id, data, failed = event
        if kind == REPORTED and self._scheduler is not None:
            self._call(self._scheduler.on_trial_result, trial_id, data)
        elif kind == COMPLETED:
            self._tell(self._scheduler, "on_trial_complete", trial_id, data, failed)
        elif kind == REWOUND:
            self._tell(self._scheduler, "on_trial_rewind", trial_id, data)

    def _tell(self, who: Any, method: str, *args: Any) -> None:
        if callable(hear := getattr(who, method, None)):
            self._call(hear, *args)

    # -- failures ------------------------------------------------------------------------------------------

    def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return method(*args)
        except Exception as error:
            # Its state may be half changed: the last one that was saved counts, with what was logged since.
            self._on_failure(getattr(method, "__self__", None))
            if isinstance(error, ConfigError):  # it says what is wrong, and whose it is
                raise UserCodeError(f"{error}; {_REMEDY}") from error
            owner = type(getattr(method, "__self__", method)).__name__
            name = getattr(method, "__name__", "call")
            raise UserCodeError(f"{owner}.{name}({args[0]!r:.60}) failed: {error!r}; {_REMEDY}") from error

    def _nonsense(self, who: Any, method: str, problem: str) -> UserCodeError:
        return UserCodeError(f"{type(who).__name__}.{method}() {problem}; {_REMEDY}")


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_copied(each) for each in value]
    return value


def _checksum(config: Any) -> int:
    try:
        return zlib.crc32(pack(config, "config"))
    except ConfigError:
        return -1  # refused when the trial is added
