"""Owns the records as the rooms below the store see them (`protocols.CommitSink`): checked, then passed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from asynctune.store.records import Records

__all__ = ["RecordSink"]


class RecordSink:
    """The experiment's records as the rooms below see them (`protocols.CommitSink`)."""

    def __init__(self, records: Records, check: Callable[[], None], commit: Callable[[], Any]) -> None:
        self._records = records
        self._check = check
        self._commit = commit

    def get(self, key: str) -> Any | None:
        """The record's value, or `None`."""
        return self._records.get(key)

    def steps(self, trial_id: str) -> Sequence[int]:
        """Steps of the trial's checkpoint records, rising."""
        return self._records.steps(trial_id)

    def put(self, key: str, value: Any) -> None:
        """Set a record."""
        self._check()
        self._records.put(key, value)

    def delete(self, key: str) -> None:
        """Remove a record."""
        self._check()
        self._records.delete(key)

    async def commit(self) -> int:
        """Return when everything put so far is durable."""
        self._check()
        seq: int = await self._commit()
        return seq
