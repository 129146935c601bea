"""Owns the columns of a trial table: which there are, how their cells read, which of them fit. Pure.

What does not fit is left out whole, the least telling first, and named below: a cut number would lie.
Only errors and long texts are shortened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rich.cells import cell_len

from asynctune.inspect.fields import FIELDS, field_value, is_number, metrics_of, settings_of
from asynctune.inspect.report import Head, TrialRow
from asynctune.inspect.text import DASH, clock_time, duration, error_line, metric_number, printable, setting

__all__ = ["GAP", "Column", "chosen_columns", "fit_columns", "trial_columns"]

GAP: Final = 2
"""Blanks between two columns."""

_MIN_ERROR_WIDTH: Final = 20
_MAX_SETTING_WIDTH: Final = 24

_HEADERS: Final = {"iteration": "iter", "checkpoint": "ckpt", "duration": "time", "failures": "fails"}
_LEFT: Final = frozenset({"trial", "name", "status", "error", "created", "started", "ended"})

# Which columns a narrow table keeps: the smaller, the longer. Metrics and hyperparameters come between.
_PRIORITY: Final = {
    "trial": 0,
    "status": 1,
    "iteration": 3,
    "error": 4,
    "duration": 5,
    "checkpoint": 6,
    "name": 7,
    "failures": 8,
}
_FIRST_METRIC: Final = 2
_METRICS: Final = 10
_SETTINGS: Final = 1000
_OTHERS: Final = 2000


@dataclass(frozen=True, slots=True)
class Column:
    """One column with all its cells.

    Attributes:
        name: As in `--columns`.
        header: What stands above it.
        cells: One text for each row, printable.
        right: Whether it is aligned to the right.
        priority: What is kept longest when there is little room has the smallest.
        min_width: The width down to which its cells may be cut; `None`: not at all.
    """

    name: str
    header: str
    cells: tuple[str, ...]
    right: bool = False
    priority: int = 0
    min_width: int | None = None

    @property
    def width(self) -> int:
        """Terminal cells that header and longest cell take."""
        return max([cell_len(self.header), *map(cell_len, self.cells)])


def trial_columns(
    rows: Sequence[TrialRow], head: Head, *, metrics: Sequence[str] | None = None, first: str | None = None
) -> list[Column]:
    """Every column worth showing for these rows, from left to right.

    Args:
        rows: The trials.
        head: Their experiment.
        metrics: Which metrics; `None`: all numbers of their last results, those that most trials have first.
        first: The name that was sorted or ranked by, which comes before the other metrics.
    """
    names = list(metrics) if metrics is not None else _common_metrics(rows)
    settings = _varying_settings(rows)
    if first is not None and first not in FIELDS:
        group = settings if first.startswith("config/") else names
        group[:] = dict.fromkeys([first, *group])
    made = [_column("trial", rows, head)]
    if any(row.trial.trial_id not in row.trial.trial_name for row in rows):
        made.append(_column("name", rows, head))
    made.append(_column("status", rows, head))
    for index, name in enumerate(names):
        wanted = index == 0 or metrics is not None
        made.append(
            replace(_column(name, rows, head), priority=_FIRST_METRIC if wanted else _METRICS + index)
        )
    for index, name in enumerate(settings):
        priority = _FIRST_METRIC if name == first else _SETTINGS + index
        made.append(replace(_column(name, rows, head), priority=priority))
    made += [_column(name, rows, head) for name in ("iteration", "checkpoint", "duration")]
    if any(row.trial.num_failures for row in rows):
        made.append(_column("failures", rows, head))
    if any(row.trial.error for row in rows):
        made.append(_column("error", rows, head))
    if first in FIELDS and first not in {column.name for column in made}:
        made.insert(len(made) - 3, replace(_column(str(first), rows, head), priority=_FIRST_METRIC))
    return made


def chosen_columns(names: Sequence[str], rows: Sequence[TrialRow], head: Head) -> list[Column]:
    """Exactly these columns, in this order."""
    return [replace(_column(name, rows, head), priority=index) for index, name in enumerate(names)]


def fit_columns(columns: Sequence[Column], width: int) -> tuple[list[tuple[Column, int]], list[Column]]:
    """Choose what fits.

    Args:
        columns: From left to right.
        width: Of the terminal, in cells.

    Returns:
        The columns to show, each with its width, and those left out. The first in priority is always shown.
    """
    kept: list[Column] = []
    room = width
    for column in sorted(columns, key=lambda each: each.priority):
        need = _least(column) + (GAP if kept else 0)
        if need <= room or not kept:
            kept.append(column)
            room -= need
    names = {column.name for column in kept}
    shown = []
    for column in columns:
        if column.name in names:
            extra = min(column.width - _least(column), max(0, room))
            room -= extra
            shown.append((column, min(_least(column) + extra, width)))
    return shown, [column for column in columns if column.name not in names]


def _least(column: Column) -> int:
    return column.width if column.min_width is None else min(column.width, column.min_width)


def _column(name: str, rows: Sequence[TrialRow], head: Head) -> Column:
    cell = _CELLS.get(name) or _value_cell(name)
    return Column(
        name=name,
        header=printable(_HEADERS.get(name, name.removeprefix("config/"))),
        cells=tuple(cell(row, head) for row in rows),
        right=name not in _LEFT and (name in FIELDS or _are_numbers(name, rows)),
        priority=_PRIORITY.get(name, _OTHERS),
        min_width=_MIN_ERROR_WIDTH if name == "error" else _MAX_SETTING_WIDTH if name not in FIELDS else None,
    )


def _are_numbers(name: str, rows: Sequence[TrialRow]) -> bool:
    values = (field_value(row.trial, name, 0.0) for row in rows)
    return all(isinstance(value, int | float) for value in values if value is not None)


def _value_cell(name: str) -> Callable[[TrialRow, Head], str]:
    show = setting if name.startswith("config/") else metric_number

    def cell(row: TrialRow, head: Head) -> str:
        value = field_value(row.trial, name, head.as_of)
        return DASH if value is None else show(value)

    return cell


def _checkpoint_cell(row: TrialRow, _: Head) -> str:
    kept = row.trial.checkpoints
    if not kept:
        return DASH
    return f"{kept[-1].step} MISSING" if row.presence == "missing" else str(kept[-1].step)


def _time_cell(value: float | None) -> str:
    return DASH if value is None else clock_time(value)


_CELLS: Final[Mapping[str, Callable[[TrialRow, Head], str]]] = {
    "trial": lambda row, _: printable(row.trial.trial_id),
    "name": lambda row, _: printable(row.trial.trial_name),
    "status": lambda row, _: row.trial.status.value,
    "iteration": lambda row, _: str(row.iteration),
    "results": lambda row, _: str(row.trial.num_results),
    "checkpoint": _checkpoint_cell,
    "duration": lambda row, _: duration(row.duration_s),
    "failures": lambda row, _: str(row.trial.num_failures),
    "error": lambda row, _: error_line(row.trial.error),
    "created": lambda row, _: _time_cell(row.trial.created_at),
    "started": lambda row, _: _time_cell(row.trial.started_at),
    "ended": lambda row, _: _time_cell(row.trial.ended_at),
}


def _common_metrics(rows: Iterable[TrialRow]) -> list[str]:
    seen: Counter[str] = Counter()
    for row in rows:
        seen.update(name for name, value in metrics_of(row.trial) if _ranks(value))
    return [name for name, _ in seen.most_common()]  # equal counts keep the order of appearance


def _ranks(value: object) -> bool:
    return isinstance(value, float) or (is_number(value) and not isinstance(value, bool))


def _varying_settings(rows: Iterable[TrialRow]) -> list[str]:
    """Hyperparameters in which these trials differ: what they share explains no difference."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for name, value in settings_of(row.trial):
            values.setdefault(name, set()).add(repr(value))
    return [name for name, found in values.items() if len(found) > 1]
