"""Owns the names and headers of journal segments, and walks the frames of one; decides nothing about recovery.

A segment `wal-<epoch>-<first_seq>` (with `.<n>` behind it for the n-th try after a failed write) starts with a
SEGMENT frame and goes on with COMMIT frames of one epoch, seqs rising by one. It ends where the next valid
segment's header says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from asynctune.state.codec import (
    Frame,
    FrameError,
    FrameType,
    Ops,
    decode_fields,
    decode_frame,
    decode_ops,
    encode_fields,
    encode_frame,
)
from asynctune.state.epochs import Claim

__all__ = [
    "Commit",
    "Damage",
    "History",
    "SegmentHeader",
    "SegmentName",
    "decode_segment_header",
    "encode_segment_header",
    "parse_segment_name",
    "walk_commits",
]

# Each name has one spelling, so that no two files can stand for the same segment.
_NAME: Final = re.compile(r"wal-([1-9][0-9]{0,14})-([1-9][0-9]{0,17})(?:\.([1-9][0-9]{0,8}))?\Z")

History = list[tuple[int, bytes, int]]
"""For each epoch that counts, rising: (number, nonce, seq of the last commit adopted from before it)."""


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """What a segment's name says; orders as the segments follow each other."""

    epoch: int
    first_seq: int
    attempt: int = 0

    def __str__(self) -> str:
        base = f"wal-{self.epoch}-{self.first_seq}"
        return f"{base}.{self.attempt}" if self.attempt else base


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first frame of a segment; `end` is the offset of the first commit."""

    experiment_id: str
    claim: Claim
    first_seq: int
    prev_crc: int
    history: History
    node_ip: str
    attempt: int = 0
    end: int = 0

    @property
    def name(self) -> SegmentName:
        """The name of its file."""
        return SegmentName(self.claim.epoch, self.first_seq, self.attempt)


@dataclass(frozen=True, slots=True)
class Commit:
    """One whole commit read from a segment; `start` and `end` are its offsets there."""

    seq: int
    crc: int
    ops: tuple[Ops, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Where a walk stopped before the end of the bytes: at which frame, why, and where its commit starts."""

    offset: int
    error: FrameError
    start: int


def parse_segment_name(name: str) -> SegmentName | None:
    """What the name says, or `None` if it is no segment's."""
    match = _NAME.match(name)
    return SegmentName(int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def encode_segment_header(header: SegmentHeader) -> bytes:
    """The SEGMENT frame."""
    fields = {
        "experiment_id": header.experiment_id,
        "claim": header.claim.fields(),
        "first_seq": header.first_seq,
        "prev_crc": header.prev_crc,
        "history": [list(entry) for entry in header.history],
        "node_ip": header.node_ip,
        "attempt": header.attempt,
    }
    return encode_frame(
        FrameType.SEGMENT,
        encode_fields(fields),
        epoch=header.claim.epoch,
        seq=header.first_seq,
        prev=header.prev_crc,
    )


def decode_segment_header(data: bytes, name: SegmentName) -> SegmentHeader:
    """The header at the start of the bytes of segment `name`.

    Raises:
        FrameError: Not a valid one, or that of another segment.
    """
    frame = decode_frame(data)
    fields = decode_fields(frame.payload)
    try:
        header = SegmentHeader(
            experiment_id=fields["experiment_id"],
            claim=Claim.from_fields(fields["claim"]),
            first_seq=fields["first_seq"],
            prev_crc=fields["prev_crc"],
            history=decode_history(fields["history"]),
            node_ip=fields["node_ip"],
            attempt=fields["attempt"],
            end=frame.end,
        )
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"a segment header without a valid {error}"
        raise FrameError(msg) from None
    if (
        frame.type is not FrameType.SEGMENT
        or frame.seq != header.first_seq
        or frame.epoch != header.claim.epoch
        or frame.prev != header.prev_crc
        or not isinstance(header.experiment_id, str)
        or not isinstance(header.node_ip, str)
    ):
        msg = "a segment header whose parts contradict each other"
        raise FrameError(msg)
    if header.name != name:
        msg = f"the header of segment {header.name}"
        raise FrameError(msg)
    return header


def decode_history(value: Any) -> History:
    """An epoch history as stored.

    Raises:
        FrameError: Not one.
    """
    try:
        history = [(epoch, nonce, adopted) for epoch, nonce, adopted in value]
    except (TypeError, ValueError) as error:
        msg = "an epoch history that is not valid"
        raise FrameError(msg) from error
    if not all(tuple(map(type, entry)) == (int, bytes, int) for entry in history):
        msg = "an epoch history with a value of the wrong type"
        raise FrameError(msg)
    return history


def walk_commits(
    data: bytes, offset: int, *, epoch: int, seq: int, crc: int | None
) -> Iterator[Commit | Damage]:
    """The commits from `offset` on; the last thing yielded is a `Damage` if the bytes do not end cleanly.

    Args:
        data: The segment's bytes.
        offset: Of the first frame to read.
        epoch: Which each frame must have.
        seq: Of the first commit.
        crc: What the first frame's `prev` must be; `None`: not known.
    """
    size = len(data)
    while offset < size:
        start, parts = offset, []
        try:
            while True:
                frame = decode_frame(data, offset)
                _check_place(frame, epoch=epoch, seq=seq, crc=crc)
                parts.append(decode_ops(frame.payload))
                offset, crc = frame.end, frame.crc
                if not frame.more:
                    break
        except FrameError as error:
            yield Damage(offset, error, start)
            return
        yield Commit(seq, crc, tuple(parts), start, offset)
        seq += 1


def _check_place(frame: Frame, *, epoch: int, seq: int, crc: int | None) -> None:
    if frame.type is not FrameType.COMMIT or frame.epoch != epoch or frame.seq != seq:
        msg = f"a frame of epoch {frame.epoch} and seq {frame.seq} where epoch {epoch} and seq {seq} belong"
        raise FrameError(msg)
    if crc is not None and frame.prev != crc:
        msg = f"the commit {seq} does not follow the one before it"
        raise FrameError(msg)
