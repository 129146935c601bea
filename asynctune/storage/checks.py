"""Owns the checks of arguments that every storage makes in the same words. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from asynctune.errors import ConfigError, NotFoundError, StorageError
from asynctune.storage.streams import check_source
from asynctune.storage.values import Always, Condition, Source, Upload, UploadedPart

__all__ = ["check_condition", "check_part", "check_parts", "closed", "no_object", "no_upload"]


def check_condition(condition: Condition, supported: bool, location: str) -> None:
    """Refuse a condition where the storage would not keep it.

    Raises:
        ConfigError: It has none, or this is no condition.
    """
    if not isinstance(condition, Condition):
        raise ConfigError(f"a condition is Always(), OnlyCreate() or IfVersion(...), not {condition!r}")
    if not supported and not isinstance(condition, Always):
        raise ConfigError(
            f"{location} has no conditional writes, so {type(condition).__name__} cannot be kept"
        )


def check_part(upload: Upload, number: int, data: Source) -> tuple[int, int]:
    """Offset and size of a part whose bytes are to be sent.

    Raises:
        ConfigError: There is no such part, or `data` is of another size.
    """
    offset, size_bytes = upload.part_range(number)
    check_source(data, size_bytes)
    return offset, size_bytes


def check_parts(upload: Upload, parts: Sequence[UploadedPart]) -> list[UploadedPart]:
    """All parts of an upload, by number.

    Raises:
        ConfigError: One is missing, is there twice, or is of another size.
    """
    ordered = sorted(parts, key=lambda part: part.number)
    if [part.number for part in ordered] != list(range(1, upload.num_parts + 1)):
        raise ConfigError(
            f"upload of {upload.key!r}: it is made of parts 1 to {upload.num_parts}, each once, "
            f"and {len(parts)} are given"
        )
    for part in ordered:
        if part.size_bytes != upload.part_range(part.number)[1]:
            raise ConfigError(f"upload of {upload.key!r}: part {part.number} has {part.size_bytes} bytes")
    return ordered


def no_object(operation: str, key: str, location: str) -> NotFoundError:
    """The error for an object that is not there."""
    return NotFoundError(f"{operation}: there is no {key!r} in {location}", operation=operation, key=key)


def no_upload(operation: str, key: str) -> NotFoundError:
    """The error for an upload that is not there any more."""
    return NotFoundError(
        f"{operation}: the upload of {key!r} is not there any more",
        operation=operation,
        key=key,
        hint="it was completed, aborted or given up by the storage; look at the object, or begin anew",
    )


def closed(operation: str, location: str) -> StorageError:
    """The error for a call after `aclose`."""
    return StorageError(f"{operation}: the storage at {location} is closed", operation=operation)
