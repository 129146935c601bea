"""Owns the row operations that are not in the files yet, packed and by trial; reads and writes no file.

What is added waits in order of arrival, at no cost to the event loop; `sort_in` finds out whose it is, in a
thread. Without a limit of its own: the journal had each operation before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain

from asynctune.breathing import breathe
from asynctune.results.rows import OpeningInfo, trial_of

__all__ = ["Backlog", "PackedOperations"]

PackedOperations = list[tuple[bytes, OpeningInfo]]


class Backlog:
    """Operations added and not done. `add` and `pending` for the loop; the rest for whoever has the turn."""

    def __init__(self) -> None:
        # Appended to by the loop while a thread takes from its other end.
        self._added: deque[tuple[Sequence[bytes], OpeningInfo]] = deque()
        # By opening, in order, then by trial: an object an operation would burden the garbage collector.
        self._sorted: list[tuple[OpeningInfo, dict[str, list[bytes]]]] = []
        self._pending = 0

    def __bool__(self) -> bool:
        """Whether any operation is not done."""
        return self._pending > 0

    @property
    def pending(self) -> int:
        """How many operations were added and are not done."""
        return self._pending

    def add(self, operations: Sequence[bytes], opening: OpeningInfo) -> None:
        """Take operations as `rows.encode` packed them. O(their number)."""
        self._added.append((tuple(operations), opening))
        self._pending += len(operations)

    def sort_in(self) -> list[str]:
        """Give each operation that was added to its trial; ids of those with any, by their first. Blocking."""
        for _ in range(len(self._added)):
            operations, opening = self._added[0]
            fresh: dict[str, list[bytes]] = {}
            for data in operations:
                fresh.setdefault(trial_of(data), []).append(data)
                breathe()
            if not self._sorted or self._sorted[-1][0] != opening:
                self._sorted.append((opening, {}))
            trials = self._sorted[-1][1]
            for trial_id, mine in fresh.items():
                trials.setdefault(trial_id, []).extend(mine)
            self._added.popleft()  # not before: what cannot be read stays, with what follows it
        return list(dict.fromkeys(chain.from_iterable(trials for _, trials in self._sorted)))

    def of(self, trial_ids: Iterable[str]) -> dict[str, PackedOperations]:
        """The operations of these trials, in order. Blocking, for one of them may have very many."""
        found: dict[str, PackedOperations] = {}
        for trial_id in trial_ids:
            breathe()
            found[trial_id] = self.of_one(trial_id)
        return found

    def of_one(self, trial_id: str) -> PackedOperations:
        """The operations of this trial, in order."""
        return [(data, opening) for opening, trials in self._sorted for data in trials.get(trial_id, ())]

    def done(self, trial_id: str) -> None:
        """The trial's operations are in the files, or can never be."""
        for _, trials in self._sorted:
            self._pending -= len(trials.pop(trial_id, ()))
        while self._sorted and not self._sorted[0][1]:
            del self._sorted[0]
