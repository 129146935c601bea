"""Owns how searchers and schedulers keep up with an experiment across a crash: state, and the events since.

What they are told is appended to the store's log, in order, before anything depends on it. A captured state says how
far in the log it is; on restore the rest is told again, so that the search continues exactly. The log is cut behind
the oldest captured position, so it is as short as the store's pacing makes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

from asynctune.errors import AsynctuneError, CorruptStateError, UserCodeError

__all__ = [
    "ADDED",
    "COMPLETED",
    "REPORTED",
    "REWOUND",
    "SUGGESTED",
    "Event",
    "EventLog",
    "Follower",
    "LogStore",
    "catch_up",
]

SUGGESTED: Final = "suggested"
REPORTED: Final = "reported"
COMPLETED: Final = "completed"
ADDED: Final = "added"
REWOUND: Final = "rewound"

Event = tuple[Literal["suggested", "reported", "completed", "added", "rewound"], str, Any, bool]
"""What happened, to which trial, and whether it failed. With it for `suggested` a checksum of the config, for
`reported` the result row, for `completed` the last one or `None`, for `added` the config (failed: before that), for
`rewound` the iteration after which its results do not count any more."""

_EVENTS_PER_SLICE: Final = 100


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

    @property
    def next_event(self) -> int:
        """The number of what is appended next."""
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

    def saved(self, name: str, position: int) -> None:
        """The follower's state as of `position` is durable not later than what is appended from now on."""
        self._captured[name] = position

    def since(self, position: int) -> Iterator[tuple[int, Event]]:
        """Number and event from `position` on: what a state captured there does not know."""
        for number, value in self._store.logged_events(position):
            kind, trial_id, data, failed = value
            yield number, (kind, trial_id, data, failed)

    def resume(self) -> None:
        """Go on behind what is stored."""
        self.next = self._store.next_event


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
        self._saved: Mapping[str, Any] | None = None  # until it has caught up with this state
        self._behind: int | None = 0  # how far it has been told; `None`: it hears everything
        self._captured = 0
        log.join(name)

    @property
    def state_of(self) -> str:
        """Whose state this is, for messages."""
        return type(self._wrapped).__name__

    @property
    def position(self) -> int:
        """How far in the log its state is."""
        return self._log.next if self._behind is None else self._behind

    def get_state(self) -> Mapping[str, Any]:
        """Called by the store when it captures."""
        if self._saved is not None:
            return self._saved
        self._captured = self.position
        return {"position": self._captured, "state": self._wrapped.get_state()}

    def state_saved(self) -> None:
        """Called by the store when the state could be stored."""
        if self._saved is None:
            self._log.saved(self._name, self._captured)

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
        try:
            self._wrapped.set_state(value["state"])
        except AsynctuneError:
            raise
        except Exception as error:
            raise UserCodeError(
                f"the {self._name} {self.state_of}.set_state() failed: {error!r}; nothing was changed: correct it, and "
                "restore again"
            ) from error
        self._saved = value
        self._behind = value["position"]

    def begin_here(self) -> None:
        """It has no state of before, and need not know what was before."""
        self._behind = self._log.next
        self._log.saved(self._name, self._behind)

    def told(self, number: int) -> None:
        """It knows this event, and those before it."""
        self._behind = number + 1

    def caught_up(self) -> None:
        """It knows all events; from now on its own state is what is stored."""
        self._saved = None
        self._behind = None


async def catch_up(log: EventLog, followers: Sequence[tuple[Follower, Callable[[Event], None]]]) -> None:
    """Tell each follower, in the order that they are in, what happened since its state was captured."""
    start = min((follower.position for follower, _ in followers), default=log.next)
    for count, (number, event) in enumerate(log.since(start), 1):
        for follower, tell in followers:
            if number >= follower.position:
                tell(event)
                follower.told(number)
        if count % _EVENTS_PER_SLICE == 0:
            await asyncio.sleep(0)
    for follower, _ in followers:
        follower.caught_up()
