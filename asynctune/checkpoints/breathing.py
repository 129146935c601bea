"""Owns the pause that long loops in a thread make, so that the event loop gets the interpreter in time. No I/O."""

from __future__ import annotations

import asyncio
import time
from typing import Final

__all__ = ["FILES_BETWEEN_BREATHS", "breathe"]

FILES_BETWEEN_BREATHS: Final = 128
"""How many small things a loop does between two pauses: well below a millisecond."""


def breathe() -> None:
    """Let other threads run; does nothing on an event loop, which must not wait.

    A thread in a pure Python loop keeps the interpreter for 5 ms at a time, and the loop lags by as much.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        time.sleep(0)
