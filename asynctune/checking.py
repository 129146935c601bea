"""Owns whether an object of a user's can be used as the searcher, scheduler or callback that it is given as.

Looks at its methods, so that a wrong one fails at the line that gives it, and not in the middle of a night. Calls none
of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from asynctune.errors import ConfigError

__all__ = ["OF_CALLBACKS", "OF_SCHEDULERS", "OF_SEARCHERS", "check_object"]

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
