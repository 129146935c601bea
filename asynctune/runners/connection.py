"""Owns the driver's end of one worker process: messages, signs of life, and what its death says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Self

from asynctune.runners.frames import FrameError, FrameReader, frame

__all__ = ["Connection", "WorkerLostError", "end_process"]

_GRACE_S: Final = 2.0
_LOOK_S: Final = 1.0
_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")


class WorkerLostError(Exception):
    """The worker is gone or of no use any more; says why, to follow `the worker process`.

    Attributes:
        signal: The number of the signal that killed it, if one did.
    """

    signal: int | None = None


class Connection(asyncio.Protocol):
    """One worker process, which leads a process group of its own. One caller at a time.

    Args:
        process: The process.
        hung_after_s: Without a sign of life or CPU time for so long, it is killed.
    """

    def __init__(self, process: subprocess.Popen[bytes], *, hung_after_s: float) -> None:
        self._process = process
        self._hung_after_s = hung_after_s
        self._look_s = min(_LOOK_S, hung_after_s / 4)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._frames = FrameReader()
        self._inbox: deque[Any] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._heard = 0  # how often anything came
        self._problem: str | None = None
        self._ended = False

    @classmethod
    async def over(
        cls,
        connection: socket.socket,
        process: subprocess.Popen[bytes],
        *,
        hung_after_s: float,
    ) -> Self:
        """The worker at the other end of a connected socket, which is taken over; cancelled, it is killed."""
        made = cls(process, hung_after_s=hung_after_s)
        try:
            await made._loop.create_unix_connection(lambda: made, sock=connection)
        except BaseException:
            connection.close()
            await made.aclose()
            raise
        made._look()
        return made

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process has not been seen to end."""
        return not self._ended and not has_exited(self._process)

    async def send(self, message: Mapping[str, Any] | bytes, what: str = "message") -> None:
        """Send one message, which may be a frame already.

        Raises:
            ConfigError: It cannot be packed.
            WorkerLostError: Nobody is there.
        """
        data = message if isinstance(message, bytes) else frame(message, what)
        if self._ended or self._transport is None:
            raise await self._lost()
        self._transport.write(data)

    async def receive(self) -> Mapping[str, Any]:
        """The next message that is no sign of life.

        Raises:
            WorkerLostError: The process ended, hung and was killed, or said something that makes no sense.
        """
        quiet_for, used, gone = 0.0, None, False
        while True:
            heard = self._heard
            if not self._inbox and not self._ended:
                await self._next()
            if self._inbox:
                message = self._inbox.popleft()
                if not isinstance(message, Mapping):
                    raise WorkerLostError(f"said {message!r:.80}, which makes no sense")
                return message
            if self._ended or gone:
                raise await self._lost()
            if self._heard != heard:
                quiet_for, used = 0.0, None
                continue
            # What a process said at its end is read first. Its socket may live on in a process that it started.
            gone = has_exited(self._process)
            # Counted in looks, not read from a clock: a driver that was suspended itself blames nobody.
            quiet_for += self._look_s
            before, used = used, await asyncio.to_thread(cpu_seconds, self._process.pid)
            if before is not None and used is not None and used > before:
                quiet_for = 0.0  # it computes, and holds the interpreter meanwhile
            if quiet_for >= self._hung_after_s and self._heard == heard:
                self._problem = (
                    f"gave no sign of life and used no CPU time for {self._hung_after_s:g} s, and was killed"
                )
                raise await self._lost()

    async def aclose(self, farewell: Mapping[str, Any] | None = None, *, grace_s: float = 0.0) -> None:
        """End the process and those that it started, and reap it. Again: does nothing.

        Args:
            farewell: A message after which it ends by itself.
            grace_s: For so many seconds; then it is killed.
        """
        asked = farewell is not None and self.is_alive and self._transport is not None
        if asked and self._transport is not None and farewell is not None:
            self._transport.write(frame(farewell))
        else:
            kill_group(self._process)
        if self._looking is not None:
            self._looking.cancel()
        try:
            # In a thread that goes on when the caller is cancelled.
            await asyncio.shield(asyncio.to_thread(end_process, self._process, grace_s if asked else 0.0))
        except asyncio.CancelledError:
            kill_group(self._process)
            raise
        finally:
            if self._transport is not None:
                self._transport.abort()

    # -- what the loop calls -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is the loop's."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Something came; it wakes the caller if it is for them."""
        self._heard += 1
        try:
            messages = self._frames.feed(data)
        except FrameError as error:
            self._problem = f"sent what cannot be read ({error})"
            self._end()
            return
        said = [each for each in messages if not (isinstance(each, Mapping) and each.get("kind") == "beat")]
        if said:
            self._inbox.extend(said)
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the exit code says more
        """Nothing comes any more."""
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._wake()

    def _look(self) -> None:
        self._looking = self._loop.call_later(self._look_s, self._look)
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _next(self) -> None:
        """Return when something came, or it is time to look at the process."""
        self._waiting = self._loop.create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    async def _lost(self) -> WorkerLostError:
        """Why nobody answers."""
        if self._problem is not None:
            await asyncio.to_thread(end_process, self._process)
            return WorkerLostError(self._problem)
        # It may be on its way out by itself, and its exit code tells why.
        if not await asyncio.to_thread(wait_for, self._process, _GRACE_S):
            await asyncio.to_thread(end_process, self._process)
            return WorkerLostError("closed its connection to the driver, and was killed")
        code = await asyncio.to_thread(end_process, self._process)
        if code == -signal.SIGKILL:
            return WorkerLostError("was killed by SIGKILL, as the kernel does when memory runs out")
        if code < 0:
            lost = WorkerLostError(f"was killed by {_signal_name(-code)}")
            lost.signal = -code
            return lost
        return WorkerLostError(f"ended with exit code {code} while its trial ran")


def has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended. It is not reaped, so that its number and its group's stay its own."""
    if process.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def wait_for(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait until a process has ended, no longer than this; whether it has. Blocking."""
    pause, left = 0.001, seconds
    while not (exited := has_exited(process)) and left > 0:
        time.sleep(min(pause, left))
        left -= pause
        pause = min(2 * pause, 0.05)
    return exited


def end_process(process: subprocess.Popen[bytes], grace_s: float = 0.0) -> int:
    """Reap a process, which is killed if it does not end within `grace_s`, and its group; its exit code. Blocking."""
    wait_for(process, grace_s)
    kill_group(process)
    return process.wait()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was not reaped, and what it started, unless that has left its group."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


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
