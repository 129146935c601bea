"""Owns the pause that threads make after a while of work, so that the event loop gets the interpreter.

By time and not by count: a pause lasts 60 µs or more, which is a third of what the files of a short trial take.
"""

from __future__ import annotations

import threading
import time
from typing import Final

__all__ = ["WORK_S", "breathe"]

WORK_S: Final = 0.001
"""Seconds of work between two pauses: so late the event loop may be, and not the 5 ms of the interpreter."""


class _Thread(threading.local):
    paused_at = 0.0


_thread = _Thread()


def breathe() -> None:
    """Let other threads run if this one has worked for a while. Blocking; cheap enough for each row."""
    if time.perf_counter() - _thread.paused_at >= WORK_S:
        time.sleep(0)
        _thread.paused_at = time.perf_counter()
