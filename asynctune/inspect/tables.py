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
from asynctune.inspect.facts import (
    counts_text,
    experiment_facts,
    facts_grid,
    metric_value,
    status_text,
    times_text,
    trial_facts,
)
from asynctune.inspect.leaks import GarbageReport
from asynctune.inspect.listings import checkpoint_columns, experiment_columns, leak_columns
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
    count,
    duration,
    flatten,
    printable,
    setting,
    size,
)
from asynctune.trial import TrialStatus

__all__ = [
    "WIDE",
    "Layout",
    "best_view",
    "checkpoints_view",
    "experiments_view",
    "gc_view",
    "summary_view",
    "trial_view",
    "trials_view",
    "verify_view",
]

WIDE: Final = 100_000
"""A width that everything fits."""

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
    return Group(facts_grid(experiment_facts(report)), Text(), trials_view(report, layout))


def trials_view(report: TrialsReport, layout: Layout) -> RenderableType:
    """The trial table, with a line for what it leaves out."""
    parts: list[RenderableType] = [_trial_table(report.rows, report.head, layout)] if report.rows else []
    if not report.rows:
        parts.append(Text("no trials yet" if not report.head.trials_total else "no trial matches", "dim"))
    left_out = sum(report.left_out.values())
    if left_out:
        verb = "is" if left_out == 1 else "are"
        statuses = counts_text(report.left_out)
        parts.append(
            Text(
                f"... {count(left_out, 'more trial')} {verb} not shown ({statuses}); --limit 0 shows all",
                "dim",
            )
        )
    return Group(*parts, *_problems(report.problems))


def trial_view(report: TrialReport, layout: Layout) -> RenderableType:
    """Everything about one trial."""
    trial = report.row.trial
    parts: list[RenderableType] = [facts_grid(trial_facts(report))]
    for title, values in (
        ("config", trial.config),
        ("last result", trial.last_result),
        ("metadata", trial.metadata),
    ):
        parts += _block(title, values)
    if trial.error:
        title = "error" if trial.status is TrialStatus.ERROR else "last error"
        parts += [Text(), Text(title, "bold"), Text(printable(trial.error.rstrip(), keep="\n"), "red")]
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
    value = metric_value(row, report.metric)
    facts = {
        "best": Text.assemble(
            (f"{printable(report.metric)} = {value}", "bold"),
            f" ({report.mode} of {count(report.ranked, 'trial')} that reported it)",
        ),
        "trial": Text.assemble(
            (printable(row.trial.trial_id), "bold"), " ", status_text(row.trial.status.value)
        ),
        "iterations": Text(f"{row.iteration}, {times_text(row, report.head)}"),
    }
    parts: list[RenderableType] = [facts_grid(facts), *_block("config", row.trial.config)]
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
    if report.notes:
        facts["notes" if len(report.notes) > 1 else "note"] = Text("\n".join(report.notes), "yellow")
    verdict = Text("intact: everything matches its checksums", "green")
    if report.problems:
        verdict = Text(f"NOT intact: {count(len(report.problems), 'problem')}", "red bold")
    return Group(
        facts_grid({"location": Text(report.location)} | facts), verdict, *_problems(report.problems)
    )


def gc_view(report: GarbageReport, layout: Layout) -> RenderableType:
    """What is left in a bucket, and how much that is."""
    parts: list[RenderableType] = []
    where, hours = report.head.location, duration(report.older_than_s)
    if report.leaks:
        parts.append(_table(leak_columns(report.leaks, report.head.as_of), layout))
        if more := report.leaks_total - len(report.leaks):
            parts.append(Text(f"... {more:,} smaller not shown, --limit 0 shows all", "dim"))
        verb = "was" if report.objects == 1 else "were"
        total = f"{count(report.objects, 'object')}, {size(report.size_bytes)}, {verb} left behind in {where}"
        parts += [Text(total), *_how_to_delete(report)]
    else:
        parts.append(Text(f"nothing older than {hours} was left behind in {where}", "green"))
    if report.uploads_under_way:
        number = count(report.uploads_under_way, "unfinished upload")
        parts.append(
            Text(f"{number} not listed: the driver or the next opening goes on with it, or aborts it", "dim")
        )
    if not report.uploads_listed:
        parts.append(
            Text("unfinished uploads cannot be listed here; the storage removes them by itself", "dim")
        )
    if report.other_objects:
        other = f"{count(report.other_objects, 'object')}, {size(report.other_bytes)}, of other kinds"
        parts.append(Text(f"{other} not listed: asynctune does not make such", "dim"))
    return Group(*parts, *_problems(report.problems))


def _how_to_delete(report: GarbageReport) -> list[Text]:
    """In words: nothing here deletes. A command stands on a line of its own, which is not broken, to be copied."""
    where = report.head.location
    remove, flag = {"s3": ("aws s3 rm", "--recursive"), "gs": ("gcloud storage rm", "-r")}.get(
        where.partition("://")[0], ("rm", "-r")
    )
    uploads = [leak.kind == "upload" for leak in report.leaks]
    lines = [Text("nothing was deleted; by hand, best while no driver is at work:", "dim")]
    if not all(uploads):
        lines.append(Text(f"  {remove} {where}/NAME", "dim", no_wrap=True, overflow="ignore"))
        if any(leak.name.endswith("/") for leak in report.leaks):
            lines.append(Text(f"  with {flag} where NAME ends in /", "dim"))
    if any(uploads):
        lines.append(Text("  an upload: aws s3api abort-multipart-upload, or a lifecycle rule", "dim"))
    return lines


# -- parts -------------------------------------------------------------------------------------------------


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
    copied = head.copy_uri is not None and not head.from_copy
    return _table(checkpoint_columns(entries, head.as_of, with_trial=with_trial, copied=copied), layout)


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
        status_text(text)
        if name in {"status", "files are", "copied", "driver"}
        else Text(text, "dim" if text == DASH else "")
    )


def _block(title: str, values: Mapping[Any, Any]) -> list[RenderableType]:
    if not values:
        return []
    facts = {f"  {printable(name)}": Text(setting(value)) for name, value in flatten(values)}
    return [Text(), Text(title, "bold"), facts_grid(facts)]


def _problems(problems: Iterable[Problem]) -> list[RenderableType]:
    listed = list(problems)
    lines = [
        Text.assemble(("problem: ", "red bold"), problem.message) for problem in listed[:_PROBLEMS_LISTED]
    ]
    if more := len(listed) - len(lines):
        lines.append(Text(f"... and {count(more, 'more problem')}; --json lists all", "red"))
    return [*lines]
