"""Owns the walk over every file of an experiment's state: claims, snapshots, segments, each frame of each.

Recovery reads what an opening needs; this reads what the next one may need too. Uses the state room's own
decoders, holds no opinion on formats. What was read of a copy is walked over as if it were files. Blocks, and belongs
in a thread.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final, cast

from asynctune.errors import CorruptStateError
from asynctune.files import LocalFiles
from asynctune.inspect.places import STATE_DIR
from asynctune.inspect.report import Problem
from asynctune.inspect.text import path_text, printable
from asynctune.state.codec import FrameError, decode_frame, has_valid_frame_after, is_torn
from asynctune.state.epochs import list_epochs, read_claim
from asynctune.state.lineage import Link, lineage
from asynctune.state.mirror.reading import HeldFiles, Mirrored, end_name
from asynctune.state.recovery import recover
from asynctune.state.segments import (
    Damage,
    SegmentHeader,
    SegmentName,
    decode_segment_header,
    parse_segment_name,
    walk_commits,
)
from asynctune.state.snapshot import parse_snapshot_name, read_snapshot

__all__ = ["StateCheck", "check_copied_state", "check_state"]

_TRIES: Final = 20
_SETTLE_S: Final = 0.01


@dataclass(slots=True)
class StateCheck:
    """What the walk found.

    Attributes:
        records: The state itself, as an opening sees it; empty where it cannot be recovered.
        frames: Frames whose checksums were compared.
        snapshots: Snapshots among them.
        size_bytes: Size of the files.
        problems: What is damaged.
    """

    records: dict[str, bytes] = field(default_factory=dict)
    frames: int = 0
    snapshots: int = 0
    size_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)


def check_state(location: str, files: LocalFiles, *, live: bool) -> StateCheck:
    """Read all of it.

    Args:
        location: Directory of the experiment.
        files: The disk.
        live: A driver may be writing: the journal then ends where its last whole commit does.

    Raises:
        UnsupportedFormatError: Written by a newer release.
        OSError: The disk refused.
    """
    for attempt in range(_TRIES):
        try:
            return _Walk(f"{location}/{STATE_DIR}", files, live=live).check()
        except FileNotFoundError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(_SETTLE_S)  # a driver replaced a generation between the listing and the reading
    raise AssertionError


def check_copied_state(mirrored: Mirrored, location: str) -> StateCheck:
    """The same for the state of a copy, from the bytes that were read; sizes are those of its objects.

    Args:
        mirrored: The copy.
        location: Where it is.

    Raises:
        UnsupportedFormatError: Written by a newer release.
    """
    current = mirrored.current
    files = cast("LocalFiles", HeldFiles(mirrored.contents))
    check = _Walk(f"{location}/{STATE_DIR}", files, live=False).check()
    if end_name(current) in mirrored.contents:
        check.frames -= 1  # stands for what CURRENT says, and is no frame of the copy
    check.frames += 1  # CURRENT
    check.size_bytes = mirrored.named.size_bytes + sum(ref.size_bytes for ref in current.refs)
    return check


class _Walk:
    """One attempt on the files as they are listed at the start."""

    def __init__(self, directory: str, files: LocalFiles, *, live: bool) -> None:
        self._directory = directory
        self._files = files
        self._live = live
        self._check = StateCheck()
        self._blamed: set[str] = set()

    def check(self) -> StateCheck:
        names = self._files.list_dir(self._directory)
        self._recover()
        for epoch in list_epochs(self._directory, self._files):
            self._claim(epoch)
        for name in sorted(names):
            if (seq := parse_snapshot_name(name)) is not None:
                self._snapshot(name, seq)
        self._segments(sorted(n for name in names if (n := parse_segment_name(name))))
        return self._check

    def _recover(self) -> None:
        try:
            recovered = recover(self._directory, self._files, live=self._live)
        except CorruptStateError as error:
            self._blame(error.path or self._directory, str(error))
            return
        self._check.records = recovered.records
        for notice in recovered.notices:
            if notice.kind == "damage":
                self._blame(notice.path, notice.message)

    def _claim(self, epoch: int) -> None:
        try:
            read_claim(self._directory, epoch, self._files)
        except FrameError as error:
            self._blame(f"{self._directory}/epoch-{epoch}", f"epoch-{epoch}: {error}")
        except FileNotFoundError:
            return  # an old one, which an opening beside us removed
        self._check.frames += 1

    def _snapshot(self, name: str, seq: int) -> None:
        data = self._read(name)
        self._check.snapshots += 1
        end = 0
        try:
            if read_snapshot(data).seq != seq:
                msg = "it does not fit its name"
                raise FrameError(msg)
            while end < len(data):
                end = decode_frame(data, end).end
                self._check.frames += 1
        except FrameError as error:
            self._blame(f"{self._directory}/{name}", f"{name}: {error}")

    def _segments(self, names: list[SegmentName]) -> None:
        headers: dict[SegmentName, SegmentHeader] = {}
        contents: dict[SegmentName, bytes] = {}
        for name in names:
            data = self._read(str(name))
            try:
                headers[name], contents[name] = decode_segment_header(data, name), data
            except FrameError as error:
                if not is_torn(data, 0, error) or has_valid_frame_after(data, 0, 0):
                    self._blame(f"{self._directory}/{name}", f"{name} at byte 0: {error}")
        for link in lineage(headers):
            self._segment(link, contents.pop(link.name))

    def _segment(self, link: Link, data: bytes) -> None:
        header = link.header
        self._check.frames += 1
        seq, crc, offset = header.first_seq - 1, header.prev_crc, header.end
        reason = "a later segment says that there are more commits"
        for item in walk_commits(data, offset, epoch=link.name.epoch, seq=seq + 1, crc=crc):
            if isinstance(item, Damage):
                offset, reason = item.offset, str(item.error)
                break
            if link.end_seq is not None and item.seq >= link.end_seq:
                break
            self._check.frames += len(item.ops)
            seq, crc, offset = item.seq, item.crc, item.end
        # The end of the last segment was judged by recovery: a tear, corruption, or a driver at work.
        if link.end_seq is not None and (seq, crc) != (link.end_seq - 1, link.end_crc):
            self._blame(f"{self._directory}/{link.name}", f"{link.name} at byte {offset:,}: {reason}")

    def _read(self, name: str) -> bytes:
        data = self._files.read(f"{self._directory}/{name}")
        self._check.size_bytes += len(data)
        return data

    def _blame(self, path: str, message: str) -> None:
        """One problem for a file is enough: what follows damage cannot be trusted to be a second one."""
        if path not in self._blamed:
            self._blamed.add(path)
            where = "" if path in message else f" (in {path_text(self._directory)})"
            self._check.problems.append(Problem("state", printable(message) + where))
