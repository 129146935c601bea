"""Owns the driver's sign of life: a file that says, to a few milliseconds, when it died and at what.

A killed process can write nothing, so it has to have been written before. `Heartbeat.beat` stores into a
memory-mapped file: no system call, so that it may happen on the event loop a hundred times a second, and the
kernel keeps the pages when the process is killed. (They are not synced: after a power loss the file may be
older than the journal. `read_last_words` gives what is there, and the driver compares it with the journal.)
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from asynctune.errors import ConfigError

__all__ = ["INTERVAL_S", "Heartbeat", "LastWords", "Unsaved", "read_last_words"]

INTERVAL_S: Final = 0.01
"""Seconds between two beats: how precisely the moment of a death is known."""

# Two halves, written in turn: a kill in the middle of one leaves the other.
_HALF: Final = 4096
_MAX_TEXT: Final = _HALF - 16


@dataclass(frozen=True, slots=True)
class Unsaved:
    """Training of one trial that no checkpoint holds yet.

    Attributes:
        epoch: The epoch that the trial's newest durable checkpoint holds; 0 before the first.
        since: When training went on from there, seconds since the Unix epoch.
    """

    epoch: int
    since: float


@dataclass(frozen=True, slots=True)
class LastWords:
    """What one beat says.

    Attributes:
        opening: Number of the opening (the store's epoch) whose driver wrote this.
        at: When, seconds since the Unix epoch.
        dirty_s: Age of the oldest change that was recorded and not yet on disk, in seconds.
        training: What was being trained, by trial id.
        closed: Whether the driver has stopped by itself.
    """

    opening: int
    at: float
    dirty_s: float
    training: Mapping[str, Unsaved]
    closed: bool = False


class Heartbeat:
    """Writes the beats of one driver. Opening, closing: in a thread.

    Args:
        path: The file, made if missing, taken over from the driver before.
    """

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, 2 * _HALF)  # a page without a block would be SIGBUS on a full disk
            self._pages = mmap.mmap(fd, 2 * _HALF)
        finally:
            os.close(fd)
        self._half = 0

    def beat(self, words: LastWords) -> None:
        """Store `words`. No I/O.

        Raises:
            ConfigError: Too many trials are in training for one beat.
        """
        text = json.dumps(asdict(words)).encode("ascii")
        if len(text) > _MAX_TEXT:
            raise ConfigError(f"{len(words.training)} trials do not fit into a heartbeat; use fewer workers")
        frame = b"%08x %04x %b\n" % (zlib.crc32(text), len(text), text)
        start = self._half * _HALF
        self._pages[start : start + len(frame)] = frame
        self._half = 1 - self._half

    def close(self) -> None:
        """Release the file; what was stored stays."""
        self._pages.close()


def read_last_words(path: str) -> LastWords | None:
    """The newest whole beat in the file; `None` if there is no file or no whole beat in it."""
    try:
        with open(path, "rb") as file:
            data = file.read(2 * _HALF)
    except FileNotFoundError:
        return None
    found = [words for half in (0, _HALF) if (words := _parse(data[half : half + _HALF])) is not None]
    return max(found, key=lambda words: (words.opening, words.at, words.closed), default=None)


def _parse(half: bytes) -> LastWords | None:
    try:
        crc, size = int(half[:8], 16), int(half[9:13], 16)
        text = half[14 : 14 + size]
        if zlib.crc32(text) != crc:
            return None
        value = json.loads(text)
        training = {trial_id: Unsaved(**each) for trial_id, each in value.pop("training").items()}
        return LastWords(**value, training=training)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # never written, or cut by the kill
