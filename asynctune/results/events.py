"""Owns TensorBoard event records: a row's scalars as bytes, and what an event file holds. Pure.

Needs the extra `tensorboard`, of which only tensorboardX's message types are used: its writers start a
thread and keep a file open for each trial. A record is length, masked crc32c of the length, message, masked
crc32c of the message (source: TensorFlow's TFRecord format).

An event file gets one event for each row, so that the two can be compared by counting. After a rewind a
`SessionLog.START` event at the first step of the new timeline voids what is before it in the file at that
step or a later one; TensorBoard drops those points when it reads it (source: its `EventAccumulator`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import google_crc32c

from asynctune.errors import MissingExtraError

__all__ = ["EventCodec", "EventFile", "checksum"]

_HEADER: Final = struct.Struct("<QI")
_CRC: Final = struct.Struct("<I")
_MAX_RECORD: Final = 1 << 28
_MAX_STEP: Final = (1 << 63) - 1

# Ray Tune leaves these out of TensorBoard too: constants, and what the axes say anyway.
_LEFT_OUT: Final = frozenset({"pid", "timestamp", "time_total_s", "training_iteration"})


@dataclass(slots=True)
class EventFile:
    """What an event file holds.

    Attributes:
        rows: Step and checksum of each row that counts: START events have been applied.
        size: How many bytes of it are whole records.
    """

    rows: list[tuple[int, bytes]] = field(default_factory=list)
    size: int = 0


class EventCodec:
    """Makes and reads event records.

    Raises:
        MissingExtraError: tensorboardX is not installed, or does not work.
    """

    def __init__(self) -> None:
        try:
            from tensorboardX.proto import event_pb2, summary_pb2  # noqa: PLC0415 - the extra, when it is used
        except ImportError as error:
            raise MissingExtraError("tensorboard", "tensorboardX", "writing TensorBoard events") from error
        self._event: Any = event_pb2.Event
        self._session_log: Any = event_pb2.SessionLog
        self._summary: Any = summary_pb2.Summary

    def version(self, wall_time: float) -> bytes:
        """The record that every event file starts with."""
        return _record(self._event(wall_time=wall_time, file_version="brain.Event:2").SerializeToString())

    def start(self, step: int, wall_time: float) -> bytes:
        """A record that voids the events before it whose step is `step` or later."""
        log = self._session_log(status=self._session_log.START)
        return _record(self._event(wall_time=wall_time, step=step, session_log=log).SerializeToString())

    def row(self, cells: Mapping[str, Any], step: int) -> bytes:
        """The record of one row: a scalar for each numeric metric.

        Args:
            cells: The row as `render.flatten` returns it.
            step: What `step_of` says.
        """
        values = [
            self._summary.Value(tag=name, simple_value=_as_float(value))
            for name, value in cells.items()
            if type(value) in {float, int} and name not in _LEFT_OUT and not name.startswith("config/")
        ]
        when = cells.get("timestamp")
        event = self._event(
            wall_time=_as_float(when) if isinstance(when, int | float) else 0.0,
            step=step,
            summary=self._summary(value=values),
        )
        return _record(event.SerializeToString())

    def scan(self, data: bytes) -> EventFile:
        """Read an event file as far as its records are whole."""
        found = EventFile()
        while (record := _whole_record(data, found.size)) is not None:
            try:
                event = self._event.FromString(record[_HEADER.size : -_CRC.size])
            except Exception:  # noqa: BLE001 - protobuf's DecodeError, without importing protobuf by name
                break
            found.size += len(record)
            if event.HasField("summary"):
                found.rows.append((event.step, checksum(record)))
            elif event.HasField("session_log") and event.session_log.status == self._session_log.START:
                found.rows = [row for row in found.rows if row[0] < event.step]
        return found

    @staticmethod
    def step_of(cells: Mapping[str, Any], ordinal: int) -> int:
        """The step of a row: its training iteration, or its line number where that is no whole number."""
        step = cells.get("training_iteration")
        return step if type(step) is int and 0 <= step <= _MAX_STEP else ordinal

    @staticmethod
    def can_void(steps: Sequence[int], keep: int, step: int) -> bool:
        """Whether a START event at `step` leaves exactly the first `keep` of `steps`."""
        return all(each < step for each in steps[:keep]) and all(each >= step for each in steps[keep:])


def checksum(record: bytes) -> bytes:
    """What tells a row's record from another one, the last four bytes of it."""
    return record[-_CRC.size :]


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _record(message: bytes) -> bytes:
    length = len(message).to_bytes(8, "little")
    return b"".join(
        (length, _CRC.pack(_masked_crc(length)), message, _CRC.pack(_masked_crc(message))),
    )


def _whole_record(data: bytes, position: int) -> bytes | None:
    if len(data) - position < _HEADER.size:
        return None
    length, crc = _HEADER.unpack_from(data, position)
    if length > _MAX_RECORD or _masked_crc(data[position : position + 8]) != crc:
        return None
    record = data[position : position + _HEADER.size + length + _CRC.size]
    if len(record) < _HEADER.size + length + _CRC.size:
        return None
    return (
        record if _CRC.unpack(checksum(record))[0] == _masked_crc(record[_HEADER.size : -_CRC.size]) else None
    )
