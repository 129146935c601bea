"""Owns the row operations: what `store.report` packs into a commit frame, and what a full result row holds.

Pure. What all rows of a trial or of an opening share (config, hostname, pid) is not packed with each row;
`expand` adds it back.

Packed form, a msgpack array of `asynctune.packing`: `[1, trial_id, ordinal, iteration, timestamp,
time_this_iter_s, time_total_s, metrics]` for a row, `[2, trial_id, keep]` for a cut, `[3, trial_id]` for an
announcement.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any, Final

from asynctune.errors import ConfigError
from asynctune.packing import UnpackError, pack, unpack

__all__ = [
    "Announce",
    "Cut",
    "OpeningInfo",
    "ResultRow",
    "RowOperation",
    "TrialInfo",
    "decode",
    "encode",
    "expand",
    "trial_of",
]

_ROW: Final = 1
_CUT: Final = 2
_ANNOUNCE: Final = 3

_ROW_LENGTH: Final = 8
_ROW_HEADER: Final = bytes([0x90 | _ROW_LENGTH])  # msgpack's fixarray: the array's length in one byte
_HEADS: Final = (_ROW_HEADER + bytes([_ROW]), bytes([0x93, _CUT]), bytes([0x92, _ANNOUNCE]))
_SHORT_TEXT: Final = range(0xA0, 0xC0)  # msgpack's fixstr: the text's length in one byte


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """One report of a trial.

    Attributes:
        trial_id: Whose it is.
        ordinal: Its line number in the trial's present timeline, from 1.
        iteration: The training iteration that it tells of.
        timestamp: When it was reported, seconds since the Unix epoch.
        time_this_iter_s: Seconds since the trial's row before, or since it started running.
        time_total_s: Seconds the trial has run so far, over all its openings.
        metrics: What the user reported; the keys are strings.
    """

    trial_id: str
    ordinal: int
    iteration: int
    timestamp: float
    time_this_iter_s: float
    time_total_s: float
    metrics: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A rewind: the trial goes on from an older checkpoint, and its rows after line `keep` are void.

    Attributes:
        trial_id: Whose timeline is cut.
        keep: How many lines stay.
    """

    trial_id: str
    keep: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """A trial has started, or its config has changed: `params.json` should say so.

    Attributes:
        trial_id: Which trial.
    """

    trial_id: str


RowOperation = ResultRow | Cut | Announce


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialInfo:
    """What the store knows of a trial that its rows do not repeat.

    Attributes:
        trial_id: Its id.
        trial_name: The name of its directory in the experiment.
        config: Its hyperparameters, as of now.
    """

    trial_id: str
    trial_name: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeningInfo:
    """Who wrote the rows of one opening of the experiment.

    Attributes:
        hostname: The driver's host.
        node_ip: Its address.
        pid: The driver's process id.
    """

    hostname: str
    node_ip: str
    pid: int


def encode(operation: RowOperation) -> bytes:
    """Pack an operation for the journal. A few microseconds; later changes of `metrics` do not reach it.

    Raises:
        ConfigError: A metric that cannot be stored (the message has the path to it), or a name that is no
            string.
    """
    match operation:
        case ResultRow():
            for key in operation.metrics:
                if not isinstance(key, str):
                    msg = f"metrics has the key {key!r}, and metric names are strings; use {str(key)!r}"
                    raise ConfigError(msg)
            head = pack(
                [
                    _ROW,
                    operation.trial_id,
                    operation.ordinal,
                    operation.iteration,
                    operation.timestamp,
                    operation.time_this_iter_s,
                    operation.time_total_s,
                ]
            )
            # Packed apart, so that an error names `metrics['x']` and not a position in the array.
            return _ROW_HEADER + head[1:] + pack(operation.metrics, "metrics")
        case Cut():
            return pack([_CUT, operation.trial_id, operation.keep])
        case Announce():
            return pack([_ANNOUNCE, operation.trial_id])


def decode(data: bytes | bytearray | memoryview) -> RowOperation:
    """Take back what `encode` made.

    Raises:
        UnpackError: Not a packed row operation.
    """
    match unpack(data):
        case [
            int(kind),
            str(trial_id),
            int(ordinal),
            int(iteration),
            int() | float() as timestamp,
            int() | float() as this_iter,
            int() | float() as total,
            dict(metrics),
        ] if kind == _ROW and ordinal > 0:
            return ResultRow(
                trial_id=trial_id,
                ordinal=ordinal,
                iteration=iteration,
                timestamp=timestamp,
                time_this_iter_s=this_iter,
                time_total_s=total,
                metrics=metrics,
            )
        case [int(kind), str(trial_id), int(keep)] if kind == _CUT and keep >= 0:
            return Cut(trial_id=trial_id, keep=keep)
        case [int(kind), str(trial_id)] if kind == _ANNOUNCE:
            return Announce(trial_id=trial_id)
        case _:
            msg = "not a packed row operation of this release"
            raise UnpackError(msg)


def trial_of(data: bytes) -> str:
    """Whose operation it is; looks no further, so that sorting very many of them is quick.

    Raises:
        UnpackError: Not a packed row operation, as far as that can be seen.
    """
    if data.startswith(_HEADS) and len(data) > 2 and data[2] in _SHORT_TEXT:  # noqa: PLR2004 - after header and kind
        with suppress(UnicodeDecodeError):
            return data[3 : 3 + data[2] - _SHORT_TEXT.start].decode()
    return decode(data).trial_id


def expand(
    row: ResultRow, trial: TrialInfo, opening: OpeningInfo, tz: tzinfo | None = None
) -> dict[str, Any]:
    """The full row: the user's metrics, then what asynctune knows, `config` last.

    A name that the user reported too keeps the user's value, except `trial_id` and `config`. Names and forms
    are Ray Tune's: `timestamp` in whole seconds, `date` like `2026-01-31_23-59-59`, `done` False by default.

    Args:
        row: The report.
        trial: The trial that made it.
        opening: Who was driving when it did.
        tz: The timezone of `date`; the machine's own by default.
    """
    full = dict(row.metrics)
    full.pop("trial_id", None)
    full.pop("config", None)
    seconds = int(row.timestamp)
    for name, value in (
        ("done", False),
        ("training_iteration", row.iteration),
        ("time_this_iter_s", row.time_this_iter_s),
        ("time_total_s", row.time_total_s),
        ("timestamp", seconds),
        ("date", _date(seconds, tz)),
        ("hostname", opening.hostname),
        ("node_ip", opening.node_ip),
        ("pid", opening.pid),
    ):
        full.setdefault(name, value)
    full["trial_id"] = trial.trial_id
    full["config"] = dict(trial.config)
    return full


def _date(seconds: int, tz: tzinfo | None) -> str:
    try:
        return datetime.fromtimestamp(seconds, tz).strftime("%Y-%m-%d_%H-%M-%S")
    except (ValueError, OverflowError, OSError):
        return ""  # a clock gone mad; the row is committed, and must not end this opening and every later one
