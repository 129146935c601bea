"""Owns how searchers and schedulers keep up with an experiment across a crash: state, and the events since.

What they are told is appended to the store's log, in order, before anything depends on it. A captured state says how
far in the log it is; on restore the rest is told again, so that the search continues exactly. The log is cut behind
the oldest captured position, so it is as short as the store's pacing makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, Protocol

from asynctune.errors import CorruptStateError

__all__ = ["EventLog", "Follower", "LogStore"]

SUGGESTED: Final = "suggested"
REPORTED: Final = "reported"
COMPLETED: Final = "completed"

Event = tuple[Literal["suggested", "reported", "completed"], str, Any, bool]
"""What happened, to which trial, its config or result row, and whether it failed."""


class LogStore(Protocol):
    """Where the log is kept; an `ExperimentStore`."""

    def append_event(self, value: Any) -> int:
        """Append, and return the number."""
        ...

    def logged_events(self, start: int = 0) -> Iterator[tuple[int, Any]]:
        """Number and value of those from `start` on."""
        ...

    def drop_events(self, before: int) -> None:
        """Remove those with smaller numbers."""
        ...


class EventLog:
    """The events that followers may have to be told again."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self._captured: dict[str, int] = {}  # by follower, how far its captured state is
        self._dropped = 0
        self.next = 0

    def join(self, name: str) -> None:
        """Another follower, whose state was not captured yet."""
        self._captured[name] = 0

    def append(self, event: Event) -> None:
        """Add an event; nothing is kept where nobody follows."""
        if not self._captured:
            return
        # Here and not when a state is captured: the store is in the middle of a commit then.
        if (needless := min(self._captured.values())) > self._dropped:
            self._store.drop_events(needless)
            self._dropped = needless
        self.next = self._store.append_event(list(event)) + 1

    def captured(self, name: str) -> int:
        """The follower's state is captured now; returns the position to be stored with it."""
        self._captured[name] = self.next
        return self.next

    def since(self, position: int) -> Iterator[Event]:
        """The events that a state captured at `position` does not know."""
        for _, value in self._store.logged_events(position):
            kind, trial_id, data, failed = value
            yield kind, trial_id, data, failed

    def resume(self) -> None:
        """Go on behind what is stored."""
        self.next = max((number for number, _ in self._store.logged_events()), default=-1) + 1


class Follower:
    """A searcher or scheduler as the store sees it (`Stateful`): its state, and how far that is.

    Args:
        name: What it is, for the log and for messages.
        wrapped: The user's object.
        log: The events.
    """

    def __init__(self, name: str, wrapped: Any, log: EventLog) -> None:
        self._name = name
        self._wrapped = wrapped
        self._log = log
        self._position = 0
        log.join(name)

    def get_state(self) -> dict[str, Any]:
        """Called by the store when it captures."""
        state = self._wrapped.get_state()
        return {"position": self._log.captured(self._name), "state": state}

    def set_state(self, value: Any) -> None:
        """Called by the store when an experiment is resumed.

        Raises:
            CorruptStateError: The state is none of a Tuner's.
        """
        if (
            not isinstance(value, Mapping)
            or not isinstance(value.get("position"), int)
            or "state" not in value
        ):
            raise CorruptStateError(
                f"the stored state of the {self._name} was not written by a Tuner; open the experiment with "
                "ExperimentStore instead"
            )
        self._position = value["position"]
        self._wrapped.set_state(value["state"])

    def catch_up(self, tell: Callable[[Event], None]) -> None:
        """Tell it what happened since its state was captured."""
        for event in self._log.since(self._position):
            tell(event)
