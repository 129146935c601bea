"""Owns the writing of projection files: append, replace, cut, and sync on request; knows no row.

Blocking, for one thread. A file is open only while it is written, so that ten thousand running trials need
one descriptor. Directories and files have the permissions that the umask leaves: they are for people.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from asynctune.files import LocalFiles

__all__ = ["Placer"]

logger = logging.getLogger(__name__)

_USER_FILE_MODE: Final = 0o666  # less the umask

# Syncs at the same time share commits of the filesystem journal.
_SYNCS_AT_ONCE: Final = 4
_MANY: Final = 64

_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})


class Placer:
    """Writes projections below one experiment directory, and remembers what is not synced.

    Args:
        root: The experiment's directory. It is never made here: a directory that vanished is an error.
        files: The file operations.
    """

    def __init__(self, root: str, files: LocalFiles) -> None:
        self._root = root
        self._files = files
        self._dirty: set[str] = set()
        self._dirty_dirs: set[str] = set()
        # Their fdatasync failed: the system may have dropped the bytes, and would report success next time.
        self._suspect: set[str] = set()

    def read(self, path: str) -> bytes | None:
        """The whole file, or None if there is none."""
        try:
            return self._files.read(path)
        except FileNotFoundError:
            return None

    def size(self, path: str) -> int | None:
        """Its size in bytes, or None if there is no such file."""
        try:
            return self._files.stat(path).st_size
        except FileNotFoundError:
            return None

    def names(self, directory: str) -> list[str]:
        """What is in the directory; nothing if there is none."""
        try:
            return self._files.list_dir(directory)
        except FileNotFoundError:
            return []

    def append(self, path: str, data: bytes, *, size: int | None) -> None:
        """Add `data` to the file, which is cut back if that fails.

        Args:
            path: The file; it is made if missing, and its directory too.
            data: What to add.
            size: The file's present size; None where there is none.
        """
        fd = self._open(path)
        self._dirty.add(path)
        if size is None:
            self._dirty_dirs.add(os.path.dirname(path))
        try:
            self._files.write_all(fd, data)
        except BaseException:
            with suppress(OSError):  # what remains is a line cut short, which readers skip
                self._files.truncate(path, size or 0)
            self._close_quietly(fd)
            raise
        self._files.close(fd)

    def replace(self, path: str, data: bytes, *, durable: bool = False) -> None:
        """Put a file with exactly `data` in place of `path`, at once for readers.

        Args:
            path: The file.
            data: Its new content.
            durable: Return when the file and its name are on the disk, and not only with the next `sync`.
        """
        directory, name = os.path.split(path)
        temporary = os.path.join(directory, f".{name}.tmp")
        with suppress(FileNotFoundError):
            self._files.unlink(temporary)
        fd = self._open(temporary)
        try:
            try:
                self._files.write_all(fd, data)
                if durable:
                    self._files.sync(fd)
            except BaseException:
                self._close_quietly(fd)
                raise
            self._files.close(fd)
            self._files.rename(temporary, path)
        except BaseException:
            with suppress(OSError):
                self._files.unlink(temporary)
            raise
        self._suspect.discard(path)
        self._dirty.discard(path)
        self._dirty_dirs.add(directory)
        if durable:
            self._sync_directory(directory)
        else:
            self._dirty.add(path)

    def truncate(self, path: str, size: int) -> None:
        """Cut the file to its first `size` bytes."""
        self._dirty.add(path)
        self._files.truncate(path, size)

    def sync(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Make everything written so far durable, names included. Files deleted meanwhile are passed over.

        Args:
            stopping: Asked between files; the rest is left for the next call when it says True.

        Raises:
            OSError: Something could not be synced. All else was; that is tried again with the next call.
        """
        failures: list[OSError] = []
        self._for_each(list(self._suspect), self._rewrite, stopping, failures)
        self._for_each(list(self._dirty), self._sync_file, stopping, failures)
        # The experiment's directory last: it names directories whose content is safe by then.
        root = {self._root}
        self._for_each(list(self._dirty_dirs - root), self._sync_directory, stopping, failures)
        self._for_each(list(self._dirty_dirs & root), self._sync_directory, stopping, failures)
        if failures:
            raise failures[0]

    def _for_each(
        self,
        paths: list[str],
        action: Callable[[str], None],
        stopping: Callable[[], bool],
        failures: list[OSError],
    ) -> None:
        def work() -> None:
            while paths and not stopping():
                try:
                    path = paths.pop()
                except IndexError:  # another thread took the last one
                    return
                try:
                    action(path)
                except OSError as error:
                    if error.errno in _GONE:
                        self._forget(path)
                    else:
                        failures.append(error)

        if len(paths) < _MANY:
            work()
            return
        with ThreadPoolExecutor(_SYNCS_AT_ONCE, thread_name_prefix="asynctune-sync") as threads:
            for each in [threads.submit(work) for _ in range(_SYNCS_AT_ONCE)]:
                each.result()

    def _sync_file(self, path: str) -> None:
        fd = self._files.open_read(path)
        try:
            self._files.sync_data(fd)
        except OSError:
            self._suspect.add(path)
            self._dirty.discard(path)
            raise
        finally:
            self._files.close(fd)
        self._dirty.discard(path)

    def _rewrite(self, path: str) -> None:
        data = self.read(path)
        if data is None:
            self._forget(path)
        else:
            self.replace(path, data, durable=True)

    def _sync_directory(self, path: str) -> None:
        self._files.sync_dir(path)
        self._dirty_dirs.discard(path)

    def _forget(self, path: str) -> None:
        logger.info("%s is gone; somebody else removed it", path)
        for paths in (self._suspect, self._dirty, self._dirty_dirs):
            paths.discard(path)

    def _open(self, path: str) -> int:
        try:
            return self._files.open_append(path, _USER_FILE_MODE)
        except FileNotFoundError:
            directory = os.path.dirname(path)
            with suppress(FileExistsError):
                self._files.make_plain_dir(directory)
            self._dirty_dirs.add(self._root)
            return self._files.open_append(path, _USER_FILE_MODE)

    def _close_quietly(self, fd: int) -> None:
        with suppress(OSError):  # the error that led here is the one to tell
            self._files.close(fd)
