"""Owns the way of result files back from a bucket to an empty directory, so that trials go on writing them.

One listing tells of all of them. It jumps over checkpoints, of which there may be a hundred times as many. None of
them is synced by itself: all come under other names first, are synced together, and only then get their names.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from asynctune.errors import ConditionFailedError, NotFoundError, StorageError
from asynctune.files import LocalFiles
from asynctune.results.freezing import is_result_file
from asynctune.results.unsynced import Unsynced
from asynctune.storage.base import ObjectStorage
from asynctune.storage.threads import Stop, Stopped, Threads
from asynctune.storage.values import Directory, ObjectInfo

__all__ = ["FetchedResults", "ResultReceiver", "fetch_results"]

_AT_ONCE: Final = 16
_KEYS_BEFORE_A_JUMP: Final = 100
_TRIES: Final = 3
_MODE: Final = 0o644


class ResultReceiver(Protocol):
    """What makes a file of an object; `Transfer` is one."""

    async def receive(
        self,
        key: str,
        path: str,
        *,
        size_bytes: int,
        crc32c: int | None,
        version: str | None,
        mode: int,
        durable: bool,
    ) -> object:
        """Make the new file `path` of the object, checked, and synced if it is to be `durable`.

        Raises:
            NotFoundError: There is no such object.
            ConditionFailedError: It has another version by now.
            StorageError: It could not.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedResults:
    """What was fetched.

    Attributes:
        files: How many files.
        size_bytes: Their sizes together.
    """

    files: int
    size_bytes: int


async def fetch_results(
    storage: ObjectStorage,
    receiver: ResultReceiver,
    root: str,
    *,
    wanted: Callable[[str], bool],
    files: LocalFiles,
    at_once: int = _AT_ONCE,
) -> FetchedResults:
    """Bring the result files of trials to their directories, which are made; for an opening on an empty directory.

    It has to be complete before anything is written there: a file that lacked rows would replace the whole one in the
    bucket. What is there already is replaced, so that it can be called again. When it returns all of it is durable, so
    that a state may say what the files hold. Each name stands for a whole file, the old or the new one, also after a
    crash of the machine in the middle of it.

    Args:
        storage: The experiment's bucket.
        receiver: Receives files from it.
        root: The experiment's directory, which exists.
        wanted: Whether a trial of this name is one of the experiment.
        files: The operating system.
        at_once: How many files are received at once.

    Raises:
        StorageError: The bucket or the disk failed.
    """
    return await _Fetching(storage, receiver, root, files).run(wanted, at_once)


