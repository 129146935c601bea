"""Owns what a worker process is like for a trial: its output, working directory and signal handlers.

Each is put back when the trial has ended, so that the next one finds none of it. Main thread only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from typing import Final, TextIO

__all__ = ["Surroundings"]

_SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGALRM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_OUTPUTS: Final = ((1, "stdout"), (2, "stderr"))


class Surroundings:
    """Those of this process as they are now.

    Args:
        log_to_file: Output of a trial goes to the files `stdout` and `stderr` in its directory.
    """

    def __init__(self, *, log_to_file: bool) -> None:
        self._log_to_file = log_to_file
        try:
            self._directory: str | None = os.getcwd()
        except FileNotFoundError:  # the driver's own was removed
            self._directory = None
        self._handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        self._originals = {fd: os.dup(fd) for fd, _ in _OUTPUTS}
        self._streams: dict[str, TextIO | None] = {name: getattr(sys, name) for _, name in _OUTPUTS}
        self._restore_streams()

    @contextlib.contextmanager
    def of_trial(self, trial_dir: str) -> Iterator[None]:
        """Within the block a trial may change them."""
        try:
            if self._log_to_file:
                self._redirect(trial_dir)
            yield
        finally:
            self._restore()

    def _redirect(self, trial_dir: str) -> None:
        _flush()
        for fd, name in _OUTPUTS:
            file = os.open(os.path.join(trial_dir, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(file, fd)
            os.close(file)

    def _restore(self) -> None:
        _flush()
        for fd, original in self._originals.items():
            os.dup2(original, fd)
        self._restore_streams()
        if self._directory is not None:
            os.chdir(self._directory)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    def _restore_streams(self) -> None:
        for fd, name in _OUTPUTS:
            stream = self._streams[name]
            if stream is None or stream.closed:
                stream = self._streams[name] = open(fd, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def _flush() -> None:
    """Bring out what was written so far, C's too; what cannot be written is the trial's loss, which is over."""
    for _, name in _OUTPUTS:
        stream = getattr(sys, name)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)
