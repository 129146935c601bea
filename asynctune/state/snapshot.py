"""Owns the snapshot file: one whole image of the state, written beside and renamed into place when it is proven.

`snap-<seq>` holds a SNAPSHOT frame, CHUNK frames of at most 256 KiB of records each, and a SNAPSHOT_END frame.
The renamed, checked file is the commit point. All calls block and belong in a thread; the long loops let other
threads run between chunks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from asynctune.files import LocalFiles
from asynctune.state.codec import (
    FrameError,
    FrameType,
    decode_fields,
    decode_frame,
    decode_table,
    encode_fields,
    encode_frame,
    encode_table,
    frame_crc,
)
from asynctune.state.epochs import Claim
from asynctune.state.segments import History, decode_history

__all__ = ["Image", "Snapshot", "parse_snapshot_name", "read_snapshot", "write_snapshot"]

_NAME: Final = re.compile(r"snap-(0|[1-9][0-9]{0,17})\Z")
_CHUNK_BYTES: Final = 256 * 1024
_CHUNK_KEYS: Final = 2000
_SYNC_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Image:
    """What a snapshot is made from: all records as of commit `seq`, keys and packed values in step."""

    seq: int
    crc: int
    keys: Sequence[str]
    values: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was read from one."""

    experiment_id: str
    claim: Claim
    history: History
    seq: int
    crc: int
    records: dict[str, bytes]
    size_bytes: int


def parse_snapshot_name(name: str) -> int | None:
    """The seq in the name, or `None` if it is no snapshot's."""
    match = _NAME.match(name)
    return int(match[1]) if match else None


def write_snapshot(
    directory: str, image: Image, *, experiment_id: str, claim: Claim, history: History, files: LocalFiles
) -> int:
    """Write `snap-<seq>` and return its size in bytes; all of it is durable then.

    Raises:
        OSError: The disk refused; nothing but a temporary file may be left, which the next opening removes.
        FrameError: What was written does not read back.
    """
    temporary = f"{directory}/.snap-{image.seq}-{claim.nonce.hex()}.tmp"
    fd = files.create(temporary)
    try:
        try:
            size = _write_frames(fd, image, experiment_id, claim, history, files)
            files.sync(fd)
        finally:
            files.close(fd)
        _check(files.read(temporary), size)
        files.rename(temporary, f"{directory}/snap-{image.seq}")
    except BaseException:
        _discard(temporary, files)
        raise
    files.sync_dir(directory)
    return size


def _discard(path: str, files: LocalFiles) -> None:
    try:
        files.unlink(path)
    except OSError:
        return  # the error under way says more; the next opening removes the file


def _write_frames(
    fd: int, image: Image, experiment_id: str, claim: Claim, history: History, files: LocalFiles
) -> int:
    seq, size, unsynced = image.seq, 0, 0
    head = {
        "experiment_id": experiment_id,
        "claim": claim.fields(),
        "history": [list(entry) for entry in history],
        "crc": image.crc,
    }
    crc = 0

    def frame(kind: FrameType, payload: bytes) -> None:
        nonlocal crc, size, unsynced
        data = encode_frame(
            kind, payload, epoch=claim.epoch, seq=seq, prev=crc, compress=kind is FrameType.CHUNK
        )
        files.write_all(fd, data)
        crc = frame_crc(data)
        size += len(data)
        unsynced += len(data)
        if unsynced >= _SYNC_BYTES:  # so that a commit beside it never waits for more than this
            files.sync_data(fd)
            unsynced = 0

    frame(FrameType.SNAPSHOT, encode_fields(head))
    for start, stop in _chunks(image.values):
        pairs: list[Any] = [None] * (2 * (stop - start))
        pairs[::2] = image.keys[start:stop]
        pairs[1::2] = image.values[start:stop]
        frame(FrameType.CHUNK, encode_table(pairs))
        time.sleep(0)  # the event loop's thread may be waiting for the interpreter
    frame(FrameType.SNAPSHOT_END, encode_fields({"records": len(image.keys)}))
    return size


def _chunks(values: Sequence[bytes]) -> list[tuple[int, int]]:
    """Ranges of at most `_CHUNK_KEYS` records and, unless one record is larger, `_CHUNK_BYTES` bytes."""
    ranges = []
    start = 0
    while start < len(values):
        stop = min(start + _CHUNK_KEYS, len(values))
        while stop - start > 1 and sum(map(len, values[start:stop])) > _CHUNK_BYTES:
            stop = start + (stop - start) // 2
        ranges.append((start, stop))
        start = stop
        time.sleep(0)
    return ranges


def read_snapshot(data: bytes) -> Snapshot:
    """The snapshot in `data`, every frame of it checked.

    Raises:
        FrameError: Damaged, incomplete or followed by other bytes; `offset` on the error's `extent` is not set.
    """
    frame = decode_frame(data)
    if frame.type is not FrameType.SNAPSHOT:
        msg = "the file does not start as a snapshot"
        raise FrameError(msg)
    head = decode_fields(frame.payload)
    seq, epoch = frame.seq, frame.epoch
    records: dict[str, bytes] = {}
    count = 0
    while True:
        prev = frame.crc
        frame = decode_frame(data, frame.end)
        if frame.prev != prev or frame.seq != seq or frame.epoch != epoch:
            msg = "a chunk that does not follow the one before it"
            raise FrameError(msg)
        if frame.type is FrameType.SNAPSHOT_END:
            break
        if frame.type is not FrameType.CHUNK:
            msg = "a frame that does not belong into a snapshot"
            raise FrameError(msg)
        pairs = decode_table(frame.payload)
        records.update(zip(pairs[::2], pairs[1::2], strict=True))
        count += len(pairs) // 2
    if (
        decode_fields(frame.payload).get("records") != count
        or len(records) != count
        or frame.end != len(data)
    ):
        msg = "the snapshot does not hold what its end says"
        raise FrameError(msg)
    try:
        claim = Claim.from_fields(head["claim"])
        crc, experiment_id = head["crc"], head["experiment_id"]
        history = decode_history(head["history"])
    except (KeyError, TypeError) as error:
        msg = f"a snapshot without a valid {error}"
        raise FrameError(msg) from None
    if claim.epoch != epoch or not isinstance(crc, int) or not isinstance(experiment_id, str):
        msg = "a snapshot whose parts contradict each other"
        raise FrameError(msg)
    return Snapshot(experiment_id, claim, history, seq, crc, records, len(data))


def _check(data: bytes, size: int) -> None:
    """Read back what was written, without building the records."""
    offset, last = 0, None
    if len(data) != size:
        msg = f"{len(data):,} bytes read back where {size:,} were written"
        raise FrameError(msg)
    while offset < size:
        last = decode_frame(data, offset)
        offset = last.end
        time.sleep(0)
    if last is None or last.type is not FrameType.SNAPSHOT_END:
        msg = "the snapshot read back has no end"
        raise FrameError(msg)
