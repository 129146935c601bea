"""Owns the stored form of a search space, so that a restored experiment goes on without being given it again. Pure.

A domain becomes `{"__domain__": kind, ...}` with its numbers; a `sample_from` function cannot be stored, and is
told by its path instead.
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
        return {key: stored(each) for key, each in value.items()}
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
        parts = {key: unstored(each) for key, each in value.items()}
        if _MARK not in parts:
            return parts
        kind = _KINDS.get(parts.pop(_MARK))
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
