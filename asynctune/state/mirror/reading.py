"""Owns reading a mirror back: CURRENT, the objects it names, and the same recovery as on a disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from asynctune.clock import Clock
from asynctune.state.mirror.current import Current
from asynctune.state.mirror.register import Named
from asynctune.state.recovered import Recovered
from asynctune.storage.base import ObjectStorage

__all__ = ["Mirrored", "ObjectCache", "read_mirror"]


class ObjectCache:
    """Immutable objects of a mirror that were read before, for somebody who looks again and again.

    Args:
        max_bytes: How much it keeps; larger objects are read anew.
    """

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        raise NotImplementedError


@dataclass(slots=True)
class Mirrored:
    """A mirror that was read.

    Attributes:
        named: CURRENT.
        recovered: The state, as `state.recovery.recover` hands it over.
        contents: The bytes it was read from, by the names that local files would have.
    """

    named: Named
    recovered: Recovered
    contents: dict[str, bytes]

    @property
    def current(self) -> Current:
        """What CURRENT says."""
        return self.named.current


async def read_mirror(
    storage: ObjectStorage,
    *,
    clock: Clock | None = None,
    cache: ObjectCache | None = None,
    rows_after: Callable[[dict[str, bytes], Current], int] | None = None,
) -> Mirrored | None:
    """Read the state that a bucket holds; `None`: there is no mirror.

    Args:
        storage: At the experiment's place.
        clock: For waiting when objects vanish meanwhile.
        cache: Objects known from before; brought up to date.
        rows_after: Given the final records and CURRENT, says after which seq result rows are wanted; `None`: no rows.

    Raises:
        CorruptStateError: Damage; names the object.
        UnsupportedFormatError: Written by a newer release.
        StorageError: The storage refused.
    """
    raise NotImplementedError
