"""The driver's end of a worker process: start it, hand it tasks, hear what comes of them, end it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from typing import Any

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")

# One process per core; and one thread sums in one order, so that equal trials give equal numbers.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class WorkerDiedError(Exception):
    """The worker process ended in the middle of a task."""


class Worker:
    """One process of `worker.py`; one task at a time. Made by `start`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls) -> Worker:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-W", "ignore", SCRIPT),  # an overflow on the way to a trial's failure is told by the failure
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | ONE_THREAD,
            start_new_session=True,  # Ctrl-C is for the driver, which then ends its workers
        )
        return cls(process)

    async def perform(self, task: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Give the worker a task; its messages, the last of which may be an `error`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(task).encode("ascii") + b"\n")
        while True:
            line = await self.process.stdout.readline()
            if not line.endswith(b"\n"):
                code = await self.process.wait()
                raise WorkerDiedError(f"worker process {self.process.pid} ended with exit code {code}")
            message: dict[str, Any] = json.loads(line)
            if "done" in message:
                return
            yield message
            if "error" in message:
                return

    async def aclose(self) -> None:
        """End the process, in the middle of its task or not, and wait for it."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
