"""Owns the head's end of a trial's own files (what it prints, its artifacts) that come from its node.

============== ======================================================= ==============================================
operation      arguments                                               answer
============== ======================================================= ==============================================
`files.look`   `paths`                                                 `found`: size and crc32c of each, -1 and 0
                                                                       where there is none
`files.whole`  `pieces`: path, permission bits, offset, crc32c, bytes, `unfit`; with the last piece the file has its
               whether it is the last                                  name
`files.append` `pieces`: path, permission bits, offset, crc32c, bytes  `unfit`; `refused`: paths whose file does not
                                                                       end there
============== ======================================================= ==============================================

`unfit` are paths of files that cannot be here, and why: no other file is held up by them.

A whole file gets its name when it is complete. Nothing is synced: a file of a trial that runs on this machine is not
either, and after a crash the node's sender compares what is here.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import google_crc32c

from asynctune.breathing import breathe
from asynctune.checkpoints.disk import DiskThreads, disk_errors, to_the_end
from asynctune.checkpoints.landing import Landing
from asynctune.checkpoints.stage import ensure_directory
from asynctune.checkpoints.staging import STAGED_PREFIX
from asynctune.checkpoints.travelling import (
    PIECE_BYTES,
    PIECES_AT_ONCE,
    argument,
    check_piece,
    listed,
    number,
)
from asynctune.checkpoints.tree import private_mode
from asynctune.checkpoints.trial_paths import check_trial_path
from asynctune.errors import ConfigError, StorageError
from asynctune.files import FILE_MODE, LocalFiles

__all__ = ["FileReceiver"]

_MAX_OFFSET: Final = 1 << 62
_OF_ONE_FILE: Final = frozenset(
    {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO}
)


class _UnfitError(Exception):
    """A file that cannot be here."""


class FileReceiver:
    """Takes the own files of one trial from its node.

    Args:
        trial_dir: Absolute path of the trial's directory here; made if it is missing.
        files: The operating system.
        threads: Where blocking calls go.
    """

    def __init__(
        self, trial_dir: str | os.PathLike[str], *, files: LocalFiles | None = None, threads: DiskThreads
    ) -> None:
        self._trial_dir = os.fspath(trial_dir)
        self._files = LocalFiles() if files is None else files
        self._threads = threads
        self._turn = asyncio.Lock()
        self._landing = Landing(self._files)
        self._stage: str | None = None
        self._arriving: tuple[str, str, int] | None = None  # path, where it is until it is whole, bytes of it
        self._directories: set[str] = set()
        self._closed = False

    async def handle(self, op: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer a call of the node.

        Raises:
            ConfigError: A call that makes no sense, or a path that is not the trial's own.
            StorageError: A piece is damaged or does not follow the one before, or the disk refuses.
        """
        with disk_errors("take a trial's files from its node", self._trial_dir):
            async with self._turn:
                if self._closed:
                    raise StorageError("the trial does not run on this node any more", operation="transfer")
                match op:
                    case "files.look":
                        paths = argument(arguments, "paths", list)
                        return {"found": await self._threads.run(self._look, paths)}
                    case "files.whole":
                        pieces = listed(arguments, "pieces", (str, int, int, int, bytes, bool))
                        return {"unfit": await self._threads.run(self._take, pieces)}
                    case "files.append":
                        pieces = listed(arguments, "pieces", (str, int, int, int, bytes))
                        refused, unfit = await self._threads.run(self._append, pieces)
                        return {"refused": refused, "unfit": unfit}
        raise ConfigError(f"a node asks for {op!r:.80}, which nobody does here")

    async def aclose(self) -> None:
        """Remove what is not whole. Again: does nothing."""
        await to_the_end(self._close())

    async def _close(self) -> None:
        async with self._turn:
            self._closed = True
            with suppress(OSError):  # a directory of a few bytes, which the next opening sets aside
                await self._threads.run(self._clear)

    # -- in a thread ---------------------------------------------------------------------------------------

    def _look(self, paths: list[Any]) -> list[list[int]]:
        if len(paths) > PIECES_AT_ONCE:
            raise ConfigError(f"a node asks for {len(paths):,} files at once; {PIECES_AT_ONCE} is the most")
        return [self._found(path, self._checked(path)) for path in paths]

    def _found(self, path: str, place: str) -> list[int]:
        try:
            if not self._is_below(path) or not stat.S_ISREG(self._files.stat(place).st_mode):
                return [-1, 0]
            fd = self._files.open_read(place)
        except FileNotFoundError:
            return [-1, 0]
        except OSError as error:
            if error.errno not in _OF_ONE_FILE:
                raise
            return [-1, 0]
        try:
            size, crc32c = 0, 0
            while data := os.pread(fd, PIECE_BYTES, size):
                crc32c = google_crc32c.extend(crc32c, data)
                size += len(data)
                breathe()
            return [size, crc32c]
        finally:
            self._files.close(fd)

    def _take(self, pieces: list[list[Any]]) -> list[list[str]]:
        unfit: list[list[str]] = []
        for path, mode, offset, crc32c, data, last in pieces:
            place = self._checked(path)
            number(offset, _MAX_OFFSET, f"the offset of a piece of {path}")
            check_piece(path, data, crc32c)
            breathe()
            if offset == 0:
                self._begin(path)
            if self._arriving is None or self._arriving[0] != path or self._arriving[2] != offset:
                raise StorageError(
                    f"a piece of {path} came that does not follow the one before",
                    operation="transfer",
                    key=path,
                    retryable=True,
                    hint="send the file again",
                )
            _, fresh, there = self._arriving
            if offset == 0 and last:
                self._landing.whole(fresh, private_mode(mode, FILE_MODE), data)
            else:
                self._landing.piece(fresh, private_mode(mode, FILE_MODE), offset, data)
            self._arriving = (path, fresh, there + len(data))
            if last:
                self._landing.end()
                try:
                    self._make_parents(path)
                    self._replace(fresh, place)
                except (OSError, _UnfitError) as error:
                    unfit.append([path, _why_unfit(error)])
                self._arriving = None
        return unfit

    def _begin(self, path: str) -> None:
        """Where a file is until it is whole; one that never became so is removed."""
        if self._stage is None:
            ensure_directory(self._files, self._trial_dir)
            stage = os.path.join(self._trial_dir, f"{STAGED_PREFIX}files-{secrets.token_hex(8)}")
            self._files.make_dir(stage)
            self._stage = stage
        self._landing.close()
        if self._arriving is not None:
            with suppress(FileNotFoundError):
                self._files.unlink(self._arriving[1])
        self._arriving = (path, os.path.join(self._stage, "arriving"), 0)

    def _replace(self, fresh: str, place: str) -> None:
        try:
            self._files.rename(fresh, place)
        except IsADirectoryError:  # on its node, too, what was there has been removed
            self._directories.clear()
            self._files.remove_tree(place)
            self._files.rename(fresh, place)

    def _append(self, pieces: list[list[Any]]) -> tuple[list[str], list[list[str]]]:
        refused: list[str] = []
        unfit: list[list[str]] = []
        for path, mode, offset, crc32c, data in pieces:
            place = self._checked(path)
            number(offset, _MAX_OFFSET, f"the offset of a piece of {path}")
            check_piece(path, data, crc32c)
            breathe()
            try:
                if not self._appended(path, place, mode, offset, data):
                    refused.append(path)
            except (OSError, _UnfitError) as error:
                unfit.append([path, _why_unfit(error)])
        return refused, unfit

    def _appended(self, path: str, place: str, mode: int, offset: int, data: bytes) -> bool:
        fd = self._opened(path, place)
        if fd is None:
            if offset:
                return False
            self._make_parents(path)
            fd = self._files.create(place, private_mode(mode, FILE_MODE))
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_size != offset:
                return False
            os.lseek(fd, offset, os.SEEK_SET)
            try:
                self._files.write_all(fd, data)
            except BaseException:
                with suppress(OSError):  # the node looks at what is here before it goes on
                    self._files.truncate(place, offset)
                raise
        finally:
            self._files.close(fd)
        return True

    def _opened(self, path: str, place: str) -> int | None:
        """The file to append to; `None`: there is none."""
        try:
            return self._files.open_update(place) if self._is_below(path) else None
        except FileNotFoundError:
            return None

    def _checked(self, path: Any) -> str:
        check_trial_path(path)
        return os.path.join(self._trial_dir, path)

    def _parents(self, path: str) -> Iterator[str]:
        """The directories that lead from the trial's to a path, as far as it is not known that they are some."""
        parts = path.split("/")
        for depth in range(1, len(parts)):
            directory = os.path.join(self._trial_dir, *parts[:depth])
            if directory not in self._directories:
                yield directory

    def _is_below(self, path: str) -> bool:
        """Whether only directories lead to a path: a link may lead elsewhere."""
        try:
            return all(stat.S_ISDIR(self._files.stat(each).st_mode) for each in self._parents(path))
        except FileNotFoundError:
            return False

    def _make_parents(self, path: str) -> None:
        """Make the directories that lead to a path, in place of files; a link that leads elsewhere is refused."""
        ensure_directory(self._files, self._trial_dir)
        for directory in self._parents(path):
            ensure_directory(self._files, directory)
            mode = self._files.stat(directory).st_mode
            if stat.S_ISREG(mode):  # on its node, it was removed
                self._files.unlink(directory)
                ensure_directory(self._files, directory)
            elif not stat.S_ISDIR(mode):
                raise _UnfitError(f"{directory} is no directory here")
            self._directories.add(directory)

    def _clear(self) -> None:
        self._landing.close()
        if self._stage is not None:
            stage, self._stage = self._stage, None
            self._files.remove_tree(stage)


def _why_unfit(error: OSError | _UnfitError) -> str:
    """What the node is told of one file; anything else is wrong with all of them, and raised."""
    if isinstance(error, OSError) and error.errno not in _OF_ONE_FILE:
        raise error
    return str(error).encode("utf-8", "backslashreplace").decode("utf-8")
