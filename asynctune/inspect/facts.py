"""Owns the labelled lines that stand above tables: what is said of an experiment, and of one trial. Pure.

Every text has been through `text.printable`, or is printable as reports have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from asynctune.inspect.columns import GAP
from asynctune.inspect.report import Head, SavedState, TrialReport, TrialRow, TrialsReport, Tuning
from asynctune.inspect.text import (
    ago,
    clock_time,
    count,
    duration,
    flatten,
    metric_number,
    printable,
    setting,
)
from asynctune.inspect.tuned import KNOWN_FORM, OWN_PREFIX, UNKNOWN
from asynctune.metrics import find_value
from asynctune.trial import TrialStatus

__all__ = [
    "counts_text",
    "experiment_facts",
    "facts_grid",
    "metric_value",
    "status_text",
    "times_text",
    "trial_facts",
]

_STYLES: Final = {
    "RUNNING": "cyan",
    "TERMINATED": "green",
    "ERROR": "red",
    "PAUSED": "yellow",
    "PENDING": "dim",
    "MISSING": "red",
    "not there yet": "yellow",
    "not yet": "yellow",
    "live": "cyan",
    "dead": "yellow",
    "cannot be read": "red",
}
_NAMES_LISTED: Final = 12


def facts_grid(facts: Mapping[str, Text]) -> RenderableType:
    """Labels, and beside them what they say."""
    grid = Table.grid(padding=(0, GAP, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in facts.items():
        grid.add_row(label, value)
    return grid


def status_text(text: str) -> Text:
    """A status, or another word of that kind, in its color."""
    return Text(text, _STYLES.get(text, ""))


def counts_text(counts: Mapping[TrialStatus, int]) -> str:
    """`3 RUNNING, 1 ERROR`."""
    return ", ".join(f"{counts[status]:,} {status.value}" for status in TrialStatus if counts.get(status))


def metric_value(row: TrialRow, metric: str) -> str:
    """The last value of a metric."""
    return metric_number(find_value(row.trial.last_result, metric))


# -- an experiment -----------------------------------------------------------------------------------------


def experiment_facts(report: TrialsReport) -> dict[str, Text]:
    """Where it is, who drives it, how it searches, how far it is."""
    head = report.head
    is_directory = "://" not in head.location
    changed = "" if head.last_change_at is None else f", last change {ago(head.last_change_at, head.as_of)}"
    facts = {
        "experiment": Text.assemble((head.name, "bold"), f"  {head.experiment_id}"),
        "location": Text(head.location + (", a copy" if head.from_copy and is_directory else "")),
        "created": Text(f"{clock_time(head.created_at)}{changed}"),
        "driver": _driver(head, report.counts.get(TrialStatus.RUNNING, 0)),
    }
    if head.copy_uri is not None and not head.from_copy:
        facts["copy"] = Text(head.copy_uri)
    facts |= _search_facts(head)
    trials = f"{head.trials_total:,}" + (f": {counts_text(report.counts)}" if head.trials_total else "")
    facts["trials"] = Text(trials)
    if head.tuning is not None and (failures := _failures(report)):
        facts["failures"] = Text(failures)
    if report.best is not None and report.metric is not None:
        value, best = metric_value(report.best, report.metric), report.best.trial.trial_id
        other = "" if head.objective in {None, (report.metric, report.mode)} else f" ({report.mode})"
        facts["best"] = Text(f"{printable(report.metric)} = {value}{other}, {printable(best)}")
    if head.tear:
        facts["tear"] = Text(head.tear, "yellow")
    if notes := _notes(head):
        shown = list(flatten(notes))
        text = ", ".join(f"{printable(name)}={setting(value)}" for name, value in shown[:_NAMES_LISTED])
        facts["metadata"] = Text(text + (", ..." if len(shown) > _NAMES_LISTED else ""))
    return facts


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


def _notes(head: Head) -> Mapping[str, Any]:
    """The driver's own metadata: what a Tuner keeps there is said in words."""
    if head.tuning is None:
        return head.metadata
    return {name: value for name, value in head.metadata.items() if not name.startswith(OWN_PREFIX)}


def _failures(report: TrialsReport) -> str:
    said = []
    if report.failures:
        retried = f"{report.retries:,} tried again" if report.retries else "none tried again"
        said.append(f"{report.failures:,} in {count(report.failed_trials, 'trial')}, {retried}")
    if over := len(report.head.started_over):
        said.append(f"{count(over, 'trial')} {'was' if over == 1 else 'were'} started over")
    return "; ".join(said)


# -- its search --------------------------------------------------------------------------------------------


