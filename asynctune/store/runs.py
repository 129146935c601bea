"""Owns the record `run/<id>`: what has happened to a trial, how it is packed, and the rules of its values. Pure."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from asynctune.errors import ConfigError, CorruptStateError
from asynctune.packing import pack
from asynctune.trial import TrialStatus

__all__ = [
    "CODES",
    "STATUSES",
    "Run",
    "error_text",
    "full_result",
    "known_rows",
    "next_iteration",
    "pack_map",
    "pack_run",
    "parse_status",
    "peek_status",
    "reported",
    "unpack_run",
]

STATUSES: Final = (
    TrialStatus.PENDING,
    TrialStatus.RUNNING,
    TrialStatus.PAUSED,
    TrialStatus.TERMINATED,
    TrialStatus.ERROR,
)
"""The stored code of a status is its index here; new ones are added at the end."""

CODES: Final = {status: code for code, status in enumerate(STATUSES)}

_MAX_ERROR: Final = 64 * 1024


@dataclass(slots=True)
class Run:
    """What has happened to a trial, as stored in `run/<id>`.

    Attributes:
        status: Index into the statuses.
        num_results: Rows of the present timeline.
        iteration: Of the last row.
        time_total_s: Of the last row.
        reported_at: Wall time of the last row.
        started_at: Wall time of the first start.
        ended_at: Wall time of the end, while finished.
        error: Text of the last failure.
        num_failures: How many there were.
        attempt: How often the trial was put back to start again; part of later checkpoints' directory names.
        summary: Of the tracked metric over all rows, see `store.summary`.
        metrics: Of the last row.
    """

    status: int = 0
    num_results: int = 0
    iteration: int = 0
    time_total_s: float = 0.0
    reported_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    error: str | None = None
    num_failures: int = 0
    attempt: int = 0
    summary: list[Any] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)


_FIELDS: Final = tuple(f.name for f in fields(Run))
_ARRAY_HEADER: Final = bytes([0x90 | len(_FIELDS)])  # msgpack's fixarray: the array's length in one byte


def pack_run(run: Run) -> bytes:
    """The record's bytes.

    Raises:
        ConfigError: A metric that cannot be stored; the message names it.
    """
    head = pack([getattr(run, name) for name in _FIELDS[:-1]])
    # the user's data is packed apart, so that an error names it
    return _ARRAY_HEADER + head[1:] + pack_map(run.metrics, "metrics")


def unpack_run(trial_id: str, values: Any) -> Run:
    """Take back an unpacked record.

    Raises:
        CorruptStateError: Not one.
    """
    # fields that a later release adds at the end are not known here
    if not isinstance(values, list) or len(values) < len(_FIELDS) or values[0] not in range(len(STATUSES)):
        msg = f"the record of what happened to trial {trial_id!r} cannot be read; was it written by a newer asynctune?"
        raise CorruptStateError(msg)
    return Run(*values[: len(_FIELDS)])


def peek_status(data: bytes) -> TrialStatus:
    """The status in a packed record, without unpacking the rest."""
    return STATUSES[data[1]]


def pack_map(value: Mapping[str, Any], what: str) -> bytes:
    """Pack a mapping with text keys.

    Raises:
        ConfigError: Not one, or a part of it cannot be stored.
    """
    if not isinstance(value, Mapping):
        msg = f"{what} must be a mapping of names to values, not {type(value).__name__}"
        raise ConfigError(msg)
    for key in value:
        if not isinstance(key, str):
            msg = f"{what} has the key {key!r}, and its keys must be strings; use {str(key)!r}"
            raise ConfigError(msg)
    return pack(dict(value), what)


def parse_status(status: Any) -> TrialStatus:
    """A status as given by a user: the enum, or its name.

    Raises:
        ConfigError: Neither.
    """
    try:
        return TrialStatus(status)
    except ValueError:
        names = ", ".join(s.value for s in TrialStatus)
        msg = f"{status!r} is no trial status; there are {names}"
        raise ConfigError(msg) from None


def error_text(error: str | BaseException | None) -> str:
    """What is stored of a failure: the text, or the traceback of an exception (its end, if very long)."""
    if error is None:
        return "no reason given"
    if isinstance(error, BaseException):
        text = "".join(traceback.format_exception(error)).rstrip()
    elif isinstance(error, str):
        text = error
    else:
        msg = f"error must be a text or an exception, not {type(error).__name__}"
        raise ConfigError(msg)
    # what cannot be encoded must not keep a failure from being recorded
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _MAX_ERROR else "...\n" + text[-_MAX_ERROR:]


def next_iteration(metrics: Mapping[str, Any], given: int | None, run: Run, trial_id: str) -> int:
    """The iteration of a new row: as given, else `training_iteration` of the metrics, else one more than the last.

    The first one may be 0, and is 1 if nothing says otherwise.

    Raises:
        ConfigError: Not a whole number above the last.
    """
    last = run.iteration if run.num_results else -1
    number = metrics.get("training_iteration", max(0, last) + 1) if given is None else given
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        msg = f"iteration must be a whole number, not {number!r}"
        raise ConfigError(msg)
    number = int(number)
    if number < 0:
        msg = f"iteration must be a whole number from 0, not {number!r}"
        raise ConfigError(msg)
    if number <= last:
        msg = (
            f"iteration {number} of trial {trial_id!r} is not above its last one, {last}; a trial that starts again "
            "from a checkpoint goes through PENDING (requeue(), or set_status), which cuts its results there"
        )
        raise ConfigError(msg)
    return number


def known_rows(rows: Sequence[Mapping[str, Any]], run: Run) -> list[Any]:
    """Those of a trial's rows that `run` knows of: a file may be ahead of it, and iterations only rise."""
    if run.num_results == 0:
        return []
    return [row for row in rows if not _is_above(row.get("training_iteration"), run.iteration)]


def _is_above(found: object, last: int) -> bool:
    return isinstance(found, int) and found > last


def full_result(run: Run) -> dict[str, Any]:
    """The last row as users see it: their metrics and what asynctune knows of it. Empty before the first."""
    if run.num_results == 0:
        return {}
    own = {
        "training_iteration": run.iteration,
        "time_total_s": run.time_total_s,
        "timestamp": int(run.reported_at or 0),
    }
    return {**own, **reported(run)}


def reported(run: Run) -> dict[str, Any]:
    """The metrics of the last row, with its iteration. Empty before the first."""
    return {**run.metrics, "training_iteration": run.iteration} if run.num_results else {}
