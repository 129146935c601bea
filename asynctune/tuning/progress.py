"""Owns what a Tuner tells while it runs: a picture on a terminal, plain lines elsewhere, and a summary at the end.

Decides nothing. Counts are kept as trials change, so telling them costs nothing that grows with their number; only
trials that run, and the newest few others, are shown one by one.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, TextIO

from rich.console import RenderableType

from asynctune.metrics import find_number
from asynctune.tracebacks import error_line
from asynctune.trial import Trial, TrialStatus
from asynctune.tuning.picture import Moment, View, best_line, count_line, metrics_text, picture, plain
from asynctune.tuning.screen import Screen

__all__ = ["Progress"]

_OTHERS_KEPT: Final = 12
_FIRST_LINE_AFTER_S: Final = 5.0
_LINE_EVERY_S: Final = 60.0
_LINE_PER_ELAPSED: Final = 0.1
_RANKED_PER_TRIAL: Final = 4
_RANKED_AT_LEAST: Final = 64


class Progress:
    """Shows the trials of one experiment.

    Args:
        name: Of the experiment.
        metric: That is tuned, or `None`.
        mode: `"min"` or `"max"`, likewise.
        look: Gives the present value of a trial.
        location: Its directory, which the end tells; `None`: it is not told.
        total: How many trials there will be, where that is known.
        copy: Tells how far the copy of the experiment is, at a moment of its life; `None`: there is none. Called in
            another thread, too.
        verbose: 0: nothing; 1: the picture, or a line now and then, what fails, and what came out; 2: also a line
            for each result.
        stream: Where to; by default standard error, which a service may not have: then nothing is told.
    """

    def __init__(
        self,
        name: str,
        metric: str | None,
        mode: str | None,
        look: Callable[[str], Trial],
        *,
        location: str | None = None,
        total: int | None = None,
        copy: Callable[[Moment], str] | None = None,
        verbose: int = 1,
        stream: TextIO | None = None,
    ) -> None:
        self._name = name
        self._metric = metric
        self._sign = -1.0 if mode == "max" else 1.0
        self._look = look
        self._location = location
        self._total = total
        self._copy = copy
        self._verbose = verbose
        self._screen = Screen(stream or sys.stderr, self._picture)
        self._is_open = False
        self._statuses: dict[str, TrialStatus] = {}
        self._counts: Counter[TrialStatus] = Counter()
        self._failures: dict[str, int] = {}
        self._running: dict[str, Trial] = {}
        self._others: dict[str, Trial] = {}
        self._values: dict[str, float] = {}  # to be as small as can be
        self._ranked: list[tuple[float, str]] = []  # a heap of them, and of values that do not count any more
        self._is_finished = False
        self._best: Trial | None = None
        self._first_error: str | None = None
        self._began = self._said_at = time.monotonic()

    def start(self) -> None:
        """Begin to show."""
        if self._verbose and not self._is_open:
            self._is_open = True
            self._began = self._said_at = time.monotonic()
            self._screen.open()

    def stop(self) -> None:
        """Tell what came out, and end; it may be a moment until that is written. Again: does nothing."""
        if self._is_open:
            self._is_open = False
            self._screen.close(self._closing())

    async def aclose(self) -> None:
        """`stop`, and return when it is written, or nobody reads it. Again: does nothing."""
        self.stop()
        await asyncio.to_thread(self._screen.wait)

    async def closed(self) -> None:
        """The experiment was closed, after `aclose`: tell how far its copy came."""
        if self._copy is not None:
            self._screen.add(plain(self._copy("closed")))
            await asyncio.to_thread(self._screen.wait)

    def finished(self) -> None:
        """The experiment is at its end: nothing more is to come, whatever was expected."""
        self._is_finished = True

    def line(self, text: str) -> None:
        """Say something that stays."""
        if self._is_open:
            self._said_at = time.monotonic()
            self._screen.line(plain(text))

    def known(self, trial: Trial) -> None:
        """A trial was there before: it is counted, and nothing is said of it."""
        if self._verbose:
            self._take(trial)

    def changed(self, trial_id: str) -> None:
        """A trial is new, has another status, or has reported."""
        if not self._verbose:
            return
        trial = self._look(trial_id)
        before, failures = self._statuses.get(trial_id), self._failures.get(trial_id, 0)
        self._take(trial)
        if trial.status is TrialStatus.ERROR and before is not trial.status:
            self.line(f"{trial.trial_id} failed: {_reason(trial)}")
        elif trial.num_failures > failures:
            self.line(f"{trial.trial_id} failed, and is tried again: {_reason(trial)}")
        elif self._verbose > 1 and trial.num_results and before is trial.status is TrialStatus.RUNNING:
            iteration = trial.last_result.get("training_iteration")
            self.line(f"{trial.trial_id} iteration {iteration}: {metrics_text(trial.last_result)}")
        elif not self._screen.is_terminal and self._is_time():
            self.line(self._summary())

    # -- what is known -------------------------------------------------------------------------------------

    def _take(self, trial: Trial) -> None:
        trial_id, status = trial.trial_id, trial.status
        before = self._statuses.get(trial_id)
        self._statuses[trial_id] = status
        if before is not status:
            self._counts[status] += 1
            if before is not None:
                self._counts[before] -= 1
        if trial.num_failures:
            self._failures[trial_id] = trial.num_failures
        self._others.pop(trial_id, None)
        if status is TrialStatus.RUNNING:
            self._running[trial_id] = trial
        else:
            self._running.pop(trial_id, None)
            if status is not TrialStatus.PENDING:
                self._others[trial_id] = trial
                if len(self._others) > _OTHERS_KEPT:
                    del self._others[next(iter(self._others))]
        if status is TrialStatus.ERROR and self._first_error is None:
            self._first_error = f"{trial.trial_id}: {_reason(trial)}"
        self._note_best(trial)

    def _note_best(self, trial: Trial) -> None:
        """The best is the best by its last result, as in `ResultGrid.get_best_result`."""
        value = find_number(trial.last_result, self._metric) if self._metric and trial.num_results else None
        if value is None or value != value:  # noqa: PLR0124 - NaN, also for an integer beyond every float
            self._values.pop(trial.trial_id, None)
        else:
            self._rank(trial.trial_id, self._sign * _as_float(value))
        # A trial that reports a worse value leaves the better one in the heap, until that comes up.
        while self._ranked and self._values.get(self._ranked[0][1]) != self._ranked[0][0]:
            heapq.heappop(self._ranked)
        if not self._ranked:
            self._best = None
        elif (best_id := self._ranked[0][1]) == trial.trial_id:
            self._best = trial
        elif self._best is None or best_id != self._best.trial_id:
            self._best = self._look(best_id)

    def _rank(self, trial_id: str, value: float) -> None:
        if self._values.get(trial_id) == value:
            return
        self._values[trial_id] = value
        heapq.heappush(self._ranked, (value, trial_id))
        if len(self._ranked) > _RANKED_PER_TRIAL * len(self._values) + _RANKED_AT_LEAST:
            self._ranked = [(value, trial_id) for trial_id, value in self._values.items()]
            heapq.heapify(self._ranked)

    # -- what is told --------------------------------------------------------------------------------------

    def _is_time(self) -> bool:
        """Whether the next line is due: soon in the beginning, later once a minute."""
        now = time.monotonic()
        pause = min(max(_FIRST_LINE_AFTER_S, (now - self._began) * _LINE_PER_ELAPSED), _LINE_EVERY_S)
        return now - self._said_at >= pause

    def _view(self, moment: Moment = "running") -> View:
        # Also called in the screen's thread: every collection is copied in one step.
        return View(
            name=self._name,
            metric=self._metric,
            seconds=time.monotonic() - self._began,
            counts=dict(self._counts),
            total=self._total,
            is_finished=self._is_finished,
            best=self._best,
            running=list(self._running.values()),
            others=list(self._others.values()),
            copy="" if self._copy is None else self._copy(moment),
        )

    def _picture(self, width: int, height: int) -> RenderableType:
        return picture(self._view(), width, height)

    def _summary(self) -> str:
        view = self._view()
        return "; ".join(filter(None, (count_line(view), best_line(view), view.copy)))

    def _closing(self) -> list[str]:
        view = self._view("closing")
        lines = [count_line(view)]
        if view.best is not None:
            lines.append(best_line(view))
        if failed := self._counts[TrialStatus.ERROR]:
            lines.append(f"{failed} failed, first {self._first_error}")
            if self._location is not None:
                restore = f"Tuner.restore({self._location!r}, resume_errored=True)"
                lines.append(
                    f"to go on with what failed: {restore}, or restart_errored=True to start it over"
                )
        if self._location is not None:
            lines.append(f"results: {self._location}")
        if view.copy:
            lines.append(view.copy)
        return list(map(plain, lines))


def _reason(trial: Trial) -> str:
    return plain(error_line(trial.error)) or "for no reason that was told"


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
