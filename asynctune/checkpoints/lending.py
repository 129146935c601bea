"""Owns the head's end of a checkpoint that a trial needs on its node: what is listed, and reading what was listed.

=========== ================================== =================================================================
operation   arguments                          answer
=========== ================================== =================================================================
`away.list` `from`: number of the first file   `files`: path, size, permission bits, crc32c or -1 where it is not
                                               known; `next`, -1 after the last. The first answer also has
                                               `directories` (path, permission bits) and `mode`, the root's
`away.read` `pieces`: number of the file,      `pieces`: crc32c, bytes, and with the last of a file the crc32c of
            offset, size                       the whole, else -1
=========== ================================== =================================================================

Pieces of a file are read in order; nothing that was not listed can be read.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import google_crc32c

from asynctune.checkpoints.disk import DiskThreads, disk_errors, to_the_end
from asynctune.checkpoints.manifest import Manifest, ManifestError
from asynctune.checkpoints.travelling import PIECE_BYTES, PIECES_AT_ONCE, argument, listed, number
from asynctune.checkpoints.tree import Tree, scan_tree
from asynctune.errors import ConfigError, StorageError
from asynctune.files import LocalFiles
from asynctune.storage.crc import crc32c_joined
from asynctune.trial import MANIFEST_FILE

__all__ = ["TreeSource"]

_FILES_LISTED: Final = 2000  # in one answer
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class TreeSource:
    """Lends the files of one directory, as long as they are when they are listed.

    Args:
        path: The directory, absolute: a private copy of a checkpoint, or a committed one that is leased.
        files: The operating system.
        threads: Where blocking calls go.
        look: Finds the files, in a thread; `None`: all of the directory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        files: LocalFiles | None = None,
        threads: DiskThreads,
        look: Callable[[str], Tree] | None = None,
    ) -> None:
        self._path = os.fspath(path)
        self._files = LocalFiles() if files is None else files
        self._threads = threads
        self._look = look
        self._turn = asyncio.Lock()
        self._tree: Tree | None = None
        self._crcs: Mapping[str, int] = {}
        self._open: tuple[int, int] | None = None
        self._running: tuple[int, int, int] = (-1, 0, 0)  # number, offset and crc32c of the file that is read
        self._closed = False

    async def handle(self, op: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer a call of the node.

        Raises:
            ConfigError: A call that makes no sense, or a directory that is no checkpoint.
            StorageError: A file has changed, or cannot be read.
        """
        with disk_errors("send a checkpoint to a node", self._path):
            async with self._turn:
                if self._closed:
                    raise StorageError(
                        "the checkpoint is not lent any more", operation="transfer", key=self._path
                    )
                if op == "away.list":
                    return await self._threads.run(self._list, argument(arguments, "from", int))
                if op == "away.read":
                    return {"pieces": await self._threads.run(self._read, _asked(arguments))}
        raise ConfigError(f"a node asks for {op!r:.80}, which nobody does here")

    async def aclose(self) -> None:
        """Read nothing more. The directory stays. Again: does nothing."""
        await to_the_end(self._close())

    async def _close(self) -> None:
        async with self._turn:
            self._closed = True
            await self._threads.run(self._let_go)

    # -- in a thread ---------------------------------------------------------------------------------------

    def _list(self, start: int) -> dict[str, Any]:
        if start == 0:
            self._let_go()
            if self._look is not None:
                self._tree = self._look(self._path)
            else:
                self._tree = scan_tree(self._path, committed=True)
                self._crcs = self._recorded()
        tree = self._listed()
        end = number(start, len(tree.files) + 1, "the number of a file") + _FILES_LISTED
        answer: dict[str, Any] = {
            "files": [
                [file.path, file.size, file.mode, self._crcs.get(file.path, -1)]
                for file in tree.files[start:end]
            ],
            "next": end if end < len(tree.files) else -1,
        }
        if start == 0:
            answer |= {"directories": [list(each) for each in tree.directories], "mode": tree.mode}
        return answer

    def _recorded(self) -> dict[str, int]:
        with suppress(FileNotFoundError, ManifestError):  # a private copy has none
            manifest = Manifest.decode(self._files.read(os.path.join(self._path, MANIFEST_FILE)))
            return {file.path: file.crc32c for file in manifest.files}
        return {}

    def _listed(self) -> Tree:
        if self._tree is None:
            raise ConfigError("a node asks for files before their list")
        return self._tree

    def _read(self, pieces: list[list[int]]) -> list[list[Any]]:
        tree = self._listed()
        read = []
        for index, offset, size in pieces:
            file = tree.files[number(index, len(tree.files), "the number of a file")]
            number(offset, file.size + 1, f"the offset of a piece of {file.path}")
            number(size, file.size - offset + 1, f"the size of a piece of {file.path}")
            data = self._bytes(index, offset, size)
            crc32c = google_crc32c.value(data)
            read.append([crc32c, data, self._whole(index, offset, size, crc32c)])
        return read

    def _bytes(self, index: int, offset: int, size: int) -> bytes:
        file = self._listed().files[index]
        path = os.path.join(self._path, file.path)
        if self._open is None or self._open[0] != index:
            self._let_go()
            try:
                self._open = (index, self._files.open_read(path))
            except OSError as error:
                if self._look is None or error.errno not in _GONE:
                    raise
                raise _changed(path) from error
        fd = self._open[1]
        data = os.pread(fd, size, offset)
        now = os.fstat(fd).st_size
        # What was looked for is no checkpoint, and somebody may append to it: it goes as long as it was.
        if len(data) != size or (now != file.size if self._look is None else now < file.size):
            raise _changed(path)
        return data

    def _whole(self, index: int, offset: int, size: int, crc32c: int) -> int:
        """The checksum of the file, if this was its last piece and all before it were read in order."""
        known, there, running = self._running
        if offset == 0:
            running = 0
        elif (known, there) != (index, offset):
            self._running = (-1, 0, 0)
            return -1
        running = crc32c_joined([(running, offset), (crc32c, size)])
        self._running = (index, offset + size, running)
        if offset + size < self._listed().files[index].size:
            return -1
        self._let_go()
        return running

    def _let_go(self) -> None:
        if self._open is not None:
            (_, fd), self._open = self._open, None
            os.close(fd)


def _asked(arguments: Mapping[str, Any]) -> list[list[int]]:
    """The pieces that are asked for, no more than fit into one answer."""
    pieces = listed(arguments, "pieces", (int, int, int))
    total = sum(number(size, PIECE_BYTES + 1, "the size of a piece") for _, _, size in pieces)
    if len(pieces) > PIECES_AT_ONCE or total > PIECE_BYTES:
        raise ConfigError(
            f"a node asks for {len(pieces):,} pieces of {total:,} bytes at once; {PIECES_AT_ONCE} pieces of "
            f"{PIECE_BYTES:,} bytes are the most"
        )
    return pieces


def _changed(path: str) -> StorageError:
    return StorageError(
        f"{path} changed while it was sent to a node",
        operation="read",
        key=path,
        retryable=True,
        hint="nobody may write to what a trial goes on from",
    )
