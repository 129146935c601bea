"""Owns what each command asks: one coroutine for each, from a location to a report and what draws it."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from asynctune.inspect import tables
from asynctune.inspect.directory import list_experiments
from asynctune.inspect.garbage import find_garbage
from asynctune.inspect.reading import ManyExperimentsError, Query, experiment
from asynctune.inspect.report import Mode
from asynctune.inspect.screen import Answer
from asynctune.inspect.verifying import verify

__all__ = [
    "answer_best",
    "answer_checkpoints",
    "answer_gc",
    "answer_summary",
    "answer_trial",
    "answer_trials",
    "answer_verify",
]


async def answer_summary(location: str, query: Query) -> Answer:
    """An experiment with its trials, or the experiments of a directory or bucket."""
    try:
        async with experiment(location) as opened:
            return "summary", await opened.trials(query), tables.summary_view
    except ManyExperimentsError:
        report = await list_experiments(location, query.metric, query.mode)
        return "experiments", report, tables.experiments_view


async def answer_trials(location: str, query: Query) -> Answer:
    """The trials that match."""
    async with experiment(location) as opened:
        return "trials", await opened.trials(query), tables.trials_view


async def answer_trial(location: str, trial_id: str) -> Answer:
    """One trial."""
    async with experiment(location) as opened:
        return "trial", await opened.trial(trial_id), tables.trial_view


async def answer_checkpoints(location: str, trial_id: str | None, limit: int) -> Answer:
    """The checkpoints of one trial or all."""
    async with experiment(location) as opened:
        return "checkpoints", await opened.checkpoints(trial_id, limit), tables.checkpoints_view


async def answer_best(location: str, metric: str | None, mode: Mode | None, limit: int) -> Answer:
    """The best trials."""
    async with experiment(location) as opened:
        return "best", await opened.best(metric, mode, limit), tables.best_view


async def answer_gc(location: str, limit: int) -> Answer:
    """What crashed drivers left in the bucket."""
    return "gc", await find_garbage(location, limit), tables.gc_view


async def answer_verify(location: str, *, show_progress: bool) -> Answer:
    """Whether everything is as it was written; on a terminal, how far it is goes to standard error."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("verifying checkpoints"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not (show_progress and console.is_terminal),
    )
    with bar:
        task = bar.add_task("", total=None)
        report = await verify(location, lambda done, of: bar.update(task, completed=done, total=of))
    return "verify", report, tables.verify_view
