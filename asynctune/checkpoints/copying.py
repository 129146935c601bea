"""Owns bringing the bytes of files to another place, or reading them where they are, hashed on the way.

It knows files, not checkpoints. Small ones go in batches, one thread hop for many; a big one is streamed by
aiofiles in chunks, so that hundreds of gigabytes need a few megabytes of memory and any hop is short. What is
written is synced every 8 MiB: a journal on the same disk then waits for little, instead of for gigabytes of
dirty pages.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import aiofiles
import google_crc32c

from asynctune.checkpoints.disk import DiskThreads, SourceError, to_the_end
from asynctune.checkpoints.manifest import ManifestFile
from asynctune.files import LocalFiles

__all__ = ["FileTask", "read_files"]

CHUNK_BYTES: Final = 1 << 20
SMALL_BYTES: Final = 1 << 20
BATCH_BYTES: Final = 8 << 20
BATCH_FILES: Final = 64
SYNC_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class FileTask:
    """One file to read.

    Attributes:
        path: Its name in the manifest.
        source: Absolute path of the bytes.
        size: How many they are; anything else when it is read is a `SourceError`.
        target: Absolute path of a new file that receives them, or `None` to read only.
        mode: Permission bits of the target; of the source itself when it is sealed.
        seal: Without a target: give the source `mode` and sync it, because it becomes the checkpoint's own.
    """

    path: str
    source: str
    size: int
    target: str | None = None
    mode: int = 0o600
    seal: bool = False


async def read_files(
    threads: DiskThreads,
    files: LocalFiles,
    tasks: Sequence[FileTask],
    *,
    durable: bool,
    unreadable: list[SourceError] | None = None,
) -> list[ManifestFile]:
    """Read, and copy where there is a target, every file; what was read, in no promised order.

    When it fails or is cancelled, some targets are there already: the caller removes their directory.

    Args:
        threads: Where the blocking calls go.
        files: Writes and syncs the targets.
        tasks: What to read.
        durable: Whether the targets are on the disk when this returns, or may still be in its cache.
        unreadable: Receives what is wrong with sources, instead of the first one being raised.

    Raises:
        SourceError: A source cannot be read, or has another size than expected.
        OSError: A target cannot be written.
    """
    done: list[ManifestFile] = []
    for batch in _batches(task for task in tasks if task.size <= SMALL_BYTES):
        done += await threads.run(_read_batch, files, batch, durable, unreadable)
    for task in tasks:
        if task.size > SMALL_BYTES:
            try:
                done.append(await _read_big(threads, files, task, durable))
            except SourceError as error:
                if unreadable is None:
                    raise
                unreadable.append(error)
    return done


def _batches(tasks: Iterable[FileTask]) -> Iterator[list[FileTask]]:
    batch: list[FileTask] = []
    size = 0
    for task in tasks:
        if batch and (len(batch) == BATCH_FILES or size + task.size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(task)
        size += task.size
    if batch:
        yield batch


class _Hashes:
    """The checksums of what was fed."""

    def __init__(self) -> None:
        self.size = 0
        self._crc = 0
        self._sha256 = hashlib.sha256()

    def feed(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self._crc = google_crc32c.extend(self._crc, chunk)
        self._sha256.update(chunk)

    def result(self, task: FileTask) -> ManifestFile:
        if self.size != task.size:
            sizes = f"{self.size:,} bytes, not {task.size:,}"
            raise SourceError(task.source, f"changed while it was read ({sizes})")
        return ManifestFile(task.path, self.size, self._crc, self._sha256.hexdigest())


# -- small files -------------------------------------------------------------------------------------------


def _read_batch(
    files: LocalFiles, batch: list[FileTask], durable: bool, unreadable: list[SourceError] | None
) -> list[ManifestFile]:
    """All in one hop. All is written before anything is synced: the first sync carries most of the rest."""
    done = []
    to_sync: list[int] = []
    try:
        for task in batch:
            try:
                content, read = _read_small(task)
            except SourceError as error:
                if unreadable is None:
                    raise
                unreadable.append(error)
                continue
            done.append(read)
            if task.target is not None:
                to_sync.append(files.create(task.target, task.mode))
                files.write_all(to_sync[-1], content)
            elif task.seal:
                to_sync.append(files.open_read(task.source))
                files.set_mode(to_sync[-1], task.mode)
        if durable:
            for fd in to_sync:
                files.sync(fd)
        while to_sync:
            files.close(to_sync.pop())
    except BaseException:
        _give_up(files, to_sync)
        raise
    return done


def _read_small(task: FileTask) -> tuple[bytes, ManifestFile]:
    content = _read_whole(task)
    hashes = _Hashes()
    hashes.feed(content)
    return content, hashes.result(task)


def _read_whole(task: FileTask) -> bytes:
    try:
        fd = _open_source(task.source)
        try:
            # One byte more than expected shows a file that grew, without reading a huge one.
            parts, left = [], task.size + 1
            while left > 0 and (part := os.read(fd, left)):
                parts.append(part)
                left -= len(part)
        finally:
            os.close(fd)
    except OSError as error:
        raise SourceError(task.source, error.strerror or str(error), error) from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _open_source(path: str, flags: int = 0) -> int:
    # O_NONBLOCK: something that became a FIFO must not hang the thread.
    fd = os.open(path, flags | os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SourceError(path, "is no regular file any more")
    return fd


def _give_up(files: LocalFiles, descriptors: Iterable[int]) -> None:
    for fd in descriptors:
        with suppress(OSError):  # the error that led here is the one to report
            files.close(fd)


# -- big files ---------------------------------------------------------------------------------------------


class _Target:
    """The file that a big one is copied to. Every method is for a thread."""

    def __init__(self, files: LocalFiles, task: FileTask, path: str, durable: bool) -> None:
        self._files = files
        self._task = task
        self._path = path
        self._durable = durable
        self._fd: int | None = None
        self._unsynced = 0

    def open(self) -> bool:
        """Make the file, sharing the source's blocks where possible; True: it has its bytes already."""
        fd = self._fd = self._files.create(self._path, self._task.mode)
        try:
            source = _open_source(self._task.source)
        except OSError as error:
            raise SourceError(self._task.source, error.strerror or str(error), error) from error
        try:
            return self._files.clone(source, fd)
        finally:
            os.close(source)

    def write(self, chunk: bytes) -> None:
        fd = self._open_fd()
        self._files.write_all(fd, chunk)
        self._unsynced += len(chunk)
        if self._durable and self._unsynced >= SYNC_BYTES:
            self._files.sync_data(fd)
            self._unsynced = 0

    def finish(self) -> None:
        fd = self._open_fd()
        if self._durable:
            self._files.sync(fd)
        self._fd = None
        self._files.close(fd)

    def give_up(self) -> None:
        fd, self._fd = self._fd, None
        _give_up(self._files, [] if fd is None else [fd])

    def _open_fd(self) -> int:
        assert self._fd is not None  # open() comes first
        return self._fd


