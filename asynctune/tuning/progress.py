"""Owns what a Tuner shows while it runs: a table on a terminal, plain lines elsewhere. Decides nothing.

Counts are kept as trials change, so showing them costs nothing that grows with their number; the table shows the
newest few.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from asynctune.metrics import find_number
from asynctune.trial import Trial, TrialStatus

__all__ = ["Progress"]

_SHOWN: Final = 12
_LINE_EVERY_S: Final = 5.0
_PICTURES_PER_S: Final = 4
_STYLES: Final = {
    TrialStatus.RUNNING: "bold",
    TrialStatus.TERMINATED: "green",
    TrialStatus.ERROR: "red",
    TrialStatus.PAUSED: "yellow",
    TrialStatus.PENDING: "dim",
}


class Progress:
    """Shows the trials of one experiment.

    Args:
        name: Of the experiment.
        metric: That is tuned, or `None`.
        mode: `"min"` or `"max"`, likewise.
        look: Gives the present value of a trial.
        verbose: 0: nothing; 1: the table, or a line when a trial ends; 2: a line for each result.
        stream: Where to; standard error by default.
    """

    def __init__(
        self,
        name: str,
        metric: str | None,
        mode: str | None,
        look: Callable[[str], Trial],
        *,
        verbose: int = 1,
        stream: TextIO | None = None,
    ) -> None:
        self._name = name
        self._metric = metric
        self._mode = mode
        self._look = look
        self._verbose = verbose
        self._console = Console(file=stream or sys.stderr, highlight=False)
        self._live: Live | None = None
        self._statuses: dict[str, TrialStatus] = {}
        self._counts: Counter[TrialStatus] = Counter()
        self._newest: dict[str, None] = {}
        self._best: tuple[float, str] | None = None
        self._began = self._said_at = time.monotonic()

    def start(self) -> None:
        """Begin to show."""
        if self._verbose and self._console.is_terminal:
            self._live = Live(
                get_renderable=self._picture,
                console=self._console,
                refresh_per_second=_PICTURES_PER_S,
                transient=False,
            )
            self._live.start()

    def stop(self) -> None:
        """Show the last state, and end. Again: does nothing."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._verbose and self._statuses:
            self._say(self._summary())
        self._statuses = {}

    def line(self, text: str) -> None:
        """Say something that stays."""
        (self._live.console if self._live is not None else self._console).print(Text(text), soft_wrap=True)

    def changed(self, trial_id: str) -> None:
        """A trial is new, has another status, or has reported."""
        if not self._verbose:
            return
        trial = self._look(trial_id)
        before = self._statuses.get(trial_id)
        self._statuses[trial_id] = trial.status
        if before is not trial.status:
            self._counts[trial.status] += 1
            if before is not None:
                self._counts[before] -= 1
        self._newest.pop(trial_id, None)
        self._newest[trial_id] = None
        while len(self._newest) > _SHOWN:
            del self._newest[next(iter(self._newest))]
        self._note_best(trial)
        if self._live is None:
            self._say_change(trial, before)

    # -- plain lines ---------------------------------------------------------------------------------------

    def _say_change(self, trial: Trial, before: TrialStatus | None) -> None:
        ended = trial.status.is_finished and before is not trial.status
        if self._verbose > 1 and trial.num_results and before is trial.status:
            self._say(f"{trial.trial_name} reported: {_metrics(trial)}")
        elif trial.status is TrialStatus.ERROR and ended:
            reason = (trial.error or "").strip().rpartition("\n")[2]
            self._say(f"{trial.trial_name} failed: {reason}")
        elif time.monotonic() - self._said_at >= _LINE_EVERY_S:
            self._say(self._summary())

    def _say(self, text: str) -> None:
        self._said_at = time.monotonic()
        self.line(text)

    def _summary(self) -> str:
        parts = [f"{count} {status.lower()}" for status, count in sorted(self._counts.items()) if count]
        best = "" if self._best is None else f"; best {self._metric} {self._best[0]:.6g} ({self._best[1]})"
        seconds = time.monotonic() - self._began
        return f"{self._name}: {', '.join(parts) or 'no trials yet'} after {seconds:.0f} s{best}"

    # -- the table -----------------------------------------------------------------------------------------

    def _picture(self) -> Table:
        table = Table(title=self._summary(), title_justify="left", expand=False)
        table.add_column("trial", overflow="ellipsis", no_wrap=True)
        table.add_column("status")
        table.add_column("iteration", justify="right")
        table.add_column(
            self._metric or "last result", justify="right" if self._metric else "left", overflow="ellipsis"
        )
        table.add_column("config", overflow="ellipsis", no_wrap=True)
        for trial_id in list(self._newest):
            trial = self._look(trial_id)
            style = _STYLES[trial.status]
            shown = self._number(trial) if self._metric else _metrics(trial)
            table.add_row(
                Text(trial.trial_name),
                Text(trial.status, style=style),
                str(trial.last_result.get("training_iteration", "")) if trial.num_results else "",
                Text(shown),
                Text(", ".join(f"{key}={_short(value)}" for key, value in trial.config.items())),
            )
        return table

    def _number(self, trial: Trial) -> str:
        value = find_number(trial.last_result, self._metric) if self._metric else None
        return "" if value is None else f"{value:.6g}"

    def _note_best(self, trial: Trial) -> None:
        value = find_number(trial.last_result, self._metric) if self._metric else None
        if value is None or value != value:  # noqa: PLR0124 - NaN
            return
        if self._best is None or (value > self._best[0] if self._mode == "max" else value < self._best[0]):
            self._best = (value, trial.trial_name)


def _metrics(trial: Trial) -> str:
    skipped = {"config", "trial_id", "date", "timestamp", "hostname", "node_ip", "pid", "done"}
    shown = {key: value for key, value in trial.last_result.items() if key not in skipped}
    return ", ".join(f"{key}={_short(value)}" for key, value in shown.items())


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
