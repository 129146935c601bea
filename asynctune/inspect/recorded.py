"""Owns taking the checkpoints out of the raw state: each record, or what is wrong with it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from asynctune.checkpoints.records import CheckpointRecord
from asynctune.errors import CorruptStateError
from asynctune.inspect.report import Problem
from asynctune.inspect.text import printable
from asynctune.packing import UnpackError, unpack

__all__ = ["checkpoint_records"]

_PREFIX = "checkpoint/"


def checkpoint_records(records: Mapping[str, bytes]) -> Iterator[CheckpointRecord | Problem]:
    """Every record of a checkpoint, those being deleted included; a problem for one that makes no sense."""
    for key, packed in records.items():
        if not key.startswith(_PREFIX):
            continue
        trial_id, _, step = key.removeprefix(_PREFIX).rpartition("/")
        try:
            yield CheckpointRecord.from_value(trial_id, int(step), unpack(packed))
        except (CorruptStateError, UnpackError, ValueError) as error:
            message = f"the record {printable(key)!r}: {printable(str(error))}"
            yield Problem("state", message, trial_id=trial_id)
