"""Owns the writing of files whose bytes come in pieces, one file open at a time. Checks and syncs nothing.

Blocking, for one thread at a time.
"""

from __future__ import annotations

import os
from contextlib import suppress

from asynctune.files import LocalFiles

__all__ = ["Landing"]


class Landing:
    """Files below one directory, as they come.

    Args:
        files: The operating system.
    """

    def __init__(self, files: LocalFiles) -> None:
        self._files = files
        self._open: tuple[str, int] | None = None

    def whole(self, path: str, mode: int, data: bytes) -> None:
        """Make a file of one piece; it is not synced. What fails leaves none.

        Raises:
            OSError: The disk refuses.
        """
        fd = self._made(path, mode)
        try:
            try:
                self._files.write_all(fd, data)
            finally:
                self._files.close(fd)
        except BaseException:
            with suppress(OSError):  # the error that led here is the one to report
                self._files.unlink(path)
            raise

    def piece(self, path: str, mode: int, offset: int, data: bytes) -> None:
        """Write at the end of a file, which has `offset` bytes; at 0 it is made. What failed may be tried again.

        Raises:
            OSError: The disk refuses.
        """
        fd = self._descriptor(path, mode, offset)
        try:
            self._files.write_all(fd, data)
        except BaseException:
            self.close()  # where the next piece goes is not known any more
            raise

    def end(self) -> None:
        """The open file has all its bytes.

        Raises:
            OSError: Closing it says that something could not be written.
        """
        if self._open is not None:
            (_, fd), self._open = self._open, None
            self._files.close(fd)

    def close(self) -> None:
        """Let go of the open file, as it is."""
        if self._open is not None:
            (_, fd), self._open = self._open, None
            with suppress(OSError):  # it is complete only when `end` has said so
                self._files.close(fd)

    def _made(self, path: str, mode: int) -> int:
        try:
            return self._files.create(path, mode)
        except FileExistsError:  # of an attempt that failed
            self._files.unlink(path)
            return self._files.create(path, mode)

    def _descriptor(self, path: str, mode: int, offset: int) -> int:
        if self._open is not None and self._open[0] == path:
            return self._open[1]
        self.close()
        fd = self._made(path, mode) if offset == 0 else self._files.open_update(path)
        self._open = (path, fd)
        try:
            os.lseek(fd, offset, os.SEEK_SET)
        except BaseException:
            self.close()
            raise
        return fd
