"""Owns the bytes of CURRENT: the one object of a mirror that names all others. Pure functions on bytes.

CURRENT is one frame of type CURRENT, whose header has the owner's epoch, the newest commit's seq and, as the crc of
the frame before, that commit's crc; behind it follow the bytes of the inline tail, a few runs of journal frames.
Everything is bounded, and checked when it is read.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

import google_crc32c

from asynctune.state.codec import (
    FrameError,
    FrameType,
    decode_fields,
    decode_frame,
    encode_fields,
    encode_frame,
)
from asynctune.state.epochs import Claim
from asynctune.state.lineage import MAX_HISTORY
from asynctune.state.mirror.relations import Position
from asynctune.state.segments import History, decode_history

__all__ = [
    "CURRENT_KEY",
    "MAX_CURRENT_BYTES",
    "MAX_REFS",
    "PREFIX",
    "TAIL_BYTES",
    "Current",
    "Ref",
    "decode_current",
    "encode_current",
    "key_of",
    "mark_of",
    "same_owner",
    "segment_name",
    "snapshot_name",
]

PREFIX: Final = ".asynctune/"
"""What the keys of all objects of the mirror begin with."""

CURRENT_KEY: Final = f"{PREFIX}CURRENT"
"""Key of the object that names all others."""

TAIL_BYTES: Final = 64 * 1024
"""Greatest size of the inline tail that is written, in bytes."""

MAX_REFS: Final = 1024
"""The most segments that one CURRENT names."""

MAX_CURRENT_BYTES: Final = 4 * 1024 * 1024
"""The largest CURRENT that is read, in bytes."""

_MAX_TEXT: Final = 255
_NONCE_BYTES: Final = 16
_MAX_SEQ: Final = (1 << 63) - 1
_MAX_CRC: Final = (1 << 32) - 1
_MARK: Final = "[0-9a-f]{12}"
_SEGMENT: Final = re.compile(rf"seg-[1-9][0-9]{{0,14}}-{_MARK}-[1-9][0-9]{{0,17}}\Z")
_SNAPSHOT: Final = re.compile(
    rf"snap-[1-9][0-9]{{0,14}}-{_MARK}-[1-9][0-9]{{0,17}}(?:\.[1-9][0-9]{{0,8}})?\Z"
)


@dataclass(frozen=True, slots=True)
class Ref:
    """An immutable object that CURRENT names.

    Attributes:
        name: Its name below `.asynctune/`.
        size_bytes: Its size.
        crc32c: Of all its bytes.
        first_seq: First commit in it; of a snapshot 0.
        last_seq: Last commit in it; of a snapshot the one it was made at.
    """

    name: str
    size_bytes: int
    crc32c: int
    first_seq: int
    last_seq: int

    @property
    def key(self) -> str:
        """Its key."""
        return key_of(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Current:
    """What CURRENT says.

    Attributes:
        experiment_id: Whose state it is.
        claim: Its owner's.
        node_ip: The owner's address, for result rows.
        seq: Newest commit that it names; 0: none.
        crc: Of that commit.
        history: The epochs of these commits, the owner's last.
        snapshot: The image from which reading starts; `None`: from nothing.
        segments: Runs of frames, one after the other, each beginning where the one before ends.
        projected: The result files in the bucket are complete up to this commit.
        swap: Counts the swaps of this object.
        swap_nonce: 16 random bytes of this swap, so that no two contents are equal.
        closed: The owner ended in order: nobody needs to wait for it.
        tail: Runs of frames after those of the segments.
        tail_first_seq: First commit in the tail; 0 without one.
    """

    experiment_id: str
    claim: Claim
    node_ip: str
    seq: int = 0
    crc: int = 0
    history: History = field(default_factory=list)
    snapshot: Ref | None = None
    segments: tuple[Ref, ...] = ()
    projected: int = 0
    swap: int = 1
    swap_nonce: bytes = b""
    closed: bool = False
    tail: bytes = b""
    tail_first_seq: int = 0

    @property
    def position(self) -> Position:
        """Where the bucket's copy stands."""
        return Position(self.experiment_id, self.history, self.seq, self.crc)

    @property
    def refs(self) -> tuple[Ref, ...]:
        """Every object that it names."""
        return self.segments if self.snapshot is None else (self.snapshot, *self.segments)

    def next(self, **changes: Any) -> Current:
        """The same with changes, as the content of the next swap."""
        return replace(self, swap=self.swap + 1, swap_nonce=secrets.token_bytes(_NONCE_BYTES), **changes)


def key_of(name: str) -> str:
    """The key of an object of the mirror."""
    return f"{PREFIX}{name}"


def mark_of(claim: Claim) -> str:
    """What tells openings of the same number apart in names: the first 12 hex digits of the nonce."""
    return claim.nonce.hex()[:12]


def same_owner(one: Claim, other: Claim) -> bool:
    """Whether both are the same opening."""
    return (one.epoch, one.nonce) == (other.epoch, other.nonce)


def segment_name(claim: Claim, number: int) -> str:
    """The name of the opening's n-th segment object."""
    return f"seg-{claim.epoch}-{mark_of(claim)}-{number}"


def snapshot_name(claim: Claim, seq: int, attempt: int) -> str:
    """The name under which this opening puts a local snapshot; another for each attempt, so that none is used twice."""
    base = f"snap-{claim.epoch}-{mark_of(claim)}-{seq}"
    return f"{base}.{attempt}" if attempt else base


