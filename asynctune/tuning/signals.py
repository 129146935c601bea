"""Owns what SIGINT and SIGTERM mean to a running Tuner: the first stops it well, the second ends the process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

__all__ = ["StopSignal", "stopping_on_signals"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR: Final = b"\x1b[?25h\n"


class StopSignal:
    """Which signal came, if one did."""

    received: signal.Signals | None = None


# Of the whole process, as signals are: several Tuners may run in one loop, and end in any order.
_stopping: dict[StopSignal, Callable[[signal.Signals], None]] = {}
_before: dict[signal.Signals, Any] = {}


@contextlib.contextmanager
def stopping_on_signals(stop: Callable[[signal.Signals], None]) -> Iterator[StopSignal]:
    """Call `stop` in the loop at the first signal within the block; a second one ends the process at once.

    Only in the main thread; elsewhere signals belong to whoever runs that. A signal that the program ignores, or
    has a handler of its own for, stays with it. What was acknowledged is on the disk, so ending at once loses
    nothing of it.
    """
    seen = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    loop = asyncio.get_running_loop()

    def stop_soon(number: signal.Signals) -> None:
        # A closed loop has nothing left to stop.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stop, number)

    if not _stopping:
        # Not the loop's own handlers: they are only called when the loop turns, and it may be stuck.
        for each in _SIGNALS:
            if _is_default(handler := signal.getsignal(each)):
                _before[each] = handler
                signal.signal(each, _handle)
    _stopping[seen] = stop_soon
    try:
        yield seen
    finally:
        del _stopping[seen]
        if not _stopping:
            for each, handler in _before.items():
                # Somebody else's handler, set in the meantime, is theirs.
                if signal.getsignal(each) is _handle:
                    signal.signal(each, handler)
            _before.clear()


def _handle(received: int, _frame: FrameType | None) -> None:
    number = signal.Signals(received)
    first = [seen for seen in _stopping if seen.received is None]
    if not first:
        if os.isatty(2):  # on which a picture may be drawn, without a cursor
            with contextlib.suppress(OSError):
                os.write(2, _SHOW_CURSOR)
        os._exit(128 + number)
    for seen in first:
        seen.received = number
        _stopping[seen](number)


def _is_default(handler: Any) -> bool:
    """Whether nobody but Python and asyncio has chosen this handler."""
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    runner = getattr(getattr(handler, "func", None), "__self__", None)  # `asyncio.run` cancels its main task
    return isinstance(runner, asyncio.Runner)
