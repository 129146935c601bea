"""Owns how reports look on a terminal: report in, rich renderables out. Opens nothing, prints nothing.

Every text goes in as `Text`, never as rich markup, and has been through `text.printable`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from asynctune.inspect.columns import GAP, Column, chosen_columns, fit_columns, trial_columns
from asynctune.inspect.listings import checkpoint_columns, experiment_columns
from asynctune.inspect.report import (
    BestReport,
    CheckpointEntry,
    CheckpointsReport,
    ExperimentsReport,
    Head,
    Problem,
    TrialReport,
    TrialRow,
    TrialsReport,
    VerifyReport,
)
from asynctune.inspect.text import (
    DASH,
    ago,
    clock_time,
    count,
    duration,
    flatten,
    metric_number,
    printable,
    setting,
    size,
)
from asynctune.metrics import find_value
from asynctune.trial import TrialStatus

__all__ = [
    "WIDE",
    "Layout",
    "best_view",
    "checkpoints_view",
    "experiments_view",
    "summary_view",
    "trial_view",
    "trials_view",
    "verify_view",
]

WIDE: Final = 100_000
"""A width that everything fits."""

_STATUS_STYLES: Final = {
    "RUNNING": "cyan",
    "TERMINATED": "green",
    "ERROR": "red",
    "PAUSED": "yellow",
    "PENDING": "dim",
    "MISSING": "red",
    "live": "cyan",
    "dead": "yellow",
    "cannot be read": "red",
}
_NAMES_LISTED: Final = 12
_PROBLEMS_LISTED: Final = 20


@dataclass(frozen=True, slots=True)
class Layout:
    """How the reader wants it.

    Attributes:
        width: Of the terminal, in cells; `WIDE` for as wide as it gets.
        columns: Names of the columns to show; `None`: what fits.
        metrics: Which metrics to show; `None`: what fits.
        sort: The name that was sorted by.
    """

    width: int = 80
    columns: tuple[str, ...] | None = None
    metrics: tuple[str, ...] | None = None
    sort: str | None = None


def summary_view(report: TrialsReport, layout: Layout) -> RenderableType:
    """The experiment, then its trials."""
    return Group(_head(report), Text(), trials_view(report, layout))


def trials_view(report: TrialsReport, layout: Layout) -> RenderableType:
    """The trial table, with a line for what it leaves out."""
    parts: list[RenderableType] = [_trial_table(report.rows, report.head, layout)] if report.rows else []
    if not report.rows:
        parts.append(Text("no trials yet" if not report.head.trials_total else "no trial matches", "dim"))
    left_out = sum(report.left_out.values())
    if left_out:
        verb = "is" if left_out == 1 else "are"
        statuses = _counts(report.left_out)
        parts.append(
            Text(
                f"... {count(left_out, 'more trial')} {verb} not shown ({statuses}); --limit 0 shows all",
                "dim",
            )
        )
    return Group(*parts, *_problems(report.problems))


def trial_view(report: TrialReport, layout: Layout) -> RenderableType:
    """Everything about one trial."""
    row, trial = report.row, report.row.trial
    facts = {"trial": Text(printable(trial.trial_id), "bold")}
    if trial.trial_name != trial.trial_id:
        facts["name"] = Text(printable(trial.trial_name))
    facts["status"] = _status(trial.status.value)
    facts["iterations"] = Text(f"{row.iteration} ({count(trial.num_results, 'result')})")
    facts["times"] = Text(_times(row, report.head))
    facts["directory"] = Text(report.directory)
    if trial.num_failures:
        facts["failures"] = Text(str(trial.num_failures))
    parts: list[RenderableType] = [_facts(facts)]
    for title, values in (
        ("config", trial.config),
        ("last result", trial.last_result),
        ("metadata", trial.metadata),
    ):
        parts += _block(title, values)
    if trial.error:
        parts += [Text(), Text("error", "bold"), Text(printable(trial.error.rstrip(), keep="\n"), "red")]
    if report.checkpoints:
        parts += [
            Text(),
            Text("checkpoints", "bold"),
            _checkpoint_table(report.checkpoints, report.head, layout),
        ]
    return Group(*parts, *_problems(report.problems))


def checkpoints_view(report: CheckpointsReport, layout: Layout) -> RenderableType:
    """A table of checkpoints and what they take together."""
    if not report.entries:
        return Group(Text("no checkpoints", "dim"), *_problems(report.problems))
    table = _checkpoint_table(report.entries, report.head, layout, with_trial=report.trial_id is None)
    left_out = report.total - len(report.entries)
    total = f"{count(report.total, 'checkpoint')}, {size(report.size_bytes)}"
    more = f"; {left_out:,} older not shown, --limit 0 shows all" if left_out else ""
    return Group(table, Text(total + more, "dim"), *_problems(report.problems))


def best_view(report: BestReport, layout: Layout) -> RenderableType:
    """The winner with its config and checkpoints, then those that came next."""
    row = report.ranking[0]
    value = metric_number(_metric(row, report.metric))
    facts = {
        "best": Text.assemble(
            (f"{printable(report.metric)} = {value}", "bold"),
            f" ({report.mode} of {count(report.ranked, 'trial')} that reported it)",
        ),
        "trial": Text.assemble((printable(row.trial.trial_id), "bold"), " ", _status(row.trial.status.value)),
        "iterations": Text(f"{row.iteration}, {_times(row, report.head)}"),
    }
    parts: list[RenderableType] = [_facts(facts), *_block("config", row.trial.config)]
    if report.checkpoints:
        parts += [
            Text(),
            Text("checkpoints", "bold"),
            _checkpoint_table(report.checkpoints, report.head, layout),
        ]
    else:
        parts += [Text(), Text("no checkpoints", "dim")]
    if len(report.ranking) > 1:
        table = _trial_table(report.ranking, report.head, layout, first=report.metric)
        parts += [Text(), Text("ranking", "bold"), table]
    return Group(*parts, *_problems(report.problems))


def experiments_view(report: ExperimentsReport, layout: Layout) -> RenderableType:
    """One line for each experiment of a directory."""
    table = _table(experiment_columns(report.lines, report.as_of, report.metric), layout)
    title = Text(f"{count(len(report.lines), 'experiment')} in {report.location}", "dim")
    return Group(table, title, *_problems(report.problems))


def verify_view(report: VerifyReport, layout: Layout) -> RenderableType:
    """What was compared with its checksums, and the verdict."""
    del layout
    journal = f"{count(report.frames, 'frame')}, {count(report.snapshots, 'snapshot')}"
    files = f"{count(report.checkpoints, 'checkpoint')}, {count(report.files, 'file')}"
    facts = {
        "state": Text(f"{journal}, {size(report.state_bytes)}"),
        "checkpoints": Text(f"{files}, {size(report.checkpoint_bytes)}"),
    }
    if report.head is not None and report.head.tear:
        facts["tear"] = Text(report.head.tear, "yellow")
    for note in report.notes:
        facts["note"] = Text(note, "yellow")
    verdict = Text("intact: everything matches its checksums", "green")
    if report.problems:
        verdict = Text(f"NOT intact: {count(len(report.problems), 'problem')}", "red bold")
    return Group(_facts({"location": Text(report.location)} | facts), verdict, *_problems(report.problems))


# -- parts -------------------------------------------------------------------------------------------------


def _head(report: TrialsReport) -> RenderableType:
    head = report.head
    changed = "" if head.last_change_at is None else f", last change {ago(head.last_change_at, head.as_of)}"
    facts = {
        "experiment": Text.assemble((head.name, "bold"), f"  {head.experiment_id}"),
        "location": Text(head.location),
        "created": Text(f"{clock_time(head.created_at)}{changed}"),
        "driver": _driver(head, report.counts.get(TrialStatus.RUNNING, 0)),
        "trials": Text(
            f"{head.trials_total:,}" + (f": {_counts(report.counts)}" if head.trials_total else "")
        ),
    }
    if report.best is not None and report.metric is not None:
        value = metric_number(_metric(report.best, report.metric))
        facts["best"] = Text(f"{printable(report.metric)} = {value}, {printable(report.best.trial.trial_id)}")
    if head.tear:
        facts["tear"] = Text(head.tear, "yellow")
    if head.metadata:
        shown = list(flatten(head.metadata))
        text = ", ".join(f"{printable(name)}={setting(value)}" for name, value in shown[:_NAMES_LISTED])
        facts["metadata"] = Text(text + (", ..." if len(shown) > _NAMES_LISTED else ""))
    return _facts(facts)


def _driver(head: Head, running: int) -> Text:
    writer = head.writer
    who = f"pid {writer.pid} on {printable(writer.hostname or '?')}"
    since = (
        ""
        if writer.since is None
        else f" since {clock_time(writer.since)} ({duration(head.as_of - writer.since)})"
    )
    if writer.state == "live":
        return Text.assemble(("live", "cyan"), f": {who}{since}")
    if writer.state == "unknown":
        return Text(f"{who}{since}; whether it is alive cannot be told from here")
    gone = f"none; the last, {who}, ended without closing"
    if writer.state == "closed":
        when = "" if writer.closed_at is None else f" {ago(writer.closed_at, head.as_of)}"
        gone = f"none; the last, {who}, closed{when}"
    if running:
        verb = "trial has" if running == 1 else "trials have"
        return Text.assemble(gone, "; ", (f"{running:,} RUNNING {verb} no live driver", "yellow"))
    return Text(gone)


def _trial_table(
    rows: Sequence[TrialRow], head: Head, layout: Layout, first: str | None = None
) -> RenderableType:
    if layout.columns is not None:
        columns = chosen_columns(layout.columns, rows, head)
    else:
        columns = trial_columns(rows, head, metrics=layout.metrics, first=first or layout.sort)
    return _table(columns, layout)


def _checkpoint_table(
    entries: Sequence[CheckpointEntry], head: Head, layout: Layout, *, with_trial: bool = False
) -> RenderableType:
    return _table(checkpoint_columns(entries, head.as_of, with_trial=with_trial), layout)


def _table(columns: Sequence[Column], layout: Layout) -> RenderableType:
    shown, left_out = fit_columns(columns, layout.width)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column, width in shown:
        table.add_column(
            Text(column.header),
            justify="right" if column.right else "left",
            width=width,
            no_wrap=True,
            overflow="ellipsis",
        )
    for cells in zip(*(column.cells for column, _ in shown), strict=True):
        table.add_row(*(_cell(column.name, text) for (column, _), text in zip(shown, cells, strict=True)))
    if not left_out:
        return table
    names = ", ".join(column.header for column in left_out[:_NAMES_LISTED])
    more = f" and {len(left_out) - _NAMES_LISTED} more" if len(left_out) > _NAMES_LISTED else ""
    return Group(table, Text(f"no room for: {names}{more}; --wide shows all, --columns chooses", "dim"))


def _cell(name: str, text: str) -> Text:
    if name == "error":
        return Text(text, "red")
    if name == "checkpoint" and text.endswith("MISSING"):
        return Text(text, "red")
    return (
        _status(text)
        if name in {"status", "files are", "driver"}
        else Text(text, "dim" if text == DASH else "")
    )


def _status(text: str) -> Text:
    return Text(text, _STATUS_STYLES.get(text, ""))


def _facts(facts: Mapping[str, Text]) -> RenderableType:
    grid = Table.grid(padding=(0, GAP, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in facts.items():
        grid.add_row(label, value)
    return grid


def _block(title: str, values: Mapping[Any, Any]) -> list[RenderableType]:
    if not values:
        return []
    facts = {f"  {printable(name)}": Text(setting(value)) for name, value in flatten(values)}
    return [Text(), Text(title, "bold"), _facts(facts)]


def _times(row: TrialRow, head: Head) -> str:
    trial = row.trial
    if trial.started_at is None:
        return f"created {clock_time(trial.created_at)}, not started"
    end = "" if trial.ended_at is None else f", ended {ago(trial.ended_at, head.as_of)}"
    return f"{duration(row.duration_s)} from {clock_time(trial.started_at)}{end}"


def _counts(counts: Mapping[TrialStatus, int]) -> str:
    return ", ".join(f"{counts[status]:,} {status.value}" for status in TrialStatus if counts.get(status))


def _problems(problems: Iterable[Problem]) -> list[RenderableType]:
    listed = list(problems)
    lines = [
        Text.assemble(("problem: ", "red bold"), problem.message) for problem in listed[:_PROBLEMS_LISTED]
    ]
    if more := len(listed) - len(lines):
        lines.append(Text(f"... and {count(more, 'more problem')}; --json lists all", "red"))
    return [*lines]


def _metric(row: TrialRow, metric: str) -> Any:
    return find_value(row.trial.last_result, metric)
