"""Owns what SIGINT and SIGTERM mean to a running Tuner: the first stops it well, the second ends the process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["StopSignal", "stopping_on_signals"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Which signal came, if one did."""

    received: signal.Signals | None = None


@contextlib.contextmanager
def stopping_on_signals(stop: Callable[[signal.Signals], None]) -> Iterator[StopSignal]:
    """Call `stop` at the first signal within the block; a second one ends the process at once.

    Only in the main thread; elsewhere signals belong to whoever runs that. What was acknowledged is on the disk, so
    ending at once loses nothing of it.
    """
    seen = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    loop = asyncio.get_running_loop()
    before = {each: signal.getsignal(each) for each in _SIGNALS}

    def handle(number: signal.Signals) -> None:
        if seen.received is not None:
            os._exit(128 + number)
        seen.received = number
        stop(number)

    for each in _SIGNALS:
        loop.add_signal_handler(each, handle, each)
    try:
        yield seen
    finally:
        for each in _SIGNALS:
            loop.remove_signal_handler(each)
            if before[each] is not None:
                signal.signal(each, before[each])
