"""A driver's end for tests of runners."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

from asynctune import TrialReport, TrialTask
from asynctune.runners.connection import end_process
from asynctune.runners.frames import frame, receive_frame
from asynctune.runners.orders import _hello
from asynctune.runners.spawning import _spawn


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
    except (FileNotFoundError, ProcessLookupError):  # the latter when it is reaped while it is read
        return False


async def ends(pid):
    """Return when it does not run any more; the test's own timeout ends the wait."""
    await until(lambda: not lives(pid))


async def until(condition):
    """Return when it holds, and nothing tells of it; the test's own timeout ends the wait."""
    while not condition():  # noqa: ASYNC110 - no event
        await asyncio.sleep(0.005)


class BareWorker:
    """A worker process whose driver is the test itself: what it says is read message by message. Blocking."""

    def __init__(self, trainable, *, beat_s=1000.0):
        self.connection, theirs = socket.socketpair()
        self.connection.settimeout(30)
        self.process = _spawn(theirs)
        hello = {
            "kind": "hello",
            "path": [os.path.abspath(each) for each in sys.path],
            "argv": [],
            "beat_s": beat_s,
            "log_to_file": False,
            "checkpoint_frequency": 0,
            "checkpoint_at_end": False,
        }
        self.connection.sendall(_hello(hello, trainable))
        assert self.next()["kind"] == "ready"

    def send(self, **message):
        self.connection.sendall(frame(message))

    def run(self, directory, trial_id="t1", **config):
        self.send(
            kind="run",
            task={
                "trial_id": trial_id,
                "trial_name": trial_id,
                "trial_dir": str(directory),
                "config": config,
                "iteration": 0,
                "checkpoint": None,
                "about_checkpoint": {},
            },
        )

    def next(self):
        """What it says but for signs of life; `None` at the end."""
        while (message := receive_frame(self.connection)) is not None and message["kind"] == "beat":
            pass
        return message

    def close(self):
        self.connection.close()
        end_process(self.process)
