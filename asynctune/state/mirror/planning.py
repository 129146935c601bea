"""Owns what the next CURRENT names: what goes into the tail, what becomes a segment, what is merged, what is dropped.

Pure arithmetic on sizes and seqs. Result rows ride in the frames, so frames are named until a snapshot has their
records *and* the result files in the bucket have their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from asynctune.state.mirror.current import MAX_REFS, TAIL_BYTES, Current, Ref

__all__ = ["MAX_MERGED_BYTES", "MAX_SEGMENTS", "Plan", "merged_count", "plan_swap", "snapshot_is_due"]

MAX_SEGMENTS: Final = 16
"""With more segments than this, some are merged."""

MAX_MERGED_BYTES: Final = 32 * 1024 * 1024
"""The largest segment that is made by merging, in bytes."""

_MIN_JOURNAL_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """What a swap does.

    Attributes:
        snapshot: What reading starts from.
        kept: Segments that stay named as they are.
        merged: Segments whose bytes go, in front of the tail's and the new ones, into a new segment.
        keeps_tail: Whether the present tail is still needed.
        inline: Whether tail and new bytes stay in CURRENT; else they become a segment.
    """

    snapshot: Ref | None
    kept: tuple[Ref, ...]
    merged: tuple[Ref, ...]
    keeps_tail: bool
    inline: bool


def plan_swap(current: Current, new_bytes: int, snapshot: Ref | None, projected: int) -> Plan:
    """What a swap does that adds `new_bytes` of runs.

    Args:
        current: What is named at present.
        new_bytes: Size of the runs after `current.seq`; 0: none.
        snapshot: One that was put and is not named yet.
        projected: Up to which commit the result files in the bucket are complete.
    """
    if snapshot is None or (current.snapshot is not None and current.snapshot.last_seq >= snapshot.last_seq):
        snapshot = current.snapshot
    covered = min(snapshot.last_seq if snapshot is not None else 0, projected)
    kept = tuple(ref for ref in current.segments if ref.last_seq > covered)
    # dropped only where nothing else is needed: the frames that are named end at the newest commit
    keeps_tail = bool(current.tail) and current.seq > covered
    size = new_bytes + (len(current.tail) if keeps_tail else 0)
    if size <= TAIL_BYTES:
        return Plan(snapshot, kept, (), keeps_tail, inline=True)
    count = merged_count([ref.size_bytes for ref in kept], size)
    split = len(kept) - count
    return Plan(snapshot, kept[:split], kept[split:], keeps_tail, inline=False)


def merged_count(sizes: Sequence[int], new_bytes: int) -> int:
    """How many of the last segments go into the new one: those that cost the fewest bytes for each name saved.

    So small ones are merged often and large ones seldom, and each byte is put again a few times only.
    """
    if len(sizes) < MAX_SEGMENTS:
        return 0
    best, best_cost = 0, float("inf")
    total = new_bytes
    for count, size in enumerate(reversed(sizes), 1):
        total += size
        # beyond the bound only if CURRENT could not name them all
        if total > MAX_MERGED_BYTES and (len(sizes) < MAX_REFS or best):
            break
        if total / count <= best_cost:
            best, best_cost = count, total / count
    return best


def snapshot_is_due(current: Current, new_bytes: int, seq: int, size_bytes: int) -> bool:
    """Whether a local snapshot of commit `seq` is worth putting: less to read than the frames since the last one."""
    before = current.snapshot.last_seq if current.snapshot is not None else 0
    if seq <= before:
        return False
    since = sum(ref.size_bytes for ref in current.segments if ref.last_seq > before)
    return since + len(current.tail) + new_bytes > max(_MIN_JOURNAL_BYTES, size_bytes)
