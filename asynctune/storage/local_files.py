"""Owns how objects lie in a directory: their names, versions, and the one step in which one is replaced. Blocking.

An object is a plain file under its key. Readers take no lock: a file is complete before it gets its name, and is
never written to again. A writer makes a new file aside, synced, and then

- *creates* by `link(2)`, which fails where a name is taken, on a network filesystem too;
- *replaces* by `rename(2)`, while it holds the `flock` of **the very file that has the name**: it opens it, locks it,
  and looks whether the name still leads to it; else it begins again. Who deletes does the same. So between look and
  rename nobody else, of any process, takes the object away or puts another in its place, and a killed process leaves
  no lock behind. There are no lock files, so the tree holds nothing but objects, and it does not matter from which
  directory above the object a storage was opened.

The version is inode, size and time of modification. A file system's clock may stand still for 10 ms, and an inode be
used again at once; so a writer sets the time itself: later than that of the file it replaces, and with random digits.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Collection
from contextlib import suppress
from typing import Final

import google_crc32c

from asynctune.clock import Clock
from asynctune.errors import StorageError
from asynctune.files import LocalFiles
from asynctune.storage.checks import no_object
from asynctune.storage.local_lock import ObjectLock, disk_errors, open_surely, same_file
from asynctune.storage.streams import source_chunks
from asynctune.storage.threads import Stop
from asynctune.storage.values import (
    Condition,
    Conflict,
    IfVersion,
    ObjectInfo,
    OnlyCreate,
    Outcome,
    Source,
    Stored,
)

__all__ = ["STAGING", "ObjectFiles", "info_of"]

STAGING: Final = ".asynctune-storage"
"""Directory below the root for what is no object yet. No key has this name in it, and no listing shows it."""

_SYNC_BYTES: Final = 8 << 20
_LEFTOVER_S: Final = 24 * 3600.0
# By how much a time has to differ to be seen as another: some filesystems keep microseconds, seconds, or two of them.
_STEPS_NS: Final = (1, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000)


def info_of(key: str, found: os.stat_result) -> ObjectInfo:
    """What a file tells of its object."""
    return ObjectInfo(key, found.st_size, _version(found), None, found.st_mtime_ns / 1e9)


def _version(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns:x}-{found.st_ino:x}-{found.st_size:x}"


class ObjectFiles:
    """The objects below one directory. Any number of these, in any process, may work on the same tree.

    Args:
        root: Absolute path; made with the first object, if its parent is there.
        files: The disk.
        clock: What time it is.
    """

    def __init__(self, root: str, files: LocalFiles, clock: Clock) -> None:
        self.root = root
        self.files = files
        self.staging = f"{root.rstrip('/')}/{STAGING}"
        self._clock = clock
        self._lock = ObjectLock(files, clock)
        self._random = random.SystemRandom()
        self._swept = False

    def path(self, key: str) -> str:
        """Where an object is."""
        return f"{self.root.rstrip('/')}/{key}"

    # -- looking ---------------------------------------------------------------------------------------------

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStorage.head`."""
        found = self._stat(self.path(key))
        if found is None:
            self.check_root("head")
            return None
        return info_of(key, found) if stat.S_ISREG(found.st_mode) else None

    def open(self, key: str, opened: list[int]) -> ObjectInfo:
        """Open an object for reading; the descriptor goes into `opened`, even if the caller does not wait for it."""
        try:
            fd = open_surely(self.files.open_read, self.path(key), self.files, self._clock)
        except (FileNotFoundError, NotADirectoryError):
            self.check_root("get")
            raise no_object("get", key, self.root) from None
        opened.append(fd)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise no_object("get", key, self.root)
        return info_of(key, found)

    def check_root(self, operation: str) -> None:
        """Raise if the root cannot even be made: a disk that is not mounted is no empty storage."""
        if not self.files.exists(self.root) and not self.files.exists(os.path.dirname(self.root)):
            raise StorageError(
                f"{operation}: there is no directory {os.path.dirname(self.root)}",
                operation=operation,
                hint="make it, or mount what should be there",
            )

    # -- writing aside -----------------------------------------------------------------------------------------

    def stage(self, data: Source, key: str, crc32c: int | None, stop: Stop) -> str:
        """Write what is to become an object to a file aside, synced; its path."""
        self.sweep()
        temp = f"{self.staging}/put-{self.token()}"
        fd = self._create_staged(temp)
        try:
            try:
                self.write(fd, data, "put", key, crc32c, stop)
                self.finish(fd)
            finally:
                self.files.close(fd)
        except BaseException:
            with suppress(OSError):  # the error that led here is the one to report
                self.files.unlink(temp)
            raise
        return temp

    def write(self, fd: int, data: Source, operation: str, key: str, crc32c: int | None, stop: Stop) -> int:
        """Write a source, and sync it piece by piece, so that syncs of others beside it stay quick; its crc32c."""
        unsynced = check = 0
        for chunk in source_chunks(data, operation=operation, key=key, crc32c=crc32c):
            stop.check()
            self.files.write_all(fd, chunk)
            check = google_crc32c.extend(check, chunk)
            unsynced += len(chunk)
            if unsynced >= _SYNC_BYTES:
                self.files.sync_data(fd)
                unsynced = 0
        stop.check()
        return check

    def finish(self, fd: int) -> None:
        """Give a complete file its time, and sync it."""
        self.files.set_time(fd, self._now_ns())
        self.files.sync(fd)

    def token(self) -> str:
        """A name that nobody else uses."""
        return f"{self._random.getrandbits(64):016x}"

    def make_dirs(self, path: str) -> None:
        """Make a directory below the root, and all above it up to the root, durably."""
        self.check_root("put")
        below = path.removeprefix(self.root).strip("/")
        made = self.root
        self._make_dir(made)
        for name in below.split("/") if below else ():
            made = f"{made.rstrip('/')}/{name}"
            self._make_dir(made)

    def sweep(self) -> None:
        """Remove, once, what killed processes left aside long ago."""
        if self._swept:
            return
        self._swept = True
        with suppress(FileNotFoundError, NotADirectoryError):
            for name in self.files.list_dir(self.staging):
                path = f"{self.staging}/{name}"
                found = self._stat(path)
                if found is None or self._clock.time() - found.st_mtime < _LEFTOVER_S:
                    continue
                with suppress(FileNotFoundError):
                    if name.startswith("put-"):
                        self.files.unlink(path)
                    elif not self.files.exists(f"{path}/about"):  # nobody knows of this upload
                        self.files.remove_tree(path)

    # -- the one step ------------------------------------------------------------------------------------------

    def commit(self, temp: str, key: str, condition: Condition, stop: Stop) -> Outcome:
        """Make the object of a finished file aside, if the condition holds. The file is gone afterwards if it does."""
        target = self.path(key)
        while True:
            stop.check()
            if not isinstance(condition, IfVersion):
                if self._created(temp, target):
                    return self._stored(temp, target, linked=True)
                if isinstance(condition, OnlyCreate):
                    return self._conflict(target)
            with self._lock.held(target, stop, needed=isinstance(condition, IfVersion)) as held:
                if held is None:
                    if isinstance(condition, IfVersion):
                        return self._conflict(target)
                    continue
                if isinstance(condition, IfVersion) and _version(held) != condition.version:
                    return Conflict(_version(held))
                self._make_later(temp, held)
                found = self.files.stat(temp)
                self.files.rename(temp, target)
            self._sync_parent(target)
            return Stored(_version(found))

    def delete(self, keys: Collection[str], stop: Stop) -> None:
        """Remove objects, and directories that become empty."""
        parents = set()
        for key in keys:
            stop.check()
            target = self.path(key)
            with disk_errors("delete", key), self._lock.held(target, stop, needed=False) as held:
                if held is not None:
                    self.files.unlink(target)
                    parents.add(os.path.dirname(target))
        for parent in sorted(parents, reverse=True):
            with disk_errors("delete", parent):
                self._prune(parent)

    def _created(self, temp: str, target: str) -> bool:
        while True:
            try:
                self.files.link(temp, target)
            except FileExistsError:
                # A network filesystem may have done it, and lost the reply.
                mine, there = self.files.stat(temp), self._stat(target)
                return there is not None and same_file(mine, there)
            except FileNotFoundError:
                self.make_dirs(os.path.dirname(target))
                self.files.stat(temp)  # if it is this that is missing, raise
                continue
            return True

    def _stored(self, temp: str, target: str, *, linked: bool) -> Stored:
        found = self.files.stat(temp)
        if linked:
            self.files.unlink(temp)
        self._sync_parent(target)
        return Stored(_version(found))

    def _conflict(self, target: str) -> Conflict:
        found = self._stat(target)
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
        return Conflict(None if found is None else _version(found))

    def _make_later(self, temp: str, held: os.stat_result) -> None:
        """See to it that the file's time is after the other's, as far as the filesystem can tell them apart."""
        if self.files.stat(temp).st_mtime_ns > held.st_mtime_ns:
            return
        fd = self.files.open_update(temp)
        try:
            for step in _STEPS_NS:
                self.files.set_time(fd, held.st_mtime_ns + step)
                if os.fstat(fd).st_mtime_ns > held.st_mtime_ns:
                    break
            self.files.sync(fd)
        finally:
            self.files.close(fd)

    # -- small things ------------------------------------------------------------------------------------------

    def _now_ns(self) -> int:
        return int(self._clock.time() * 1000) * 1_000_000 + self._random.randrange(1_000_000)

    def _stat(self, path: str) -> os.stat_result | None:
        try:
            return self.files.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _create_staged(self, path: str) -> int:
        while True:
            try:
                return self.files.create(path)
            except FileNotFoundError:
                self.make_dirs(os.path.dirname(path))

    def _make_dir(self, path: str) -> None:
        with suppress(FileExistsError):
            self.files.make_plain_dir(path)
            self.files.sync_dir(os.path.dirname(path))

    def _sync_parent(self, target: str) -> None:
        with suppress(FileNotFoundError):  # deleted by another, directory and all
            self.files.sync_dir(os.path.dirname(target))

    def _prune(self, directory: str) -> None:
        """Sync a directory; if it is empty, remove it, and those above it, below the root."""
        while len(directory) > len(self.root.rstrip("/")):
            try:
                self.files.remove_dir(directory)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                break
            directory = os.path.dirname(directory)
        with suppress(FileNotFoundError):
            self.files.sync_dir(directory)
