"""Owns how a metric is named: `"loss"`, or `"eval/loss"` into nested mappings. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["find_number", "find_value"]

_MAX_DEPTH: Final = 32


def find_value(values: Any, name: str, _depth: int = 0) -> Any:
    """What `name` names in `values`, or `None`.

    `"a/b"` is found as the key `"a/b"`, or as `"b"` in the mapping at `"a"`; keys may hold slashes themselves.
    """
    if not isinstance(values, Mapping) or _depth > _MAX_DEPTH:
        return None
    if name in values:
        return values[name]
    end = name.find("/")
    while end >= 0:
        found = find_value(values.get(name[:end]), name[end + 1 :], _depth + 1)
        if found is not None:
            return found
        end = name.find("/", end + 1)
    return None


def find_number(values: Mapping[str, Any], name: str) -> float | None:
    """The number that `name` names, as it is (an integer of any size, or NaN), or `None` if it names none."""
    value = find_value(values, name)
    return value if isinstance(value, int | float) else None
