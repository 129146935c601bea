"""Owns what a running mirror tells and asks the store above, and its figures. Values and a protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["MirrorStats", "Observer"]


class Observer(Protocol):
    """What the mirror tells, and asks, the store above. On the loop."""

    def happened(self, kind: str, message: str, **data: Any) -> None:
        """`mirrored` (seq), `mirror_away`, `mirror_back`, `mirror_healed` (object, seq), and others."""
        ...

    async def project(self, seq: int) -> None:
        """Return when the result files in the bucket are complete up to commit `seq`, at least.

        Raises:
            StorageError: They cannot be put there at present.
        """
        ...


@dataclass(frozen=True, slots=True)
class MirrorStats:
    """Figures since the opening.

    Attributes:
        mirrored_seq: Newest commit that the bucket holds, 0 while that is not known.
        swaps: How often CURRENT was replaced.
        swap_seconds: Wall time that took, segments included.
        put_bytes: What was put, CURRENT included.
        snapshots: How many snapshots were put.
        refs: How many segments CURRENT names.
        away_s: For how long the bucket has been away, seconds; `None`: it is not.
        claimed: Whether the mirror is ours.
    """

    mirrored_seq: int
    swaps: int
    swap_seconds: float
    put_bytes: int
    snapshots: int
    refs: int
    away_s: float | None
    claimed: bool
