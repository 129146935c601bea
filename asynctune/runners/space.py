"""Owns how a worker waits for space on a full disk, as the store does for its own writes. Blocking."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final, TypeVar

from asynctune.errors import StorageError
from asynctune.files import is_disk_full

__all__ = ["is_for_space", "when_there_is_space"]

T = TypeVar("T")

_BETWEEN_S: Final = 1.0


def when_there_is_space(write: Callable[[], T]) -> T:
    """What `write` returns, which is called again until the disk has space for it; what else it raises passes."""
    is_told = False
    while True:
        try:
            return write()
        except StorageError as error:
            if not is_for_space(error):
                raise
            if not is_told:
                print(f"the trial waits for space: {error}", file=sys.stderr, flush=True)  # noqa: T201 - its output
                is_told = True
        time.sleep(_BETWEEN_S)


def is_for_space(error: BaseException) -> bool:
    """Whether the disk was full, of an error that tells so by its cause."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and is_disk_full(cause):
            return True
        cause = cause.__cause__
    return False
