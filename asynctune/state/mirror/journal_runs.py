"""Owns reading what is to be mirrored from the local journal: runs of whole commits, and the newest snapshot.

Reads only what is acknowledged, checks every frame, and copies its bytes as they stand. All calls block and belong in
one thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from asynctune.breathing import breathe
from asynctune.errors import CorruptStateError
from asynctune.files import LocalFiles
from asynctune.state.codec import FrameError, FrameType, decode_frame
from asynctune.state.lineage import MAX_HISTORY, Link, lineage
from asynctune.state.mirror.runs import Runs, run_header
from asynctune.state.segments import (
    History,
    SegmentHeader,
    SegmentName,
    decode_segment_header,
    parse_segment_name,
)

__all__ = ["PIECE_BYTES", "JournalRuns"]

PIECE_BYTES: Final = 8 * 1024 * 1024
"""How much is read at a time, in bytes; a single commit may be larger."""

_WINDOW_BYTES: Final = 1024 * 1024
_TRIES: Final = 5
_HEADER_BYTES: Final = 512
_HISTORY_BYTES: Final = 36


@dataclass(frozen=True, slots=True)
class _Commit:
    seq: int
    crc: int
    data: bytes
    end: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Commit `seq`, with `crc`, ends at `offset` of the segment."""

    name: SegmentName
    offset: int
    seq: int
    crc: int


class _Unsettled(Exception):  # noqa: N818 - no failure: the journal changed while it was read
    """The listing is older than the commit."""


