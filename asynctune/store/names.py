"""Owns which names trials may have: each becomes a directory and part of a key. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from asynctune.errors import ConfigError

__all__ = ["check_name", "suggest_trial_id"]

_MAX_BYTES: Final = 200


def check_name(name: Any, what: str) -> None:
    """Refuse a name that cannot be one directory on every usual filesystem.

    Raises:
        ConfigError: The message says why, and what to change.
    """
    if not isinstance(name, str):
        msg = f"{what} must be a string, not {type(name).__name__}"
        raise ConfigError(msg)
    reason = None
    size = len(name.encode("utf-8", "surrogatepass"))
    if any("\ud800" <= char <= "\udfff" for char in name):
        reason = "is not valid Unicode"
    elif not name or name != name.strip():
        reason = "is empty, or begins or ends with white space"
    elif "/" in name or "\\" in name:
        reason = "holds a path separator"
    elif name.startswith("."):
        reason = "begins with a dot"
    elif not name.isprintable():
        reason = "holds a character that cannot be printed"
    elif size > _MAX_BYTES:
        reason = f"takes {size} bytes, and the limit is {_MAX_BYTES}"
    if reason is not None:
        shown = repr(name if len(name) <= 40 else name[:40] + "...")  # noqa: PLR2004 - enough to recognise it
        msg = f"{what} {shown} {reason}; it names a directory, so use letters, digits, '-', '_' and '.'"
        raise ConfigError(msg)


def suggest_trial_id(prefix: str, count: int, taken: Callable[[str], bool]) -> str:
    """The next free id, such as `3f9ac_00007`: the experiment's prefix and the trial's number."""
    while taken(trial_id := f"{prefix}_{count:05d}"):
        count += 1
    return trial_id
