"""Owns the driver's end of one worker process: messages, signs of life, and what its death says."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from typing import Any, Final, Self

from asynctune.runners.frames import FrameError, frame, read_frame

__all__ = ["Connection", "WorkerLostError", "end_process"]

_GRACE_S: Final = 2.0
_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")


class WorkerLostError(Exception):
    """The worker is gone or of no use any more; says why, to follow `the worker process`."""


class Connection:
    """One worker process. One caller at a time.

    Args:
        process: The process.
        reader: From it.
        writer: To it.
        hung_after_s: Without a sign of life or CPU time for so long, it is killed.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        hung_after_s: float,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._hung_after_s = hung_after_s
        self._hung = False
        self._reading: asyncio.Task[Any] | None = (
            None  # outlives a wait that was cancelled: no message is lost
        )

    @classmethod
    async def over(
        cls,
        connection: socket.socket,
        process: subprocess.Popen[bytes],
        *,
        hung_after_s: float,
    ) -> Self:
        """The worker at the other end of a connected socket, which is taken over."""
        reader, writer = await asyncio.open_connection(sock=connection)
        return cls(process, reader, writer, hung_after_s=hung_after_s)

    @property
    def is_alive(self) -> bool:
        """Whether the process has not been seen to end."""
        return self._process.poll() is None and not self._reader.at_eof()

    async def send(self, message: Mapping[str, Any], what: str = "message") -> None:
        """Send one message.

        Raises:
            ConfigError: It cannot be packed.
            WorkerLostError: Nobody is there.
        """
        data = frame(message, what)
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError as error:
            raise await self._lost() from error

    async def receive(self) -> Mapping[str, Any]:
        """The next message that is no sign of life.

        Raises:
            WorkerLostError: The process ended, hung and was killed, or said something that makes no sense.
        """
        used: float | None = None
        while True:
            if self._reading is None:
                self._reading = asyncio.create_task(read_frame(self._reader))
            done, _ = await asyncio.wait([self._reading], timeout=self._hung_after_s)
            if not done:
                before, used = used, await asyncio.to_thread(cpu_seconds, self._process.pid)
                if used is not None and (before is None or used > before):
                    continue  # it computes, and holds the interpreter meanwhile
                self._hung = True
                raise await self._lost()
            used = None
            message = self._take()
            if message is None:
                raise await self._lost()
            if not isinstance(message, Mapping):
                raise WorkerLostError(
                    f"said {message!r:.80}, which makes no sense; print to standard error instead"
                )
            if message.get("kind") != "beat":
                return message

    async def aclose(self) -> None:
        """Kill the process if it lives, and reap it. Again: does nothing."""
        if self._reading is not None:
            self._reading.cancel()
        self._writer.close()
        await asyncio.shield(asyncio.to_thread(end_process, self._process))

    def _take(self) -> Any:
        assert self._reading is not None
        reading, self._reading = self._reading, None
        try:
            return reading.result()
        except FrameError as error:
            raise WorkerLostError(f"sent what cannot be read ({error})") from error

    async def _lost(self) -> WorkerLostError:
        """Why nobody answers."""
        # It may be on its way out by itself, and its exit code tells why.
        code = await asyncio.to_thread(end_process, self._process, 0.0 if self._hung else _GRACE_S)
        if self._hung:
            return WorkerLostError(
                f"gave no sign of life and used no CPU time for {self._hung_after_s:g} s, and was killed"
            )
        if code == -signal.SIGKILL:
            return WorkerLostError("was killed by SIGKILL, as the kernel does when memory runs out")
        if code < 0:
            return WorkerLostError(f"was killed by {_signal_name(-code)}")
        return WorkerLostError(f"ended with exit code {code} while its trial ran")


def end_process(process: subprocess.Popen[bytes], grace_s: float = 0.0) -> int:
    """Reap a process, which is killed if it does not end within `grace_s`; its exit code. Blocking."""
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def cpu_seconds(pid: int) -> float | None:
    """CPU time that a process has used so far; `None` where that cannot be known."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS
    except (OSError, IndexError, ValueError):
        return None
