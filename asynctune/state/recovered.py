"""Owns what recovery hands over: the state found, how far the journal was read, and what was met on the way.

Values only; how they are found is `state.recovery`'s.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from asynctune.state.codec import Ops
from asynctune.state.epochs import Claim
from asynctune.state.segments import History, SegmentName

__all__ = ["Notice", "Position", "Recovered", "SegmentRows", "apply_ops"]


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that recovery met and could cope with.

    Attributes:
        kind: `"tear"`: a write that a crash cut short, acknowledged to nobody; `"damage"`: a damaged file that
            another generation made good.
        message: One sentence for people.
        path: The file.
        offset: Where in it.
    """

    kind: str
    message: str
    path: str
    offset: int


@dataclass(slots=True)
class SegmentRows:
    """The result rows of one segment, in order, as columns: an object a row would burden the garbage collector.

    Attributes:
        claim: The opening that wrote them.
        node_ip: Its address.
        seqs: The commit of each row, never falling.
        data: The packed bytes of each row.
    """

    claim: Claim
    node_ip: str
    seqs: list[int] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)

    def add(self, seq: int, parts: tuple[Ops, ...]) -> None:
        """Append the rows of one commit."""
        for ops in parts:
            self.data += ops.rows
            self.seqs += [seq] * len(ops.rows)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Seq and packed bytes of each row."""
        return zip(self.seqs, self.data, strict=True)

    def after(self, seq: int) -> SegmentRows:
        """Those of later commits."""
        start = bisect_right(self.seqs, seq)
        if start == 0:
            return self
        return SegmentRows(self.claim, self.node_ip, self.seqs[start:], self.data[start:])


@dataclass(frozen=True, slots=True)
class Position:
    """How far the journal of an experiment has been read: commit `seq` with `crc` ended at `offset` of `name`."""

    name: SegmentName
    offset: int
    seq: int
    crc: int
    experiment_id: str


@dataclass(slots=True)
class Recovered:
    """The state as of the last whole commit, and what is needed to go on from there.

    `position` is `None` while nothing was ever written. `snapshots` are the seqs of those that belong to the
    history, rising; `segments` those that count.
    """

    experiment_id: str | None = None
    records: dict[str, bytes] = field(default_factory=dict)
    seq: int = 0
    crc: int = 0
    history: History = field(default_factory=list)
    claim: Claim | None = None
    position: Position | None = None
    rows: list[SegmentRows] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    snapshots: list[int] = field(default_factory=list)
    segments: list[SegmentName] = field(default_factory=list)
    snapshot_seq: int = 0
    snapshot_bytes: int = 0
    journal_bytes: int = 0


def apply_ops(records: dict[str, bytes], parts: tuple[Ops, ...]) -> None:
    """Replay one commit onto a plain dict: the last writer wins."""
    for ops in parts:
        records.update(zip(ops.puts[::2], ops.puts[1::2], strict=True))
        for key in ops.deletes:
            records.pop(key, None)
