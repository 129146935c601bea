"""Owns whether something of a user's can be what it is given as: a searcher, scheduler, callback, syncer or place.

Looks at the methods of an object and at the text of a place, so that a wrong one fails at the line that gives it, and
not in the middle of a night. Calls no method and looks at no disk.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from typing import Any, Final

from asynctune.errors import ConfigError

__all__ = [
    "OF_CALLBACKS",
    "OF_SCHEDULERS",
    "OF_SEARCHERS",
    "check_object",
    "check_syncing",
    "is_uri",
    "without_credentials",
]

OF_SEARCHERS: Final[Mapping[str, bool]] = {
    "suggest": True,
    "on_trial_result": True,
    "on_trial_complete": True,
    "get_state": True,
    "set_state": True,
    "set_search_properties": False,
    "add_past_trial": False,
    "on_trial_add": False,
    "on_trial_rewind": False,
    "state_saved": False,
}
"""The methods that are called on the event loop, and whether one has to have them."""

OF_SCHEDULERS: Final[Mapping[str, bool]] = {
    "on_trial_result": True,
    "choose_trial_to_run": True,
    "get_state": True,
    "set_state": True,
    "on_trial_complete": False,
    "on_trial_rewind": False,
    "state_saved": False,
}
"""Likewise."""

OF_CALLBACKS: Final[Mapping[str, bool]] = {"get_state": False, "set_state": False}
"""Likewise; what tells them of events may be async."""

_OF_SYNCERS: Final = ("sync_up", "sync_down", "delete")

_URI: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_SCHEMES: Final = ("s3", "gs", "file", "memory")
# What becomes of a URI that went through pathlib, which makes one slash of two.
_BROKEN: Final = re.compile(r"(s3|gs|file|memory):/(?!/)", re.IGNORECASE)

# A password may hold a slash, so that it reaches beyond what looks like the host; a number after a colon is a port.
_PASSWORD: Final = re.compile(r"(?<=//)[^/:]*:(?!\d+(/|$))[^/]*")
_SECRETS: Final = (
    re.compile(r"(?<=//)(?=[^/]*[:@]).*@", re.DOTALL),
    _PASSWORD,
    re.compile(r"[?#].*", re.DOTALL),
)


def check_object(name: str, value: Any, methods: Mapping[str, bool]) -> None:
    """Refuse what cannot be used.

    Args:
        name: Of the setting, for messages.
        value: What was given; `None`: nothing.
        methods: Those that are called, and whether it has to have them.

    Raises:
        ConfigError: It is a class, lacks a method, or has an async one.
    """
    if value is None:
        return
    kind = value.__name__ if isinstance(value, type) else type(value).__name__
    if isinstance(value, type):
        raise ConfigError(f"{name} must be an object, not the class {kind}; write {kind}(...)")
    missing = [
        each for each, is_needed in methods.items() if is_needed and not callable(_method(value, each))
    ]
    if missing:
        raise ConfigError(f"{name} {kind} has no method {', '.join(missing)}")
    for each in methods:
        method = _method(value, each)
        if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
            raise ConfigError(f"{each}() of the {name} {kind} must be a plain method, not async")


def _method(value: Any, name: str) -> Any:
    return getattr(value, name, None)


def check_syncing(place: Any, syncer: Any, storage_options: Mapping[str, Any] | None) -> str | None:
    """Take where to copy to, and by what, from a user; `asynctune.storage.uri` looks at the rest of a URI.

    Returns:
        The text of the place; `None`: there is none.

    Raises:
        ConfigError: Something that cannot be one, or a contradiction. Credentials in a URI are refused, and not shown.
    """
    kind = None if syncer is None or syncer == "auto" else type(syncer).__name__
    if kind is not None:
        _check_syncer(syncer)
    if place is None:
        if kind is not None:
            raise ConfigError(f"syncer={kind}(...) copies to upload_dir, and none is given; give it too")
        return None
    text = _place(place)
    shown = without_credentials(text)
    if syncer is None:
        raise ConfigError(
            f"syncer=None says that nothing is copied, and upload_dir={shown!r} where to; leave out the one that is "
            "not meant"
        )
    scheme = _check_uri(text, known_only=kind is None)
    if storage_options and kind is not None:
        raise ConfigError(f"storage_options are for the built-in syncer; give them to the {kind}")
    if storage_options and scheme in (None, "file", "memory"):
        raise ConfigError(
            f"storage_options are for s3:// and gs://, and upload_dir={shown!r} takes none; leave them out"
        )
    return text


def _check_syncer(value: Any) -> None:
    if isinstance(value, type):
        raise ConfigError(
            f"syncer must be an object, not the class {value.__name__}; write {value.__name__}(...)"
        )
    missing = [each for each in _OF_SYNCERS if not _is_made(_method(value, each))]
    if len(missing) == len(_OF_SYNCERS):
        shown = repr(value) if isinstance(value, str) else type(value).__name__
        raise ConfigError(f'syncer must be "auto", None or a Syncer, not {shown}')
    if missing:
        raise ConfigError(f"syncer {type(value).__name__} has no method {', '.join(missing)}")


def _is_made(method: Any) -> bool:
    """Whether it does something: who inherits from `Syncer` and forgets a method has one that does nothing."""
    return callable(method) and getattr(method, "__module__", None) != "asynctune.protocols"


def _place(place: Any) -> str:
    text = os.fspath(place) if isinstance(place, os.PathLike) else place
    if not isinstance(text, str) or not text or "\0" in text:
        shown = repr(text) if isinstance(text, str) else type(text).__name__
        raise ConfigError(f"upload_dir must be a directory's path or a URI, not {shown}")
    if broken := _BROKEN.match(text):
        raise ConfigError(
            f"upload_dir: write {broken[1]}:// with two slashes, and give it as a string: pathlib drops one of them"
        )
    return text


def _check_uri(text: str, *, known_only: bool) -> str | None:
    """Its scheme; `None`: it is a path."""
    found = _URI.fullmatch(text)
    if found is None:
        return None
    scheme, (authority, _, _) = found[1].lower(), found[2].partition("/")
    shown = without_credentials(text)
    has_user = "@" in authority and (known_only or ":" in authority.rpartition("@")[0])
    if has_user or re.search(r"[?#]", found[2]) or _PASSWORD.search(text):
        raise ConfigError(
            f"upload_dir={shown!r} was given with a user, a password or a query; credentials go into storage_options, "
            "or to where the cloud's own tools look for them"
        )
    if known_only and scheme not in _SCHEMES:
        known = ", ".join(f"{each}://" for each in _SCHEMES)
        raise ConfigError(
            f"upload_dir={shown!r}: {scheme}:// is no storage that asynctune knows; give a path, one of {known}, or a "
            "syncer of your own"
        )
    if known_only and scheme != "file" and not authority:
        raise ConfigError(f"upload_dir={shown!r} names no bucket; write {scheme}://bucket/prefix")
    return scheme


def is_uri(place: str) -> bool:
    """Whether the text begins with a scheme."""
    return _URI.match(place) is not None


def without_credentials(place: Any) -> Any:
    """A place to be shown: its user, password, query and fragment are left out."""
    if not isinstance(place, str):
        return place
    for secret in _SECRETS:
        place = secret.sub("", place)
    return place
