"""Owns the driver's end of a worker process: start it, hand it tasks, hear what comes of them, end it.

Pipes and not a process pool: a worker notices through its own standard input that the driver is gone, however
it died, and a kill leaves nothing of the operating system's behind (semaphores, queues).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, cast

from asynctune.errors import AsynctuneError

__all__ = ["Worker", "WorkerDiedError"]

# One process per core; and one thread sums in one order, so that equal trials give equal numbers.
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

_END_S: Final = 5.0
"""Seconds for a worker to end once its input has; then it is killed."""


class WorkerDiedError(AsynctuneError):
    """The worker process ended in the middle of a task, or never came up."""


class Worker:
    """One process of `asynctune.demo.worker`; one task at a time. Made by `start`."""

    def __init__(self, process: Process, stdin: StreamWriter, stdout: StreamReader) -> None:
        self.pid = process.pid
        self._process = process
        self._stdin = stdin
        self._stdout = stdout

    @classmethod
    async def start(cls) -> Worker:
        """Start the process and wait until it has loaded its data.

        Raises:
            WorkerDiedError: It ended instead; what it printed is on standard error.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "ignore",  # an overflow on the way to a trial's failure is told by the failure
            "-m",
            "asynctune.demo.worker",
            stdin=PIPE,
            stdout=PIPE,
            env=os.environ | _ONE_THREAD,
            start_new_session=True,  # Ctrl-C is for the driver, which then ends its workers
        )
        # Both are there, because both were asked for; the types cannot say so.
        worker = cls(process, cast("StreamWriter", process.stdin), cast("StreamReader", process.stdout))
        try:
            await worker._read()
        except BaseException:
            await worker.aclose()
            raise
        return worker

    async def perform(self, task: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Give the worker a task; its messages, the last of which has `done` or `error`.

        Raises:
            WorkerDiedError: The process ended before the task did.
        """
        self._stdin.write(json.dumps(task).encode("ascii") + b"\n")
        while True:
            message = await self._read()
            yield message
            if "done" in message or "error" in message:
                return

    async def aclose(self) -> None:
        """End the process, in the middle of its task or not, and wait for it."""
        self._stdin.close()
        try:
            async with asyncio.timeout(_END_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _read(self) -> dict[str, Any]:
        line = await self._stdout.readline()
        if not line.endswith(b"\n"):
            code = await self._process.wait()
            raise WorkerDiedError(
                f"worker process {self.pid} ended with exit code {code}; "
                "a negative one is the signal that killed it (-9: often the kernel, short of memory)"
            )
        message: dict[str, Any] = json.loads(line)
        return message
