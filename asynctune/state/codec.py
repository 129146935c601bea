"""Owns the bytes of a frame, and of the payloads inside: pure functions, no file and no clock.

A frame is a 40-byte header, a payload and one end byte:

====== ===== ==============================================================
offset bytes field (little endian)
====== ===== ==============================================================
0      4     magic `ATJ1`
4      1     type (`FrameType`)
5      1     flags (`MORE`: the commit goes on in the next frame; `ZLIB`; `STUFFED`)
6      2     format version
8      4     length of the stored payload
12     8     epoch
20     8     seq
28     4     crc of the previous frame (its header crc), which makes a chain
32     4     crc32c of the stored payload
36     4     crc32c of the 36 bytes before
40     n     payload
40+n   1     end byte
====== ===== ==============================================================

The end byte is not zero, the magic is not zero, and a payload with a long run of zeros is stored compressed and,
where that leaves one, stuffed: an 0xff follows each 127 bytes. So no valid frame has an all-zero part in any
512-byte sector it touches, which is what lets recovery tell a sector that never reached the disk (a tear) from
one that changed there (corruption).
"""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final

import google_crc32c
import msgpack

from asynctune.packing import UnpackError, pack, unpack
from asynctune.state.stored import SECTOR, STUFFED, ZLIB, restored, stored

__all__ = [
    "FORMAT_VERSION",
    "HEADER_BYTES",
    "MAGIC",
    "MAX_PAYLOAD_BYTES",
    "MAX_RECORD_BYTES",
    "MORE",
    "OVERHEAD_BYTES",
    "Frame",
    "FrameError",
    "FrameType",
    "Ops",
    "decode_fields",
    "decode_frame",
    "decode_ops",
    "decode_table",
    "encode_fields",
    "encode_frame",
    "encode_ops",
    "encode_table",
    "frame_crc",
    "has_valid_frame_after",
    "is_torn",
]

MAGIC: Final = b"ATJ1"
"""What every frame begins with."""

FORMAT_VERSION: Final = 1
_HEADER: Final = struct.Struct("<4sBBHIQQIII")
HEADER_BYTES: Final = _HEADER.size
_END: Final = b"\xa5"
OVERHEAD_BYTES: Final = HEADER_BYTES + len(_END)

MAX_RECORD_BYTES: Final = 64 * 1024 * 1024
"""The largest record, in packed bytes."""

MAX_PAYLOAD_BYTES: Final = MAX_RECORD_BYTES + 4 * 1024 * 1024
"""The largest payload of one frame, unpacked, in bytes."""

_MAX_STORED_BYTES: Final = MAX_PAYLOAD_BYTES + MAX_PAYLOAD_BYTES // 127

MORE: Final = 1
_KNOWN_FLAGS: Final = MORE | ZLIB | STUFFED

_MAX_LISTS: Final = 4  # a commit is a list of three


class FrameType(enum.IntEnum):
    """What a frame's payload is."""

    SEGMENT = 1
    COMMIT = 2
    SNAPSHOT = 3
    CHUNK = 4
    SNAPSHOT_END = 5
    CLAIM = 6
    CURRENT = 7


class FrameError(ValueError):
    """Bytes that are no valid frame here.

    Attributes:
        incomplete: The bytes end before the frame does, under a valid or incomplete header.
        extent: How many bytes the frame was meant to take, or `None` where its header says nothing reliable.
        newer: The frame is whole, and of a format version above this one.
    """

    def __init__(
        self, message: str, *, incomplete: bool = False, extent: int | None = None, newer: bool = False
    ) -> None:
        super().__init__(message)
        self.incomplete = incomplete
        self.extent = extent
        self.newer = newer


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame; `crc` is what the next frame's `prev` must be, `end` the offset behind it."""

    type: FrameType
    more: bool
    epoch: int
    seq: int
    prev: int
    crc: int
    payload: bytes
    end: int


