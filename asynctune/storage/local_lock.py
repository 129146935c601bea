"""Owns the lock on an object of a directory, and how the errors of a disk are told. Blocking."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from asynctune.clock import Clock
from asynctune.errors import StorageError
from asynctune.files import LocalFiles, is_disk_full
from asynctune.storage.threads import Stop

__all__ = [
    "LOCK_WAIT_S",
    "REMEMBERED_S",
    "REPLACED",
    "ObjectLock",
    "disk_errors",
    "open_surely",
    "same_file",
]

LOCK_WAIT_S: Final = 30.0
"""Seconds after which a lock that somebody else keeps is an error."""
REMEMBERED_S: Final = 5.0
"""Seconds for which a network filesystem may remember what another host has changed."""

_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL})
# What network filesystems say of an open file that another host has removed or replaced: NFS, and JuiceFS.
_GONE: Final = frozenset({errno.ESTALE, errno.ENOENT})
REPLACED: Final = _GONE | {errno.EBADF}
"""What reading such a file may fail with."""
_PASSING: Final = frozenset(
    {errno.EINTR, errno.EAGAIN, errno.ESTALE, errno.EBADF, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE}
)
_HINTS: Final = {
    errno.EACCES: "check the permissions of the directory",
    errno.EPERM: "check the permissions of the directory",
    errno.EROFS: "it is mounted read-only",
    errno.ENAMETOOLONG: "use shorter names, or a directory nearer to the root",
    errno.ENOTDIR: "in a directory no key can go on where another ends",
    errno.EISDIR: "in a directory no key can end where another goes on",
    errno.EXDEV: "the whole storage must be on one filesystem",
}


def same_file(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether two names, or a name and a descriptor, lead to one file."""
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


class ObjectLock:
    """Locks files by the names they have now; see `asynctune.storage.local_files`."""

    def __init__(self, files: LocalFiles, clock: Clock) -> None:
        self._files = files
        self._clock = clock

    @contextmanager
    def held(self, target: str, stop: Stop, *, needed: bool) -> Iterator[os.stat_result | None]:
        """Hold the lock of the file that has this name: its stat; `None` if there is none.

        Where the filesystem has no locks, and the lock is not `needed`, go on without.
        """
        give_up = self._clock.monotonic() + LOCK_WAIT_S
        pause = 0.0005
        while True:
            try:
                if needed:
                    fd = open_surely(self._files.open_update, target, self._files, self._clock)
                else:
                    fd = self._files.open_update(target)
            except (FileNotFoundError, NotADirectoryError):
                yield None
                return
            try:
                with self._lock(fd, target, needed) as locked:
                    held = self._still_there(fd, target) if locked else None
                    if held is not None:
                        yield held
                        return
            finally:
                self._files.close(fd)
            stop.check()
            if not locked and self._clock.monotonic() >= give_up:
                raise StorageError(
                    f"{target} is locked by another process for {LOCK_WAIT_S:.0f} s",
                    operation="put",
                    key=target,
                    retryable=True,
                    hint="look for a process that was stopped while it wrote there",
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def _still_there(self, fd: int, target: str) -> os.stat_result | None:
        """What is open, if the name still leads to it."""
        try:
            held = os.fstat(fd)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
        there = _stat(self._files, target)
        # a network filesystem may remember the name wrongly, but asks for the links of what it locked
        same = there is not None and same_file(held, there) and held.st_nlink > 0
        return held if same else None

    @contextmanager
    def _lock(self, fd: int, target: str, needed: bool) -> Iterator[bool]:
        try:
            locked = self._files.lock(fd)
        except OSError as error:
            if error.errno in _GONE:  # another host has replaced it: as if that one had the lock
                yield False
                return
            if error.errno not in _NO_LOCKS:
                raise
            if needed:
                raise StorageError(
                    f"the filesystem of {target} has no working locks, so no object can be replaced conditionally",
                    operation="put",
                    key=target,
                    hint="mount it with locks, or use another place",
                ) from error
            yield True
            return
        try:
            yield locked
        finally:
            if locked:
                self._files.unlock(fd)


def open_surely(open_file: Callable[[str], int], path: str, files: LocalFiles, clock: Clock) -> int:
    """Open a file that may be replaced by another host at any moment.

    A network filesystem may remember for a while (JuiceFS for a second, NFS for longer) which file a name leads to.
    If that one is replaced, the name is missing, to everything but a listing.

    Raises:
        FileNotFoundError, NotADirectoryError: There is no such file.
    """
    give_up = clock.monotonic() + REMEMBERED_S
    while True:
        try:
            return open_file(path)
        except (FileNotFoundError, NotADirectoryError):
            if not _is_listed(path, files) or clock.monotonic() >= give_up:
                raise
        except OSError as error:
            if error.errno != errno.ESTALE or clock.monotonic() >= give_up:
                raise
        time.sleep(0.02)


def _is_listed(path: str, files: LocalFiles) -> bool:
    directory, name = os.path.split(path)
    with suppress(FileNotFoundError, NotADirectoryError):
        return name in files.list_dir(directory)
    return False


def _stat(files: LocalFiles, path: str) -> os.stat_result | None:
    try:
        return files.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextmanager
def disk_errors(operation: str, key: str | None) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StorageError`."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else key
        full = is_disk_full(error)
        hint = "free some space" if full else _HINTS.get(error.errno or 0, "")
        raise StorageError(
            f"{operation}: {where}: {error.strerror or error}",
            operation=operation,
            key=key,
            retryable=full or error.errno in _PASSING,
            hint=hint,
        ) from error
