"""Owns what a fault of a storage is: which operation it strikes, and how. `FaultyStorage` carries it out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Final

__all__ = ["STORAGE_OPERATIONS", "StorageCall", "StorageFault", "operations_of"]

STORAGE_OPERATIONS: Final = frozenset(
    {
        "abort_upload",
        "begin_upload",
        "complete_upload",
        "delete",
        "get",
        "head",
        "list_objects",
        "list_parts",
        "list_uploads",
        "put",
        "put_part",
        "read",
    }
)
"""The operations that are counted, by their names."""


@dataclass(frozen=True, slots=True)
class StorageCall:
    """One operation: its number among all (from 1), its name, and its key, or prefix, or first key; may be empty."""

    number: int
    operation: str
    key: str


@dataclass(slots=True, eq=False)
class StorageFault:
    """A fault that was set.

    Attributes:
        operations: Names that it counts; empty: all.
        nth: How many of them are still to come until it strikes: 1 is the next.
        lasting: Whether each one after the n-th is struck too, until `FaultyStorage.heal`.
        applied: The operation is done first, and its reply lost.
        error: What is raised; `None`: see the others.
        conflict: The reply is `Conflict()`.
        after_bytes: A body breaks off after so many bytes.
        damaged_at: A body has another bit at this byte of the object.
        call: Called before the operation, and awaited if it is a coroutine function; what it raises is raised there.
        hangs: It never ends, unless it is cancelled or healed.
        hits: How often it struck.
        struck: Set when it strikes.
    """

    operations: frozenset[str]
    nth: int = 1
    lasting: bool = False
    applied: bool = False
    error: Exception | None = None
    conflict: bool = False
    after_bytes: int | None = None
    damaged_at: int | None = None
    call: Callable[[StorageCall], Awaitable[object] | None] | None = None
    hangs: bool = False
    hits: int = 0
    struck: asyncio.Event = field(default_factory=asyncio.Event)

    def due(self, operation: str) -> bool:
        """Count one operation; whether it is struck."""
        if self.operations and operation not in self.operations:
            return False
        self.nth -= 1
        return self.nth == 0 or (self.lasting and self.nth < 0)


def operations_of(on: str | Collection[str]) -> frozenset[str]:
    """The names that are meant.

    Raises:
        ValueError: There is no such operation.
    """
    operations = frozenset({on} if isinstance(on, str) else on)
    if unknown := operations - STORAGE_OPERATIONS:
        known = ", ".join(sorted(STORAGE_OPERATIONS))
        msg = f"no operation is called {', '.join(sorted(unknown))}; there are {known}"
        raise ValueError(msg)
    return operations
