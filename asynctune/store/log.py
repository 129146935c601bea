"""Owns the experiment's log: values that a driver appends, keeps in order, and cuts off at the front.

Made for what a searcher has to be told again after a crash: it is durable with the records that were changed beside
it, and as short as its driver keeps it. Works on `Records` alone: synchronous, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from asynctune.store.records import Records

__all__ = ["Log"]


class Log:
    """Numbered values in the records `log/<number>`.

    Args:
        records: Where they are.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        numbers = list(map(int, records.named("log")))
        self._next = 1 + max(numbers, default=-1)
        self._first = min(numbers, default=self._next)

    @property
    def next(self) -> int:
        """The number of the next value."""
        return self._next

    def append(self, value: Any) -> int:
        """Add a value; returns its number, which only rises.

        Raises:
            ConfigError: It cannot be stored.
        """
        number = self._next
        self._records.put(f"log/{number}", value, "log value")
        self._next += 1
        return number

    def entries(self, start: int = 0) -> Iterator[tuple[int, Any]]:
        """Number and value of each from `start` on, in order."""
        for number in sorted(map(int, self._records.named("log"))):
            if number >= start:
                yield number, self._records.get(f"log/{number}")

    def drop(self, before: int) -> None:
        """Remove those with smaller numbers, but not the newest: numbers must go on after it in a later opening.

        O(what is removed), however much stays.
        """
        for number in range(self._first, min(before, self._next - 1)):
            self._records.delete(f"log/{number}")
            self._first = number + 1
