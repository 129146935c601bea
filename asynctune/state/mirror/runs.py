"""Owns runs: commits as the mirror holds them, byte for byte as they stand in the local journal. Pure, on bytes.

A run is a SEGMENT frame, as of the first commit in it, and the COMMIT frames of one epoch after it. Runs stand one
after the other; a run that goes on in the same epoch as the one before loses its SEGMENT frame when they are joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from asynctune.breathing import breathe
from asynctune.state.codec import FrameError, FrameType, decode_fields, decode_frame
from asynctune.state.segments import (
    SegmentHeader,
    SegmentName,
    decode_segment_header,
    encode_segment_header,
)

__all__ = ["Run", "Runs", "join_runs", "run_header", "split_runs"]


@dataclass(frozen=True, slots=True)
class Run:
    """Where one run stands: its name as a local segment, the offsets of its header, commits and end."""

    name: SegmentName
    nonce: bytes
    start: int
    commits: int
    end: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Runs:
    """Some runs one after the other: commits `first_seq` to `last_seq`, the last of which has `crc`."""

    data: bytes
    first_seq: int
    last_seq: int
    crc: int


def run_header(header: SegmentHeader, seq: int, prev_crc: int) -> bytes:
    """The first frame of a run that begins at commit `seq` of the segment with this header."""
    return encode_segment_header(
        SegmentHeader(
            header.experiment_id, header.claim, seq, prev_crc, header.history, header.node_ip, attempt=0
        )
    )


def split_runs(data: bytes) -> list[Run]:
    """The runs that stand in `data`, without reading what is in their commits.

    Raises:
        FrameError: Something else is in it.
    """
    runs: list[Run] = []
    offset = 0
    while offset < len(data):
        frame = decode_frame(data, offset)
        if frame.type is FrameType.SEGMENT:
            name = SegmentName(frame.epoch, frame.seq)
            # the header's own copy of the name is checked by whoever reads the commits
            nonce = _nonce_of(frame.payload)
            runs.append(Run(name, nonce, offset, frame.end, frame.end, frame.seq - 1))
        elif frame.type is FrameType.COMMIT and runs and frame.epoch == runs[-1].name.epoch:
            run = runs[-1]
            if frame.seq != run.last_seq + 1:
                msg = f"a frame of commit {frame.seq} where commit {run.last_seq + 1} belongs"
                raise FrameError(msg)
            last = run.last_seq if frame.more else frame.seq
            runs[-1] = Run(run.name, run.nonce, run.start, run.commits, frame.end, last)
        else:
            msg = f"a frame of type {frame.type.name} that does not belong into a run"
            raise FrameError(msg)
        offset = frame.end
        breathe()
    for run in runs:
        if run.last_seq < run.name.first_seq:
            msg = f"a run without any whole commit at byte {run.start}"
            raise FrameError(msg)
    return runs


def _nonce_of(payload: bytes) -> bytes:
    claim = decode_fields(payload).get("claim")
    nonce = claim.get("nonce") if isinstance(claim, dict) else None
    if not isinstance(nonce, bytes):
        msg = "a run without the claim that wrote it"
        raise FrameError(msg)
    return nonce


def join_runs(parts: Iterable[bytes]) -> bytes:
    """All parts one after the other, with no more headers than they need.

    Raises:
        FrameError: A part holds something else than runs, or does not go on where the one before ends.
    """
    joined: list[memoryview] = []
    before: Run | None = None
    for data in parts:
        runs = split_runs(data)
        kept = 0  # from where on the bytes of this part are not taken yet
        for run in runs:
            if before is not None and run.name.first_seq != before.last_seq + 1:
                msg = f"a run from commit {run.name.first_seq} where commit {before.last_seq + 1} belongs"
                raise FrameError(msg)
            if before is not None and (run.name.epoch, run.nonce) == (before.name.epoch, before.nonce):
                joined.append(memoryview(data)[kept : run.start])
                kept = run.commits
            before = run
        joined.append(memoryview(data)[kept:])
    return b"".join(joined)


def header_of(data: bytes, run: Run) -> SegmentHeader:
    """The header of a run.

    Raises:
        FrameError: It contradicts itself.
    """
    return decode_segment_header(data[run.start : run.commits], run.name)


def check_follows(runs: Sequence[Run], first_seq: int, last_seq: int) -> None:
    """Refuse runs that are not exactly these commits.

    Raises:
        FrameError: They begin or end elsewhere, or have a gap.
    """
    seq = first_seq
    for run in runs:
        if run.name.first_seq != seq:
            break
        seq = run.last_seq + 1
    if not runs or seq != last_seq + 1:
        msg = f"it does not hold commits {first_seq} to {last_seq}, but ends before commit {seq}"
        raise FrameError(msg)
