"""Owns the seams: what users implement (`Searcher`, `TrialScheduler`) and what rooms hand to each other.

No code runs here. A class need not inherit from any of these; having the methods is enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

__all__ = ["CommitSink", "Searcher", "Stateful", "TrialScheduler"]


@runtime_checkable
class Stateful(Protocol):
    """Something whose state the store keeps for it: a searcher, a scheduler."""

    def get_state(self) -> Any:
        """The whole state as a msgpack value (nested dict, list, str, bytes, numbers) or opaque bytes.

        Called on the event loop, so it should be quick; the store spaces the calls by what they cost.
        """
        ...

    def set_state(self, state: Any) -> None:
        """Take back what `get_state` returned, in a new process."""
        ...


@runtime_checkable
class Searcher(Stateful, Protocol):
    """Proposes configurations."""

    def suggest(self, trial_id: str) -> Mapping[str, Any] | None:
        """A configuration for a new trial, or `None` when there is nothing (more) to try."""
        ...

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """A trial has reported a result row."""
        ...

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial has ended: with its last result, or with an error."""
        ...


@runtime_checkable
class TrialScheduler(Stateful, Protocol):
    """Decides which trial runs, and whether it goes on after a result."""

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> str:
        """One of `"CONTINUE"`, `"PAUSE"`, `"STOP"`."""
        ...

    def choose_trial_to_run(self, trial_ids: Sequence[str]) -> str | None:
        """Which of the pending or paused trials to start next, or `None` to wait."""
        ...


class CommitSink(Protocol):
    """Through which a room below the store reads and writes records; the store binds it to the journal.

    Loop only. Reads see what was put, whether it is durable yet or not.
    """

    def get(self, key: str) -> Any | None:
        """The record's value, unpacked afresh (the caller may change it), or `None` if there is none."""
        ...

    def steps(self, trial_id: str) -> Sequence[int]:
        """Steps of the trial's `checkpoint/<trial_id>/<step>` records, rising; a copy."""
        ...

    def put(self, key: str, value: Any) -> None:
        """Set a record (packed at once). Durable with the next commit. No I/O.

        Raises:
            ConfigError: The value cannot be stored.
            FencedError: Another opening owns the experiment.
            StorageError: The disk failed for good earlier.
            StoreClosedError: The store is closed.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove a record. Durable with the next commit. No I/O. Errors as for `put`."""
        ...

    async def commit(self) -> int:
        """Return when everything put so far is on this disk; the commit's seq.

        Cancelling the caller cancels the waiting only; the commit goes on.

        Raises:
            StorageError: The disk failed for good.
            FencedError: Another opening owns the experiment.
        """
        ...
