"""Owns what the progress of an experiment looks like: lines of text that fit. Pure; who shows them is another's.

Nothing is wrapped: numbers stay whole, and what has no room ends in an ellipsis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

from asynctune.metrics import find_number
from asynctune.store.stats import StoreStats
from asynctune.trial import Trial, TrialStatus

__all__ = [
    "Moment",
    "View",
    "best_line",
    "config_text",
    "copy_text",
    "count_line",
    "duration",
    "metrics_text",
    "number",
    "picture",
    "plain",
]

_STYLES: Final = {
    TrialStatus.RUNNING: "bold",
    TrialStatus.TERMINATED: "green",
    TrialStatus.ERROR: "red",
    TrialStatus.PAUSED: "yellow",
    TrialStatus.PENDING: "dim",
}
_ORDER: Final = ("RUNNING", "PAUSED", "PENDING", "TERMINATED", "ERROR")
_GAP: Final = 2
_WIDEST: Final = 24  # of a column that is not the last
_LEAST: Final = 8  # of the last
_LESS_TOLD: Final = (3, 2)
"""Columns (time, iteration) that a narrow terminal does without, so that there is room for the metric."""
_LINES_AROUND: Final = 6
_ROWS: Final = 12
_NOT_THE_USERS: Final = frozenset(
    {
        *("config", "trial_id", "date", "timestamp", "hostname", "node_ip", "pid", "done"),
        *("training_iteration", "time_this_iter_s", "time_total_s"),
    }
)
_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
_VERY_LONG: Final = 10_000 * _DAY
_MANY_DIGITS: Final = 10**15


Moment: TypeAlias = Literal["running", "closing", "closed"]
"""Of an experiment: trials run; what is left is being stored; nothing is done any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """An experiment at one moment.

    Attributes:
        name: Of the experiment.
        metric: That is tuned, or `None`.
        seconds: How long it has run.
        counts: Trials by status.
        total: How many there will be, where that is known.
        best: The trial that is best by its last result, or `None`.
        running: Those that run, the newest last.
        others: Some others, the newest last.
        is_finished: Whether no more trials come, whatever `total` says.
        copy: How far the copy of the experiment is; empty without one.
    """

    name: str
    metric: str | None
    seconds: float
    counts: Mapping[TrialStatus, int]
    total: int | None
    best: Trial | None
    running: Sequence[Trial]
    others: Sequence[Trial]
    is_finished: bool = False
    copy: str = ""


def picture(view: View, width: int, height: int) -> Group:
    """The experiment on a terminal of this size (columns and lines)."""
    lines = [Text(count_line(view), style="bold")]
    if view.best is not None:
        lines.append(Text(best_line(view)))
    if view.copy:
        lines.append(Text(plain(view.copy), style="dim"))
    room = max(1, height - _LINES_AROUND - bool(view.copy))
    running = view.running[:room]
    left = min(room, _ROWS) - len(running)
    others = list(reversed(view.others))[: max(0, left)]
    lines += _table(view, [*running, *others], width)
    if more := len(view.running) - len(running):
        lines.append(Text(f"and {more} more that run", style="dim"))
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return Group(*lines)


def count_line(view: View) -> str:
    """How many trials are what, after how long."""
    parts = []
    for status in map(TrialStatus, _ORDER):
        if count := view.counts.get(status, 0):
            word = "errors" if status is TrialStatus.ERROR and count > 1 else status.lower()
            parts.append(f"{count} {word}")
    nothing = "no trials: nothing was proposed" if view.is_finished else "no trials yet"
    if (
        not view.is_finished
        and view.total is not None
        and (left := view.total - sum(view.counts.values())) > 0
    ):
        parts.append(f"{left} to come")
    return f"{plain(view.name)} after {duration(view.seconds)}: {', '.join(parts) or nothing}"


def best_line(view: View) -> str:
    """Which trial is best, with which config."""
    if view.best is None or view.metric is None:
        return ""
    value = number(find_number(view.best.last_result, view.metric))
    config = config_text(view.best.config)
    return f"best {plain(view.metric)} {value}, trial {plain(view.best.trial_id)}{config and ': '}{config}"


