"""Owns the rule of which checkpoints of a trial are kept. Pure: it is told what there is and deletes nothing.

Kept are the best `num_to_keep` by score, the newest whatever its score, and every leased one. Order of merit:
real numbers by `checkpoint_score_order`, then NaN, then checkpoints whose metrics lack the attribute (or hold
something that is no number there); the newer wins a tie. Without an attribute the newest are the best.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from asynctune.config import CheckpointConfig
from asynctune.metrics import find_number

__all__ = ["Candidate", "RetentionPlan", "plan_retention", "rank", "score_of"]

_MISSING: Final = 0
_NAN: Final = 1
_NUMBER: Final = 2
_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint as retention sees it: its step and the metrics it was saved with."""

    step: int
    metrics: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What to do.

    Attributes:
        delete: Steps to delete, rising.
        warning: What the user should know about the scores, one sentence, or `None`.
    """

    delete: tuple[int, ...] = ()
    warning: str | None = None


def plan_retention(
    candidates: Sequence[Candidate], config: CheckpointConfig, leased: Collection[int] = frozenset()
) -> RetentionPlan:
    """Which of one trial's checkpoints to delete.

    Args:
        candidates: All of its checkpoints that are not being deleted already, in any order; steps are unique.
        config: How many to keep, and by what.
        leased: Steps that somebody uses now. They are kept, and take no place among the best.
    """
    keep_count = config.num_to_keep
    if keep_count is None or not candidates:
        return RetentionPlan()
    warning = _warning(candidates, config)
    if len(candidates) <= keep_count:
        return RetentionPlan(warning=warning)
    kept = {candidate.step for candidate in rank(candidates, config)[:keep_count]}
    kept.add(max(candidate.step for candidate in candidates))
    kept.update(leased)
    return RetentionPlan(tuple(sorted(each.step for each in candidates if each.step not in kept)), warning)


def rank(candidates: Sequence[Candidate], config: CheckpointConfig) -> list[Candidate]:
    """The candidates, best first."""
    attribute = config.checkpoint_score_attribute
    sign = -1 if config.checkpoint_score_order == "min" else 1

    def merit(candidate: Candidate) -> tuple[int, float, int]:
        if attribute is None:
            return _NUMBER, 0, candidate.step
        score = score_of(candidate.metrics, attribute)
        if score is None:
            return _MISSING, 0, candidate.step
        if score != score:  # noqa: PLR0124  # NaN, without a conversion that a huge integer would not survive
            return _NAN, 0, candidate.step
        return _NUMBER, sign * score, candidate.step

    return sorted(candidates, key=merit, reverse=True)


def score_of(metrics: Mapping[str, Any], attribute: str) -> float | None:
    """The number that `attribute` names in `metrics`, or `None` if there is none.

    `"a/b"` is found as the key `"a/b"`, or as `"b"` in the mapping at `"a"`.
    """
    return find_number(metrics, attribute.strip("/"))


def _warning(candidates: Sequence[Candidate], config: CheckpointConfig) -> str | None:
    attribute = config.checkpoint_score_attribute
    if attribute is None:
        return None
    lacking = sorted(each.step for each in candidates if score_of(each.metrics, attribute) is None)
    if not lacking:
        return None
    there = sorted({str(key) for each in candidates if each.step in lacking for key in each.metrics})
    steps = ", ".join(map(str, lacking[:_SHOWN])) + (", ..." if len(lacking) > _SHOWN else "")
    return (
        f"checkpoint_score_attribute {attribute!r} is not a number in the metrics of checkpoint {steps}, so "
        f"retention ranks it last; report it as a number (the metrics are: {', '.join(there[:20]) or 'none'})"
    )
