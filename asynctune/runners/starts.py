"""Owns one start of a trial as its driver sees it: its reports until each is answered, and its marker.

The marker is a file in the trial's directory: a node that sees it sees that directory. Who runs the trial is `agents`'.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from asynctune.checkpoints.staging import STAGED_PREFIX
from asynctune.checkpoints.trial_walking import has_own_files
from asynctune.errors import ConfigError
from asynctune.protocols import CONTINUE, Decision, TrialReport, TrialTask
from asynctune.runners.arrivals import Arrivals

__all__ = ["Report", "Start"]

Report = Callable[[TrialReport], Awaitable[Decision]]

_Item = tuple[TrialReport, Mapping[str, Any] | None, asyncio.Future[Any]]


class Start:
    """One start of a trial.

    Args:
        number: Tells it from all others, and those of other openings: it begins with the epoch.
        task: What is run.
        report: Awaited for each report.

    Attributes:
        marker: Path of the marker.
        inbox: Reports: what is made of each, what the node told of its checkpoint, and where the answer goes; `None`:
            the agent says nothing more of this start.
        decision: What the trial was told last to do.
        has_ended: The agent has said that it does not run any more.
        had_to_be_ended: It did not stop as it was told.
        real_dir: The trial's directory without links; known once `prepare` was called.
        has_files: Earlier starts have left files of their own there; known likewise.
        claimed: Directories beside the trial of which the driver was told; others that came are nobody's.
    """

    def __init__(self, number: str, task: TrialTask, report: Report) -> None:
        self.number = number
        self.task = task
        self.marker = os.path.join(task.trial_dir, f"{STAGED_PREFIX}marker-{secrets.token_hex(8)}")
        self.inbox: asyncio.Queue[_Item | None] = asyncio.Queue()
        self.decision: Decision = CONTINUE
        self.has_ended = False
        self.had_to_be_ended = False
        self.real_dir = task.trial_dir
        self.has_files = False
        self.claimed: set[str] = set()
        self._report = report

    def prepare(self) -> None:
        """Make the marker. Blocking."""
        self.real_dir = os.path.realpath(self.task.trial_dir)
        self.has_files = has_own_files(self.real_dir)
        os.close(os.open(self.marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def remove_marker(self) -> None:
        """Again: does nothing. Blocking."""
        with suppress(FileNotFoundError):
            os.unlink(self.marker)

    def refuse(self) -> None:
        """Reports that were not taken never will be."""
        while not self.inbox.empty():
            if (item := self.inbox.get_nowait()) is not None:
                item[-1].cancel()

    async def answer(self, item: _Item, arrivals: Arrivals) -> None:
        """Hand a report on, and answer it; what the trial did wrong is raised where it was done."""
        report, told, answer = item
        if isinstance(report.checkpoint, Mapping):
            self.claimed.add(report.checkpoint["path"])
        try:
            decision = await self._report(report)
        except BaseException as error:
            if isinstance(report.checkpoint, Mapping):  # nobody adopts it, and what was adopted is elsewhere
                await asyncio.to_thread(shutil.rmtree, report.checkpoint["path"], True)
            if not isinstance(error, ConfigError):
                answer.cancel()
                raise
            if not answer.done():
                answer.set_exception(error)
            return
        finally:
            if told is not None and "waits" in told:
                arrivals.answered(told)
        if self.decision == CONTINUE:
            self.decision = decision
        if not answer.done():
            answer.set_result({"decision": decision})
