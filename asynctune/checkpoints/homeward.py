"""Owns the node's end of a checkpoint that goes to the head: what is offered, what is sent, and in how many calls.

The head says what it has already; the rest is read in order, checked against the manifest once more and sent ahead of
the answers. After a connection that broke, the same again over another one sends what is missing. `homecoming` says
what the calls are.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import google_crc32c

from asynctune.checkpoints.disk import DiskThreads, some_threads, to_the_end
from asynctune.checkpoints.manifest import Manifest, ManifestFile
from asynctune.checkpoints.offering import Offer
from asynctune.checkpoints.staging import StagedCheckpoint
from asynctune.checkpoints.travelling import (
    PIECE_BYTES,
    PIECE_OVERHEAD,
    WINDOW_BYTES,
    Call,
    CallWindow,
    argument,
    batched,
    listed,
    number,
    travel_errors,
)
from asynctune.checkpoints.tree import Tree, scan_tree
from asynctune.errors import StorageError
from asynctune.files import LocalFiles
from asynctune.storage.crc import crc32c_joined

__all__ = ["abandon_tree", "send_tree"]

Piece = list[Any]
"""Number of the file, offset, crc32c, bytes."""


async def send_tree(
    call: Call,
    staged: StagedCheckpoint,
    *,
    files: LocalFiles | None = None,
    threads: DiskThreads | None = None,
    window_bytes: int = WINDOW_BYTES,
    chunk_bytes: int = PIECE_BYTES,
    progress: Callable[[int], None] | None = None,
    attempts: int = 3,
) -> dict[str, Any]:
    """Send a staged directory to the head, where it is staged again.

    Args:
        call: Asks the head, where a `TreeReceiver` answers.
        staged: The directory here; it stays.
        files: The operating system.
        threads: Where blocking calls go; none given: threads of its own.
        window_bytes: How many bytes may be under way.
        chunk_bytes: The most bytes in one call.
        progress: Called on the loop with the number of bytes that the head has got, each time it has more.
        attempts: How often what is missing is sent, where the head says that trying again may help.

    Returns:
        The head's `StagedCheckpoint` as a value.

    Raises:
        ConnectionError: The head cannot be asked; called again, only what is missing is sent.
        StorageError: The head's disk or this one refuses, or a file is not what it was when it was staged.
        ConfigError: The head cannot take such a checkpoint.
    """
    files = LocalFiles() if files is None else files
    with some_threads(threads) as disk, travel_errors("send a checkpoint to the head", staged.path):
        manifest = await disk.run(_canonical, staged)
        encoded = await disk.run(_offer, staged.path, manifest)
        source = _Source(files, staged.path, manifest.files)
        failed = 0
        while True:
            told = await _announce(call, identity(staged), encoded, chunk_bytes)
            if "path" in told:  # all was there already
                break
            batches = source.batches(told, chunk_bytes)
            try:
                await _send(call, disk, batches, identity(staged), window_bytes, progress)
                told = await call("home.finish", {"id": identity(staged)})
                break
            except StorageError as error:
                failed += 1
                if not error.retryable or failed >= attempts:
                    raise
        value = StagedCheckpoint(argument(told, "path", str), manifest)
        return await disk.run(value.to_value)


async def abandon_tree(call: Call, staged: StagedCheckpoint) -> None:
    """Tell the head that it will not get the rest: it removes what it has of it.

    Raises:
        ConnectionError: The head cannot be asked.
    """
    await call("home.abandon", {"id": identity(staged)})


def identity(staged: StagedCheckpoint) -> str:
    """What a staged directory is called between two machines: as long as it is there, no other is called so."""
    return os.path.basename(staged.path.rstrip("/"))[-128:]


def _canonical(staged: StagedCheckpoint) -> Manifest:
    return Manifest.decode(staged.manifest.encode())  # sorted, as the head has it


def _offer(path: str, manifest: Manifest) -> bytes:
    tree = scan_tree(path, committed=True)
    sizes = {file.path: file.size for file in tree.files}
    if sizes != manifest.sizes or tree.empty_directories != list(manifest.empty_directories):
        raise _changed(path, _difference(tree, manifest))
    return Offer.of(manifest, tree).encode()


def _difference(tree: Tree, manifest: Manifest) -> str:
    then, now = manifest.sizes, {file.path: file.size for file in tree.files}
    for path in sorted(then.keys() | now.keys()):
        if then.get(path) != now.get(path):
            return path
    return "an empty directory"


async def _announce(call: Call, name: str, encoded: bytes, chunk_bytes: int) -> Mapping[str, Any]:
    told: Mapping[str, Any] = {}
    for offset in range(0, len(encoded), chunk_bytes):
        piece = encoded[offset : offset + chunk_bytes]
        told = await call("home.offer", {"id": name, "size": len(encoded), "offset": offset, "data": piece})
    return told


async def _send(
    call: Call,
    threads: DiskThreads,
    batches: Generator[list[Piece], None, None],
    name: str,
    window_bytes: int,
    progress: Callable[[int], None] | None,
) -> None:
    async def answered(_: Mapping[str, Any], size: int) -> None:
        if progress is not None:
            progress(size)

    def read() -> asyncio.Future[list[Piece]]:
        nothing: list[Piece] = []
        return asyncio.ensure_future(threads.run(next, batches, nothing))

    try:
        async with CallWindow(call, window_bytes, answered) as window:
            reading = read()
            try:
                while pieces := await reading:
                    reading = read()  # while these are packed and sent
                    size = sum(len(piece[-1]) for piece in pieces)
                    window_size = size + PIECE_OVERHEAD * len(pieces)
                    await window.start("home.chunks", {"id": name, "pieces": pieces}, window_size, size)
            finally:
                await to_the_end(asyncio.gather(reading, return_exceptions=True))
            await window.drain()
    finally:
        await threads.run(batches.close)


class _Source:
    """The files that are sent, read once more; for a thread.

    Args:
        files: The operating system.
        root: The staged directory.
        expected: Its files, in order.
    """

    def __init__(self, files: LocalFiles, root: str, expected: Sequence[ManifestFile]) -> None:
        self._files = files
        self._root = root
        self._expected = expected

    def batches(self, told: Mapping[str, Any], chunk_bytes: int) -> Generator[list[Piece], None, None]:
        """The pieces that the head wants, as many at a time as fit into one call.

        Args:
            told: What the head has of the files.
            chunk_bytes: How much fits.

        Raises:
            ConfigError: What the head says makes no sense.
            StorageError: A file is not what the manifest says; not retryable.
            OSError: A file cannot be read.
        """
        return batched(self._wanted(told, chunk_bytes), lambda piece: len(piece[-1]), chunk_bytes)

    def _wanted(self, told: Mapping[str, Any], chunk_bytes: int) -> Generator[Piece, None, None]:
        for index, offset, crc32c in self._missing(told):
            yield from self._pieces(index, offset, crc32c, chunk_bytes)

    def _missing(self, told: Mapping[str, Any]) -> Iterator[tuple[int, int, int]]:
        """Number of each file that is not complete there, how much of it is, and the checksum of that."""
        count = len(self._expected)
        complete = bytearray(count)
        for begin, end in listed(told, "complete", (int, int)):
            number(begin, count + 1, "the number of a file")
            number(end, count + 1, "the number of a file")
            complete[begin:end] = b"\1" * max(0, end - begin)
        partial = {}
        for index, offset, crc32c in listed(told, "partial", (int, int, int)):
            file = self._expected[number(index, count, "the number of a file")]
            partial[index] = (number(offset, file.size_bytes + 1, "an offset"), crc32c)
        for index in range(count):
            if not complete[index]:
                yield index, *partial.get(index, (0, 0))

    def _pieces(self, index: int, offset: int, crc32c: int, chunk_bytes: int) -> Generator[Piece, None, None]:
        file = self._expected[index]
        path = os.path.join(self._root, file.path)
        fd = self._files.open_read(path)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_size != file.size_bytes:
                raise _changed(self._root, file.path)
            while offset < file.size_bytes:
                data = os.pread(fd, min(chunk_bytes, file.size_bytes - offset), offset)
                if not data:
                    raise _changed(self._root, file.path)
                check = google_crc32c.value(data)
                crc32c = crc32c_joined([(crc32c, offset), (check, len(data))])
                piece = [index, offset, check, data]
                offset += len(data)
                if offset == file.size_bytes and crc32c != file.crc32c:
                    raise _changed(self._root, file.path)
                del data
                yield piece
        finally:
            os.close(fd)


def _changed(root: str, path: str) -> StorageError:
    return StorageError(
        f"{os.path.join(root, path)} is not what it was when it was staged, so it is not sent to the head",
        operation="read",
        key=path,
        hint="nobody may write to a staged directory; save the checkpoint again",
    )
