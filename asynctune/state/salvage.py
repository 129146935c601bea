"""Owns the answer what a damaged state still tells: the newest commit of which a whole frame is left, and its history.

For the question whether another copy has all of it. Reads only; blocks, and belongs in a thread.
"""

from __future__ import annotations

from asynctune.files import LocalFiles
from asynctune.state.codec import MAGIC, FrameError, FrameType, decode_frame
from asynctune.state.segments import (
    History,
    SegmentHeader,
    SegmentName,
    decode_segment_header,
    parse_segment_name,
)
from asynctune.state.snapshot import parse_snapshot_name, read_snapshot

__all__ = ["Remains", "salvage"]


class Remains:
    """What is left of a state.

    Attributes:
        experiment_id: Of the newest part that says so; `None`: none does.
        history: Of the newest segment or snapshot whose header is whole.
        seq: The newest commit that any frame, of any epoch, tells of; 0: none.
        crc: Of that commit.
    """

    def __init__(self) -> None:
        self.experiment_id: str | None = None
        self.history: History = []
        self.seq = 0
        self.crc = 0


def salvage(directory: str, files: LocalFiles) -> Remains:
    """Look through every file of the `.asynctune` directory, beyond what is damaged too.

    Raises:
        OSError: The disk refused.
    """
    remains = Remains()
    names = files.list_dir(directory)
    newest_epoch = 0
    for name in sorted(n for text in names if (n := parse_segment_name(text))):
        data = files.read(f"{directory}/{name}")
        header = _header(data, name)
        if header is not None and name.epoch >= newest_epoch:
            newest_epoch = name.epoch
            remains.experiment_id, remains.history = header.experiment_id, header.history
        _take_newest(remains, data)
    for text in names:
        if parse_snapshot_name(text) is None:
            continue
        try:
            snapshot = read_snapshot(files.read(f"{directory}/{text}"))
        except FrameError:
            continue
        if snapshot.seq > remains.seq:
            remains.seq, remains.crc = snapshot.seq, snapshot.crc
        if snapshot.claim.epoch > newest_epoch:
            newest_epoch = snapshot.claim.epoch
            remains.experiment_id, remains.history = snapshot.experiment_id, snapshot.history
    return remains


def _header(data: bytes, name: SegmentName) -> SegmentHeader | None:
    try:
        return decode_segment_header(data, name)
    except FrameError:
        return None


def _take_newest(remains: Remains, data: bytes) -> None:
    at = 0
    while (at := data.find(MAGIC, at)) != -1:
        try:
            frame = decode_frame(data, at)
        except FrameError:
            at += 1
            continue
        if frame.type is FrameType.COMMIT and frame.seq >= remains.seq:
            remains.seq, remains.crc = frame.seq, frame.crc
        at = frame.end
