"""Owns the running summary of one metric of a trial: what is kept of all its rows without keeping them. Pure.

A summary is a list, as stored: `[generation, min, max, sum, count, [last ten values]]`, or empty. The generation
tells for which tracked metric it was made; one of another generation counts as empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["as_named", "updated"]

_LAST: Final = 10


def updated(summary: Sequence[Any], generation: int, value: float | None) -> list[Any]:
    """The summary with one more value; `None` and NaN change nothing."""
    if not summary or summary[0] != generation:
        summary = [generation, math.inf, -math.inf, 0.0, 0, []]
    if value is None or value != value:  # noqa: PLR0124 - NaN, also for an integer beyond every float
        return list(summary)
    _, least, most, total, count, last = summary
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    return [
        generation,
        min(least, number),
        max(most, number),
        total + number,
        count + 1,
        [*last, number][-_LAST:],
    ]


def as_named(summary: Sequence[Any], generation: int) -> dict[str, float]:
    """`min`, `max`, `avg` and `last-10-avg`; nothing where no value was."""
    if not summary or summary[0] != generation or not summary[4]:
        return {}
    _, least, most, total, count, last = summary
    return {"min": least, "max": most, "avg": total / count, "last-10-avg": sum(last) / len(last)}
