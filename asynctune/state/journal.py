"""Owns the appending to the journal: frames, segments, the committed image; runs in the journal's own thread.

Acknowledged means written and synced, and looked up once more that no higher claim exists. A descriptor whose
write or sync failed is never used again: the commit goes into a new segment, from memory. Owns no pacing and no
waiting; the writer above decides when, and what happens after a failure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from typing import Any, Final

from asynctune.breathing import breathe
from asynctune.clock import Clock
from asynctune.errors import StorageError
from asynctune.files import LocalFiles, is_disk_full
from asynctune.state.codec import FrameType, Ops, encode_frame, encode_ops, frame_crc
from asynctune.state.epochs import Claim, check_claim
from asynctune.state.segments import (
    History,
    SegmentHeader,
    SegmentName,
    encode_segment_header,
    parse_segment_name,
)
from asynctune.state.snapshot import Image, parse_snapshot_name

__all__ = ["Batch", "CommitDone", "DiskFullError", "Journal", "secure_tail"]

_FRAME_KEYS: Final = 2000
_FRAME_BYTES: Final = 256 * 1024
_COMPRESS_BYTES: Final = 16 * 1024
_WRITE_BYTES: Final = 1024 * 1024
_SYNC_BYTES: Final = 8 * 1024 * 1024
_SLICE: Final = 5000


class DiskFullError(Exception):
    """There is no space for the commit; it may be tried again when there is. Internal to this room."""


@dataclass(slots=True)
class Batch:
    """What one commit writes; handed to the journal's thread, and not touched by the loop any more."""

    seq: int
    puts: dict[str, bytes] = field(default_factory=dict)
    deletes: dict[str, None] = field(default_factory=dict)
    rows: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CommitDone:
    """An acknowledged commit.

    Attributes:
        seq: Its number.
        started_at: When it began, monotonic seconds.
        ended_at: When it was durable, likewise.
        cost_s: What the thread computed in between, and the time inside of the operating system's calls. Waiting for
            the interpreter, while the event loop works, is not among it.
        size_bytes: Added to the journal.
        overcame: A failure that was overcome.
    """

    seq: int
    started_at: float
    ended_at: float
    cost_s: float
    size_bytes: int
    overcame: OSError | None


def secure_tail(directory: str, name: SegmentName, files: LocalFiles) -> None:
    """Make the end of an earlier opening's last segment durable, before anything builds on it.

    A writer that was killed may have written a commit, which every reader sees, and not have synced it.

    Raises:
        OSError: The disk refused.
    """
    fd = files.open_read(f"{directory}/{name}")
    try:
        files.sync_data(fd)
    finally:
        files.close(fd)


