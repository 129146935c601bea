"""Owns the way of result files back from a bucket to an empty directory, so that trials go on writing them.

One listing tells of all of them. It jumps over checkpoints, of which there may be a hundred times as many. Small files,
as nearly all are, are read whole into memory and written many at a time, for a hop to a thread costs more than what is
done there. Where they wait until all are safe is `fresh_files`' business.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from asynctune.clock import Clock
from asynctune.errors import ConditionFailedError, NotFoundError, StorageError
from asynctune.files import LocalFiles
from asynctune.results.freezing import is_result_file
from asynctune.results.fresh_files import FILE_MODE, FreshFiles, SmallFile
from asynctune.storage.base import ObjectStorage
from asynctune.storage.threads import Threads
from asynctune.storage.values import Directory, ObjectContent, ObjectInfo

__all__ = ["FetchedResults", "ResultReceiver", "fetch_results"]

logger = logging.getLogger("asynctune")

_AT_ONCE: Final = 16
_KEYS_BEFORE_A_JUMP: Final = 100
_TRIES: Final = 3
_SMALL_BYTES: Final = 256 << 10
_FILES_AT_ONCE: Final = 64  # written with one hop
_BYTES_AT_ONCE: Final = 4 << 20
_SAID_EVERY_S: Final = 10.0


class ResultReceiver(Protocol):
    """What makes a file of an object; `Transfer` is one."""

    async def read(self, key: str, *, max_bytes: int) -> ObjectContent:
        """Read a small object whole, checked. Tried once: who gets an error goes on with `receive`.

        Raises:
            StorageError: There is no such object, it is larger, or it could not.
        """
        ...

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
    clock: Clock,
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
        clock: Tells when to say in the log how far it is.
        at_once: How many files are received at once.

    Raises:
        StorageError: The bucket or the disk failed.
    """
    return await _Fetching(storage, receiver, root, files, clock).run(wanted, at_once)


class _Fetching:
    """One such call."""

    def __init__(
        self, storage: ObjectStorage, receiver: ResultReceiver, root: str, files: LocalFiles, clock: Clock
    ) -> None:
        self._storage = storage
        self._receiver = receiver
        self._clock = clock
        self._threads = Threads("result-fetching", 2)
        self._fresh = FreshFiles(root, files)
        self._waiting: list[SmallFile] = []
        self._waiting_bytes = 0
        self._count = 0
        self._size_bytes = 0
        self._began = self._said = clock.monotonic()

    async def run(self, wanted: Callable[[str], bool], at_once: int) -> FetchedResults:
        room = asyncio.Semaphore(at_once)

        async def fetch(info: ObjectInfo) -> None:
            try:
                await self._fetch(info)
            finally:
                room.release()

        try:
            await self._threads.run(self._fresh.watch)
            try:
                async with asyncio.TaskGroup() as tasks, aclosing(self._found(wanted)) as found:
                    async for info in found:
                        await room.acquire()
                        tasks.create_task(fetch(info))
            except BaseExceptionGroup as group:
                if (error := _first(group)) is not None:
                    raise error from None
                raise
            await self._write()
            with _disk_errors():
                await self._threads.run_stoppable(self._fresh.put_in_place)
        finally:
            await self._threads.run(self._fresh.tidy)
            self._threads.close()
        if self._said > self._began:
            self._say("fetched all")
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
        data = await self._read(info)
        if data is None:
            size_bytes = await self._receive(info, trial_name, name)
            if size_bytes is None:
                return  # somebody has removed it
        else:
            size_bytes = len(data)
            self._waiting.append(SmallFile(trial_name, name, data))
            self._waiting_bytes += size_bytes
            if len(self._waiting) >= _FILES_AT_ONCE or self._waiting_bytes >= _BYTES_AT_ONCE:
                await self._write()
        self._count += 1
        self._size_bytes += size_bytes
        if self._clock.monotonic() - self._said >= _SAID_EVERY_S:
            self._said = self._clock.monotonic()
            self._say("fetching")

    async def _read(self, info: ObjectInfo) -> bytes | None:
        """A small file's content, whichever version there is; `None`: it has to be received, or is no more."""
        if info.size_bytes > _SMALL_BYTES:
            return None
        try:
            return (await self._receiver.read(info.key, max_bytes=2 * _SMALL_BYTES)).data
        except StorageError as error:  # to receive it takes more patience, and tells what is wrong
            logger.debug("%s is received in the other way: %s", info.key, error)
            return None

    async def _receive(self, info: ObjectInfo, trial_name: str, name: str) -> int | None:
        """Make the file of the object; its size, or `None`: it is no more."""
        with _disk_errors():
            path = await self._threads.run(self._fresh.place_for, trial_name, name)
        found: ObjectInfo | None = info
        for attempt in range(1, _TRIES + 1):
            if found is None:
                return None
            try:
                await self._receiver.receive(
                    info.key,
                    path,
                    size_bytes=found.size_bytes,
                    crc32c=found.crc32c,
                    version=found.version,
                    mode=FILE_MODE,
                    durable=False,
                )
                break
            except (ConditionFailedError, NotFoundError):
                if attempt == _TRIES:
                    raise
                found = await self._storage.head(info.key)
        assert found is not None
        self._fresh.arrived(path)
        return found.size_bytes

    async def _write(self) -> None:
        """Write what waits; who comes meanwhile waits for the next time."""
        batch, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if batch:
            with _disk_errors():
                await self._threads.run(self._fresh.write, batch)

    def _say(self, doing: str) -> None:
        logger.info(
            "%s result files of %s: %d of them, %.1f MB, in %.0f s",
            doing,
            self._storage.location,
            self._count,
            self._size_bytes / 1e6,
            self._clock.monotonic() - self._began,
        )


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
