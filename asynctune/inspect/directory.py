"""Owns the answer for a directory of experiments: each is opened in turn, and one that cannot be is a line too."""

from __future__ import annotations

import asyncio
import os

from asynctune.clock import Clock, SystemClock
from asynctune.errors import AsynctuneError, ExperimentNotFoundError
from asynctune.inspect.places import experiments_in
from asynctune.inspect.reading import Inspection, Mode, Query
from asynctune.inspect.report import ExperimentLine, ExperimentsReport, Problem
from asynctune.inspect.text import path_text, printable
from asynctune.store.opening import local_path
from asynctune.store.store import ExperimentStore

__all__ = ["list_experiments"]


async def list_experiments(
    location: str, metric: str | None, mode: Mode, clock: Clock | None = None
) -> ExperimentsReport:
    """One line for each experiment in a directory of them; one that cannot be read is a line and a problem.

    Raises:
        ExperimentNotFoundError: There is none.
        OSError: The directory cannot be listed.
    """
    clock, location = clock or SystemClock(), local_path(location)
    names = await asyncio.to_thread(experiments_in, location)
    lines = [await _line(os.path.join(location, name), name, metric, mode, clock) for name in names]
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


async def _line(location: str, name: str, metric: str | None, mode: Mode, clock: Clock) -> ExperimentLine:
    shown, where = path_text(name), path_text(location)
    try:
        async with await ExperimentStore.open(location, mode="read") as store:
            query = Query(limit=1, metric=metric, mode=mode)
            report = await Inspection(store, clock).trials(query)
    except ExperimentNotFoundError as error:
        return ExperimentLine(name=shown, location=where, error=printable(str(error)), begun=False)
    except (AsynctuneError, OSError) as error:
        return ExperimentLine(name=shown, location=where, error=printable(str(error)))
    return ExperimentLine(
        name=shown, location=where, head=report.head, counts=report.counts, best=report.best
    )
