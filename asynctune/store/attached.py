"""Owns the state of a searcher, scheduler or the like: when it is captured, its own 5 % budget, and giving it back.

`get_state()` may be slow, so it is not called for every commit: its cost is spaced by the same rule as commits,
apart from theirs. The record says which commit's events the state knows, so that later ones can be replayed.
"""

from __future__ import annotations

import inspect

from asynctune.clock import Clock
from asynctune.errors import AsynctuneError, ConfigError
from asynctune.packing import pack
from asynctune.protocols import Stateful
from asynctune.state.pacing import CostBudget
from asynctune.store.records import Records

__all__ = ["AttachedState", "CaptureError"]

_MAP_OF_SEQ = b"\x82" + pack("seq")  # msgpack's fixmap of two
_AND_STATE = pack("state")


class CaptureError(AsynctuneError):
    """`get_state()` of a searcher or scheduler failed, or returned what cannot be stored; the last state stays."""


class AttachedState:
    """The place of one such object in the experiment.

    Messages name the object by its class, or as its attribute `state_of` says: it may stand for one of a user's.

    Args:
        name: `searcher`, `scheduler`, or the driver's own word; for messages.
        records: Where it is stored.
        clock: For the cost of a capture.
        key: The record's key; the name by default.
    """

    def __init__(self, name: str, records: Records, clock: Clock, *, key: str | None = None) -> None:
        self._name = name
        self._key = key or name
        self._records = records
        self._clock = clock
        self._object: Stateful | None = None
        self._budget = CostBudget()
        self._last: bytes | None = None
        self._told: str | None = None

    @property
    def next_start(self) -> float | None:
        """When the state may be captured again (monotonic); `None` while nothing is attached."""
        return None if self._object is None else self._budget.next_start

    def attach(self, value: Stateful) -> int | None:
        """Take the object, and give it the saved state if there is one; returns the commit that state knows of.

        Raises:
            ConfigError: It lacks `get_state` or `set_state`, or another one is attached.
        """
        for name in ("get_state", "set_state"):
            if not callable(getattr(value, name, None)):
                kind = _kind(value)
                raise ConfigError(
                    f"the {self._name} {kind} has no method {name}(); the store needs it to keep its state"
                )
            if inspect.iscoroutinefunction(getattr(value, name)):
                kind = _kind(value)
                raise ConfigError(f"{name}() of the {self._name} {kind} must be a plain method, not async")
        if self._object is not None and self._object is not value:
            msg = f"a {self._name} is attached already; a store keeps the state of one"
            raise ConfigError(msg)
        saved = self._records.get(self._key)
        if saved is not None and self._object is None:
            value.set_state(saved["state"])
        self._object = value
        return None if saved is None else int(saved["seq"])

    def capture(self, seq: int) -> float:
        """Put the present state as known at commit `seq`, if it changed; returns the seconds it took.

        Raises:
            CaptureError: The object failed.
        """
        if self._object is None:
            return 0.0
        began = self._clock.monotonic()
        try:
            state = self._object.get_state()
            packed = pack(state, f"{self._name} state")
            # compared as bytes: NaN differs from itself, and an array does not say whether it differs
            if packed != self._last:
                # the map of the two, without packing the state again
                self._records.put_packed(self._key, _MAP_OF_SEQ + pack(seq) + _AND_STATE + packed)
                self._last = packed
            self._told = None
            if callable(saved := getattr(self._object, "state_saved", None)):
                saved()
        except Exception as error:
            msg = f"the state of the {self._name} {_kind(self._object)} could not be captured: {error!r}"
            raise CaptureError(msg) from error
        finally:
            ended = self._clock.monotonic()
            self._budget.spent(ended, ended - began)
        return ended - began

    def is_news(self, error: CaptureError) -> bool:
        """Whether this failure was not met before, or not since a capture went well: it comes with every commit."""
        text = str(error)
        known, self._told = self._told, text
        return text != known


def _kind(value: object) -> str:
    return str(getattr(value, "state_of", None) or type(value).__name__)
