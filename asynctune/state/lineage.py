"""Owns the question which segments count, and up to where: pure, on names and headers alone.

The newest valid header says which epochs belong to the experiment's history. What another epoch wrote, and what
an epoch wrote beyond the point where the next one took over, does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from asynctune.state.segments import History, SegmentHeader, SegmentName

__all__ = ["MAX_HISTORY", "Link", "extend_history", "in_history", "lineage"]

MAX_HISTORY: Final = 4096
"""The most openings that a history tells apart; a segment of an older one would not count any more."""


@dataclass(frozen=True, slots=True)
class Link:
    """One segment that counts: its commits from `header.first_seq` up to, but without, `end_seq`.

    `end_seq` is `None` for the last one, which is open-ended; `end_crc` is the crc that commit `end_seq - 1` must
    have, as the next segment's header says.
    """

    name: SegmentName
    header: SegmentHeader
    end_seq: int | None
    end_crc: int | None


def lineage(headers: Mapping[SegmentName, SegmentHeader]) -> list[Link]:
    """The segments that count, in the order of their commits."""
    if not headers:
        return []
    names = sorted(headers)
    history = headers[names[-1]].history
    links: list[Link] = []
    end_seq: int | None = None
    end_crc: int | None = None
    for name in reversed(names):
        header = headers[name]
        if not any(epoch == name.epoch and nonce == header.claim.nonce for epoch, nonce, _ in history):
            continue
        if end_seq is not None and header.first_seq >= end_seq:
            # Superseded: a retry after a failed write, or a fenced writer that went on beyond the takeover.
            continue
        links.append(Link(name, header, end_seq, end_crc))
        end_seq, end_crc = header.first_seq, header.prev_crc
    links.reverse()
    return links


def in_history(history: Iterable[tuple[int, bytes, int]], epoch: int, nonce: bytes, seq: int) -> bool:
    """Whether commit `seq` of this epoch is part of the history: the epoch is, and no later one cut it off."""
    known = False
    for number, mark, adopted in history:
        if number == epoch:
            known = mark == nonce
        elif number > epoch and adopted < seq:
            return False
    return known


def extend_history(history: History, epoch: int, nonce: bytes, adopted_seq: int) -> History:
    """The history of a new epoch that goes on from commit `adopted_seq`; bounded, the oldest drop out."""
    return [*history, (epoch, nonce, adopted_seq)][-MAX_HISTORY:]
