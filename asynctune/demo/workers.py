"""Owns the driver's end of a worker process: start it, hand it tasks, hear what comes of them, end it.

One socket each and not a process pool: a worker notices through its end that the driver is gone, however it
died, and a kill leaves nothing of the operating system's behind (semaphores, queues).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from asynctune.errors import AsynctuneError

__all__ = ["Worker", "WorkerDiedError"]

# One process per core; and one thread sums in one order, so that equal trials give equal numbers.
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# An overflow on the way to a trial's failure is told by the failure.
_COMMAND: Final = [sys.executable, "-W", "ignore", "-m", "asynctune.demo.worker"]

_END_S: Final = 5.0
"""Seconds for a worker to end once it was told to; then it is killed."""


_STARTS: Final = 3
"""How often a start is tried: something may have killed the process for no fault of its own."""


class WorkerDiedError(AsynctuneError):
    """The worker process ended in the middle of a task, or never came up."""


class Worker:
    """One process of `asynctune.demo.worker`; one task at a time. Made by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], reader: StreamReader, writer: StreamWriter) -> None:
        self.pid = process.pid
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls) -> Worker:
        """Start the process and wait until it has loaded its data.

        Raises:
            WorkerDiedError: It ended instead, three times; what it printed is on standard error.
        """
        for _ in range(_STARTS - 1):
            try:
                return await cls._start_once()
            except WorkerDiedError:
                continue
        return await cls._start_once()

    @classmethod
    async def _start_once(cls) -> Worker:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        spawning = asyncio.ensure_future(asyncio.to_thread(_spawn, theirs))
        try:
            worker = cls(await asyncio.shield(spawning), reader, writer)
        except asyncio.CancelledError:
            worker = cls(await spawning, reader, writer)  # it is on its way, and only we can end it
            await worker.aclose()
            raise
        except BaseException:
            writer.close()
            raise
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
        self._writer.write(json.dumps(task).encode("ascii") + b"\n")
        while True:
            message = await self._read()
            yield message
            if "done" in message or "error" in message:
                return

    async def aclose(self) -> None:
        """End the process, in the middle of its task or not, and wait for it."""
        self._writer.close()
        await asyncio.shield(asyncio.to_thread(_reap, self._process))

    async def _read(self) -> dict[str, Any]:
        try:
            line = await self._reader.readline()
        except ConnectionError:
            line = b""
        if not line.endswith(b"\n"):
            code = await asyncio.shield(asyncio.to_thread(_reap, self._process))
            raise WorkerDiedError(
                f"worker process {self.pid} ended with exit code {code}; "
                "a negative one is the signal that killed it (-9: often the kernel, short of memory)"
            )
        message: dict[str, Any] = json.loads(line)
        return message


def _spawn(theirs: socket.socket) -> subprocess.Popen[bytes]:
    with theirs:
        return subprocess.Popen(  # noqa: S603 - a fixed command
            _COMMAND,
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            env=os.environ | _ONE_THREAD,
            start_new_session=True,  # Ctrl-C is for the driver, which then ends its workers
        )


def _reap(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