@dataclass(frozen=True, slots=True)
class Ops:
    """What one commit does: records set (flat: key, bytes, key, bytes ...), records removed, result rows."""

    puts: list[Any]
    deletes: list[str]
    rows: list[bytes]


def encode_frame(
    kind: FrameType,
    payload: bytes,
    *,
    epoch: int,
    seq: int,
    prev: int,
    more: bool = False,
    compress: bool = False,
) -> bytes:
    """One whole frame.

    Args:
        kind: What the payload is.
        payload: At most `MAX_PAYLOAD_BYTES`.
        epoch: Epoch of the writer.
        seq: Of the commit, or what the frame type says.
        prev: Crc of the frame before, 0 for the first of a chain.
        more: Whether the commit goes on in the next frame.
        compress: Store it compressed if that is smaller.

    Raises:
        ValueError: The payload is over the cap, which a reader would refuse.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        msg = f"a frame of {len(payload):,} bytes; the cap is {MAX_PAYLOAD_BYTES:,}"
        raise ValueError(msg)
    data, flags = stored(payload, compress=compress)
    if more:
        flags |= MORE
    head = _HEADER.pack(
        MAGIC, kind, flags, FORMAT_VERSION, len(data), epoch, seq, prev, google_crc32c.value(data), 0
    )[:-4]
    return b"".join((head, google_crc32c.value(head).to_bytes(4, "little"), data, _END))


def frame_crc(frame: bytes) -> int:
    """The crc that chains to the next frame, of an encoded frame."""
    return int.from_bytes(frame[HEADER_BYTES - 4 : HEADER_BYTES], "little")


def decode_frame(data: bytes | memoryview, offset: int = 0) -> Frame:
    """The frame at `offset`.

    Length is checked against the cap and against what remains before anything is allocated.

    Raises:
        FrameError: No valid frame there; its attributes say in which way.
    """
    remains = len(data) - offset
    if remains < HEADER_BYTES:
        msg = f"{remains} bytes where a header takes {HEADER_BYTES}"
        raise FrameError(msg, incomplete=True)
    head = bytes(data[offset : offset + HEADER_BYTES])
    magic, kind, flags, version, length, epoch, seq, prev, payload_crc, header_crc = _HEADER.unpack(head)
    if magic != MAGIC or google_crc32c.value(head[:-4]) != header_crc:
        msg = "the header's checksum is wrong"
        raise FrameError(msg)
    extent = length + OVERHEAD_BYTES
    if version > FORMAT_VERSION:
        msg = f"format version {version}, and this asynctune reads up to {FORMAT_VERSION}"
        raise FrameError(msg, extent=extent, newer=True)
    if flags & ~_KNOWN_FLAGS or length > _MAX_STORED_BYTES:
        msg = f"flags {flags:#x} or a length of {length:,} that no writer makes"
        raise FrameError(msg, extent=extent)
    if remains < extent:
        msg = f"{remains:,} bytes where the frame takes {extent:,}"
        raise FrameError(msg, incomplete=True, extent=extent)
    start = offset + HEADER_BYTES
    content = bytes(data[start : start + length])
    if google_crc32c.value(content) != payload_crc:
        msg = "the payload's checksum is wrong"
        raise FrameError(msg, extent=extent)
    if bytes(data[start + length : start + length + 1]) != _END:
        msg = "the end byte is wrong"
        raise FrameError(msg, extent=extent)
    try:
        frame_type = FrameType(kind)
        payload = restored(content, flags, max_bytes=MAX_PAYLOAD_BYTES)
    except (ValueError, zlib.error) as error:
        raise FrameError(str(error), extent=extent) from error
    return Frame(frame_type, bool(flags & MORE), epoch, seq, prev, header_crc, payload, offset + extent)


# -- telling a tear from corruption ------------------------------------------------------------------------


def is_torn(data: bytes | memoryview, offset: int, error: FrameError) -> bool:
    """Whether the invalid bytes at `offset` are a write that did not reach the disk whole.

    Either the frame is cut short, or some 512-byte sector it touches holds nothing but zeros within it.
    """
    if error.newer:
        return False
    if error.incomplete:
        return True
    end = len(data) if error.extent is None else min(len(data), offset + error.extent)
    start = offset
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        if not any(data[start:stop]):
            return True
        start = stop
    return False


def has_valid_frame_after(data: bytes, offset: int, seq: int) -> bool:
    """Whether a whole frame of a commit after `seq` stands behind `offset`.

    A commit is written only after the one before it is on the disk, so such a frame proves that the invalid
    bytes at `offset` were once whole.
    """
    at = offset
    while (at := data.find(MAGIC, at)) != -1:
        try:
            if decode_frame(data, at).seq > seq:
                return True
        except FrameError:
            pass
        at += 1
    return False


# -- payloads ----------------------------------------------------------------------------------------------


def encode_ops(ops: Ops) -> bytes:
    """The payload of a COMMIT frame. One call into C, for the caller holds the GIL only as long as that."""
    return msgpack.packb([ops.puts, ops.deletes, ops.rows])  # type: ignore[no-any-return]


def decode_ops(payload: bytes) -> Ops:
    """Take back `encode_ops`.

    Raises:
        FrameError: Not of that form.
    """
    parts = _flat(payload)
    if len(parts) != 3 or not all(isinstance(part, list) for part in parts):  # noqa: PLR2004 - puts, deletes, rows
        msg = "a commit that does not hold three lists"
        raise FrameError(msg)
    puts, deletes, rows = parts
    _check_pairs(puts)
    if not (_all_of(deletes, str) and _all_of(rows, bytes)):
        msg = "a commit with a value of the wrong type"
        raise FrameError(msg)
    return Ops(puts, deletes, rows)


def encode_table(pairs: list[Any]) -> bytes:
    """The payload of a CHUNK frame: records as a flat list key, bytes, key, bytes ..."""
    return msgpack.packb(pairs)  # type: ignore[no-any-return]


def decode_table(payload: bytes) -> list[Any]:
    """Take back `encode_table`.

    Raises:
        FrameError: Not of that form.
    """
    pairs = _flat(payload)
    _check_pairs(pairs)
    return pairs


def encode_fields(fields: dict[str, Any]) -> bytes:
    """The payload of a SEGMENT, SNAPSHOT, SNAPSHOT_END or CLAIM frame."""
    return pack(fields, "frame fields")


def decode_fields(payload: bytes) -> dict[str, Any]:
    """Take back `encode_fields`.

    Raises:
        FrameError: Not a map with text keys.
    """
    try:
        fields = unpack(payload)
    except UnpackError as error:
        raise FrameError(str(error)) from error
    if not isinstance(fields, dict) or not _all_of(fields, str):
        msg = "a header frame that holds no map"
        raise FrameError(msg)
    return fields


def _flat(payload: bytes) -> list[Any]:
    size = len(payload)
    lists = iter(range(_MAX_LISTS))

    def count_list(items: list[Any]) -> list[Any]:
        # A list takes 64 bytes of memory for each byte read: a payload of nothing else would take gigabytes.
        if next(lists, None) is None:
            msg = "more lists than any writer makes"
            raise ValueError(msg)
        return items

    try:
        parts = msgpack.unpackb(
            payload,
            raw=False,
            list_hook=count_list,
            max_str_len=size,
            max_bin_len=size,
            max_array_len=size,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        msg = f"a payload that is not valid: {error or type(error).__name__}"
        raise FrameError(msg) from error
    if not isinstance(parts, list):
        msg = "a payload that is no list"
        raise FrameError(msg)
    return parts


def _check_pairs(pairs: Any) -> None:
    if len(pairs) % 2 or not (_all_of(pairs[::2], str) and _all_of(pairs[1::2], bytes)):
        msg = "records that are not text keys with bytes"
        raise FrameError(msg)


def _all_of(values: Any, kind: type) -> bool:
    # set(map(type, ...)) runs in C: a hundred thousand values cost a millisecond or two
    return set(map(type, values)) <= {kind}
