"""Owns who may go on now: turns of one trial's saves, and leases on checkpoints. Loop only, no I/O."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from asynctune.errors import CheckpointExistsError

__all__ = ["Leases", "Turns"]


@dataclass(slots=True)
class _Line:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    promised: list[int] = field(default_factory=list)


class Turns:
    """Lets one save of a trial go on at a time, in the order of the calls, and keeps steps apart meanwhile.

    Args:
        recorded: The recorded steps of a trial, rising.
    """

    def __init__(self, recorded: Callable[[str], Sequence[int]]) -> None:
        self._recorded = recorded
        self._lines: dict[str, _Line] = {}

    def highest(self, trial_id: str) -> int | None:
        """The highest step that is recorded or promised."""
        line = self._lines.get(trial_id)
        promised = [] if line is None else line.promised
        return max([*self._recorded(trial_id)[-1:], *promised], default=None)

    @asynccontextmanager
    async def take(
        self, trial_id: str, step: int | None, *, at_least: int = 0, spent: int | None = None
    ) -> AsyncIterator[int]:
        """Promise a step at once, then wait for the trial's turn.

        Args:
            trial_id: The trial.
            step: The step asked for; `None`: one above the highest, the first is 1.
            at_least: Lower bound for a step that was not asked for.
            spent: The highest step that must not be given again, though nothing is recorded of it.

        Raises:
            CheckpointExistsError: A step that is not above every one recorded, promised or spent.
        """
        line = self._lines.setdefault(trial_id, _Line())
        try:
            known = [each for each in (self.highest(trial_id), spent) if each is not None]
            highest = max(known, default=None)
            if step is None:
                step = max(1 if highest is None else highest + 1, at_least)
            elif highest is not None and step <= highest:
                what = "is being saved" if highest in line.promised else "is recorded"
                if highest != self.highest(trial_id):
                    what = "did not come whole from its worker"
                raise CheckpointExistsError(
                    f"checkpoint {step} of trial {trial_id} is not above checkpoint {highest}, which {what}; "
                    "checkpoints are never overwritten, so use a higher step, or step=None for the next one"
                )
            line.promised.append(step)
            try:
                async with line.lock:
                    yield step
            finally:
                line.promised.remove(step)
        finally:
            if not line.promised and self._lines.get(trial_id) is line:
                del self._lines[trial_id]


class Leases:
    """Which checkpoints somebody uses now, so that they are not deleted.

    Args:
        released: Told the trial whenever the last lease on one of its checkpoints ends.
    """

    def __init__(self, released: Callable[[str], None]) -> None:
        self._released = released
        self._held: dict[str, Counter[int]] = {}

    @contextmanager
    def hold(self, trial_id: str, step: int) -> Iterator[None]:
        """Keep one checkpoint from being deleted inside the block."""
        held = self._held.setdefault(trial_id, Counter())
        held[step] += 1
        try:
            yield
        finally:
            held[step] -= 1
            if not held[step]:
                del held[step]
                if not held:
                    self._held.pop(trial_id, None)
                self._released(trial_id)

    def steps(self, trial_id: str) -> frozenset[int]:
        """The trial's leased steps."""
        return frozenset(self._held.get(trial_id, ()))
