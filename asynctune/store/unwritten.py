"""Owns the committed rows that result files may lack, as somebody finds them who only reads. By trial.

A writer projects rows to the files some time after they are committed; what a crash leaves out, its next opening
completes (`projections`). Until then, the journal has them.
"""

from __future__ import annotations

from collections.abc import Iterable

from asynctune.results.backlog import Backlog
from asynctune.results.rows import OpeningInfo
from asynctune.state.recovered import SegmentRows
from asynctune.store.opening import OpenedForReading

__all__ = ["are_all_written", "unwritten_of"]


def unwritten_of(rows: Iterable[SegmentRows]) -> Backlog:
    """Recovered rows, by trial. Blocking."""
    backlog = Backlog()
    for segment in rows:
        claim = segment.claim
        opening = OpeningInfo(hostname=claim.hostname, node_ip=segment.node_ip, pid=claim.pid)
        backlog.add(segment.data, opening)
    backlog.sort_in()
    return backlog


def are_all_written(opened: OpenedForReading) -> bool:
    """Whether the writer was closed, and had brought all rows into the files before: the usual case."""
    closed = opened.opening.previous_closed_at is not None
    return closed and int(opened.records.get("projected") or 0) >= opened.recovered.seq - 1
