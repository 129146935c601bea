"""Owns how this room reaches the disk: its threads, what a cancelled caller leaves, and what errors say.

Decides nothing about checkpoints. Work goes to a few threads of its own, so that a user's blocking code in
the loop's default executor cannot hold up a checkpoint. A cancelled caller always waits until its work in a
thread has ended: what it then cleans up cannot be written to any more.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, ParamSpec, TypeVar

from asynctune.errors import ConfigError, StorageError
from asynctune.files import is_disk_full

__all__ = ["DiskThreads", "SourceError", "disk_errors", "path_text", "some_threads", "to_the_end"]

P = ParamSpec("P")
T = TypeVar("T")

_PASSING: Final = {
    errno.EINTR,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.ENFILE,
}
_HINTS: Final = {
    errno.EACCES: "check the permissions of this path",
    errno.EPERM: "check the permissions of this path",
    errno.EROFS: "the filesystem is mounted read-only; check the disk and mount it again",
    errno.EIO: "the disk reports a fault; check it before going on",
    errno.ENOENT: "something outside of asynctune removed it; check whether the disk is still mounted",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "use shorter file names",
    errno.EXDEV: "stage it on the filesystem of the experiment",
}


class SourceError(Exception):
    """A file that was to be read is gone, unreadable, or not what it was: the reader decides what that means.

    Attributes:
        path: The file.
        reason: What is wrong with it.
        error: The operating system's own error, where there is one.
    """

    def __init__(self, path: str, reason: str, error: OSError | None = None) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.error = error


class DiskThreads:
    """A few threads for blocking file work. One call is one hop: batch what is small."""

    def __init__(self, count: int = 4) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="asynctune-checkpoints")

    @property
    def executor(self) -> ThreadPoolExecutor:
        """For aiofiles."""
        return self._pool

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in a thread; a cancellation of the caller is raised only after it has returned."""
        loop = asyncio.get_running_loop()
        return await to_the_end(loop.run_in_executor(self._pool, lambda: function(*args, **kwargs)))

    def close(self) -> None:
        """Let idle threads go; call it when nothing is under way."""
        self._pool.shutdown(wait=False)


@contextmanager
def some_threads(given: DiskThreads | None) -> Iterator[DiskThreads]:
    """Those that are given, or two of its own until the end of the block."""
    threads = DiskThreads(2) if given is None else given
    try:
        yield threads
    finally:
        if given is None:
            threads.close()


async def to_the_end(work: Awaitable[T]) -> T:
    """Await `work`; a cancellation of the caller is raised only after it has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError as cancelled:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue  # asked again: it is going to be raised anyway
        if not task.cancelled() and (error := task.exception()) is not None:
            cancelled.add_note(f"what was under way failed too: {error!r}")
        raise


@contextmanager
def disk_errors(doing: str, path: str) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StorageError` that says what was being done, and where.

    Args:
        doing: As in "cannot <doing>", such as `"save checkpoint 5 of trial t"`.
        path: Named where the error names none.
    """
    try:
        yield
    except OSError as error:
        raise _storage_error(error, doing, path) from error
    except SourceError as error:
        if error.error is not None:
            raise _storage_error(error.error, doing, error.path) from error
        raise StorageError(
            f"cannot {doing}: {error.path} {error.reason}",
            operation="read",
            key=error.path,
            retryable=True,
            hint="finish writing the files before they are saved, or give them away with move=True",
        ) from error


def _storage_error(error: OSError, doing: str, path: str) -> StorageError:
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else path
    reason = error.strerror or str(error) or type(error).__name__
    full = is_disk_full(error)
    hint = (
        "free some space, or keep fewer checkpoints (num_to_keep)"
        if full
        else _HINTS.get(error.errno or 0, "")
    )
    return StorageError(
        f"cannot {doing}: {where}: {reason}" if where else f"cannot {doing}: {reason}",
        operation=doing.partition(" ")[0],
        key=where,
        retryable=full or error.errno in _PASSING,
        hint=hint,
    )


def path_text(path: str | os.PathLike[str]) -> str:
    """Take the path of a directory from a user.

    Raises:
        ConfigError: It is no path.
    """
    text: Any = path if isinstance(path, str) else getattr(path, "__fspath__", lambda: None)()
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"a directory must be given as a path, not {path!r}")
    return text
