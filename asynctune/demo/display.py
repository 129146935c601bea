"""Owns what the demo prints: a live picture on a terminal, plain lines elsewhere. Decides nothing.

Printing happens in a thread of its own: a terminal that is slow, or held with Ctrl-S, holds up no training.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asynctune.trial import Trial, TrialStatus

__all__ = ["Display", "Progress", "Row", "first_line", "plural", "trial_table"]

_PLAIN_WIDTH: Final = 110
"""Columns where the output is no terminal, so that no line is broken."""


@dataclass(frozen=True, slots=True)
class Row:
    """A trial in training: its name, the epoch it has reached, the one it is sent to, its accuracy."""

    name: str
    epoch: int
    until: int
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """What the live picture shows.

    Attributes:
        finished: Trials that are through.
        trials: Trials in all.
        epochs: Epochs that are trained and saved.
        epochs_in_all: Epochs when everything is done.
        running: What is being trained now.
        best: Name and accuracy of the best trial so far.
        commits: Durable commits of this opening.
        checkpoint_fraction: Share of the time that went into them, from 0 to 1.
    """

    finished: int
    trials: int
    epochs: int
    epochs_in_all: int
    running: Sequence[Row] = ()
    best: tuple[str, float] | None = None
    commits: int = 0
    checkpoint_fraction: float = 0.0

    @property
    def store_line(self) -> str:
        """The store's own figures."""
        return f"{self.commits:,} commits, which took {self.checkpoint_fraction:.1%} of the time"


def _make_console() -> Console:
    """Standard output as rich sees it; of a fixed width where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


@dataclass(slots=True)
class Display:
    """Prints to `console`, in order, from its own thread. Leaving the context waits for what is unprinted."""

    console: Console = field(default_factory=_make_console)
    _queue: queue.SimpleQueue[RenderableType | Progress | None] = field(default_factory=queue.SimpleQueue)
    _thread: threading.Thread | None = None

    @property
    def live(self) -> bool:
        """Whether there is a terminal to draw a live picture on."""
        return self.console.is_terminal

    def line(self, text: str, style: str = "") -> None:
        """Print one line (or several, each kept whole)."""
        self._queue.put(Text(text, style=style, overflow="fold"))

    def show(self, what: RenderableType) -> None:
        """Print a table."""
        self._queue.put(what)

    def update(self, progress: Progress) -> None:
        """Draw the live picture anew; nothing where the output is no terminal."""
        if self.live:
            self._queue.put(progress)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._print, name="demo-display", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _print(self) -> None:
        picture: Live | None = None
        try:
            while (item := self._queue.get()) is not None:
                if not isinstance(item, Progress):
                    self.console.print(item, soft_wrap=isinstance(item, Text) and not self.live)
                    continue
                if picture is None:
                    picture = Live(console=self.console, auto_refresh=False, transient=True)
                    picture.start()
                    self.console.show_cursor(True)  # a kill must not leave the terminal without one
                picture.update(draw(item), refresh=True)
            if picture is not None:
                picture.stop()
        except (OSError, SystemExit):  # the latter is rich's answer to a broken pipe
            # Nobody reads any more (`| head`), so nobody wants the rest: stop cleanly, as on any SIGTERM.
            os.kill(os.getpid(), signal.SIGTERM)


def draw(progress: Progress) -> RenderableType:
    """The live picture: at most 80 columns are needed, and it has few enough lines for any terminal."""
    table = Table.grid(padding=(0, 2))
    for row in progress.running:
        accuracy = "" if row.accuracy is None else f"accuracy {row.accuracy:.4f}"
        bar = ProgressBar(total=row.until, completed=row.epoch, width=24)
        table.add_row(row.name, bar, f"epoch {row.epoch} of {row.until}", accuracy)
    total = ProgressBar(total=max(1, progress.epochs_in_all), completed=progress.epochs, width=24)
    done = f"{progress.finished} of {progress.trials} trials"
    table.add_row("all", total, done, f"{progress.epochs} of {progress.epochs_in_all} epochs")
    best = Text(style="bold")
    if progress.best is not None:
        best.append(f"best so far: {progress.best[0]}, accuracy {progress.best[1]:.4f}")
    return Group(Text(), table, best, Text(progress.store_line, style="dim"))


def trial_table(trials: Sequence[Trial], best_id: str | None) -> Table:
    """All trials, the best one marked; 80 columns are enough."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("trial", "status", "epochs", "accuracy", "hidden", "act.", "l. rate", "alpha", "batch"):
        table.add_column(heading, justify="left" if heading in {"trial", "status", "act."} else "right")
    for trial in trials:
        config = trial.config
        accuracy = trial.last_result.get("accuracy")
        mark = " *" if trial.trial_id == best_id else ""
        table.add_row(
            trial.trial_name + mark,
            trial.status.value.lower(),
            str(trial.last_result.get("training_iteration", 0)),
            "" if accuracy is None else f"{accuracy:.4f}",
            "-".join(str(size) for size in config["hidden"]),
            str(config["activation"]),
            f"{config['learning_rate']:.2g}",
            f"{config['alpha']:.2g}",
            str(config["batch_size"]),
            style=_style(trial, best_id),
        )
    return table


def _style(trial: Trial, best_id: str | None) -> str:
    if trial.trial_id == best_id:
        return "bold green"
    return "red" if trial.status is TrialStatus.ERROR else ""


def plural(count: int, word: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def first_line(text: Any) -> str:
    """An error's first line, short enough for a line of output."""
    return (str(text).strip().splitlines() or [""])[0][:200]