class _Fetching:
    """One such call."""

    def __init__(
        self, storage: ObjectStorage, receiver: ResultReceiver, root: str, files: LocalFiles
    ) -> None:
        self._storage = storage
        self._receiver = receiver
        self._root = root
        self._files = files
        self._threads = Threads("result-fetching", 2)
        self._directories: set[str] = set()
        self._unsynced = Unsynced(root, files, _refuse)
        self._fresh: dict[str, str] = {}  # where the files are, and where they belong
        self._count = 0
        self._size_bytes = 0

    async def run(self, wanted: Callable[[str], bool], at_once: int) -> FetchedResults:
        room = asyncio.Semaphore(at_once)

        async def fetch(info: ObjectInfo) -> None:
            try:
                await self._fetch(info)
            finally:
                room.release()

        try:
            await self._threads.run(self._unsynced.watch)
            try:
                async with asyncio.TaskGroup() as tasks, aclosing(self._found(wanted)) as found:
                    async for info in found:
                        await room.acquire()
                        tasks.create_task(fetch(info))
            except BaseExceptionGroup as group:
                if (error := _first(group)) is not None:
                    raise error from None
                raise
            with _disk_errors():
                await self._threads.run_stoppable(self._put_in_place)
        finally:
            await self._threads.run(self._tidy)
            self._threads.close()
        return FetchedResults(files=self._count, size_bytes=self._size_bytes)

    async def _found(self, wanted: Callable[[str], bool]) -> AsyncGenerator[ObjectInfo, None]:
        """The result files in the bucket."""
        after: str | None = None
        while True:
            passed, jump = 0, None
            async with aclosing(self._storage.list_objects(start_after=after)) as listing:
                async for info in listing:
                    if isinstance(info, Directory):
                        continue
                    trial_name, _, name = info.key.partition("/")
                    if is_result_file(name) and wanted(trial_name):
                        passed = 0
                        yield info
                        continue
                    passed += 1
                    if passed > _KEYS_BEFORE_A_JUMP and (jump := _beyond(info.key, wanted)) is not None:
                        break
            if jump is None:
                return
            after = jump

    async def _fetch(self, info: ObjectInfo) -> None:
        trial_name, _, name = info.key.partition("/")
        directory = os.path.join(self._root, trial_name)
        fresh = os.path.join(directory, f".{name}.fetched")
        with _disk_errors():
            await self._threads.run(self._prepare, directory, fresh)
        found: ObjectInfo | None = info
        for attempt in range(1, _TRIES + 1):
            if found is None:
                return  # somebody has removed it
            try:
                await self._receiver.receive(
                    info.key,
                    fresh,
                    size_bytes=found.size_bytes,
                    crc32c=found.crc32c,
                    version=found.version,
                    mode=_MODE,
                    durable=False,
                )
                break
            except (ConditionFailedError, NotFoundError):
                if attempt == _TRIES:
                    raise
                found = await self._storage.head(info.key)
        assert found is not None
        self._fresh[fresh] = os.path.join(directory, name)
        self._count += 1
        self._size_bytes += found.size_bytes

    # -- in a thread -------------------------------------------------------------------------------------------

    def _prepare(self, directory: str, fresh: str) -> None:
        if directory not in self._directories:
            with suppress(FileExistsError):
                self._files.make_plain_dir(directory)
            self._directories.add(directory)
        with suppress(FileNotFoundError):
            self._files.unlink(fresh)

    def _put_in_place(self, stop: Stop) -> None:
        """Sync all at once, and then name them: no name is ever that of a file which a crash may leave empty."""
        for fresh in self._fresh:
            self._unsynced.add(fresh)
        self._sync(stop)
        for fresh in list(self._fresh):
            stop.check()
            self._files.rename(fresh, self._fresh[fresh])
            del self._fresh[fresh]
        for directory in (*self._directories, self._root):
            self._unsynced.add_names(directory)
        self._sync(stop)

    def _sync(self, stop: Stop) -> None:
        def stopping() -> bool:
            try:
                stop.check()
            except Stopped:
                return True
            return False

        self._unsynced.sync(stopping)
        stop.check()

    def _tidy(self) -> None:
        """Let go of what is open; after a failure, remove what has come."""
        self._unsynced.close()
        for fresh in self._fresh:
            with suppress(OSError):  # the error that led here is the one to report
                self._files.unlink(fresh)


def _refuse(path: str) -> None:
    raise OSError(errno.EIO, "it could not be synced", path)


def _beyond(key: str, wanted: Callable[[str], bool]) -> str | None:
    """From where to list on, instead of through all that is below the same directory; `None`: go on as it is."""
    trial_name, slash, name = key.partition("/")
    if not slash:
        return None
    if not wanted(trial_name):
        return f"{trial_name}0"  # the character after a slash
    directory, slash, _ = name.partition("/")
    beyond = f"{trial_name}/checkpoint_:"  # the character after the digits
    if slash and directory.startswith("checkpoint_") and beyond.encode() > key.encode():
        return beyond
    return None


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot fetch result files: {error}", operation="write") from error


def _first(group: BaseExceptionGroup[BaseException]) -> StorageError | None:
    """The first failure, where a group has nothing else."""
    errors, others = group.split(StorageError)
    if errors is None or others is not None:
        return None
    error: Any = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return cast("StorageError", error)
