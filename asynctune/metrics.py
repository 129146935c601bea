"""Owns how a metric is named: `"loss"`, or `"eval/loss"` into nested mappings. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["find_number", "find_value", "number_names"]

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
    if isinstance(value, int | float):
        return value
    # One of NumPy, PyTorch or JAX counts as the Python number that is stored for it.
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        value = value.item()
    return value if isinstance(value, int | float) else None


def number_names(values: Mapping[str, Any]) -> list[str]:
    """Every name that `find_number` finds a number by, in their order."""
    return list(_number_names(values, "", 0))


def _number_names(values: Mapping[str, Any], prefix: str, depth: int) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, int | float):
            yield f"{prefix}{key}"
        elif isinstance(value, Mapping) and depth < _MAX_DEPTH:
            yield from _number_names(value, f"{prefix}{key}/", depth + 1)
