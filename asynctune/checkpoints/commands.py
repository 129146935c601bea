"""Owns the running of one command to its end: no shell, a session of its own, its output, and how it is stopped.

All that touches the process happens in one thread: starting a program may wait for a network filesystem, and nobody
else has to be kept from signalling a process number that was given to another one. Knows nothing of what commands do.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

__all__ = ["CommandEnd", "in_daemon_thread", "run_command"]

T = TypeVar("T")

_LOOK_S: Final = 0.05
_GRACE_LOOKS: Final = 40  # two seconds to end by itself after SIGTERM
_KILL_LOOKS: Final = 100  # five seconds until a process that even SIGKILL does not end is left alone
_MOST_OUTPUT_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class CommandEnd:
    """How a command ended.

    Attributes:
        code: Its exit code, or the negative number of the signal that killed it.
        output: The end of what it wrote to standard output and standard error.
    """

    code: int
    output: bytes


async def run_command(arguments: Sequence[str]) -> CommandEnd:
    """Run a program, found along `PATH`, with nothing to read.

    A cancelled caller gets the cancellation when the command, with all that it has started and that has not left its
    process group, has ended: by SIGTERM, and two seconds later by SIGKILL.

    Raises:
        OSError: It cannot be started.
    """
    stop = threading.Event()
    future = in_daemon_thread("asynctune-command", lambda: _run(arguments, stop))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # it was asked to end: how is of no interest
        raise


def in_daemon_thread(name: str, function: Callable[[], T]) -> asyncio.Future[T]:
    """Call `function` in a thread of its own, for which the interpreter does not wait when it ends."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def done(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        elif isinstance(error, StopIteration):  # which no future takes
            future.set_exception(RuntimeError(f"raised {error!r}"))
        else:
            future.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as caught:  # noqa: BLE001 - handed to the caller, whatever it is
            error = caught
        with suppress(RuntimeError):  # the loop is closed: nobody is left who could want the answer
            loop.call_soon_threadsafe(done, result, error)

    threading.Thread(target=work, name=name, daemon=True).start()
    return future


def _run(arguments: Sequence[str], stop: threading.Event) -> CommandEnd:
    process = subprocess.Popen(  # noqa: S603 - no shell, and the arguments are one list
        list(arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout:
        output = _Output(process.stdout.fileno())
        looks_since_stop = 0
        while not _has_exited(process):
            output.read(_LOOK_S)
            if stop.is_set():
                if looks_since_stop == 0:
                    _signal_group(process, signal.SIGTERM)
                if looks_since_stop == _GRACE_LOOKS:
                    _signal_group(process, signal.SIGKILL)
                if looks_since_stop == _GRACE_LOOKS + _KILL_LOOKS:
                    process.returncode = -signal.SIGKILL  # nothing ends it, so nobody waits for it
                    return CommandEnd(process.returncode, output.end)
                looks_since_stop += 1
        while output.read(0):
            pass
        if stop.is_set():
            _signal_group(process, signal.SIGKILL)  # what it started, and did not end
        return CommandEnd(process.wait(), output.end)


class _Output:
    """The end of what comes out of a pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN | select.POLLHUP)
        self._is_open = True
        self.end = b""

    def read(self, seconds: float) -> bool:
        """Wait at most so long for something, and take it; whether something came."""
        if not self._is_open:
            time.sleep(seconds)
            return False
        if not self._poll.poll(seconds * 1000):
            return False
        data = os.read(self._fd, 65536)
        self._is_open = bool(data)
        self.end = (self.end + data)[-_MOST_OUTPUT_BYTES:]
        return self._is_open


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended. It is not reaped, so that its number and its group's stay its own."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
