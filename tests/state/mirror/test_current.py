"""The bytes of CURRENT: they come back, they are refused, and they do not change unnoticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asynctune.state.codec import (
    FrameError,
    FrameType,
    decode_fields,
    decode_frame,
    encode_fields,
    encode_frame,
)
from asynctune.state.mirror.current import (
    MAX_REFS,
    Current,
    Ref,
    decode_current,
    encode_current,
    segment_name,
    snapshot_name,
)
from tests.state.examples import claim_of

GOLDEN = Path(__file__).parent / "golden" / "CURRENT-1"
CLAIM = claim_of(7)
HISTORY = [(2, b"\2" * 16, 0), (7, CLAIM.nonce, 40)]


def segment(number: int, first_seq: int, last_seq: int) -> Ref:
    return Ref(segment_name(CLAIM, number), 1000 + number, 77 + number, first_seq, last_seq)


SNAPSHOT = Ref(snapshot_name(CLAIM, 30, 0), 4242, 0xDEADBEEF, 0, 30)
PLAIN = Current(
    experiment_id="e4be1c0f",
    claim=CLAIM,
    node_ip="192.0.2.7",
    seq=60,
    crc=0xCAFE,
    history=HISTORY,
    snapshot=SNAPSHOT,
    segments=(segment(1, 21, 35), segment(2, 36, 50)),
    projected=20,
    swap=12,
    swap_nonce=b"n" * 16,
    closed=False,
    tail=b"a tail, whatever is in it",
    tail_first_seq=51,
)

FORMS = {
    "plain": PLAIN,
    "closed": replace(PLAIN, closed=True),
    "no tail": replace(PLAIN, tail=b"", tail_first_seq=0, seq=50),
    "no snapshot": replace(PLAIN, snapshot=None, segments=(segment(1, 1, 50),)),
    "snapshot only": replace(PLAIN, segments=(), tail=b"", tail_first_seq=0, seq=30),
    "tail only": replace(PLAIN, snapshot=None, segments=(), tail_first_seq=1),
    "tail that begins before the snapshot": replace(PLAIN, segments=(), tail_first_seq=11),
    "nothing yet": replace(
        PLAIN, snapshot=None, segments=(), tail=b"", tail_first_seq=0, seq=0, crc=0, projected=0
    ),
}


@pytest.mark.parametrize("form", sorted(FORMS))
def test_it_comes_back(form):
    data = encode_current(FORMS[form])
    assert decode_current(data) == FORMS[form]


def test_the_bytes_are_what_they_were():
    assert encode_current(PLAIN) == GOLDEN.read_bytes()


def test_an_old_one_is_read():
    assert decode_current(GOLDEN.read_bytes()) == PLAIN


def test_no_two_swaps_are_equal():
    one, two = PLAIN.next(), PLAIN.next()
    assert one.swap == two.swap == 13
    assert encode_current(one) != encode_current(two)


def test_every_flipped_bit_is_found(sampled):
    data = encode_current(PLAIN)
    for bit in sampled(range(8 * len(data)), 400):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(FrameError):
            decode_current(bytes(changed))


def test_every_cut_is_found(sampled):
    data = encode_current(PLAIN)
    for length in sampled(range(len(data)), 200):
        with pytest.raises(FrameError):
            decode_current(data[:length])
    with pytest.raises(FrameError):
        decode_current(data + b"\0")


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "gap between segments": {"segments": (segment(1, 21, 34), segment(2, 36, 50))},
    "segments that overlap": {"segments": (segment(1, 21, 36), segment(2, 36, 50))},
    "segment that ends before it begins": {"segments": (segment(1, 36, 35), segment(2, 36, 50))},
    "gap before the tail": {"tail_first_seq": 52},
    "gap behind the snapshot": {"segments": (segment(1, 32, 50),)},
    "frames that end early": {"seq": 70, "tail": b"", "tail_first_seq": 0},
    "snapshot beyond the end": {"snapshot": replace(SNAPSHOT, last_seq=61)},
    "owner not in the history": {"history": HISTORY[:1]},
    "no history": {"history": []},
    "short nonce": {"swap_nonce": b"n" * 15},
    "segment under a snapshot's name": {"segments": (replace(segment(1, 21, 50), name=SNAPSHOT.name),)},
    "name that leads elsewhere": {"segments": (replace(segment(1, 21, 50), name="../seg-1-0123456789ab-1"),)},
    "negative size": {"segments": (replace(segment(1, 21, 50), size_bytes=-1),)},
    "long text": {"node_ip": "1" * 300},
}


@pytest.mark.parametrize("case", sorted(CONTRADICTIONS))
def test_what_contradicts_itself_is_refused(case):
    with pytest.raises(FrameError):
        decode_current(encode_current(replace(PLAIN, **CONTRADICTIONS[case])))


def test_too_many_segments_are_refused():
    refs = tuple(segment(n, n, n) for n in range(1, MAX_REFS + 2))
    current = replace(PLAIN, segments=refs, seq=MAX_REFS + 1, tail=b"", tail_first_seq=0)
    with pytest.raises(FrameError):
        decode_current(encode_current(current))


FIELDS = decode_fields(decode_frame(encode_current(PLAIN)).payload)


@pytest.mark.parametrize("name", sorted(FIELDS))
@pytest.mark.parametrize(
    "value", [None, "text", 1.5, b"bytes", [1]], ids=["nil", "text", "float", "bytes", "list"]
)
def test_a_field_of_another_type_is_refused(name, value):
    if name in {"experiment_id", "node_ip"} and value == "text":
        return
    if name == "snapshot" and value is None:
        return
    fields = FIELDS | {name: value}
    frame = encode_frame(FrameType.CURRENT, encode_fields(fields), epoch=7, seq=60, prev=PLAIN.crc)
    with pytest.raises(FrameError):
        decode_current(frame + PLAIN.tail)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_missing_field_is_refused(name):
    fields = {key: value for key, value in FIELDS.items() if key != name}
    frame = encode_frame(FrameType.CURRENT, encode_fields(fields), epoch=7, seq=60, prev=PLAIN.crc)
    with pytest.raises(FrameError):
        decode_current(frame + PLAIN.tail)


def test_another_frame_is_refused():
    frame = encode_frame(FrameType.CLAIM, encode_fields(CLAIM.fields()), epoch=7, seq=60, prev=0)
    with pytest.raises(FrameError, match="another type"):
        decode_current(frame)
