"""Owns frozen copies of result files, which may be sent while trials go on: which have changed, and their bytes.

Blocking, for threads. What a trial's files were like when they were sent is remembered in a few bytes a file, because
there may be very many trials.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import google_crc32c

from asynctune.breathing import breathe
from asynctune.clock import Clock
from asynctune.files import LocalFiles
from asynctune.results.event_files import EVENT_FILE
from asynctune.results.trial_files import CUT_FILE, PARAMS_FILE, PROGRESS_FILE, RESULT_FILE

__all__ = ["LOG_FILES", "Freezer", "Frozen", "Seen", "is_result_file"]

LOG_FILES: Final = frozenset({"stdout", "stderr"})
"""What `log_to_file` makes; a trial's own process appends to them."""

_NAMED: Final = LOG_FILES | {PARAMS_FILE, RESULT_FILE, PROGRESS_FILE}
_STAGED: Final = re.compile(r"frozen-\d+")
_CHUNK_BYTES: Final = 1 << 20
_NAME_BYTES: Final = 4
_STAMP_BYTES: Final = 8
_ENTRY_BYTES: Final = _NAME_BYTES + _STAMP_BYTES
# Kernels keep times in steps of up to 10 ms: a file that changes again within one looks unchanged.
_TOO_FRESH_S: Final = 0.05


def is_result_file(name: str) -> bool:
    """Whether a file of this name in a trial's directory is one that the mirror has too."""
    return name in _NAMED or CUT_FILE.fullmatch(name) is not None or EVENT_FILE.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Frozen:
    """A copy of a file as it was at one moment, at least as long as it was when the copying began.

    Attributes:
        name: Of the file.
        path: Absolute path of the copy, which is the caller's to remove.
        size_bytes: Its size.
        crc32c: Its checksum.
        stamp: Tells this state of the file from others; empty if that cannot be told.
    """

    name: str
    path: str
    size_bytes: int
    crc32c: int
    stamp: bytes


class Seen:
    """What the files of each trial were like when they were sent; 12 bytes a file."""

    def __init__(self) -> None:
        self._stamps: dict[str, bytes] = {}

    def stamp(self, trial_name: str, name: str) -> bytes:
        """The stamp of a file; empty if it is not known."""
        return self._unpacked(trial_name).get(_key(name), b"")

    def note(self, trial_name: str, frozen: Iterable[Frozen]) -> None:
        """These were sent."""
        stamps = self._unpacked(trial_name)
        for each in frozen:
            if each.stamp:
                stamps[_key(each.name)] = each.stamp
            else:
                stamps.pop(_key(each.name), None)
        self._stamps[trial_name] = b"".join(key + stamp for key, stamp in stamps.items())

    def _unpacked(self, trial_name: str) -> dict[bytes, bytes]:
        packed = self._stamps.get(trial_name, b"")
        starts = range(0, len(packed), _ENTRY_BYTES)
        return {packed[at : at + _NAME_BYTES]: packed[at + _NAME_BYTES : at + _ENTRY_BYTES] for at in starts}


class Freezer:
    """Makes frozen copies of one experiment's result files.

    Args:
        root: The experiment's directory.
        stage_dir: Where the copies are made; of this opening alone.
        files: The operating system.
        clock: Tells whether a file has changed just now.
    """

    def __init__(self, root: str, stage_dir: str, files: LocalFiles, clock: Clock) -> None:
        self._root = root
        self._stage_dir = stage_dir
        self._files = files
        self._clock = clock
        self._count = 0

    def begin(self) -> None:
        """Make the directory of the copies, or remove what an earlier opening left there.

        Raises:
            OSError: The disk refuses.
        """
        try:
            self._files.make_dir(self._stage_dir)
        except FileExistsError:
            for name in self._files.list_dir(self._stage_dir):
                if _STAGED.fullmatch(name):
                    self._files.unlink(os.path.join(self._stage_dir, name))

    def names(self, trial_name: str) -> list[str]:
        """The result files of a trial; none where it has no directory."""
        try:
            names = self._files.list_dir(os.path.join(self._root, trial_name))
        except FileNotFoundError:
            return []
        return sorted(filter(is_result_file, names))

    def number(self) -> int:
        """A number that no copy has yet; on the event loop."""
        self._count += 1
        return self._count

    def freeze(self, trial_name: str, name: str, number: int, seen: bytes) -> Frozen | None:
        """Copy a file, unless it is as it was seen; `None`: it is, or there is none.

        Args:
            trial_name: Whose.
            name: Of the file. It may grow meanwhile; that nobody cuts it is the caller's business.
            number: Of the copy.
            seen: Its stamp when it was sent.

        Raises:
            OSError: It cannot be read, or the copy not be written.
        """
        source = os.path.join(self._root, trial_name, name)
        try:
            info = self._files.stat(source)
        except FileNotFoundError:
            return None
        stamp = _stamp(info)
        if stamp == seen or not stat.S_ISREG(info.st_mode):
            return None
        if abs(self._clock.time() - info.st_mtime) < _TOO_FRESH_S:
            stamp = b""
        target = os.path.join(self._stage_dir, f"frozen-{number}")
        try:
            return Frozen(name, target, *self._copy(source, info.st_size, target), stamp)
        except BaseException:
            self.discard([target])
            raise

    def discard(self, paths: Sequence[str]) -> None:
        """Remove copies; those that were taken away already are fine."""
        for path in paths:
            with suppress(FileNotFoundError):
                self._files.unlink(path)

    def _copy(self, source: str, size_bytes: int, target: str) -> tuple[int, int]:
        fd = self._files.create(target, 0o644)
        try:
            size, crc32c = 0, 0
            while size < size_bytes:
                data = self._files.read_from(source, size, min(_CHUNK_BYTES, size_bytes - size))
                if not data:
                    break  # it was cut: what is there is sent, and the rest when it has changed
                self._files.write_all(fd, data)
                crc32c = google_crc32c.extend(crc32c, data)
                size += len(data)
                breathe()
        finally:
            self._files.close(fd)
        return size, crc32c


def _stamp(info: os.stat_result) -> bytes:
    text = f"{info.st_size} {info.st_mtime_ns} {info.st_ino}"
    return hashlib.blake2b(text.encode(), digest_size=_STAMP_BYTES).digest()


def _key(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=_NAME_BYTES).digest()
