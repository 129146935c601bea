"""Owns one checkpoint that comes to the head piece by piece: its directory, which pieces are there, its completion.

Blocking, for one thread at a time, except `sync`. Every file is hashed as it comes and compared with the manifest; the
manifest is written last. Whatever is given up, `withdraw` leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from asynctune.checkpoints.breathing import FILES_BETWEEN_BREATHS, breathe
from asynctune.checkpoints.landing import Landing
from asynctune.checkpoints.manifest import ManifestFile
from asynctune.checkpoints.offering import Offer
from asynctune.checkpoints.stage import Stage, ensure_directory
from asynctune.checkpoints.staging import STAGED_PREFIX, StagedCheckpoint
from asynctune.checkpoints.travelling import check_piece, number
from asynctune.checkpoints.verify import make_directories
from asynctune.errors import ConfigError, StorageError
from asynctune.files import DIR_MODE, LocalFiles
from asynctune.storage.crc import crc32c_joined

__all__ = ["Arrival"]

logger = logging.getLogger("asynctune")

# Then the whole filesystem is synced, where its word can be trusted: one by one takes longer.
_MANY: Final = 64

# So often a big file is synced, that a journal on the same disk waits for little.
_SYNC_BYTES: Final = 8 << 20


@dataclass(slots=True)
class _Partial:
    """What is there of a file that is not complete."""

    offset: int = 0
    crc32c: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)
    unsynced: int = 0


class Arrival:
    """A checkpoint on its way.

    Args:
        trial_dir: The trial's directory on this machine; made if it is missing.
        files: The operating system.
        offer: What was announced.

    Attributes:
        path: Its directory, without symbolic links.
        offer: What was announced.
    """

    def __init__(self, trial_dir: str, files: LocalFiles, offer: Offer) -> None:
        self._trial_dir = os.path.realpath(trial_dir)
        self.path: Final = os.path.join(self._trial_dir, STAGED_PREFIX + secrets.token_hex(8))
        self.offer = offer
        self._files = files
        self._expected = offer.manifest.files
        self._stage = Stage(files, self.path, "adopt")
        self._landing = Landing(files)
        self._complete = bytearray(len(self._expected))
        self._left = len(self._expected)
        self._partial: dict[int, _Partial] = {}
        self._unsynced: set[int] = set()
        self._directories: list[str] = []
        self._watch_fd: int | None = None

    def make(self) -> None:
        """Make its directories.

        Raises:
            ConfigError: The offer contradicts itself.
            OSError: The disk refuses.
        """
        ensure_directory(self._files, self._trial_dir)
        self._stage.make()
        # before anything is written: the filesystem's sync then tells of each failed write since
        self._watch_fd = self._files.open_read(self.path)
        self._directories = make_directories(self._files, self.path, self.offer.manifest)
        if unknown := sorted(self.offer.directories.keys() - set(self._directories)):
            raise ConfigError(
                f"a node offers a checkpoint with a directory {unknown[0]!r:.80}, which is not in its manifest"
            )

    # -- files that are elsewhere on this disk -------------------------------------------------------------

    def place_of(self, index: int) -> tuple[ManifestFile, str, int]:
        """A file, where it belongs, and with which permission bits."""
        file = self._expected[index]
        return file, os.path.join(self.path, file.path), self.offer.modes[index]

    def wanted(self) -> list[int]:
        """The files that are not complete."""
        return [index for index, complete in enumerate(self._complete) if not complete]

    def placed(self, index: int) -> None:
        """A file is in its place, durable, and was compared with the manifest."""
        self._finish(index)

    def clear(self, indexes: Iterable[int]) -> None:
        """Whatever is in the places of these files is of no use."""
        for index in indexes:
            with suppress(FileNotFoundError):
                self._files.unlink(self.place_of(index)[1])

    # -- pieces --------------------------------------------------------------------------------------------

    def present(self) -> dict[str, Any]:
        """What need not be sent: runs of complete files, and for others how much of them, with its crc32c.

        Files that hold nothing are made here.

        Raises:
            StorageError: The manifest has a checksum of nothing that is none.
            OSError: The disk refuses.
        """
        for count, index in enumerate(self.wanted()):
            if count % FILES_BETWEEN_BREATHS == 0:
                breathe()
            if self._expected[index].size_bytes == 0:
                self._take(index, 0, b"", 0)
        runs: list[list[int]] = []
        for index, complete in enumerate(self._complete):
            if not complete:
                continue
            if runs and runs[-1][1] == index:
                runs[-1][1] += 1
            else:
                runs.append([index, index + 1])
        partial = [[index, each.offset, each.crc32c] for index, each in sorted(self._partial.items())]
        return {"complete": runs, "partial": partial}

    def take(self, pieces: Iterable[list[Any]]) -> list[int]:
        """Take pieces: number of the file, offset, crc32c, bytes. What came before may come again.

        Returns:
            Numbers of big files of which something is to be synced now, while the next pieces come.

        Raises:
            ConfigError: A piece that no file has.
            StorageError: A damaged piece, one that does not follow what is there, or a file that is another than
                announced; retryable: what is missing then is wanted anew.
            OSError: The disk refuses; the pieces may come again.
        """
        due = []
        for index, offset, crc32c, data in pieces:
            number(index, len(self._expected), "the number of a file")
            file = self._expected[index]
            number(offset, file.size_bytes - len(data) + 1, f"the offset of a piece of {file.path}")
            if not data:
                raise ConfigError(f"a piece of {file.path} is empty")
            check_piece(file.path, data, crc32c)
            if self._take(index, offset, data, crc32c):
                due.append(index)
            breathe()
        return due

    def _take(self, index: int, offset: int, data: bytes, crc32c: int) -> bool:
        """Take one piece; whether its file should be synced."""
        file, path, mode = self.place_of(index)
        partial = self._partial.get(index)
        there = file.size_bytes if self._complete[index] else 0 if partial is None else partial.offset
        if data and offset + len(data) <= there:
            return False
        if offset != there:
            raise _retryable(f"a piece of {file.path} at {offset:,} came before the one at {there:,}", path)
        if len(data) == file.size_bytes:
            self._check(index, crc32c, hashlib.sha256(data).hexdigest())
            self._landing.whole(path, mode, data)
            self._finish(index)
            self._unsynced.add(index)
            return len(data) >= _SYNC_BYTES
        partial = _Partial() if partial is None else partial
        self._landing.piece(path, mode, offset, data)
        self._partial[index] = partial
        partial.sha256.update(data)
        partial.crc32c = crc32c_joined([(partial.crc32c, offset), (crc32c, len(data))])
        partial.offset = offset + len(data)
        partial.unsynced += len(data)
        if partial.offset < file.size_bytes:
            if partial.unsynced < _SYNC_BYTES:
                return False
            partial.unsynced = 0
            return True
        try:
            self._check(index, partial.crc32c, partial.sha256.hexdigest())
            self._landing.end()
        except BaseException:  # what is there is of no use
            self.start_over(index)
            raise
        self._finish(index)
        self._unsynced.add(index)
        return True

    def sync(self, index: int) -> None:
        """Sync a file; at the same time the next pieces may be taken.

        Raises:
            OSError: It cannot be: `start_over` with it, for what was written may be lost.
        """
        complete = self._complete[index]
        fd = self._files.open_read(self.place_of(index)[1])
        try:
            self._files.sync_data(fd)
        finally:
            self._files.close(fd)
        if complete:
            self._unsynced.discard(index)

    def start_over(self, index: int) -> None:
        """Forget what there is of a file: all of it is wanted."""
        self._landing.close()
        self._partial.pop(index, None)
        self._unsynced.discard(index)
        if self._complete[index]:
            self._complete[index] = False
            self._left += 1
        with suppress(OSError):  # it is made anew anyway, and the error that led here is the one to report
            self._files.unlink(self.place_of(index)[1])

    def _check(self, index: int, crc32c: int, sha256: str) -> None:
        file = self._expected[index]
        if file.crc32c != crc32c or file.sha256 != sha256:
            raise _retryable(
                f"{file.path} has other content than its manifest says; was it changed?", file.path
            )

    def _finish(self, index: int) -> None:
        self._complete[index] = True
        self._left -= 1
        self._partial.pop(index, None)

    # -- ending --------------------------------------------------------------------------------------------

    def finish(self) -> StagedCheckpoint:
        """Make everything durable and write the manifest, when every file is complete.

        Raises:
            StorageError: A file is not; retryable.
            OSError: The disk refuses; it may be tried again after another look at what is wanted.
        """
        if self._left:
            first = self._expected[self.wanted()[0]].path
            raise _retryable(f"{self._left:,} files are not complete, such as {first}", self.path)
        self._sync_files()
        for relative in [*reversed(self._directories), ""]:
            self._seal(relative)
        self._stage.write_manifest(self.offer.manifest)
        self._files.sync_dir(self._trial_dir)
        self._let_go()
        return StagedCheckpoint(self.path, self.offer.manifest)

    def _sync_files(self) -> None:
        if len(self._unsynced) >= _MANY and self._watch_fd is not None:
            try:
                if self._files.sync_filesystem(self._watch_fd):
                    self._unsynced.clear()
            except OSError as error:
                logger.warning(
                    "cannot sync the filesystem of %s at once (%s); file by file", self.path, error
                )
        for index in sorted(self._unsynced):
            try:
                self.sync(index)
            except OSError:
                self.start_over(index)
                raise

    def _seal(self, relative: str) -> None:
        """Give a directory its permission bits, and make the names in it durable."""
        mode = self.offer.directories.get(relative, DIR_MODE) if relative else self.offer.mode
        fd = self._files.open_read(os.path.join(self.path, relative) if relative else self.path)
        try:
            self._files.set_mode(fd, mode)
            self._files.sync(fd)
        finally:
            self._files.close(fd)

    def _let_go(self) -> None:
        """Hold nothing open."""
        self._landing.close()
        if self._watch_fd is not None:
            fd, self._watch_fd = self._watch_fd, None
            with suppress(OSError):  # nothing was written through it
                self._files.close(fd)

    def withdraw(self) -> None:
        """Remove it.

        Raises:
            OSError: The disk refuses.
        """
        self._let_go()
        self._stage.withdraw()


def _retryable(message: str, key: str) -> StorageError:
    return StorageError(
        f"a checkpoint that comes from a node is not complete: {message}",
        operation="transfer",
        key=key,
        retryable=True,
        hint="send it again: what is there stays there",
    )