class Journal:
    """The journal of one opening.

    `segments` is the number of segments in the directory, as of the last look.

    Args:
        directory: The `.asynctune` directory.
        experiment_id: Written into each segment.
        claim: This opening's.
        node_ip: Written into each segment, for result rows.
        history: With this opening's own entry last.
        records: The image as of `seq`; taken over.
        seq: Last commit there is.
        crc: Its crc.
        files: The disk.
        clock: For the cost of each commit.
        shared: Other hosts may write there, or locks keep nobody out: each look for a higher claim is a fresh one.
    """

    def __init__(
        self,
        directory: str,
        *,
        experiment_id: str,
        claim: Claim,
        node_ip: str,
        history: History,
        records: dict[str, bytes],
        seq: int,
        crc: int,
        files: LocalFiles,
        clock: Clock,
        shared: bool = False,
    ) -> None:
        self.directory = directory
        self.experiment_id = experiment_id
        self.claim = claim
        self.history = history
        self.seq = seq
        self._crc = crc
        self._node_ip = node_ip
        self._image = records
        self.files = files
        self._clock = clock
        self._shared = shared
        self.segments = 0
        self._fd: int | None = None
        self._name = ""
        self._acknowledged = False  # anything in the present segment
        self._unused: list[str] = []
        self._waited_s = 0.0  # for the disk, in the commit under way

    # -- commits -------------------------------------------------------------------------------------------

    def commit(self, batch: Batch) -> CommitDone:
        """Make one batch durable.

        Raises:
            DiskFullError: No space; the same batch may be given again.
            FencedError: Another opening owns the experiment.
            StorageError: The disk failed twice; this journal must not be used again.
        """
        started_at, busy_before = self._clock.monotonic(), self._clock.busy()
        self._waited_s = 0.0
        overcame: OSError | None = None
        try:
            if self._fd is None:
                with self._waiting():
                    self.start_segment()
            size, crc = self._append(batch)
        except OSError as error:
            overcame = error
            size, crc = self._append_elsewhere(batch, error)
        with self._waiting():
            self._check_claim()
        self._apply(batch)
        self.seq, self._crc = batch.seq, crc
        self._acknowledged = True
        cost_s = self._clock.busy() - busy_before + self._waited_s
        return CommitDone(batch.seq, started_at, self._clock.monotonic(), cost_s, size, overcame)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """The block waits for the disk, and that counts."""
        start, busy = self._clock.monotonic(), self._clock.busy()
        try:
            yield
        finally:
            self._waited_s += max(0.0, self._clock.monotonic() - start - (self._clock.busy() - busy))

    def _append(self, batch: Batch) -> tuple[int, int]:
        assert self._fd is not None
        # Written together: each call of the system gives the interpreter away, and a busy event loop keeps it for 5 ms.
        frames: list[bytes] = []
        size, unwritten, unsynced, crc = 0, 0, 0, self._crc
        for ops, more in _parts(batch):
            payload = encode_ops(ops)
            frame = encode_frame(
                FrameType.COMMIT,
                payload,
                epoch=self.claim.epoch,
                seq=batch.seq,
                prev=crc,
                more=more,
                compress=len(payload) > _COMPRESS_BYTES,
            )
            crc = frame_crc(frame)
            frames.append(frame)
            size += len(frame)
            unwritten += len(frame)
            if not more or unwritten > _WRITE_BYTES:
                data = b"".join(frames)
                with self._waiting():
                    self.files.write_all(self._fd, data)
                unsynced += unwritten
                frames, unwritten = [], 0
            if more and unsynced > _SYNC_BYTES:
                with self._waiting():
                    self.files.sync_data(self._fd)
                unsynced = 0
        with self._waiting():
            self.files.sync_data(self._fd)
        return size, crc

    def _append_elsewhere(self, batch: Batch, first: OSError) -> tuple[int, int]:
        self._check_claim()
        self._abandon()
        try:
            with self._waiting():
                self.start_segment()
            return self._append(batch)
        except OSError as second:
            self._abandon()
            if is_disk_full(second):
                raise DiskFullError(str(second)) from second
            msg = f"the disk refused commit {batch.seq} twice ({first}; then, in a new segment: {second})"
            raise StorageError(
                msg,
                operation="commit",
                key=self.directory,
                hint="everything up to the commit before is safe; mend the disk and open the experiment again",
            ) from second

    def _check_claim(self) -> None:
        check_claim(self.directory, self.claim.epoch, self.files, shared=self._shared)

    def _apply(self, batch: Batch) -> None:
        # In slices: an update of a hundred thousand keys in one call would hold the interpreter too long.
        if len(batch.puts) <= _SLICE:
            self._image.update(batch.puts)
        else:
            items = iter(batch.puts.items())
            while part := list(islice(items, _SLICE)):
                self._image.update(part)
                time.sleep(0)
        for key in batch.deletes:
            self._image.pop(key, None)

    # -- segments ------------------------------------------------------------------------------------------

    def start_segment(self) -> None:
        """Begin the segment of the next commit; whatever an older one holds beyond is cut off by it.

        Raises:
            OSError: The disk refused; the next commit begins a segment of its own.
        """
        name = SegmentName(self.claim.epoch, self.seq + 1, self._next_attempt())
        header = SegmentHeader(
            self.experiment_id,
            self.claim,
            self.seq + 1,
            self._crc,
            self.history,
            self._node_ip,
            name.attempt,
        )
        fd = self.files.create(f"{self.directory}/{name}")
        try:
            self.files.write_all(fd, encode_segment_header(header))
            self.files.sync(fd)
            self.files.sync_dir(self.directory)
        except OSError:
            self._close(fd)
            self._remove(str(name))
            # It may be there after a crash nevertheless, and would cut off what the present one got after it.
            self._abandon()
            raise
        self._abandon()
        self._fd, self._name, self._acknowledged = fd, str(name), False
        # Not before the new header is durable: after a snapshot there is always a segment that goes on from it.
        unused, self._unused = self._unused, []
        for old in unused:
            self._remove(old)

    def _next_attempt(self) -> int:
        names = [n for text in self.files.list_dir(self.directory) if (n := parse_segment_name(text))]
        self.segments = len(names)
        here = (self.claim.epoch, self.seq + 1)
        return max((n.attempt for n in names if (n.epoch, n.first_seq) == here), default=-1) + 1

    def _abandon(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            self._close(fd)
            if not self._acknowledged:
                self._unused.append(self._name)

    def _close(self, fd: int) -> None:
        try:
            self.files.close(fd)
        except OSError:
            return  # what counts was synced before; the rest is written again elsewhere

    def _remove(self, name: str) -> None:
        """Give back the space of a segment in which nothing was acknowledged."""
        try:
            self.files.unlink(f"{self.directory}/{name}")
        except OSError:
            return  # its commits are superseded by the next segment's header all the same

    # -- snapshots -----------------------------------------------------------------------------------------

    def capture(self) -> Image:
        """Begin a new segment and return the image as of now, without copying any record.

        Raises:
            OSError: The disk refused the segment; the next commit begins one.
            FencedError: Another opening owns the experiment.
        """
        self._check_claim()
        self.start_segment()
        keys: list[str] = []
        values: list[bytes] = []
        items, contents = iter(self._image), iter(self._image.values())
        while part := list(islice(items, _SLICE)):
            keys += part
            values += islice(contents, _SLICE)
            time.sleep(0)
        return Image(self.seq, self._crc, keys, values)

    def prune(self, keep_from: int) -> None:
        """Remove snapshots below `keep_from`, and segments with nothing but commits up to it.

        Raises:
            OSError: The disk refused; what is left is removed the next time.
            FencedError: Another opening owns the experiment, and decides what it needs.
        """
        self._check_claim()
        names = self.files.list_dir(self.directory)
        segments = sorted(n for text in names if (n := parse_segment_name(text)))
        for text in names:
            seq = parse_snapshot_name(text)
            if seq is not None and seq < keep_from:
                self.files.unlink(f"{self.directory}/{text}")
        for name, following in pairwise(segments):
            if following.first_seq <= keep_from + 1 and str(name) != self._name:
                self.files.unlink(f"{self.directory}/{name}")

    def close(self) -> None:
        """Let go of the descriptor; everything acknowledged is on the disk already."""
        self._abandon()


def _parts(batch: Batch) -> Iterator[tuple[Ops, bool]]:
    """The batch as the payloads of its frames, each with whether more follow."""
    if len(batch.puts) + len(batch.rows) <= _FRAME_KEYS // 4 and len(batch.deletes) <= _FRAME_KEYS:
        size = sum(map(len, batch.puts.values())) + sum(map(len, batch.rows))
        if size <= _FRAME_BYTES:
            yield Ops(list(chain.from_iterable(batch.puts.items())), list(batch.deletes), batch.rows), False
            return
    pieces = chain(_pieces(batch), [None])
    present = next(pieces)
    while present is not None:
        following = next(pieces)
        yield present, following is not None
        present = following
        breathe()


def _pieces(batch: Batch) -> Iterator[Ops]:
    for puts in _slices(iter(batch.puts.items()), lambda item: len(item[1])):
        yield Ops(list(chain.from_iterable(puts)), [], [])
    for deletes in _slices(iter(batch.deletes), len):
        yield Ops([], deletes, [])
    for rows in _slices(iter(batch.rows), len):
        yield Ops([], [], rows)


def _slices(items: Iterator[Any], size_of: Any) -> Iterator[list[Any]]:
    """Lists of at most `_FRAME_KEYS` items and, unless one item is larger, `_FRAME_BYTES` bytes."""
    while part := list(islice(items, _FRAME_KEYS)):
        total, start = 0, 0
        for index, item in enumerate(part):
            size = size_of(item)
            if total + size > _FRAME_BYTES and index > start:
                yield part[start:index]
                total, start = 0, index
            total += size
        yield part[start:]
