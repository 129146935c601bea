"""Owns what becomes of checkpoint records after an opening: which are lost, and which of the retired live again."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ReconcileReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcileReport:
    """What was found, as (trial id, step) each.

    Attributes:
        lost: Checkpoints that were neither on this disk nor complete in the bucket; they are not listed any more.
        revived: Retired ones that are listed again, because their copy in the bucket replaces what was lost.
        set_aside: Local directories of another content, and where they are now.
        pending: How many checkpoints are to be uploaded.
    """

    lost: tuple[tuple[str, int], ...] = ()
    revived: tuple[tuple[str, int], ...] = ()
    set_aside: tuple[str, ...] = ()
    pending: int = 0
