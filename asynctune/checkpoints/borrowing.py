"""Owns the node's end of a checkpoint that a trial goes on from: the head's files, in a directory here, checked.

`lending` says what the calls are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

from asynctune.checkpoints.breathing import FILES_BETWEEN_BREATHS, breathe
from asynctune.checkpoints.disk import DiskThreads, some_threads
from asynctune.checkpoints.landing import Landing
from asynctune.checkpoints.manifest import ManifestError, check_paths
from asynctune.checkpoints.travelling import (
    PIECE_BYTES,
    PIECE_OVERHEAD,
    WINDOW_BYTES,
    Call,
    CallWindow,
    argument,
    batched,
    check_piece,
    listed,
    number,
    travel_errors,
)
from asynctune.checkpoints.tree import private_mode
from asynctune.errors import ConfigError, StorageError
from asynctune.files import DIR_MODE, FILE_MODE, LocalFiles
from asynctune.storage.crc import crc32c_joined

__all__ = ["fetch_tree"]

_MAX_NUMBER = (1 << 63) - 1


class _File(NamedTuple):
    path: str
    size: int
    mode: int
    crc32c: int


async def fetch_tree(
    call: Call,
    to: str | os.PathLike[str],
    *,
    files: LocalFiles | None = None,
    threads: DiskThreads | None = None,
    window_bytes: int = WINDOW_BYTES,
    chunk_bytes: int = PIECE_BYTES,
    progress: Callable[[int], None] | None = None,
    check: Callable[[str], None] | None = None,
) -> int:
    """Bring the files of a checkpoint here. They are checked, and not synced: the head has them.

    Args:
        call: Asks the head, where a `TreeSource` answers.
        to: A new or empty directory; it is as it was found when this fails.
        files: The operating system.
        threads: Where blocking calls go; none given: threads of its own.
        window_bytes: How many bytes may be under way.
        chunk_bytes: The most bytes in one call.
        progress: Called on the loop with the number of bytes that are here, each time there are more.
        check: Refuses the path of a file that may not be here, with a `ConfigError`; `None`: the files are those of a
            checkpoint, so no two differ in case only.

    Returns:
        How many bytes the files have.

    Raises:
        ConnectionError: The head cannot be asked.
        StorageError: A disk refuses, or a file is damaged.
        ConfigError: The directory is not empty, or what came makes no sense.
    """
    path = os.fspath(to)
    with some_threads(threads) as disk, travel_errors("fetch a checkpoint from the head", path):
        copy = await disk.run(_Copy, path, LocalFiles() if files is None else files, check)
        try:
            await disk.run(copy.make)
            await _list(call, disk, copy)
            await _read(call, disk, copy, window_bytes, min(chunk_bytes, PIECE_BYTES), progress)
            size = await disk.run(copy.finish)
        except BaseException as error:
            await _clear(disk, copy, error)
            raise
        return size


async def _list(call: Call, threads: DiskThreads, copy: _Copy) -> None:
    start = 0
    while start >= 0:
        answer = await call("away.list", {"from": start})
        await threads.run(copy.expect, answer)
        following = argument(answer, "next", int)
        if following >= 0 and not start < following == len(copy.listed):
            raise ConfigError("the list of a checkpoint's files has a gap")
        start = following
    await threads.run(copy.make_directories)


async def _read(
    call: Call,
    threads: DiskThreads,
    copy: _Copy,
    window_bytes: int,
    chunk_bytes: int,
    progress: Callable[[int], None] | None,
) -> None:
    async def answered(answer: Mapping[str, Any], asked: list[list[int]]) -> None:
        pieces = listed(answer, "pieces", (int, bytes, int))
        await threads.run(copy.take, asked, pieces)
        if progress is not None:
            progress(sum(size for _, _, size in asked))

    async with CallWindow(call, window_bytes, answered) as window:
        for asked in copy.wishes(chunk_bytes):
            size = sum(size for _, _, size in asked) + PIECE_OVERHEAD * len(asked)
            await window.start("away.read", {"pieces": asked}, size, asked)
        await window.drain()


async def _clear(threads: DiskThreads, copy: _Copy, error: BaseException) -> None:
    try:
        await threads.run(copy.clear)
    except OSError as left:
        error.add_note(f"{copy.path} could not be cleaned up either ({left})")


class _Copy:
    """The directory here. Blocking, except `wishes`."""

    def __init__(self, path: str, files: LocalFiles, check: Callable[[str], None] | None) -> None:
        self.path = os.path.abspath(path)
        self._check_path = check
        self.listed: list[_File] = []
        self._files = files
        self._landing = Landing(files)
        self._directories: list[tuple[str, int]] = []
        self._mode = DIR_MODE
        self._with_bytes: list[int] = []  # numbers of the files that have some
        self._made = self._entered = False
        self._running = 0  # crc32c of what is here of the file that comes in pieces

    def make(self) -> None:
        """Make it; it may exist if it is empty."""
        try:
            if self._files.list_dir(self.path):
                raise ConfigError(f"{self.path} is not empty; fetch to a new or empty directory")
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            self._made = True
            self._files.make_dir(self.path)
        self._entered = True

    def expect(self, answer: Mapping[str, Any]) -> None:
        """Note what is listed."""
        rows = listed(answer, "files", (str, int, int, int))
        if not self.listed:
            self._directories = [(path, mode) for path, mode in listed(answer, "directories", (str, int))]
            self._mode = argument(answer, "mode", int)
        for row in rows:
            number(row[1], _MAX_NUMBER, f"the size of {row[0]!r:.80}")
        self.listed += [_File(*row) for row in rows]

    def make_directories(self) -> None:
        """Check every path, and make the directories and the files that hold nothing."""
        parents = {file.path.rpartition("/")[0] for file in self.listed}
        parents |= {path.rpartition("/")[0] for path, _ in self._directories}
        together = self.listed if self._check_path is None else []
        try:
            check_paths(
                (file.path for file in together),
                [path for path, _ in self._directories if path not in parents],
            )
        except ManifestError as error:
            raise ConfigError(f"a checkpoint that the head sends cannot be taken: {error}") from error
        if self._check_path is not None:
            for count, file in enumerate(self.listed):
                self._check_path(file.path)
                if count % FILES_BETWEEN_BREATHS == 0:
                    breathe()
        self._directories.sort()
        if missing := sorted(parents - {path for path, _ in self._directories} - {""}):
            raise ConfigError(f"a checkpoint that the head sends lacks the directory {missing[0]!r:.80}")
        for path, _ in self._directories:
            self._files.make_dir(os.path.join(self.path, path), DIR_MODE)
        for index, file in enumerate(self.listed):
            if file.size == 0:
                self._landing.whole(self._place(file), private_mode(file.mode, FILE_MODE), b"")
            else:
                self._with_bytes.append(index)
            if index % FILES_BETWEEN_BREATHS == 0:
                breathe()

    def wishes(self, chunk_bytes: int) -> Generator[list[list[int]], None, None]:
        """What to ask for: number of the file, offset, size; as many at a time as fit into one answer."""
        return batched(self._missing(chunk_bytes), lambda piece: piece[-1], chunk_bytes)

    def _missing(self, chunk_bytes: int) -> Generator[list[int], None, None]:
        for index in self._with_bytes:
            size = self.listed[index].size
            for offset in range(0, size, chunk_bytes):
                yield [index, offset, min(chunk_bytes, size - offset)]

    def take(self, asked: list[list[int]], pieces: list[list[Any]]) -> None:
        """Write what was asked for."""
        if len(asked) != len(pieces):
            raise ConfigError("the head has sent something else than it was asked for")
        for (index, offset, size), (crc32c, data, whole) in zip(asked, pieces, strict=True):
            file = self.listed[index]
            if len(data) != size:
                raise ConfigError(f"the head has sent {len(data):,} bytes of {file.path}, not {size:,}")
            check_piece(file.path, data, crc32c)
            mode = private_mode(file.mode, FILE_MODE)
            if size == file.size:
                self._check(file, crc32c, whole)
                self._landing.whole(self._place(file), mode, data)
            else:
                self._running = crc32c_joined([(self._running if offset else 0, offset), (crc32c, size)])
                self._landing.piece(self._place(file), mode, offset, data)
                if offset + size == file.size:
                    self._check(file, self._running, whole)
                    self._landing.end()
            breathe()

    def finish(self) -> int:
        """Give the directories their permission bits; the sum of the sizes of all files."""
        for path, mode in [*reversed(self._directories), ("", self._mode)]:
            fd = self._files.open_read(os.path.join(self.path, path) if path else self.path)
            try:
                self._files.set_mode(fd, private_mode(mode, DIR_MODE))
            finally:
                self._files.close(fd)
        return sum(file.size for file in self.listed)

    def clear(self) -> None:
        """Leave it as it was found."""
        self._landing.close()
        if self._made:
            if self._files.exists(self.path):
                self._files.remove_tree(self.path)
        elif self._entered:
            for name in self._files.list_dir(self.path):
                path = os.path.join(self.path, name)
                if os.path.isdir(path) and not os.path.islink(path):
                    self._files.remove_tree(path)
                else:
                    self._files.unlink(path)

    def _place(self, file: _File) -> str:
        return os.path.join(self.path, file.path)

    def _check(self, file: _File, crc32c: int, whole: int) -> None:
        recorded = crc32c if file.crc32c < 0 else file.crc32c
        if not crc32c == whole == recorded:
            raise StorageError(
                f"{file.path} is not what the head has recorded: its checksum is {crc32c:08x}",
                operation="transfer",
                key=file.path,
                retryable=True,
                hint="fetch it again; if that fails too, verify the experiment (python -m asynctune.inspect)",
            )