class _Stream:
    """A file read in chunks by aiofiles. The descriptor is closed only when no read is under way."""

    def __init__(self, threads: DiskThreads, path: str) -> None:
        self._threads = threads
        self._path = path
        self._file: Any = None

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            try:
                await to_the_end(self._open())
                while chunk := await to_the_end(self._file.read(CHUNK_BYTES)):
                    yield chunk
            finally:
                if self._file is not None:
                    await to_the_end(self._file.close())
        except OSError as error:
            raise SourceError(self._path, error.strerror or str(error), error) from error

    async def _open(self) -> None:
        self._file = await aiofiles.open(
            self._path, "rb", buffering=0, opener=_open_source, executor=self._threads.executor
        )


async def _read_big(threads: DiskThreads, files: LocalFiles, task: FileTask, durable: bool) -> ManifestFile:
    hashes = _Hashes()
    if task.target is None:
        await _feed(threads, task.source, hashes, None)
        if task.seal:
            await threads.run(_seal, files, task)
        return hashes.result(task)
    target = _Target(files, task, task.target, durable)
    try:
        if await threads.run(target.open):
            # The blocks are shared: reading them back hashes what the copy holds, whatever happens to the
            # source.
            await _feed(threads, task.target, hashes, None)
        else:
            await _feed(threads, task.source, hashes, target)
        await threads.run(target.finish)
    except BaseException:
        await threads.run(target.give_up)
        raise
    return hashes.result(task)


async def _feed(threads: DiskThreads, path: str, hashes: _Hashes, target: _Target | None) -> None:
    def take(chunk: bytes) -> None:
        hashes.feed(chunk)
        if target is not None:
            target.write(chunk)

    stream = _Stream(threads, path).chunks()
    try:
        async for chunk in stream:
            await threads.run(take, chunk)
    finally:
        await stream.aclose()  # type: ignore[attr-defined]


def _seal(files: LocalFiles, task: FileTask) -> None:
    fd = files.open_read(task.source)
    try:
        files.set_mode(fd, task.mode)
        files.sync(fd)
    except BaseException:
        _give_up(files, [fd])
        raise
    files.close(fd)
