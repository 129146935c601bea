"""Owns the replacing of CURRENT: by compare-and-swap, or, where a storage has none, by ever new objects.

Settles replies that were lost. Decides nothing about what CURRENT says, and nothing about who may go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from asynctune.clock import Clock
from asynctune.state.mirror.current import Current
from asynctune.storage.base import ObjectStorage

__all__ = ["Named", "Register", "open_register"]


@dataclass(frozen=True, slots=True)
class Named:
    """CURRENT as it was found or put.

    Attributes:
        current: What it says.
        key: The object it was read from.
        version: Version of the object `.asynctune/CURRENT` at that time; `None`: there is none.
        modified_at: When it was stored, by the storage's clock; 0.0 where that is not known.
    """

    current: Current
    key: str
    version: str | None
    modified_at: float = 0.0


class Register(Protocol):
    """Where CURRENT is."""

    @property
    def fenced(self) -> bool:
        """Whether the storage keeps conditions, so that no two drivers can both go on."""
        ...

    @property
    def why_unfenced(self) -> str:
        """One sentence for people, where it does not; else empty."""
        ...

    @property
    def clock_offset_s(self) -> float:
        """By how much the storage's clock is ahead of ours, seconds; measured when opened for writing, else 0."""
        ...

    async def read(self) -> Named | None:
        """What CURRENT says; `None`: there is none.

        Raises:
            CorruptStateError, UnsupportedFormatError: It cannot be understood.
            StorageError: The storage refused.
        """
        ...

    async def swap(self, current: Current, expected: Named | None) -> Named:
        """Replace what `expected` is (`None`: nothing) by `current`; what is there afterwards.

        It was replaced if the `swap_nonce` of the answer is that of `current`. Otherwise somebody else's, or an
        earlier one of this opening, is there.

        Raises:
            StorageError: Not known whether it was replaced; or (not retryable) CURRENT has vanished.
        """
        ...


async def open_register(storage: ObjectStorage, *, writing: bool, clock: Clock) -> Register:
    """The register of a mirror. For writing, both conditions are probed, and the storage's clock is read.

    Raises:
        StorageError: The storage refused.
    """
    raise NotImplementedError
