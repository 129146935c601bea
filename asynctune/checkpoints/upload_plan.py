"""Owns the order of uploads: which checkpoint is next. Pure: it is told the time, and sends nothing.

One upload of a trial is under way at a time, and the trials take turns. Of one trial the newest goes first: a bucket
that is slow, or was away, gets the checkpoint first from which the trial would go on, and what retention gives up
before its turn comes is never sent at all. What has failed waits for its time, and holds up nothing else.
"""

from __future__ import annotations

import bisect
import heapq
import random
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Key", "UploadPlan", "backoff_s"]

Key = tuple[str, int]
"""A checkpoint: trial id and step."""

_BASE_S: Final = 1.0
_CAP_S: Final = 60.0
_MOST_DOUBLINGS: Final = 16


def backoff_s(failures: int, rng: random.Random, retry_after_s: float | None = None) -> float:
    """Seconds to wait after so many failures of one checkpoint: full jitter, up to 1 s at first, 60 s at last.

    What the storage asked for comes on top of it.
    """
    limit = min(_CAP_S, _BASE_S * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))
    return rng.uniform(0.0, limit) + max(0.0, retry_after_s or 0.0)


@dataclass(slots=True)
class _Line:
    """The pending uploads of one trial.

    `ready` are the steps that may go, rising; `held` wait for the next period, `waiting` for their time.
    """

    ready: list[int] = field(default_factory=list)
    held: set[int] = field(default_factory=set)
    waiting: dict[int, float] = field(default_factory=dict)
    under_way: int | None = None

    @property
    def empty(self) -> bool:
        return not (self.ready or self.held or self.waiting) and self.under_way is None


class UploadPlan:
    """What is pending, and what is next.

    Args:
        hold: New ones wait for `release`.
    """

    def __init__(self, *, hold: bool = False) -> None:
        self._hold = hold
        self._lines: dict[str, _Line] = {}
        self._turns: dict[str, None] = {}
        self._held: dict[Key, None] = {}
        self._times: list[tuple[float, Key]] = []
        self._pending: set[Key] = set()

    @property
    def pending(self) -> Collection[Key]:
        """All that are not done, those under way included."""
        return self._pending

    def add(self, key: Key) -> None:
        """A checkpoint is to be uploaded; one that is known already stays where it is."""
        if key in self._pending:
            return
        self._pending.add(key)
        trial_id, step = key
        line = self._lines.setdefault(trial_id, _Line())
        if self._hold:
            line.held.add(step)
            self._held[key] = None
        else:
            self._make_ready(key)

    def next(self, now: float) -> Key | None:
        """The one to begin now, which is under way from here on; `None`: none may begin yet."""
        while self._times and self._times[0][0] <= now:
            until, key = heapq.heappop(self._times)
            line = self._lines.get(key[0])
            if line is not None and line.waiting.get(key[1]) == until:
                del line.waiting[key[1]]
                self._make_ready(key)
        if not self._turns:
            return None
        trial_id = next(iter(self._turns))
        del self._turns[trial_id]
        line = self._lines[trial_id]
        line.under_way = line.ready.pop()
        return trial_id, line.under_way

    def next_time(self) -> float | None:
        """When the next of those that wait for their time may begin; `None`: none waits."""
        while self._times:
            until, (trial_id, step) = self._times[0]
            line = self._lines.get(trial_id)
            if line is not None and line.waiting.get(step) == until:
                return until
            heapq.heappop(self._times)
        return None

    def done(self, key: Key) -> None:
        """One that was under way needs no more."""
        self._pending.discard(key)
        self._ended(key[0])

    def failed(self, key: Key, until: float) -> None:
        """One that was under way has failed, and may be tried again from `until` on."""
        trial_id, step = key
        self._lines[trial_id].waiting[step] = until
        heapq.heappush(self._times, (until, key))
        self._ended(trial_id)

    def drop(self, key: Key) -> bool:
        """Forget one that has not begun; whether it was there. One that is under way is finished."""
        trial_id, step = key
        line = self._lines.get(trial_id)
        if line is None or key not in self._pending or line.under_way == step:
            return False
        self._pending.discard(key)
        self._held.pop(key, None)
        line.held.discard(step)
        line.waiting.pop(step, None)
        if step in line.ready:
            line.ready.remove(step)
        if not line.ready:
            self._turns.pop(trial_id, None)
        if line.empty:
            del self._lines[trial_id]
        return True

    def release(self, limit: int) -> bool:
        """Let at most `limit` of those that are held begin; whether some are held still."""
        for _ in range(min(limit, len(self._held))):
            key = next(iter(self._held))
            del self._held[key]
            self._lines[key[0]].held.discard(key[1])
            self._make_ready(key)
        return bool(self._held)

    def hurry(self, now: float) -> None:
        """Let those that have failed begin at once."""
        self._times = [(now, key) for _, key in self._times if key[1] in self._waiting(key[0])]
        heapq.heapify(self._times)
        for _, (trial_id, step) in self._times:
            self._lines[trial_id].waiting[step] = now

    # -- small things --------------------------------------------------------------------------------

    def _waiting(self, trial_id: str) -> Collection[int]:
        line = self._lines.get(trial_id)
        return () if line is None else line.waiting

    def _make_ready(self, key: Key) -> None:
        trial_id, step = key
        line = self._lines[trial_id]
        bisect.insort(line.ready, step)
        if line.under_way is None:
            self._turns.setdefault(trial_id)

    def _ended(self, trial_id: str) -> None:
        line = self._lines[trial_id]
        line.under_way = None
        if line.ready:
            self._turns[trial_id] = None
        elif line.empty:
            del self._lines[trial_id]
