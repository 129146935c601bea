"""Owns the memory of which projection files and names are not on the disk yet, and the way there.

Blocking; added to by one thread. Compact, for there may be three files of each of 100 000 trials. A few are
synced one by one. Very many are synced together with their whole filesystem where the system's word for that
can be trusted: one by one costs more than a millisecond a trial.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from asynctune.files import LocalFiles

__all__ = ["Unsynced"]

logger = logging.getLogger(__name__)

_NAMES: Final = "."  # stands for the directory itself among the names in it

# Syncs at the same time share commits of the filesystem journal.
_SYNCS_AT_ONCE: Final = 4
_MANY: Final = 64

# Then the whole filesystem is synced, although somebody else's data may be among it.
_VERY_MANY: Final = 512

_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})


class Unsynced:
    """What was written below one directory and is not durable yet.

    Args:
        root: The experiment's directory.
        files: The file operations.
        rewrite: Puts a file with the same content in its place, durably; for one whose sync failed, because
            the system may have dropped its bytes, and would report success the next time.
    """

    def __init__(self, root: str, files: LocalFiles, rewrite: Callable[[str], None]) -> None:
        self._root = root
        self._files = files
        self._rewrite = rewrite
        self._guard = threading.Lock()
        self._dirty: dict[str, tuple[str, ...]] = {}
        self._suspect: set[str] = set()
        self._combinations: dict[tuple[str, ...], tuple[str, ...]] = {}  # each is kept once
        # A failed writeback is told once to each descriptor that was open then.
        self._root_fd: int | None = None

    def __len__(self) -> int:
        return sum(map(len, self._dirty.values())) + len(self._suspect)

    def watch(self) -> None:
        """Call it before anything is written: the filesystem's sync then tells of each failed write since."""
        if self._root_fd is None:
            with suppress(OSError):  # then files are synced one by one
                self._root_fd = self._files.open_read(self._root)

    def add(self, path: str) -> None:
        """The file's bytes are not synced."""
        directory, name = os.path.split(path)
        self._add(directory, name)

    def renew(self, path: str) -> None:
        """The file is a new one, whose bytes are not synced."""
        self._suspect.discard(path)
        self.add(path)

    def add_names(self, directory: str) -> None:
        """Names in the directory are not synced."""
        self._add(directory, _NAMES)

    def discard(self, path: str) -> None:
        """The file has nothing that would have to be synced."""
        directory, name = os.path.split(path)
        self._suspect.discard(path)
        self._remove(directory, name)

    def sync_names(self, directory: str) -> None:
        """Make the names in the directory durable now."""
        self._files.sync_dir(directory)
        self._remove(directory, _NAMES)

    def sync(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Make everything durable. Files deleted meanwhile are passed over.

        Args:
            stopping: Asked between files; the rest is left for the next call when it says True.

        Raises:
            OSError: Something could not be synced. All else was; that is tried again with the next call.
        """
        failures: list[OSError] = []
        self._for_each(list(self._suspect), self._rewrite_suspect, stopping, failures)
        if len(self) >= _VERY_MANY and not stopping():
            self._sync_filesystem()
        # The experiment's directory last: it names directories whose content is safe by then.
        below = [directory for directory in self._dirty if directory != self._root]
        root = [self._root] if self._root in self._dirty else []
        for directories in (below, root):
            self._for_each(
                directories, lambda directory: self._sync_in(directory, stopping), stopping, failures
            )
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Let the descriptor go. What is not synced stays so."""
        if self._root_fd is not None:
            fd, self._root_fd = self._root_fd, None
            self._files.close(fd)

    # -- memory ----------------------------------------------------------------------------------------

    def _add(self, directory: str, name: str) -> None:
        with self._guard:  # files that are rewritten beside each other may share a directory
            names = self._dirty.get(directory, ())
            if name not in names:
                self._dirty[directory] = self._shared((*names, name))

    def _remove(self, directory: str, name: str) -> None:
        with self._guard:
            names = tuple(each for each in self._dirty.get(directory, ()) if each != name)
            if names:
                self._dirty[directory] = self._shared(names)
            else:
                self._dirty.pop(directory, None)

    def _shared(self, names: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(sorted(names))
        return self._combinations.setdefault(names, names)

    # -- syncing ---------------------------------------------------------------------------------------

    def _sync_filesystem(self) -> None:
        """Sync all at once if possible; what is left has to be synced one by one."""
        if self._root_fd is None:
            return
        try:
            covered = self._on_the_same_filesystem()
            if not self._files.sync_filesystem(self._root_fd):
                return
        except OSError as error:
            logger.warning("cannot sync the filesystem of %s at once (%s); file by file", self._root, error)
            return
        for directory in covered:
            del self._dirty[directory]

    def _on_the_same_filesystem(self) -> list[str]:
        """Directories that the sync of the filesystem covers; not the root, whose own sync has the last word."""
        device = self._files.stat(self._root).st_dev
        below = [directory for directory in self._dirty if directory != self._root]
        return [directory for directory in below if self._lies_on(device, directory)]

    def _lies_on(self, device: int, directory: str) -> bool:
        try:
            info = self._files.stat(directory)
            if not stat.S_ISDIR(info.st_mode) or info.st_dev != device:
                return False
            for name in self._dirty[directory]:
                if name != _NAMES:
                    info = self._files.stat(os.path.join(directory, name))
                    if not stat.S_ISREG(info.st_mode) or info.st_dev != device:
                        return False
        except FileNotFoundError:
            return False
        return True

    def _sync_in(self, directory: str, stopping: Callable[[], bool]) -> None:
        """The files in a directory, then their names."""
        failure: OSError | None = None
        for name in sorted(self._dirty.get(directory, ()), key=lambda name: name == _NAMES):
            if stopping():
                return
            try:
                if name == _NAMES:
                    self.sync_names(directory)
                else:
                    self._sync_file(directory, name)
            except OSError as error:
                if error.errno in _GONE:
                    logger.info("%s/%s is gone; somebody else removed it", directory, name)
                    self._remove(directory, name)
                else:
                    failure = failure or error
        if failure is not None:
            raise failure

    def _sync_file(self, directory: str, name: str) -> None:
        path = os.path.join(directory, name)
        fd = self._files.open_read(path)
        try:
            self._files.sync_data(fd)
        except OSError:
            self._remove(directory, name)
            self._suspect.add(path)
            raise
        finally:
            self._files.close(fd)
        self._remove(directory, name)

    def _rewrite_suspect(self, path: str) -> None:
        try:
            self._rewrite(path)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            logger.info("%s is gone; somebody else removed it", path)
        self._suspect.discard(path)

    def _for_each(
        self,
        paths: Sequence[str],
        action: Callable[[str], None],
        stopping: Callable[[], bool],
        failures: list[OSError],
    ) -> None:
        left = list(paths)

        def work() -> None:
            while left and not stopping():
                try:
                    path = left.pop()
                except IndexError:  # another thread took the last one
                    return
                try:
                    action(path)
                except OSError as error:
                    failures.append(error)

        if len(left) < _MANY:
            work()
            return
        with ThreadPoolExecutor(_SYNCS_AT_ONCE, thread_name_prefix="asynctune-sync") as threads:
            for each in [threads.submit(work) for _ in range(_SYNCS_AT_ONCE)]:
                each.result()
