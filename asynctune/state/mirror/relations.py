"""Owns the comparison of two copies of one experiment's state: who is ahead, and where they part. Pure.

A copy is known by its experiment id, its epoch history, and the seq and crc of its newest commit. Who wrote a commit
follows from the history: an epoch wrote what comes after the seq it adopted, up to where a later one took over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from asynctune.state.segments import History

__all__ = ["Position", "Relation", "common_seq", "relate"]

Relation = Literal["same", "local_ahead", "bucket_ahead", "fork", "foreign"]
"""How the local copy stands to the one in the bucket; `"foreign"`: they are of different experiments."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a copy of the state stands.

    Attributes:
        experiment_id: Whose it is; `None`: nothing was ever written.
        history: Its epochs, rising.
        seq: Newest commit; 0: none.
        crc: Of that commit.
    """

    experiment_id: str | None = None
    history: History = field(default_factory=list)
    seq: int = 0
    crc: int = 0

    @property
    def epoch(self) -> int:
        """The highest epoch it knows of, or 0."""
        return self.history[-1][0] if self.history else 0


def relate(local: Position, bucket: Position) -> Relation:
    """How `local` stands to `bucket`.

    A copy without any commit lies on every line of its experiment, and one without experiment id on every line.
    """
    if (
        local.experiment_id is not None
        and bucket.experiment_id is not None
        and local.experiment_id != bucket.experiment_id
    ):
        return "foreign"
    common = common_seq(local, bucket)
    if common == local.seq == bucket.seq:
        return "same" if local.crc == bucket.crc else "fork"
    if common == bucket.seq:
        return "local_ahead"
    return "bucket_ahead" if common == local.seq else "fork"


def common_seq(one: Position, other: Position) -> int:
    """The newest commit that both copies have, by their histories; 0 if there is none."""
    theirs = {(epoch, nonce): (first, last) for epoch, nonce, first, last in _ranges(other)}
    common = 0
    for epoch, nonce, first, last in _ranges(one):
        if (epoch, nonce) in theirs:
            start, stop = theirs[epoch, nonce]
            if max(first, start) <= min(last, stop):
                common = max(common, min(last, stop))
    return common


def _ranges(position: Position) -> list[tuple[int, bytes, int, int]]:
    """For each epoch that wrote commits of this copy: number, nonce, first and last of them."""
    ranges = []
    last = position.seq
    for epoch, nonce, adopted in reversed(position.history):
        if adopted < last:
            ranges.append((epoch, nonce, adopted + 1, last))
        last = min(last, adopted)
    return ranges
