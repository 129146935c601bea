"""Owns the answer for a directory or bucket of experiments: each is opened, and one that cannot be is a line too."""

from __future__ import annotations

from asynctune.clock import Clock, SystemClock
from asynctune.errors import AsynctuneError, ConfigError, ExperimentNotFoundError
from asynctune.inspect.buckets import experiments_at, full_location, location_below, open_to_read
from asynctune.inspect.reading import Inspection, Query
from asynctune.inspect.report import ExperimentLine, ExperimentsReport, Mode, Problem
from asynctune.inspect.text import path_text, printable
from asynctune.state.mirror.objects import together
from asynctune.store.place import is_uri

__all__ = ["list_experiments"]


async def list_experiments(
    location: str, metric: str | None, mode: Mode | None, clock: Clock | None = None
) -> ExperimentsReport:
    """One line for each experiment in a directory or bucket; one that cannot be read is a line and a problem.

    Args:
        location: The directory, or a bucket with a prefix.
        metric: Metric by which to name the best trials; `None`: each experiment's own, if it has one.
        mode: Which end of it is best; `None` without a metric.
        clock: Time.

    Raises:
        ConfigError: A metric without a mode, or the reverse.
        StorageError, OSError: It cannot be listed.
    """
    if (metric is None) != (mode is None):
        given, missing = ("--metric", "--mode") if mode is None else ("--mode", "--metric")
        raise ConfigError(f"{given} needs {missing} for a directory of experiments")
    clock, location = clock or SystemClock(), full_location(location)
    names = await experiments_at(location)
    waiting = [_line(location_below(location, name), name, metric, mode, clock) for name in names]
    # of a bucket a few at once: most of the time is waiting
    lines = await together(*waiting) if is_uri(location) else [await line for line in waiting]
    return ExperimentsReport(
        location=path_text(location),
        as_of=clock.time(),
        lines=tuple(lines),
        metric=metric,
        problems=tuple(
            Problem("unreadable", f"{line.location}: {line.error}")
            for line in lines
            if line.begun and line.error
        ),
    )


async def _line(
    location: str, name: str, metric: str | None, mode: Mode | None, clock: Clock
) -> ExperimentLine:
    shown, where = path_text(name), path_text(location)
    try:
        async with await open_to_read(location) as store:
            query = Query(limit=1, metric=metric, mode=mode)
            report = await Inspection(store, clock).trials(query)
    except ExperimentNotFoundError as error:
        return ExperimentLine(name=shown, location=where, error=printable(str(error)), begun=False)
    except (AsynctuneError, OSError) as error:
        return ExperimentLine(name=shown, location=where, error=printable(str(error)))
    return ExperimentLine(
        name=shown,
        location=where,
        head=report.head,
        counts=report.counts,
        best=report.best,
        metric=report.metric,
        mode=report.mode,
    )
