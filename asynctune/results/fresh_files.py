"""Owns result files that have come and are not in their places yet: under names of their own until all are safe.

None of them is synced by itself: all are synced together, and only then get their names. So no name is ever that of a
file which a crash of the machine may leave empty. Blocking, for threads.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from asynctune.breathing import breathe
from asynctune.files import LocalFiles
from asynctune.results.unsynced import Unsynced
from asynctune.storage.threads import Stop, Stopped

__all__ = ["FILE_MODE", "FreshFiles", "SmallFile"]

FILE_MODE: Final = 0o644


class SmallFile(NamedTuple):
    """A file that is in memory: the trial's name, its own, and what it holds."""

    trial_name: str
    name: str
    data: bytes


class FreshFiles:
    """Files below one experiment's directory.

    Args:
        root: The directory, which exists.
        files: The operating system.
    """

    def __init__(self, root: str, files: LocalFiles) -> None:
        self._root = root
        self._files = files
        self._directories: set[str] = set()
        self._unsynced = Unsynced(root, files, _refuse)
        self._fresh: dict[str, str] = {}  # where the files are, and where they belong

    def watch(self) -> None:
        """Call it before anything is written: a failed write is told of to who has watched."""
        self._unsynced.watch()

    def place_for(self, trial_name: str, name: str) -> str:
        """A path for a file, where none is, in the trial's directory, which is made if it is missing.

        Raises:
            OSError: The disk refuses.
        """
        path = self._path_of(trial_name, name)
        with suppress(FileNotFoundError):
            self._files.unlink(path)
        return path

    def arrived(self, path: str) -> None:
        """There is a file at a path of `place_for`, whole."""
        directory, name = os.path.split(path)
        self._fresh[path] = os.path.join(directory, name.removeprefix(".").removesuffix(_SUFFIX))

    def write(self, batch: Sequence[SmallFile]) -> None:
        """Make files of what is in memory; what is at their paths is replaced.

        Raises:
            OSError: The disk refuses; some may have arrived.
        """
        for small in batch:
            path = self._path_of(small.trial_name, small.name)
            try:
                fd = self._files.create(path, FILE_MODE)
            except FileExistsError:  # of an opening that was cut short here
                self._files.unlink(path)
                fd = self._files.create(path, FILE_MODE)
            self.arrived(path)
            try:
                self._files.write_all(fd, small.data)
            finally:
                self._files.close(fd)
            breathe()

    def put_in_place(self, stop: Stop) -> None:
        """Make all of them durable, and then give them their names, which are durable when it returns.

        Raises:
            OSError: The disk refuses; nothing stands for a file that is not whole.
        """
        for fresh in self._fresh:
            self._unsynced.add(fresh)
            breathe()
        self._sync(stop)
        for fresh in list(self._fresh):
            stop.check()
            self._files.rename(fresh, self._fresh[fresh])
            del self._fresh[fresh]
            breathe()
        for directory in (*self._directories, self._root):
            self._unsynced.add_names(directory)
        self._sync(stop)

    def tidy(self) -> None:
        """Let go of what is open; after a failure, remove what has come."""
        self._unsynced.close()
        for fresh in self._fresh:
            with suppress(OSError):  # the error that led here is the one to report
                self._files.unlink(fresh)

    def _path_of(self, trial_name: str, name: str) -> str:
        directory = os.path.join(self._root, trial_name)
        if directory not in self._directories:
            with suppress(FileExistsError):
                self._files.make_plain_dir(directory)
            self._directories.add(directory)
        return os.path.join(directory, f".{name}{_SUFFIX}")

    def _sync(self, stop: Stop) -> None:
        def stopping() -> bool:
            try:
                stop.check()
            except Stopped:
                return True
            return False

        self._unsynced.sync(stopping)
        stop.check()


_SUFFIX: Final = ".fetched"


def _refuse(path: str) -> None:
    raise OSError(errno.EIO, "it could not be synced", path)
