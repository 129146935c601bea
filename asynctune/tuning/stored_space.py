"""Owns the stored form of a search space, so that a restored experiment goes on without being given it again. Pure.

A domain becomes `{"__domain__": kind, ...}` with its numbers, and a user's own mapping with such a key
`{"__domain__": "mapping", "items": ...}`. A `sample_from` function cannot be stored, and is told by its path instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from asynctune.errors import CorruptStateError
from asynctune.tuning.space import Categorical, Domain, Float, Function, Grid, Integer, Normal
from asynctune.tuning.variants import Path, Space

__all__ = ["functions_of", "stored", "unstored"]

_MARK: Final = "__domain__"
_MAPPING: Final = "mapping"
_KINDS: Final[Mapping[str, type[Domain]]] = {
    kind.kind: kind for kind in (Float, Integer, Normal, Categorical, Grid)
}


def functions_of(space: Space) -> list[Path]:
    """Where the space has functions, which cannot be stored."""
    return [path for path, domain in space.domains.items() if isinstance(domain, Function)]


def stored(value: Any) -> Any:
    """A space, or a part of one without functions, as a msgpack value."""
    if isinstance(value, Domain):
        parts = {field.name: stored(getattr(value, field.name)) for field in fields(value)}  # type: ignore[arg-type]
        return {_MARK: value.kind, **parts}
    if isinstance(value, dict):
        parts = {key: stored(each) for key, each in value.items()}
        return {_MARK: _MAPPING, "items": parts} if _MARK in parts else parts
    if isinstance(value, list):
        return [stored(each) for each in value]
    if isinstance(value, tuple):
        return tuple(stored(each) for each in value)
    return value


def unstored(value: Any) -> Any:
    """The inverse of `stored`.

    Raises:
        CorruptStateError: A domain that this release does not know.
    """
    if isinstance(value, dict):
        if value.get(_MARK) == _MAPPING:
            if not isinstance(items := value.get("items"), dict):
                raise CorruptStateError("the stored search space cannot be used: a mapping has no items")
            return {key: unstored(each) for key, each in items.items()}
        parts = {key: unstored(each) for key, each in value.items()}
        if _MARK not in parts:
            return parts
        mark = parts.pop(_MARK)
        kind = _KINDS.get(mark) if isinstance(mark, str) else None
        try:
            if kind is not None:
                return kind(**parts)
        except (TypeError, ValueError) as error:
            raise CorruptStateError(f"the stored search space cannot be used: {error}") from error
        raise CorruptStateError(
            "the stored search space has a domain that this asynctune does not know; upgrade it"
        )
    if isinstance(value, list):
        return [unstored(each) for each in value]
    if isinstance(value, tuple):
        return tuple(unstored(each) for each in value)
    return value
