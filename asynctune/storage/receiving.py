"""Owns the way of one object to a local file: in ranges at once, continued where a body breaks off, checked as a whole.

A range has no checksum of its own. So each is checksummed as it is written, the checksums are joined, and if they are
not the object's, all is fetched again: nothing tells which bytes are wrong. SHA-256 cannot be joined: it follows behind
the ranges that are there up to some place without a gap, and reads them from the file.
"""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Final

import google_crc32c

from asynctune.errors import ConditionFailedError, NotFoundError, StorageError
from asynctune.files import LocalFiles
from asynctune.storage.carrying import Digest, Means, feed, in_parallel
from asynctune.storage.crc import crc32c_joined
from asynctune.storage.local_lock import disk_errors
from asynctune.storage.values import FileRange, ObjectInfo

__all__ = ["DamagedObjectError", "receive_file"]

logger = logging.getLogger(__name__)

_MOST_ROUNDS: Final = 3
_WRITE_BYTES: Final = 1 << 20
_SYNC_BYTES: Final = 8 << 20


class DamagedObjectError(StorageError):
    """The object has another size or content than was stored: asking again changes nothing."""


async def receive_file(
    means: Means,
    key: str,
    path: str,
    *,
    size_bytes: int,
    crc32c: int | None,
    sha256: str | None,
    version: str | None,
    mode: int,
    durable: bool,
) -> None:
    """See `asynctune.storage.transfer.Transfer.receive`."""
    receiving = _Receiving(means, key, path, size_bytes, crc32c, sha256, version)
    with disk_errors("get", path):
        await receiving.run(mode, durable=durable)


class _Receiving:
    """One object on its way."""

    def __init__(
        self,
        means: Means,
        key: str,
        path: str,
        size_bytes: int,
        crc32c: int | None,
        sha256: str | None,
        version: str | None,
    ) -> None:
        self._means = means
        self._storage = means.storage
        self._key = key
        self._path = path
        self._size_bytes = size_bytes
        self._crc32c = crc32c
        self._version = version
        self._sha256 = sha256
        self._kept_crc32c: int | None = None
        self._made = False
        self._patience = means.patience()

    async def run(self, mode: int, *, durable: bool) -> None:
        ranges = self._ranges()
        if len(ranges) > 1:
            await self._pin()
        try:
            await self._means.threads.run(self._make)
            await self._fetch_right(ranges)
            await self._means.threads.run(self._finish, mode, durable)
        except BaseException:
            await self._means.threads.run(self._remove)
            raise

    async def _fetch_right(self, ranges: list[tuple[int, int]]) -> None:
        wrong: str | None = ""
        for number in range(1, _MOST_ROUNDS + 1):
            wrong = await self._wrong(await self._fetch(ranges))
            if wrong is None:
                return
            logger.warning("get of %r, for the %d. time: %s", self._key, number, wrong)
        raise DamagedObjectError(
            f"get of {self._key!r} in {self._storage.location}: {wrong}, {_MOST_ROUNDS} times",
            operation="get",
            key=self._key,
            hint="the object is damaged where it is, or is another one than was stored",
        )

    def _ranges(self) -> list[tuple[int, int]]:
        step = self._means.part_bytes
        return [(at, min(at + step, self._size_bytes)) for at in range(0, self._size_bytes, step)] or [(0, 0)]

    async def _pin(self) -> None:
        """See which version there is, so that all ranges are of one."""
        info = await self._patience.run(partial(self._storage.head, self._key), "head", self._key)
        if info is None:
            raise NotFoundError(
                f"get: there is no {self._key!r} in {self._storage.location}", operation="get", key=self._key
            )
        self._check(info)

    def _check(self, info: ObjectInfo) -> None:
        if self._version is None:
            self._version = info.version
        elif info.version != self._version:
            raise ConditionFailedError(
                f"get of {self._key!r}: it was replaced", operation="get", key=self._key
            )
        if info.size_bytes != self._size_bytes:
            raise DamagedObjectError(
                f"get of {self._key!r}: it has {info.size_bytes} bytes, not {self._size_bytes}",
                operation="get",
                key=self._key,
                hint="it is not the object that was stored",
            )
        if info.crc32c is None:
            return
        self._kept_crc32c = info.crc32c
        if self._crc32c not in (None, info.crc32c):
            raise DamagedObjectError(
                f"get of {self._key!r}: its checksum is {info.crc32c:08x}, not {self._crc32c:08x}",
                operation="get",
                key=self._key,
                hint="it is not the object that was stored",
            )

    # -- fetching ------------------------------------------------------------------------------------------------

    async def _fetch(self, ranges: list[tuple[int, int]]) -> _Fetched:
        """Fetch all ranges into their places."""
        fetched = _Fetched(ranges, None if self._sha256 is None else hashlib.sha256())
        await in_parallel(
            (partial(self._fetch_range, begin, end, fetched) for begin, end in ranges),
            min(self._means.parts_at_once, len(ranges)),
        )
        return fetched

    async def _fetch_range(self, begin: int, end: int, fetched: _Fetched) -> None:
        async with self._means.budget.take(end - begin):
            self._patience.progressed()
            piece = _Piece(self._means.files, self._path, begin)
            try:
                await self._fill(piece, end)
            finally:
                if piece.is_open:
                    await self._means.threads.run(piece.close)
        fetched.crc32c[begin] = piece.crc32c
        if fetched.digest is not None:
            await self._follow(fetched, fetched.digest)

    async def _follow(self, fetched: _Fetched, digest: Digest) -> None:
        """Hash what is there without a gap, if nobody else is at it."""
        while not fetched.followed and (following := fetched.following()) is not None:
            begin, end = following
            source = FileRange(self._path, begin, end - begin)
            fetched.followed = True
            try:
                await self._means.threads.run_stoppable(partial(feed, digest, source, self._key))
            finally:
                fetched.followed = False

    async def _fill(self, piece: _Piece, end: int) -> None:
        failed = 0
        while True:
            began = piece.position
            try:
                await self._fetch_rest(piece, end)
            except StorageError as error:
                if began < piece.position == end:
                    return  # it broke off behind its last byte
                failed = 1 if piece.position > began else failed + 1
                await self._patience.pause(error, failed)
            else:
                return

    async def _fetch_rest(self, piece: _Piece, end: int) -> None:
        """Fetch from where the piece ends; what came before a failure is kept, and checked with the whole."""
        whole = piece.position == 0 and end == self._size_bytes
        opening = self._storage.get(
            self._key,
            start=piece.position,
            length=None if whole else end - piece.position,
            version=self._version,
        )
        waiting: list[bytes] = []
        async with AsyncExitStack() as stack:
            body = await self._patience.once(lambda: stack.enter_async_context(opening), "get", self._key)
            self._check(body.info)
            chunks = aiter(body)
            try:
                while chunk := await self._patience.once(lambda: anext(chunks, b""), "get", self._key):
                    self._patience.received(len(chunk))
                    waiting.append(chunk)
                    if sum(map(len, waiting)) >= _WRITE_BYTES:
                        await self._means.threads.run(piece.write, waiting)
                        waiting = []
            except StorageError:
                await self._means.threads.run(piece.write, waiting)
                raise
        await self._means.threads.run(piece.write_last, waiting)

    # -- the file as a whole ---------------------------------------------------------------------------------------

    async def _wrong(self, fetched: _Fetched) -> str | None:
        """What is wrong with what came; `None`: nothing."""
        expected = self._kept_crc32c if self._crc32c is None else self._crc32c
        if expected is not None:
            crc32c = fetched.only()
            if crc32c is None:
                crc32c = await self._means.threads.run(fetched.joined)
            if crc32c != expected:
                return f"the checksum of what came is {crc32c:08x}, not {expected:08x}"
        if fetched.digest is not None and fetched.digest.hexdigest() != self._sha256:
            return "the SHA-256 of what came is another"
        return None

    def _make(self) -> None:
        fd = self._means.files.create(self._path)
        self._made = True
        self._means.files.close(fd)

    def _finish(self, mode: int, durable: bool) -> None:
        fd = self._means.files.open_read(self._path)
        try:
            self._means.files.set_mode(fd, mode)
            if durable:
                self._means.files.sync(fd)
        finally:
            self._means.files.close(fd)

    def _remove(self) -> None:
        if self._made:
            with suppress(OSError):  # the error that led here is the one to report
                self._means.files.unlink(self._path)


