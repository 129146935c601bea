"""Owns the writing of projection files: append, replace, cut, and sync on request; knows no row.

Blocking, for one thread. A file is open only while it is written, so that ten thousand running trials need
one descriptor. Directories and files have the permissions that the umask leaves: they are for people.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from asynctune.files import LocalFiles
from asynctune.results.unsynced import Unsynced

__all__ = ["Placer"]

_USER_FILE_MODE: Final = 0o666  # less the umask


class Placer:
    """Writes projections below one experiment directory, and remembers what is not synced.

    Args:
        root: The experiment's directory. It is never made here: a directory that vanished is an error.
        files: The file operations.
    """

    def __init__(self, root: str, files: LocalFiles) -> None:
        self._root = root
        self._files = files
        self._unsynced = Unsynced(root, files, self._rewrite)

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
        self._unsynced.add(path)
        if size is None:
            # Whoever made the trial's directory, its name is to last as long as what is in it.
            self._unsynced.add_names(os.path.dirname(path))
            self._unsynced.add_names(self._root)
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
        self._unsynced.add_names(directory)
        self._unsynced.add_names(self._root)
        if durable:
            self._unsynced.discard(path)
            self._unsynced.sync_names(directory)
        else:
            self._unsynced.renew(path)

    def rely_on(self, path: str) -> None:
        """Count the file as written here: an earlier process may have written it and not synced it."""
        self._unsynced.watch()
        self._unsynced.add(path)
        self._unsynced.add_names(os.path.dirname(path))
        self._unsynced.add_names(self._root)

    def truncate(self, path: str, size: int) -> None:
        """Cut the file to its first `size` bytes."""
        self._unsynced.add(path)
        self._files.truncate(path, size)

    def sync(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Make everything written so far durable, names included: see `Unsynced.sync`."""
        self._unsynced.sync(stopping)

    def close(self) -> None:
        """Let go of what is held open. Nothing is synced by this."""
        self._unsynced.close()

    def _rewrite(self, path: str) -> None:
        data = self.read(path)
        if data is not None:
            self.replace(path, data, durable=True)

    def _open(self, path: str) -> int:
        self._unsynced.watch()
        try:
            return self._files.open_append(path, _USER_FILE_MODE)
        except FileNotFoundError:
            directory = os.path.dirname(path)
            with suppress(FileExistsError):
                self._files.make_plain_dir(directory)
            self._unsynced.add_names(self._root)
            return self._files.open_append(path, _USER_FILE_MODE)

    def _close_quietly(self, fd: int) -> None:
        with suppress(OSError):  # the error that led here is the one to tell
            self._files.close(fd)
