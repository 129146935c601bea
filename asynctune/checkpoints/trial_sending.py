"""Owns the node's end of a trial's own files (what it prints, its artifacts): which have changed, and what is sent.

Of a file that only grew, as logs do, the tail is sent, once the checksum of what was sent before is found right; any
other is sent whole. What another run of the trial printed, on whichever node, stays on the head: a log there only
grows. Files that are removed here stay there too. `trial_receiving` says what the calls are.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import google_crc32c

from asynctune.breathing import breathe
from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.travelling import (
    PIECE_BYTES,
    PIECE_OVERHEAD,
    PIECES_AT_ONCE,
    WINDOW_BYTES,
    Call,
    CallWindow,
    argument,
    batched,
    listed,
    travel_errors,
)
from asynctune.checkpoints.trial_paths import LOG_FILES
from asynctune.checkpoints.trial_walking import walk_own
from asynctune.clock import Clock, SystemClock
from asynctune.errors import ConfigError, StorageError
from asynctune.files import LocalFiles

__all__ = ["FileSender"]

logger = logging.getLogger("asynctune")

# Kernels keep times in steps of up to 10 ms: a file that changes again within one looks unchanged.
_TOO_FRESH_S: Final = 0.05
_ROUNDS: Final = 3
_DATA: Final = 4  # where the bytes are in a piece
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})

_Stamp = tuple[int, int, int]
"""Size, time of the last change in ns, inode."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """What the head has of a file.

    Attributes:
        there: Size of the file there, in bytes. A log may have more than this run's.
        there_crc32c: Its checksum.
        size: How many bytes of the file here are the last ones there.
        crc32c: Their checksum.
        stamp: What the file looked like when all of it was sent; `None`: it has to be read to see.
        sure: Whether the head has said so; otherwise it is asked.
    """

    there: int = 0
    there_crc32c: int = 0
    size: int = 0
    crc32c: int = 0
    stamp: _Stamp | None = None
    sure: bool = False


@dataclass(slots=True)
class _Changed:
    """A file that has to be read: its path, what it looked like, what is known of it, what the head says it has."""

    path: str
    stamp: _Stamp
    mode: int
    sent: _Sent
    found: tuple[int, int] | None = None


class _Parcel(NamedTuple):
    """One piece of a file, and what the head has of it then; no operation: nothing has to be sent."""

    op: str
    piece: list[Any]
    path: str
    after: _Sent


class FileSender:
    """Sends the own files of a trial, which runs on this node, to the head.

    Args:
        trial_dir: Absolute path of the trial's directory here. What is in its logs, this start has printed.
        files: The operating system.
        threads: Where blocking calls go.
        clock: Tells whether a file has changed just now.
        window_bytes: How many bytes may be under way.
        chunk_bytes: The most bytes in one call.
    """

    def __init__(
        self,
        trial_dir: str | os.PathLike[str],
        *,
        files: LocalFiles | None = None,
        threads: DiskThreads,
        clock: Clock | None = None,
        window_bytes: int = WINDOW_BYTES,
        chunk_bytes: int = PIECE_BYTES,
    ) -> None:
        self._trial_dir = os.fspath(trial_dir)
        self._files = LocalFiles() if files is None else files
        self._threads = threads
        self._clock = SystemClock() if clock is None else clock
        self._window_bytes = window_bytes
        self._chunk_bytes = chunk_bytes
        self._turn = asyncio.Lock()
        self._sent: dict[str, _Sent] = {}
        self._brought: dict[str, _Stamp] = {}
        self._told: set[str] = set()

    async def take_stock(self) -> None:
        """What is here now came from the head, which may go on with it: none of it is sent before it changes here."""
        async with self._turn:
            await asyncio.sleep(_TOO_FRESH_S)  # a change from now on shows in a file's time
            self._brought = {each.path: each.stamp for each in await self._threads.run(self._scan)}

    async def send_changed(self, call: Call) -> int:
        """Send what has changed since the last time.

        A file that changes meanwhile is sent as it was at the start, or as far as it still is, and again the next time.

        Returns:
            How many bytes were sent.

        Raises:
            ConnectionError: The head cannot be asked; the next time, what is missing is sent.
            StorageError: The head's disk refuses, or this one.
            ConfigError: The head refuses a path.
        """
        async with self._turn:
            total = 0
            with travel_errors("send a trial's files to the head", self._trial_dir):
                for _ in range(_ROUNDS):
                    changed = await self._threads.run(self._scan)
                    await self._ask(call, [each for each in changed if not each.sent.sure])
                    count, refused = await self._send(call, changed)
                    total += count
                    if not refused:
                        return total
            raise StorageError(
                f"the files of a trial in {self._trial_dir} cannot be brought up to date on the head",
                operation="transfer",
                retryable=True,
                hint="somebody else writes to the trial's directory there",
            )

    # -- one round -----------------------------------------------------------------------------------------

    async def _ask(self, call: Call, unsure: list[_Changed]) -> None:
        for start in range(0, len(unsure), PIECES_AT_ONCE):
            some = unsure[start : start + PIECES_AT_ONCE]
            answer = await call("files.look", {"paths": [each.path for each in some]})
            found = listed(answer, "found", (int, int))
            if len(found) != len(some):
                raise ConfigError("the head has answered another question about a trial's files")
            for each, (size, crc32c) in zip(some, found, strict=True):
                each.found = (size, crc32c)

    async def _send(self, call: Call, changed: list[_Changed]) -> tuple[int, bool]:
        """How many bytes were sent, and whether any were refused."""
        total = 0
        refused: set[str] = set()

        async def answered(answer: Mapping[str, Any], parcels: list[_Parcel]) -> None:
            nonlocal total
            refused.update(argument(answer, "refused", list) if "refused" in answer else ())
            for path, why in listed(answer, "unfit", (str, str)) if "unfit" in answer else []:
                self._cannot_travel(path, ConfigError(f"the head cannot take it: {why}"))
            for parcel in parcels:
                # What follows something refused is of no use, though the file may happen to end where it goes.
                if parcel.path not in refused:
                    self._sent[parcel.path] = parcel.after
                    total += len(parcel.piece[_DATA])

        batches = self._batches(changed)
        try:
            async with CallWindow(call, self._window_bytes, answered) as window:
                while (batch := await self._threads.run(next, batches, None)) is not None:
                    for parcel in batch:  # until the head has answered, nobody knows
                        known = self._sent.get(parcel.path, _Sent())
                        self._sent[parcel.path] = replace(known, sure=False)
                    if batch[0].op:
                        pieces = [parcel.piece for parcel in batch]
                        size = sum(len(piece[_DATA]) + PIECE_OVERHEAD for piece in pieces)
                        await window.start(batch[0].op, {"pieces": pieces}, size, batch)
                    else:
                        self._sent |= {parcel.path: parcel.after for parcel in batch}
                await window.drain()
        finally:
            await self._threads.run(batches.close)
        return total, bool(refused)

    # -- in a thread ---------------------------------------------------------------------------------------

    def _scan(self) -> list[_Changed]:
        changed = []
        there = set()
        for path, info in walk_own(self._trial_dir, self._cannot_travel):
            breathe()
            there.add(path)
            stamp = (info.st_size, info.st_mtime_ns, info.st_ino)
            if self._brought.get(path) == stamp:
                continue
            self._brought.pop(path, None)
            sent = self._sent.get(path, _Sent())
            if sent.stamp != stamp or not sent.sure:
                changed.append(_Changed(path, stamp, stat.S_IMODE(info.st_mode), sent))
        for path in self._sent.keys() - there:
            del self._sent[path]
        return sorted(changed, key=lambda each: each.path)

    def _cannot_travel(self, path: str, why: Exception) -> None:
        if path not in self._told:
            self._told.add(path)
            logger.warning("%a stays on this node: %s", self._place(path), why)

    def _batches(self, changed: Iterable[_Changed]) -> Generator[list[_Parcel], None, None]:
        """Parcels of one operation, as many at a time as fit into one call."""
        return batched(
            self._parcels(changed),
            lambda parcel: len(parcel.piece[_DATA]),
            self._chunk_bytes,
            lambda parcel: parcel.op,
        )

    def _parcels(self, changed: Iterable[_Changed]) -> Generator[_Parcel, None, None]:
        for each in changed:
            yield from self._parcels_of(each)

    def _parcels_of(self, each: _Changed) -> Generator[_Parcel, None, None]:
        try:
            fd = self._files.open_read(self._place(each.path))
        except PermissionError as error:
            self._cannot_travel(each.path, error)
            return
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return
        try:
            info = os.fstat(fd)
            if stat.S_ISREG(info.st_mode):
                is_fresh = abs(self._clock.time() - info.st_mtime) < _TOO_FRESH_S
                yield from self._of_file(each, fd, info.st_size, None if is_fresh else each.stamp)
        finally:
            os.close(fd)

    def _of_file(
        self, each: _Changed, fd: int, size: int, stamp: _Stamp | None
    ) -> Generator[_Parcel, None, None]:
        if each.path in LOG_FILES and each.path not in self._sent and each.found is not None:
            # An earlier start has printed what is there, however like the beginning of this one it is.
            self._sent[each.path] = _Sent(*each.found) if each.found[0] > 0 else _Sent()
            each = replace(each, sent=self._sent[each.path])
        sent = _known(each, fd, size)
        if sent is None:
            sent, op = _Sent(), "files.whole"
        elif sent.size == size and sent.there:
            after = replace(sent, stamp=stamp, sure=True)
            yield _Parcel("", ["", 0, 0, 0, b""], each.path, after)
            return
        else:
            op = "files.append"
        is_last = False
        while not is_last:
            data = os.pread(fd, min(self._chunk_bytes, size - sent.size), sent.size)
            offset = sent.there
            sent = _Sent(
                there=sent.there + len(data),
                there_crc32c=google_crc32c.extend(sent.there_crc32c, data),
                size=sent.size + len(data),
                crc32c=google_crc32c.extend(sent.crc32c, data),
            )
            # one that became shorter meanwhile is sent as far as it is, and looked at again the next time
            is_last = sent.size >= size or not data
            if is_last:
                sent = replace(sent, stamp=stamp if sent.size >= size else None, sure=True)
            piece: list[Any] = [each.path, each.mode, offset, google_crc32c.value(data), data]
            yield _Parcel(op, [*piece, is_last] if op == "files.whole" else piece, each.path, sent)

    def _place(self, path: str) -> str:
        return os.path.join(self._trial_dir, path) if path else self._trial_dir


def _known(each: _Changed, fd: int, size: int) -> _Sent | None:
    """From where a file goes on there; `None`: it is sent whole."""
    sent, is_log = each.sent, each.path in LOG_FILES
    if each.found is not None:
        there, there_crc32c = each.found
        if there < 0:
            return _Sent() if is_log else None
        more = there - sent.there
        end = sent.size + more
        if more >= 0 and end <= size and _crc32c(fd, sent.size, end, sent.there_crc32c) == there_crc32c:
            sent = _Sent(there, there_crc32c, end, _crc32c(fd, sent.size, end, sent.crc32c))
        elif is_log:  # what another run has printed stays there
            sent = _Sent(there, there_crc32c, sent.size, sent.crc32c)
        else:
            return None
    if sent.size <= size and _crc32c(fd, 0, sent.size, 0) == sent.crc32c:
        return sent if sent.there or is_log else None
    return _Sent(sent.there, sent.there_crc32c) if is_log else None


def _crc32c(fd: int, start: int, end: int, before: int) -> int:
    """The checksum of a range, going on from that of what is before it."""
    found = before
    while start < end and (data := os.pread(fd, min(PIECE_BYTES, end - start), start)):
        found = google_crc32c.extend(found, data)
        start += len(data)
        breathe()
    return found
