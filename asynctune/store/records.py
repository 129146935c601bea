"""Owns the map of all records on the loop's side, packed, and the two indexes into it; no I/O, no meaning of values.

=========================== ==========================================================================
key                         value (a msgpack value of the dialect in `asynctune.packing`)
=========================== ==========================================================================
`experiment`                map: experiment_id, name, created_at, prefix, format, checkpoint_config, and
                            tracked: [metric, mode, generation] once a metric is
`opening`                   map: epoch, hostname, pid, opened_at, closed_at (of the newest opening)
`projected`                 seq up to which the result files are durable
`copy`                      place of the copy that the checkpoints' records speak of
`trial/<id>`                see `store.trials`: what was given
`run/<id>`                  see `store.trials`: what happened
`checkpoint/<id>/<step>`    see `checkpoints.records`
`searcher`, `scheduler`     map: seq (of the commit whose events it knows), state
`state/<name>`              likewise, of another object that the driver attached
`meta/<key>`                the user's value
`log/<number>`              see `store.log`
`name/<trial_name>`         id of the trial, where the name is not the id
`replaced/<id>`             id of the trial that was made to start this one over
=========================== ==========================================================================
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from asynctune.errors import ConfigError, UnsupportedFormatError
from asynctune.packing import pack, unpack
from asynctune.state.codec import MAX_RECORD_BYTES

__all__ = ["FORMAT", "Journaled", "Records", "check_format"]

FORMAT: Final = 1
"""The form of the records; a newer one is refused."""

_SLICE: Final = 20_000
_SHOWN: Final = 80


class Journaled(Protocol):
    """Where changes go to become durable: the state's writer, or a reader's refusal."""

    def put(self, key: str, value: bytes) -> None:
        """Mark a record as set."""
        ...

    def delete(self, key: str) -> None:
        """Mark a record as removed."""
        ...


class Records:
    """The experiment's records as of now, durable or not."""

    def __init__(self, values: dict[str, bytes], sink: Journaled | None = None) -> None:
        self._values = values
        self.sink = sink
        self._named: dict[str, dict[str, None]] = {
            "trial": {},
            "meta": {},
            "name": {},
            "replaced": {},
            "log": {},
        }
        self.trial_ids = self._named["trial"]
        self._steps: dict[str, list[int]] = {}

    @classmethod
    def index(cls, values: dict[str, bytes]) -> Records:
        """Build the indexes. O(all records): for a thread, which it leaves to others now and then."""
        records = cls(values)
        for count, key in enumerate(values):
            if not key.startswith("run/"):
                records._note(key)
            if count % _SLICE == 0:
                time.sleep(0)
        return records

    def _note(self, key: str) -> None:
        kind, _, rest = key.partition("/")
        if kind in self._named:
            self._named[kind][rest] = None
        elif kind == "checkpoint":
            trial_id, _, step = rest.rpartition("/")
            steps = self._steps.setdefault(trial_id, [])
            number = int(step)
            if not steps or number > steps[-1]:
                steps.append(number)
            elif number not in steps:
                bisect.insort(steps, number)

    def get(self, key: str) -> Any | None:
        """The record's value, unpacked afresh, or `None`."""
        data = self._values.get(key)
        return None if data is None else unpack(data)

    def packed(self, key: str) -> bytes | None:
        """The record's bytes, or `None`."""
        return self._values.get(key)

    def named(self, kind: str) -> dict[str, None]:
        """What stands behind `<kind>/` in the keys of kind `trial`, `meta`, `name`, `replaced` or `log`."""
        return self._named[kind]

    def steps(self, trial_id: str) -> list[int]:
        """Steps of the trial's checkpoint records, rising; a copy."""
        return list(self._steps.get(trial_id, ()))

    def put(self, key: str, value: Any, what: str = "record") -> None:
        """Set a record, packed at once; nothing changes if it cannot be packed."""
        self.put_packed(key, pack(value, what, max_bytes=MAX_RECORD_BYTES))

    def put_packed(self, key: str, data: bytes) -> None:
        """Set a record to bytes that are packed already.

        Raises:
            ConfigError: The journal could not take it: over the limit, or a key that cannot be encoded.
        """
        assert self.sink is not None
        _check_record(key, data)
        self.sink.put(key, data)
        if key not in self._values:
            self._note(key)
        self._values[key] = data

    def delete(self, key: str) -> None:
        """Remove a record, if it is there."""
        assert self.sink is not None
        if key not in self._values:
            return
        self.sink.delete(key)
        self._forget(key)

    def _forget(self, key: str) -> None:
        if self._values.pop(key, None) is None:
            return
        kind, _, rest = key.partition("/")
        if kind == "checkpoint":
            trial_id, _, step = rest.rpartition("/")
            steps = self._steps[trial_id]
            steps.remove(int(step))
            if not steps:
                del self._steps[trial_id]
        elif kind in self._named:
            del self._named[kind][rest]

    def become(self, other: Records) -> None:
        """Take over another map whole; for a reader that had to read anew."""
        self._values, self._steps = other._values, other._steps
        self._named = other._named
        self.trial_ids = self._named["trial"]

    def replay(self, puts: list[Any], deletes: list[str]) -> None:
        """Take over what a commit of another process did; for a reader."""
        values = self._values
        for key, data in zip(puts[::2], puts[1::2], strict=True):
            if key not in values:
                self._note(key)
            values[key] = data
        for key in deletes:
            self._forget(key)


def _check_record(key: str, data: bytes) -> None:
    """Refuse here, at the caller's line, what the journal's thread would fail on."""
    try:
        size = len(data) + len(key.encode())
    except UnicodeEncodeError:
        msg = f"the key {key!r} is not valid Unicode and cannot be stored; use another name"
        raise ConfigError(msg) from None
    if size > MAX_RECORD_BYTES:
        shown = key if len(key) <= _SHOWN else key[:_SHOWN] + "..."
        msg = (
            f"the record {shown!r} takes {size:,} bytes, and the limit is {MAX_RECORD_BYTES:,}; "
            "put large data into a checkpoint's files instead"
        )
        raise ConfigError(msg)


def check_format(values: Mapping[str, bytes], path: str) -> None:
    """Refuse records of a form that is not known here, before anything relies on them.

    Raises:
        UnsupportedFormatError: They are a newer asynctune's.
    """
    data = values.get("experiment")
    found = FORMAT if data is None else unpack(data).get("format")
    if not isinstance(found, int) or found > FORMAT:
        msg = (
            f"the experiment at {path} was written by a newer asynctune (its records have format {found!r}, and this "
            f"one knows {FORMAT}); upgrade asynctune"
        )
        raise UnsupportedFormatError(msg)