def copy_text(uri: str, stats: StoreStats, moment: Moment = "running") -> str:
    """How far the copy of an experiment is, and where; while the experiment is being closed, nothing if it is whole."""
    parts = [
        f"{count} {word}{'s' * (count != 1)}"
        for count, word in (
            (stats.committed_seq - (stats.mirrored_seq or 0), "commit"),
            (stats.uploads_pending, "checkpoint"),
        )
        if count > 0
    ]
    left = " and ".join(parts)
    if moment == "closing":
        return left and f"copy: being completed, {left} to go, in {uri}"
    if not stats.mirrored_seq:
        return f"copy: nothing has come there{' yet' * (moment == 'running')}, in {uri}"
    state = f"{left} behind" if left else "complete"
    again = " and tried again" if moment == "running" else ""
    failed = f", {stats.uploads_failed} failed{again}" if stats.uploads_failed else ""
    return f"copy: {state}{failed}, in {uri}"


# -- the table -----------------------------------------------------------------------------------------------


def _table(view: View, trials: Sequence[Trial], width: int) -> list[Text]:
    if not trials:
        return []
    heads = ["trial", "status", "iter", "time", plain(view.metric or "last result")]
    rows = [[*_cells(trial, view.metric), config_text(trial.config)] for trial in trials]
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(heads))]
    # A long name of a metric does not take the room of the configs; its end tells more than its beginning.
    widths = [
        min(max(wide, min(cell_len(head), 12)), _WIDEST) for wide, head in zip(widths, heads, strict=True)
    ]
    heads[-1] = _fitted_end(heads[-1], widths[-1])
    right = [False, False, True, True, view.metric is not None]
    for column in _LESS_TOLD:
        if sum(widths) + _GAP * (len(widths) - 1) > width:
            for line in (heads, *rows):
                del line[column]
            del widths[column], right[column]
    taken = sum(widths) + _GAP * len(widths)
    last = max(0, width - taken) if width - taken >= _LEAST else 0
    made = [_line([*heads, "config" if last else ""], widths, right, None)]
    made[0].stylize("dim")
    made += [
        _line([*row[:-1], row[-1] if last else ""], widths, right, trial.status)
        for row, trial in zip(rows, trials, strict=True)
    ]
    return made


def _cells(trial: Trial, metric: str | None) -> list[str]:
    row: Mapping[str, Any] = trial.last_result if trial.num_results else {}
    shown = metrics_text(row) if metric is None else number(find_number(row, metric))
    seconds = find_number(row, "time_total_s")
    iteration = row.get("training_iteration", "")
    time = "" if seconds is None or seconds != seconds else duration(seconds)  # noqa: PLR0124 - NaN
    return [plain(trial.trial_id), trial.status.lower(), plain(str(iteration)), time, shown]


def _line(
    cells: Sequence[str], widths: Sequence[int], right: Sequence[bool], status: TrialStatus | None
) -> Text:
    line = Text()
    for column, (cell, wide, to_right) in enumerate(zip(cells, widths, right, strict=False)):
        text = Text(cell)
        text.truncate(wide, overflow="ellipsis")
        text.align("right" if to_right else "left", wide)
        if column == 1 and status is not None:
            text.stylize(_STYLES[status])
        line.append_text(text)
        line.append(" " * _GAP)
    line.append(cells[-1])
    line.rstrip()
    return line


def _fitted_end(text: str, wide: int) -> str:
    while cell_len(text) > wide:
        text = "…" + text[2:] if len(text) > 2 else ""  # noqa: PLR2004
    return text


# -- words ---------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """For people: `7 s`, `12 min 05 s`, `3 h 07 min`, `2 d 04 h`."""
    if not seconds < _VERY_LONG:
        return "very long"
    whole = int(max(0, seconds))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR:02} h"


def number(value: float | None) -> str:
    """Six digits of a number; nothing for none."""
    if value is None:
        return ""
    if isinstance(value, int) and abs(value) < _MANY_DIGITS:
        return str(value)
    try:
        return f"{value:.6g}"
    except OverflowError:  # an integer beyond every float
        return "huge" if value > 0 else "-huge"


def config_text(config: Mapping[str, Any]) -> str:
    """`lr=0.1, layers=3`."""
    return ", ".join(f"{plain(str(key))}={_value(value)}" for key, value in config.items())


def metrics_text(result: Mapping[str, Any]) -> str:
    """Likewise of a result row, without what every row has."""
    return config_text({key: value for key, value in result.items() if key not in _NOT_THE_USERS})


def _value(value: Any) -> str:
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, Mapping):
        return "{" + config_text(value) + "}"
    return plain(f"{value!s:.200}" if isinstance(value, str) else f"{value!r:.200}")


def plain(text: str) -> str:
    """The text as one line, without what a terminal would obey."""
    return "".join(each if each.isprintable() else " " for each in text)
