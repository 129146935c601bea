"""Owns how Google Cloud Storage describes objects, checksums and conditions; values only. No I/O."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from asynctune.errors import StorageError
from asynctune.storage.values import Condition, IfVersion, ObjectInfo, OnlyCreate, UploadRules

__all__ = [
    "RULES",
    "condition_params",
    "crc32c_of",
    "crc32c_text",
    "info_of_headers",
    "info_of_resource",
    "is_generation",
]

RULES: Final = UploadRules(
    min_part_bytes=256 << 10,
    max_part_bytes=5 << 30,
    max_parts=1 << 30,
    max_put_bytes=5 << 40,
    part_multiple=256 << 10,
    in_order=True,
    listed=False,
)
"""Of resumable sessions. They cannot be listed; one that nobody ends is removed after a week."""

_GENERATION: Final = re.compile(r"[1-9][0-9]{0,18}")
_CRC_BYTES: Final = 4
_US: Final = 1e6


def is_generation(version: str) -> bool:
    """Whether an object can have this version. 0 stands for none, and must not be asked for as one."""
    return _GENERATION.fullmatch(version) is not None


def condition_params(condition: Condition) -> dict[str, str] | None:
    """The parameters that ask for a condition; `None`: it cannot hold."""
    if isinstance(condition, OnlyCreate):
        return {"ifGenerationMatch": "0"}
    if isinstance(condition, IfVersion):
        return {"ifGenerationMatch": condition.version} if is_generation(condition.version) else None
    return {}


def crc32c_text(crc32c: int) -> str:
    """As it is written there: base64 of the big-endian bytes."""
    return base64.b64encode(crc32c.to_bytes(_CRC_BYTES)).decode()


def crc32c_of(text: Any) -> int | None:
    """What `crc32c_text` wrote; `None` where it is missing or none."""
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        return None
    return int.from_bytes(data) if len(data) == _CRC_BYTES else None


def info_of_resource(operation: str, key: str, resource: Mapping[str, Any]) -> ObjectInfo:
    """An object as a listing, or the reply to a write, describes it.

    Raises:
        StorageError: That is no description; retryable.
    """
    try:
        version = str(resource["generation"])
        if not is_generation(version):
            raise ValueError
        return ObjectInfo(
            key,
            int(resource.get("size", 0)),
            version,
            crc32c_of(resource.get("crc32c")),
            _time(resource.get("updated"), version),
        )
    except (KeyError, ValueError, TypeError):
        raise _no_description(operation, key) from None


def info_of_headers(key: str, headers: Mapping[str, str], *, ranged: bool) -> ObjectInfo:
    """An object as the reply with its bytes describes it.

    Raises:
        StorageError: That is no description; retryable.
    """
    try:
        version = headers["x-goog-generation"]
        if not is_generation(version):
            raise ValueError
        size = headers["Content-Range"].rpartition("/")[2] if ranged else headers["Content-Length"]
        stored = headers.get("Last-Modified")
        try:
            modified_at = parsedate_to_datetime(stored).timestamp() if stored else int(version) / _US
        except ValueError:
            modified_at = int(version) / _US
        return ObjectInfo(key, int(size), version, _hash(headers), modified_at)
    except (KeyError, ValueError):
        raise _no_description("get", key) from None


def _hash(headers: Mapping[str, str]) -> int | None:
    # One header with both, or one header each.
    every: list[str] = getattr(headers, "getall", lambda *_: [headers.get("x-goog-hash", "")])(
        "x-goog-hash", []
    )
    for header in every:
        for each in header.split(","):
            name, _, value = each.strip().partition("=")
            if name == "crc32c":
                return crc32c_of(value)
    return None


def _time(updated: Any, version: str) -> float:
    # A generation is the time of its making in microseconds.
    return datetime.fromisoformat(updated).timestamp() if isinstance(updated, str) else int(version) / _US


def _no_description(operation: str, key: str) -> StorageError:
    return StorageError(
        f"{operation} of {key!r}: the answer of Google Cloud Storage describes no object",
        operation=operation,
        key=key,
        retryable=True,
        hint="check that the endpoint is one of Google Cloud Storage",
    )
