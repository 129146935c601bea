"""Owns the state of callbacks as the store keeps it: one value for those of them that have one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from asynctune.errors import AsynctuneError, CorruptStateError, UserCodeError

__all__ = ["CallbackStates"]

logger = logging.getLogger("asynctune")


class CallbackStates:
    """The callbacks of an experiment, as one `Stateful`.

    A state belongs to the callback of the same class, the n-th state of a class to the n-th callback of it.

    Args:
        callbacks: All of them; those without `get_state` and `set_state` have no part in it.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self._callbacks = [
            each
            for each in callbacks
            if callable(getattr(each, "get_state", None)) and callable(getattr(each, "set_state", None))
        ]
        self._others: list[list[Any]] = []  # of callbacks that were not given again: kept, they may be later
        self._asked: Any = None

    @property
    def state_of(self) -> str:
        """Whose state this is, for messages: the one that is asked for it, or all of them."""
        return ", ".join(map(_kind, self._callbacks if self._asked is None else [self._asked]))

    def get_state(self) -> list[list[Any]]:
        """`[class name, state]` of each."""
        states = []
        for each in self._callbacks:
            self._asked = each
            states.append([_kind(each), each.get_state()])
        self._asked = None
        return states + self._others

    def set_state(self, states: Any) -> None:
        """Give each its state back.

        Raises:
            CorruptStateError: These are no states of callbacks.
            UserCodeError: One of them failed.
        """
        try:
            pairs = [(str(kind), state) for kind, state in states]
        except (TypeError, ValueError) as error:
            raise CorruptStateError(
                f"the stored states of the callbacks are none: {states!r:.100}"
            ) from error
        left = list(self._callbacks)
        for kind, state in pairs:
            taker = next((each for each in left if _kind(each) == kind), None)
            if taker is None:
                self._others.append([kind, state])
                logger.warning("the callback %s has a saved state and was not given again; it is kept", kind)
            else:
                left.remove(taker)
                _give(taker, state)


def _give(callback: Any, state: Any) -> None:
    try:
        callback.set_state(state)
    except AsynctuneError:
        raise
    except Exception as error:
        raise UserCodeError(
            f"the callback {_kind(callback)}.set_state() failed: {error!r}; nothing was changed: correct it, and "
            "restore again"
        ) from error


def _kind(callback: Any) -> str:
    return type(callback).__qualname__
