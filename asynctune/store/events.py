"""Owns the stream of events: one bounded queue for each subscriber, oldest dropped first, drops counted."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["EventStream", "StoreEvent"]

QUEUE_LENGTH: Final = 1024
"""How many events a subscriber may lag behind before the oldest are dropped."""

OF_THE_OPENING: Final = frozenset(
    {
        "checkpoint_lost",
        "fork_set_aside",
        "mirror_away",
        "mirror_given_up",
        "mirror_unfenced",
        "orphan_set_aside",
        "recovered_damage",
        "recovered_tear",
        "sharing_warning",
        "waiting_for_quiet",
    }
)
"""What an opening finds: told to those, too, who subscribe as the first thing after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEvent:
    """Something that happened in an experiment.

    Attributes:
        kind: Of trials: `trial_added`, `status_changed`, `result`. Of checkpoints: `checkpoint_saved`,
            `checkpoint_deleted`, `checkpoint_damaged`, `checkpoint_lost`, `checkpoint_fetched`, `upload_started`,
            `checkpoint_mirrored`, `upload_failed`, `uploads_left`, `bucket_copy_deleted`, `orphan_set_aside`. Of the
            state: `committed`, `snapshot_written`, `recovered_tear`, `recovered_damage`, `sharing_warning`,
            `disk_full`, `disk_recovered`, `write_failed`, `pacing_exceeded`, `searcher_failed`. Of result files:
            `results_repaired`, `results_incomplete`, `results_upload_failed`, `results_upload_back`. Of the copy:
            `waiting_for_quiet`, `mirrored`, `mirror_claimed`, `mirror_away`, `mirror_back`, `mirror_failed`,
            `mirror_healed`, `mirror_behind`, `mirror_fenced`, `mirror_unfenced`, `mirror_given_up`,
            `fork_set_aside`. And `lagged` (this subscriber was too slow; `data["dropped"]` says how many events it
            missed), `closed`.
        trial_id: The trial it is about, if one.
        step: The checkpoint it is about, if one.
        seq: The commit it is about, if one.
        message: One sentence for people; may be empty.
        data: More, by kind.
    """

    kind: str
    trial_id: str | None = None
    step: int | None = None
    seq: int | None = None
    message: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


class EventStream:
    """Hands each event to every subscriber. Loop only.

    What an opening finds happens before anybody can subscribe: it is held until `opened` lets it go.
    """

    def __init__(self) -> None:
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._closed = False
        self._held: list[StoreEvent] | None = []

    def opened(self) -> None:
        """The opening is over, and whoever wanted to hear what it found has subscribed."""
        held, self._held = self._held or [], None
        for event in held:
            self._tell(event)

    def emit(
        self,
        kind: str,
        /,
        *,
        trial_id: str | None = None,
        step: int | None = None,
        seq: int | None = None,
        message: str = "",
        **data: Any,
    ) -> None:
        """Tell all subscribers; costs next to nothing while there are none."""
        holds = self._held is not None and kind in OF_THE_OPENING
        if not self._subscriptions and not holds:
            return
        event = StoreEvent(kind=kind, trial_id=trial_id, step=step, seq=seq, message=message, data=data)
        if self._held is not None and holds:
            self._held.append(event)
        else:
            self._tell(event)

    def _tell(self, event: StoreEvent) -> None:
        for subscription in list(self._subscriptions):
            subscription.push(event)

    def subscribe(self) -> Subscription:
        """A new subscriber: gets every event from this call on."""
        subscription = Subscription(closed=self._closed)
        self._subscriptions.add(subscription)
        return subscription

    def close(self) -> None:
        """End all subscriptions, after what they have not yet taken."""
        self._closed = True
        for subscription in list(self._subscriptions):
            subscription.close()


class Subscription(AsyncIterator[StoreEvent]):
    """The events since `events()` was called, as an async iterator that ends when the store is closed."""

    def __init__(self, *, closed: bool) -> None:
        self._queue: deque[StoreEvent] = deque()
        self._dropped = 0
        self._ready = asyncio.Event()
        self._closed = closed

    def push(self, event: StoreEvent) -> None:
        """Add one event, dropping the oldest if the subscriber lags too far behind."""
        if len(self._queue) >= QUEUE_LENGTH:
            self._queue.popleft()
            self._dropped += 1
        self._queue.append(event)
        self._ready.set()

    def close(self) -> None:
        """No more events will come."""
        self._closed = True
        self._ready.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> StoreEvent:
        while not self._queue:
            if self._closed:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            message = f"{dropped} events were dropped because this subscriber was too slow"
            return StoreEvent(kind="lagged", message=message, data={"dropped": dropped})
        return self._queue.popleft()