class JournalRuns:
    """Reads runs from the journal in one directory, and remembers where it was.

    Args:
        directory: The `.asynctune` directory.
        history: Of the opening that writes it; segments of others are passed over.
        files: The disk.
    """

    def __init__(self, directory: str, history: History, files: LocalFiles) -> None:
        self._directory = directory
        # the last commit of each epoch that counts, whatever stands in its segments
        self._last: dict[tuple[int, bytes], float] = {}
        last = math.inf
        for epoch, nonce, adopted in reversed(history):
            self._last[epoch, nonce] = last
            last = min(last, adopted)
        self._files = files
        self._headers: dict[SegmentName, SegmentHeader] = {}
        self._at: _Place | None = None

    def read(self, after: int, crc: int, upto: int, max_bytes: int = PIECE_BYTES) -> Runs | None:
        """The commits after `after`, up to `upto` or as many as fit; `None`: the journal does not reach back so far.

        Args:
            after: The last commit that is not wanted.
            crc: Its crc.
            upto: The last acknowledged commit; above `after`.
            max_bytes: How much to read, in bytes, if that is at least one commit.

        Raises:
            CorruptStateError: Damage; or commit `after` is another one here.
            OSError: The disk refused.
        """
        for attempt in range(_TRIES):
            try:
                return self._read(after, crc, upto, max_bytes)
            except (FileNotFoundError, _Unsettled):
                # a segment was begun, or pruned, between the listing and the reading
                self._at = None
                if attempt == _TRIES - 1:
                    raise self._corrupt("", 0, f"commit {upto} was acknowledged and is not there") from None
        raise AssertionError

    def crc_of(self, seq: int) -> int | None:
        """The crc of a commit; `None`: the journal does not reach back so far.

        Raises:
            CorruptStateError: Damage before it.
            OSError: The disk refused.
        """
        if seq == 0:
            return 0
        for link in self._links():
            if link.header.first_seq == seq + 1:
                return link.header.prev_crc
            if link.header.first_seq <= seq and (link.end_seq is None or link.end_seq > seq):
                for commit in self._commits(
                    link, link.header.end, link.header.first_seq, link.header.prev_crc
                ):
                    if commit.seq == seq:
                        return commit.crc
        return None

    def _links(self) -> list[Link]:
        names = [n for text in self._files.list_dir(self._directory) if (n := parse_segment_name(text))]
        for name in names:
            if name not in self._headers:
                path = f"{self._directory}/{name}"
                limit = _HEADER_BYTES + _HISTORY_BYTES * min(name.epoch, MAX_HISTORY)
                try:
                    header = decode_segment_header(self._files.read_from(path, 0, limit), name)
                except FrameError:
                    continue  # being begun, or never was: no commit is in it that anybody was told of
                self._headers[name] = header
        there = set(names)
        self._headers = {name: header for name, header in self._headers.items() if name in there}
        return lineage(
            {n: h for n, h in self._headers.items() if (h.claim.epoch, h.claim.nonce) in self._last}
        )

    def _read(self, after: int, crc: int, upto: int, max_bytes: int) -> Runs | None:
        links = self._links()
        if not links or links[0].header.first_seq > after + 1:
            return None
        parts: list[bytes] = []
        size, seq, last, run_of = 0, after, crc, None
        for link in links:
            if link.end_seq is not None and link.end_seq <= seq + 1:
                continue
            if link.header.first_seq > seq + 1:
                break
            owner = link.header.claim
            for commit in self._from(link, seq, last):
                if commit.seq > self._last[owner.epoch, owner.nonce]:
                    break
                if commit.seq > upto or (size and size + len(commit.data) > max_bytes):
                    return Runs(b"".join(parts), after + 1, seq, last)
                if run_of != owner:
                    parts.append(run_header(link.header, commit.seq, last))
                    run_of = owner
                parts.append(commit.data)
                size += len(commit.data)
                seq, last = commit.seq, commit.crc
                self._at = _Place(link.name, commit.end, seq, last)
        if seq == after:
            raise _Unsettled
        return Runs(b"".join(parts), after + 1, seq, last)

    def _from(self, link: Link, seq: int, crc: int) -> Iterator[_Commit]:
        """The commits of a segment after `seq`, which has `crc`."""
        header = link.header
        if self._at is not None and (self._at.name, self._at.seq, self._at.crc) == (link.name, seq, crc):
            offset, before, prev = self._at.offset, seq, crc
        else:
            offset, before, prev = header.end, header.first_seq - 1, header.prev_crc
        if before == seq and prev != crc:
            raise self._corrupt(str(link.name), offset, f"commit {seq} is not the one that was mirrored")
        for commit in self._commits(link, offset, before + 1, prev):
            if commit.seq == seq and commit.crc != crc:
                raise self._corrupt(
                    str(link.name), commit.end, f"commit {seq} is not the one that was mirrored"
                )
            if commit.seq > seq:
                yield commit

    def _commits(self, link: Link, offset: int, seq: int, crc: int) -> Iterator[_Commit]:
        """The commits of a segment from `offset` on, up to where the next one takes over, or the end."""
        path = f"{self._directory}/{link.name}"
        data, base, at = b"", offset, 0
        while link.end_seq is None or seq < link.end_seq:
            try:
                end, crc_found = self._one(data, at, link.name.epoch, seq, crc)
            except FrameError as error:
                if not error.incomplete:
                    # what nobody was told of may be anything; whoever needs this commit will miss it
                    return
                have = len(data) - at
                window = max(_WINDOW_BYTES, 2 * have)
                data, base, at = self._files.read_from(path, base + at, window), base + at, 0
                if len(data) <= have:
                    return
                continue
            yield _Commit(seq, crc_found, data[at:end], base + end)
            at, seq, crc = end, seq + 1, crc_found
            breathe()

    def _one(self, data: bytes, offset: int, epoch: int, seq: int, crc: int) -> tuple[int, int]:
        """Where the commit at `offset` ends, and its crc."""
        while True:
            frame = decode_frame(data, offset)
            if (frame.type, frame.epoch, frame.seq, frame.prev) != (FrameType.COMMIT, epoch, seq, crc):
                msg = f"a frame that does not follow commit {seq - 1}"
                raise FrameError(msg)
            offset, crc = frame.end, frame.crc
            if not frame.more:
                return offset, crc

    def _corrupt(self, name: str, offset: int, detail: str) -> CorruptStateError:
        path = f"{self._directory}/{name}" if name else self._directory
        return CorruptStateError(
            f"the journal cannot be mirrored: {path} at byte {offset:,}: {detail}", path=path, offset=offset
        )