class _Fetched:
    """The ranges of one round.

    Attributes:
        crc32c: Checksums by where the ranges begin, of those that are there.
        digest: Of what is there without a gap.
        followed: Whether somebody is hashing.
    """

    def __init__(self, ranges: list[tuple[int, int]], digest: Digest | None) -> None:
        self.crc32c: dict[int, int] = {}
        self.digest = digest
        self.followed = False
        self._ranges = ranges
        self._next = 0

    def following(self) -> tuple[int, int] | None:
        """The next range to be hashed, if it is there; each once."""
        if self._next == len(self._ranges) or self._ranges[self._next][0] not in self.crc32c:
            return None
        self._next += 1
        return self._ranges[self._next - 1]

    def only(self) -> int | None:
        """The checksum, if there is one range."""
        return self.crc32c[0] if len(self._ranges) == 1 else None

    def joined(self) -> int:
        """The checksum of all."""
        return crc32c_joined([(self.crc32c[begin], end - begin) for begin, end in self._ranges])


class _Piece:
    """A range of the file, written from its beginning. Every method is for a thread."""

    def __init__(self, files: LocalFiles, path: str, begin: int) -> None:
        self._files = files
        self._path = path
        self._fd: int | None = None
        self._unsynced = 0
        self.position = begin
        self.crc32c = 0

    def write(self, chunks: list[bytes]) -> None:
        if not chunks:
            return
        if self._fd is None:
            self._fd = self._files.open_update(self._path)
            os.lseek(self._fd, self.position, os.SEEK_SET)
        for chunk in chunks:
            self._files.write_all(self._fd, chunk)
            self.crc32c = google_crc32c.extend(self.crc32c, chunk)
            self.position += len(chunk)
            self._unsynced += len(chunk)
        if self._unsynced >= _SYNC_BYTES:  # so that syncs of others beside it stay quick
            self._files.sync_data(self._fd)
            self._unsynced = 0

    def write_last(self, chunks: list[bytes]) -> None:
        self.write(chunks)
        self.close()

    @property
    def is_open(self) -> bool:
        return self._fd is not None

    def close(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            self._files.close(fd)
