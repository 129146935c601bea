"""Owns the columns of the other tables: checkpoints, experiments of a directory, what was left in a bucket. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from asynctune.inspect.columns import Column
from asynctune.inspect.leaks import Leak
from asynctune.inspect.report import CheckpointEntry, ExperimentLine
from asynctune.inspect.text import DASH, ago, flatten, metric_number, path_text, printable, size
from asynctune.metrics import find_value
from asynctune.trial import TrialStatus

__all__ = ["checkpoint_columns", "experiment_columns", "leak_columns"]

_MIN_TEXT_WIDTH: Final = 16
_STATUS_PRIORITY: Final = {TrialStatus.RUNNING: 5, TrialStatus.ERROR: 6, TrialStatus.TERMINATED: 7}
_OTHERS: Final = 10
_PRESENCE: Final = {
    "present": "ok",
    "missing": "MISSING",
    "deleted": "deleted",
    "elsewhere": "in the bucket",
    "in_bucket": "in the bucket",
    "pending": "not there yet",
}


def checkpoint_columns(
    entries: Sequence[CheckpointEntry], as_of: float, *, with_trial: bool, copied: bool = False
) -> list[Column]:
    """Step, what it holds, when it was saved, with which metrics, and whether its files are there.

    Args:
        entries: The checkpoints.
        as_of: The moment the report speaks of.
        with_trial: Whether they are of several trials.
        copied: Whether there is a bucket beside the directory, into which they are copied.
    """
    kept = [entry.checkpoint for entry in entries]
    columns = [
        Column("trial", "trial", tuple(printable(c.trial_id or DASH) for c in kept), priority=0),
        Column("step", "step", tuple(str(c.step) for c in kept), right=True, priority=1),
        Column("files are", "files are", tuple(_PRESENCE[e.presence] for e in entries), priority=2),
        Column("size", "size", tuple(size(c.size_bytes) for c in kept), right=True, priority=3),
        Column("files", "files", tuple(str(len(c.files)) for c in kept), right=True, priority=7),
        Column("saved", "saved", tuple(_saved(c.committed_at, as_of) for c in kept), right=True, priority=4),
        Column(
            "metrics", "metrics", tuple(_metrics(e) for e in entries), priority=6, min_width=_MIN_TEXT_WIDTH
        ),
        Column("path", "path", tuple(_path(entry) for entry in entries), priority=8),
    ]
    if copied:
        columns.insert(3, Column("copied", "copied", tuple(map(_copied, entries)), priority=5))
    return columns if with_trial else columns[1:]


def _copied(entry: CheckpointEntry) -> str:
    if entry.presence == "deleted":
        return DASH
    return "not yet" if entry.uri is None else "yes"


def _path(entry: CheckpointEntry) -> str:
    """On this machine, or in the bucket that is looked at."""
    if entry.checkpoint.path is not None:
        return path_text(entry.checkpoint.path)
    return DASH if entry.uri is None else entry.uri


def _saved(committed_at: float | None, as_of: float) -> str:
    return DASH if committed_at is None else ago(committed_at, as_of)


def _metrics(entry: CheckpointEntry) -> str:
    pairs = (f"{printable(name)}={metric_number(value)}" for name, value in flatten(entry.checkpoint.metrics))
    return " ".join(pairs) or DASH


def experiment_columns(lines: Sequence[ExperimentLine], as_of: float, metric: str | None) -> list[Column]:
    """Name, trials by status, best value, last change, driver."""
    columns = [
        Column("name", "experiment", tuple(line.name for line in lines), priority=0),
        Column("driver", "driver", tuple(_driver(line) for line in lines), priority=1),
        Column("changed", "changed", tuple(_changed(line, as_of) for line in lines), right=True, priority=2),
        Column("trials", "trials", tuple(_total(line) for line in lines), right=True, priority=3),
    ]
    for status in TrialStatus:
        if any(line.counts.get(status) for line in lines):
            cells = tuple(str(line.counts.get(status, 0) or DASH) for line in lines)
            priority = _STATUS_PRIORITY.get(status, _OTHERS)
            columns.append(Column(status.value, status.value.lower(), cells, right=True, priority=priority))
    if any(line.best is not None for line in lines) or metric is not None:
        cells = tuple(_best(line, named=metric is None) for line in lines)
        title = "best" if metric is None else f"best {printable(metric)}"
        columns.append(Column("best", title, cells, right=metric is not None, priority=4))
        ids = tuple(DASH if line.best is None else printable(line.best.trial.trial_id) for line in lines)
        columns.append(Column("best trial", "best trial", ids, priority=_OTHERS + 1))
    return columns


def _driver(line: ExperimentLine) -> str:
    if line.head is None:
        return "cannot be read" if line.begun else "not begun"
    return line.head.writer.state


def _changed(line: ExperimentLine, as_of: float) -> str:
    if line.head is None or line.head.last_change_at is None:
        return DASH
    return ago(line.head.last_change_at, as_of)


def _total(line: ExperimentLine) -> str:
    return DASH if line.head is None else str(line.head.trials_total)


def _best(line: ExperimentLine, *, named: bool) -> str:
    if line.best is None or line.metric is None:
        return DASH
    value = metric_number(find_value(line.best.trial.last_result, line.metric))
    return f"{printable(line.metric)} = {value}" if named else value


def leak_columns(leaks: Sequence[Leak], as_of: float) -> list[Column]:
    """What it is, how much, how old, and its name below the experiment."""
    return [
        Column("kind", "what", tuple(leak.kind for leak in leaks), priority=1),
        Column("objects", "objects", tuple(str(leak.objects) for leak in leaks), right=True, priority=4),
        Column("size", "size", tuple(_size(leak) for leak in leaks), right=True, priority=2),
        Column(
            "stored", "stored", tuple(ago(leak.modified_at, as_of) for leak in leaks), right=True, priority=3
        ),
        Column("name", "name", tuple(leak.name for leak in leaks), priority=0),
        Column("reason", "why", tuple(leak.reason for leak in leaks), priority=5),
    ]


def _size(leak: Leak) -> str:
    return DASH if leak.size_bytes is None else size(leak.size_bytes)
