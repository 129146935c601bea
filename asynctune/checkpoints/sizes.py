"""Owns the list of a checkpoint's files with their sizes, kept packed until somebody looks.

Retention and listings read the record of every checkpoint of a trial, each of which may have 10 000 files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from asynctune.errors import CorruptStateError
from asynctune.packing import UnpackError, pack, unpack

__all__ = ["FileSizes"]


class FileSizes(Mapping[str, int]):
    """Path of each file: its size in bytes. Immutable; equal to a dict with the same items.

    Args:
        packed: The packed map.
    """

    __slots__ = ("_sizes", "packed")

    def __init__(self, packed: bytes) -> None:
        self.packed = packed
        self._sizes: dict[str, int] | None = None

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> FileSizes:
        """The same as another mapping."""
        return sizes if isinstance(sizes, FileSizes) else cls(pack(dict(sizes)))

    def __getitem__(self, path: str) -> int:
        return self._unpacked()[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._unpacked())

    def __len__(self) -> int:
        return len(self._unpacked())

    def __repr__(self) -> str:
        return repr(self._unpacked())

    def __reduce__(self) -> tuple[type[FileSizes], tuple[bytes]]:
        return type(self), (self.packed,)

    def _unpacked(self) -> dict[str, int]:
        if self._sizes is None:
            try:
                sizes = unpack(self.packed)
            except UnpackError as error:
                raise CorruptStateError(
                    f"the list of a checkpoint's files cannot be used: {error}"
                ) from error
            if not isinstance(sizes, dict):
                kind = type(sizes).__name__
                raise CorruptStateError(f"the list of a checkpoint's files is {kind}, not a map")
            self._sizes = sizes
        return self._sizes
