"""Owns the lazy sequence of trials: nothing is built before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from asynctune.trial import Trial

__all__ = ["TrialsView"]


class TrialsView(Sequence[Trial]):
    """The trials in the order they were added, built one by one when asked for; without replaced ones."""

    def __init__(self, ids: Sequence[str], build: Callable[[str], Trial]) -> None:
        self._ids = ids
        self._build = build

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> Trial: ...
    @overload
    def __getitem__(self, index: slice) -> TrialsView: ...
    def __getitem__(self, index: int | slice) -> Trial | TrialsView:
        if isinstance(index, slice):
            return TrialsView(self._ids[index], self._build)
        return self._build(self._ids[index])

    def __iter__(self) -> Iterator[Trial]:
        return map(self._build, self._ids)

    def __repr__(self) -> str:
        return f"<{len(self)} trials>"