# -- bytes -------------------------------------------------------------------------------------------------


def encode_current(current: Current) -> bytes:
    """The whole object."""
    fields = {
        "experiment_id": current.experiment_id,
        "claim": current.claim.fields(),
        "node_ip": current.node_ip,
        "history": [list(entry) for entry in current.history],
        "snapshot": None if current.snapshot is None else _ref_fields(current.snapshot),
        "segments": [_ref_fields(ref) for ref in current.segments],
        "projected": current.projected,
        "swap": current.swap,
        "swap_nonce": current.swap_nonce,
        "closed": current.closed,
        "tail_bytes": len(current.tail),
        "tail_first_seq": current.tail_first_seq,
        "tail_crc32c": google_crc32c.value(current.tail),
    }
    frame = encode_frame(
        FrameType.CURRENT,
        encode_fields(fields),
        epoch=current.claim.epoch,
        seq=current.seq,
        prev=current.crc,
    )
    return frame + current.tail


def decode_current(data: bytes) -> Current:
    """Take back `encode_current`.

    Raises:
        FrameError: Damaged, incomplete, followed by other bytes, or against its own rules; `newer` if a newer release
            wrote it.
    """
    frame = decode_frame(data)
    if frame.type is not FrameType.CURRENT:
        msg = "a frame of another type where CURRENT belongs"
        raise FrameError(msg)
    fields = decode_fields(frame.payload)
    tail = data[frame.end :]
    try:
        current = Current(
            experiment_id=_text(fields["experiment_id"]),
            claim=Claim.from_fields(fields["claim"]),
            node_ip=_text(fields["node_ip"]),
            seq=frame.seq,
            crc=frame.prev,
            history=decode_history(fields["history"]),
            snapshot=None if fields["snapshot"] is None else _ref(fields["snapshot"], _SNAPSHOT),
            segments=tuple(_ref(stored, _SEGMENT) for stored in _list(fields["segments"])),
            projected=_number(fields["projected"], _MAX_SEQ),
            swap=_number(fields["swap"], _MAX_SEQ),
            swap_nonce=_typed(fields["swap_nonce"], bytes),
            closed=_typed(fields["closed"], bool),
            tail=tail,
            tail_first_seq=_number(fields["tail_first_seq"], _MAX_SEQ),
        )
        known = (_number(fields["tail_bytes"], MAX_CURRENT_BYTES), _number(fields["tail_crc32c"], _MAX_CRC))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, FrameError):
            raise
        msg = f"CURRENT without a valid {error}"
        raise FrameError(msg) from None
    if known != (len(tail), google_crc32c.value(tail)):
        msg = f"the tail of CURRENT is damaged: {len(tail):,} bytes where {known[0]:,} belong, or other ones"
        raise FrameError(msg)
    _check(current, frame.epoch)
    return current


def _check(current: Current, epoch: int) -> None:
    """Refuse what contradicts itself."""
    claim, history = current.claim, current.history
    owner_is_last = bool(history) and history[-1][:2] == (claim.epoch, claim.nonce)
    reached = 0 if current.snapshot is None else current.snapshot.last_seq
    ranges = [(ref.first_seq, ref.last_seq) for ref in current.segments]
    if current.tail:
        ranges.append((current.tail_first_seq, current.seq))
    # the frames are one range of commits: from the snapshot or before, to the newest
    connected = all(first <= last for first, last in ranges)
    connected = connected and all(one[1] + 1 == two[0] for one, two in pairwise(ranges))
    if ranges:
        connected = connected and 0 < ranges[0][0] <= reached + 1 and ranges[-1][1] == current.seq
    else:
        connected = connected and current.seq == reached
    if (
        claim.epoch != epoch
        or not owner_is_last
        or len(history) > MAX_HISTORY
        or len(claim.nonce) != _NONCE_BYTES
        or len(current.swap_nonce) != _NONCE_BYTES
        or not connected
        or reached > current.seq
    ):
        msg = "CURRENT contradicts itself"
        raise FrameError(msg)


def _ref_fields(ref: Ref) -> list[Any]:
    return [ref.name, ref.size_bytes, ref.crc32c, ref.first_seq, ref.last_seq]


def _ref(stored: Any, names: re.Pattern[str]) -> Ref:
    name, size_bytes, crc32c, first_seq, last_seq = _list(stored)
    ref = Ref(
        _text(name),
        _number(size_bytes, _MAX_SEQ),
        _number(crc32c, _MAX_CRC),
        _number(first_seq, _MAX_SEQ),
        _number(last_seq, _MAX_SEQ),
    )
    if not names.match(ref.name):
        msg = "name of an object"
        raise ValueError(msg)
    return ref


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        msg = f"{kind.__name__}"
        raise TypeError(msg)
    return value


def _list(value: Any) -> list[Any]:
    found: list[Any] = _typed(value, list)
    if len(found) > MAX_REFS:
        msg = "number of objects"
        raise ValueError(msg)
    return found


def _text(value: Any) -> str:
    text: str = _typed(value, str)
    if len(text) > _MAX_TEXT:
        msg = "text"
        raise ValueError(msg)
    return text


def _number(value: Any, most: int) -> int:
    number: int = _typed(value, int)
    if not 0 <= number <= most:
        msg = "number"
        raise ValueError(msg)
    return number
