"""Owns the 5 % rule: when the next commit may start. Pure arithmetic on seconds; it reads no clock.

After a commit that took `c` seconds the next starts no sooner than `24 c` after its end: that is 4 % of the time,
so that what no rest could foresee (a slow disk just before the end, the opening, the close) still fits into the 5 %.
(Source of the 5 %: Ray Tune's storage guide; of the missing floor of 10 s and of the rest: `docs/design/pacing.md`.)
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Final

__all__ = ["TARGET_FRACTION", "CommitPacing", "CostBudget"]

TARGET_FRACTION: Final = 0.05
_AIM_FRACTION: Final = 0.04
_REST_PER_COST: Final = (1 - _AIM_FRACTION) / _AIM_FRACTION
_RECENT: Final = 9
_OUTLIER: Final = 10.0
_MAX_PAID: Final = 4.0
_MAX_PAID_S: Final = 0.005
_PAID_OF_OWED: Final = 0.01
_MAX_OWED_S: Final = 1.0  # a process that was suspended for an hour owes no more than this


class CostBudget:
    """Spaces one kind of work so that it takes at most 5 % of the time, by aiming at 4 %.

    A cost ten times the recent median, such as that of a process that was suspended meanwhile, sets the pace
    only if it is not the first of the last nine.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._since_outlier = _RECENT
        self._owed_s = 0.0
        self._next_start = -math.inf

    @property
    def next_start(self) -> float:
        """Monotonic seconds before which the work should not start again; `-inf` before the first."""
        return self._next_start

    def spent(self, ended_at: float, cost_s: float, surcharge_s: float = 0.0) -> None:
        """Account for one piece of work that ended at `ended_at` and took `cost_s` seconds.

        Args:
            ended_at: Monotonic seconds.
            cost_s: What it took by itself; judged against the recent ones.
            surcharge_s: Its share of work done elsewhere.
        """
        counted = cost_s
        self._owed_s += surcharge_s
        self._since_outlier += 1
        if len(self._recent) >= _RECENT and cost_s > _OUTLIER * (typical := median(self._recent)):
            if self._since_outlier >= _RECENT:
                counted = typical
                self._owed_s += min(cost_s - typical, _MAX_OWED_S)
            self._since_outlier = 0
        self._recent.append(counted)
        # What is owed is paid off by rests that are five times as long for quick commits, and twice as long for slow
        # ones, so that changes do not get old; a debt that grows all the same is paid as it grows, in the end.
        most = min(_MAX_PAID * counted, max(_MAX_PAID_S, counted))
        paid = min(self._owed_s, max(most, _PAID_OF_OWED * self._owed_s))
        self._owed_s -= paid
        self._next_start = ended_at + _REST_PER_COST * (counted + paid)

    @property
    def owed_s(self) -> float:
        """Seconds of work that rests to come have to pay for."""
        return self._owed_s

    def owe(self, cost_s: float) -> None:
        """Let the rests to come pay for work that took `cost_s` seconds and was not accounted for."""
        self._owed_s += cost_s


class CommitPacing:
    """When the state may be committed again, by the 5 % rule or at a fixed period.

    Snapshots are paid for in advance: each commit carries, per byte it adds to the journal, the share of the
    snapshot that those bytes will cause, by the cost of the last one.

    Args:
        period_s: Seconds between the starts of commits; `None`: the 5 % rule.
        max_interval_s: The longest rest after a commit, even where the rule asks for more; `None`: the rule wins.
    """

    def __init__(self, period_s: float | None = None, max_interval_s: float | None = None) -> None:
        self._period_s = period_s
        self._max_interval_s = max_interval_s
        self._budget = CostBudget()
        self._last_start = -math.inf
        self._last_end = -math.inf
        self._snapshot_rate = 0.0
        self._expected_s = 0.0
        self._typical_s = 0.0
        self._was_outlier = False
        self._prepaid = 0.0

    def committed(self, started_at: float, ended_at: float, cost_s: float, journal_bytes: int) -> None:
        """Account for a commit, whoever asked for it."""
        # Never more than the snapshot is expected to take, however little journal was left for it.
        share = min(self._snapshot_rate * journal_bytes, max(0.0, self._expected_s - self._prepaid))
        self._prepaid += share
        self._last_start, self._last_end = started_at, ended_at
        self._budget.spent(ended_at, cost_s, share)

    def expect_snapshot(self, cost_s: float, journal_bytes: int) -> None:
        """Let commits pay in advance for a snapshot that is expected to take `cost_s`, after `journal_bytes`.

        One that is due already is paid for afterwards.
        """
        self._typical_s = cost_s
        self._expected_s = cost_s if journal_bytes > 0 else 0.0
        self._snapshot_rate = max(0.0, cost_s - self._prepaid) / max(1, journal_bytes)

    def snapshot_written(self, cost_s: float, journal_bytes: int) -> None:
        """Account for a snapshot that took `cost_s`; the next one is due after `journal_bytes` of journal."""
        expected_s = counted_s = cost_s
        if 0 < _OUTLIER * self._typical_s < cost_s and not self._was_outlier:
            # A process that was suspended meanwhile: as with commits, it counts once it repeats.
            expected_s = self._typical_s
            counted_s = expected_s + min(cost_s - expected_s, _MAX_OWED_S)
        self._was_outlier = expected_s != cost_s
        self._budget.owe(max(0.0, counted_s - self._prepaid))
        self._prepaid = max(0.0, self._prepaid - counted_s)
        self.expect_snapshot(expected_s, journal_bytes)

    @property
    def next_start(self) -> float:
        """Monotonic seconds before which no commit should start by itself; `-inf` before the first."""
        if self._period_s is not None:
            return max(self._last_start + self._period_s, self._last_end)
        start = self._budget.next_start
        if self._max_interval_s is not None:
            start = min(start, self._last_end + self._max_interval_s)
        return start

    @property
    def owed_s(self) -> float:
        """Seconds of commits and snapshots that rests to come have to pay for."""
        return self._budget.owed_s

    @property
    def interval_s(self) -> float:
        """The present rest between the end of a commit and the start of the next; 0 before the first."""
        return max(0.0, self.next_start - self._last_end) if math.isfinite(self._last_end) else 0.0

    @property
    def exceeds_target(self) -> bool:
        """Whether `max_interval_s` makes commits take more than 5 % of the time at present."""
        return self._period_s is None and self.next_start < self._budget.next_start
