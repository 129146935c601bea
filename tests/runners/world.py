"""A driver's end for tests of runners."""

from __future__ import annotations

import asyncio
from pathlib import Path

from asynctune import TrialReport, TrialTask


class Reports:
    """Takes a trial's reports, and answers as told."""

    def __init__(self, answers=()):
        self.got = []
        self.answers = dict(answers)

    async def __call__(self, report: TrialReport):
        self.got.append(report)
        await asyncio.sleep(0)  # as a driver's does, so that a trial cannot keep the loop to itself
        answer = self.answers.get(len(self.got), "CONTINUE")
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def metrics(self):
        return [report.metrics for report in self.got]


def task(tmp_path, trial_id="t1", **config):
    directory = tmp_path / trial_id
    directory.mkdir(exist_ok=True)
    return TrialTask(trial_id=trial_id, trial_name=trial_id, trial_dir=str(directory), config=config)


def lives(pid):
    """Whether a process runs; one that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def ends(pid):
    """Return when it does not run any more; the test's own timeout ends the wait."""
    while lives(pid):  # noqa: ASYNC110 - another process sets no event
        await asyncio.sleep(0.01)
