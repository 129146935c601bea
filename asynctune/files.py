"""Owns the durable handling of local files: create, write, sync, rename, link; decides no format and no name.

Every operation is one small blocking call of the operating system and belongs in a thread, never on the
event loop. All of them live on one class so that a test can replace it (`asynctune.testing.FaultyFiles`
makes any n-th call fail, or cut its write short). Errors are the operating system's own `OSError`.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import re
import shutil
import stat
from typing import Any, Final

__all__ = ["DIR_MODE", "FILE_MODE", "LocalFiles", "is_disk_full"]

FILE_MODE: Final = 0o600
DIR_MODE: Final = 0o700

# ioctl request of Linux to share the blocks of another file (linux/fs.h).
_FICLONE: Final = 0x40049409

# ext2 to 4, xfs, btrfs, f2fs, tmpfs (linux/magic.h).
_LOCAL_FILESYSTEMS: Final = frozenset({0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x01021994})


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` says that there is no space left (ENOSPC) or that the quota is used up (EDQUOT)."""
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def _kernel() -> tuple[int, ...]:
    """Linux's version; (0, 0) for any other system."""
    name = os.uname()
    found = re.match(r"(\d+)\.(\d+)", name.release) if name.sysname == "Linux" else None
    return (0, 0) if found is None else (int(found[1]), int(found[2]))


class LocalFiles:
    """The operating system, one method for each thing asynctune does to a local file.

    Paths are absolute strings. Descriptors are plain integers, always close-on-exec.
    """

    # -- descriptors ---------------------------------------------------------------------------------

    def create(self, path: str, mode: int = FILE_MODE) -> int:
        """Make a new file for writing and return its descriptor; `FileExistsError` if it is there.

        The permission bits are exactly `mode`, whatever the umask is.
        """
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            os.fchmod(fd, mode)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def open_append(self, path: str, mode: int = FILE_MODE) -> int:
        """Open for appending, made if missing. Only for projections, never for the journal."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, mode)

    def open_read(self, path: str) -> int:
        """Open an existing file for reading and for `sync`; a symbolic link is refused, a FIFO does not hang."""
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)

    def open_update(self, path: str) -> int:
        """Open an existing file for reading and writing, also to lock it; a symbolic link is refused."""
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)

    def lock(self, fd: int) -> bool:
        """Take an exclusive `flock(2)`, which ends with `unlock` or the descriptor; whether nobody else has it."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                return False
            raise
        return True

    def unlock(self, fd: int) -> None:
        """Give the lock back, also for a child that was forked meanwhile and has the descriptor too."""
        fcntl.flock(fd, fcntl.LOCK_UN)

    def set_time(self, fd: int, modified_ns: int) -> None:
        """Set the times of last access and modification, nanoseconds since the Unix epoch."""
        os.utime(fd, ns=(modified_ns, modified_ns))

    def set_mode(self, fd: int, mode: int) -> None:
        """`fchmod(2)`: exactly these permission bits."""
        os.fchmod(fd, mode)

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> int:
        """One `write(2)`: may write less than all of `data`; returns how many bytes were written."""
        return os.write(fd, data)

    def write_all(self, fd: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`, going on after short writes; a write of nothing at all is EIO."""
        view = memoryview(data)
        while view:
            count = self.write(fd, view)
            if count == 0:
                raise OSError(errno.EIO, "write(2) wrote nothing")
            view = view[count:]

    def sync_data(self, fd: int) -> None:
        """`fdatasync(2)`: the bytes, and the length needed to read them, are on the disk afterwards."""
        os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        """`fsync(2)`."""
        os.fsync(fd)

    def sync_filesystem(self, fd: int) -> bool:
        """`syncfs(2)`: all that was written to the filesystem of `fd` is on the disk afterwards.

        False, and nothing is done, where success would not prove that: only local filesystems of Linux 5.8
        or later report what could not be written (man 2 syncfs), and others may not sync at all.
        """
        if _kernel() < (5, 8):
            return False
        try:
            import ctypes  # noqa: PLC0415 - it takes milliseconds to import, and is seldom needed

            libc = ctypes.CDLL(None, use_errno=True)
            fstatfs, syncfs = libc.fstatfs, libc.syncfs
        except (ImportError, AttributeError):  # a Python without ctypes, or a C library without these
            return False
        about = (ctypes.c_long * 64)()  # struct statfs: the type comes first, the rest is for the caller

        def call(function: Any, *arguments: object) -> None:
            if function(fd, *arguments) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))

        call(fstatfs, about)
        if about[0] & 0xFFFFFFFF not in _LOCAL_FILESYSTEMS:
            return False
        call(syncfs)
        return True

    def truncate(self, path: str, size: int) -> None:
        """Cut a projection to `size` bytes. Never used on state."""
        os.truncate(path, size)

    def close(self, fd: int) -> None:
        """`close(2)`; its error counts, because a network filesystem reports a failed write there."""
        os.close(fd)

    def clone(self, source_fd: int, target_fd: int) -> bool:
        """Make the target share the source's blocks (reflink). False where the filesystem cannot."""
        try:
            fcntl.ioctl(target_fd, _FICLONE, source_fd)
        except OSError as error:
            if error.errno in {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS}:
                return False
            raise
        return True

    # -- names ---------------------------------------------------------------------------------------

    def sync_dir(self, path: str) -> None:
        """Make the names in directory `path` durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync(fd)
        finally:
            os.close(fd)

    def make_dir(self, path: str, mode: int = DIR_MODE) -> None:
        """Make one directory with exactly these permission bits; `FileExistsError` if it is there."""
        os.mkdir(path, mode)
        os.chmod(path, mode)

    def make_plain_dir(self, path: str) -> None:
        """Make one directory for people to look into, with the permissions that the umask leaves."""
        os.mkdir(path)

    def rename(self, source: str, target: str) -> None:
        """`rename(2)`: replaces a file `target` atomically."""
        os.rename(source, target)

    def link(self, source: str, target: str) -> None:
        """`link(2)`: fails with `FileExistsError` if the target is there, which makes it a claim."""
        os.link(source, target)

    def unlink(self, path: str) -> None:
        """Remove one file."""
        os.unlink(path)

    def remove_dir(self, path: str) -> None:
        """Remove one empty directory."""
        os.rmdir(path)

    def remove_tree(self, path: str) -> None:
        """Remove a directory with all in it, never following a symbolic link."""
        shutil.rmtree(path)

    # -- looking -------------------------------------------------------------------------------------

    def exists(self, path: str) -> bool:
        """Whether the name is there (a dangling link is)."""
        return os.path.lexists(path)

    def list_dir(self, path: str) -> list[str]:
        """Names in a directory, in no order."""
        return os.listdir(path)

    def read(self, path: str) -> bytes:
        """The whole of a regular file; refuses anything else, so that a FIFO cannot hang the reader."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            parts = []
            while part := os.read(fd, max(65536, info.st_size + 1)):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(fd)

    def read_from(self, path: str, offset: int, limit: int | None = None) -> bytes:
        """The bytes of a regular file from `offset` to its end, or at most `limit` of them."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.lseek(fd, offset, os.SEEK_SET)
            parts = []
            remains = math.inf if limit is None else limit
            while remains > 0 and (part := os.read(fd, int(min(remains, 1 << 20)))):
                parts.append(part)
                remains -= len(part)
            return b"".join(parts)
        finally:
            os.close(fd)

    def stat(self, path: str) -> os.stat_result:
        """`lstat(2)`."""
        return os.lstat(path)