def _search_facts(head: Head) -> dict[str, Text]:
    """Searcher, scheduler and callbacks, each with how far its saved state is, and what a Tuner says besides."""
    tuning = head.tuning
    facts: dict[str, Text] = {}
    words: dict[str, str | None] = {"searcher": None, "scheduler": None, "callbacks": None}
    if tuning is not None:
        if tuning.form != KNOWN_FORM:
            said = f"of a form that is not known here ({'none' if tuning.form is None else tuning.form})"
            facts["settings"] = Text(f"{said}; shown is what can be", "yellow")
        if tuning.trainable is not None:
            facts["trainable"] = Text(_trainable(tuning))
        words["searcher"] = tuning.search
        words["scheduler"] = "FIFO, stops no trial early" if tuning.scheduler is None else tuning.scheduler
        words["callbacks"] = ", ".join(tuning.callbacks) or None
    for name, what in words.items():
        parts = [] if what is None else [Text(what)]
        if name in head.states:
            parts.append(_state(head.states[name], head))
        elif tuning is not None and name in _has_state(tuning):
            parts.append(Text("no state saved yet"))
        if parts:
            facts[name] = Text("; ").join(parts)
    if head.objective is not None:
        facts["metric"] = Text(f"{printable(head.objective[0])}, {head.objective[1]}")
    if tuning is not None:
        facts["samples"] = Text(_samples(tuning))
        facts["run"] = Text(_run(tuning))
    return facts


def _has_state(tuning: Tuning) -> set[str]:
    """What will have a saved state at the latest when trials run."""
    known = {"searcher": tuning.searcher, "scheduler": tuning.scheduler or UNKNOWN}
    return {name for name, given in known.items() if given != UNKNOWN}


def _trainable(tuning: Tuning) -> str:
    runner = "" if tuning.runner is None else f", run by {tuning.runner}"
    return f"{tuning.trainable}" + ("" if tuning.kind is None else f" ({tuning.kind})") + runner


def _state(state: SavedState, head: Head) -> Text:
    if state.seq is None:
        return Text("its saved state cannot be read", "red")
    behind = ""
    if state.events_behind is not None:
        behind = f", {count(state.events_behind, 'event')} behind" if state.events_behind else ", up to date"
    return Text(f"state of commit {state.seq:,} of {head.seq:,}{behind}")


def _samples(tuning: Tuning) -> str:
    proposed = f"{tuning.samples_proposed:,}"
    if tuning.samples_planned is not None:
        grid = tuning.grid_size or 1
        times = f" ({tuning.num_samples:,} x a grid of {grid:,})" if grid > 1 else ""
        return f"{proposed} of {tuning.samples_planned:,} proposed{times}"
    if tuning.num_samples is None:
        return f"{proposed} proposed"
    return f"{proposed} proposed, " + (
        "without end" if tuning.num_samples < 0 else f"num_samples={tuning.num_samples:,}"
    )


def _run(tuning: Tuning) -> str:
    finished = {True: "finished", False: "not finished", None: "whether it is finished is not known"}[
        tuning.finished
    ]
    times = {0: "never restored", 1: "restored once"}.get(
        tuning.restores, f"restored {tuning.restores:,} times"
    )
    return f"{finished}, {times}"


# -- one trial ---------------------------------------------------------------------------------------------


def trial_facts(report: TrialReport) -> dict[str, Text]:
    """What a trial is and how it went."""
    row, trial = report.row, report.row.trial
    facts = {"trial": Text(printable(trial.trial_id), "bold")}
    if trial.trial_name != trial.trial_id:
        facts["name"] = Text(printable(trial.trial_name))
    facts["status"] = status_text(trial.status.value)
    if row.started_over_as is not None:
        facts["status"].append(f", started over as {printable(row.started_over_as)}", "")
    if row.in_place_of is not None:
        facts["in place of"] = Text(f"{printable(row.in_place_of)}, which failed")
    facts["iterations"] = Text(f"{row.iteration} ({count(trial.num_results, 'result')})")
    facts["times"] = Text(times_text(row, report.head))
    facts["directory"] = Text(report.directory)
    if trial.num_failures:
        facts["failures"] = Text(_retries(row))
    return facts


def _retries(row: TrialRow) -> str:
    failures, ended = row.trial.num_failures, row.trial.status is TrialStatus.ERROR
    retried = failures - ended
    if not retried:
        return f"{failures}, not tried again"
    return f"{failures}, tried again " + ("once" if retried == 1 else f"{retried} times")


def times_text(row: TrialRow, head: Head) -> str:
    """How long a trial took, from when to when."""
    trial = row.trial
    if trial.started_at is None:
        return f"created {clock_time(trial.created_at)}, not started"
    end = "" if trial.ended_at is None else f", ended {ago(trial.ended_at, head.as_of)}"
    return f"{duration(row.duration_s)} from {clock_time(trial.started_at)}{end}"
