"""The bytes of frames: round trips, hostile bytes, and the difference between a tear and a change."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import google_crc32c
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.state import codec
from asynctune.state.codec import (
    FORMAT_VERSION,
    HEADER_BYTES,
    MAGIC,
    MAX_PAYLOAD_BYTES,
    OVERHEAD_BYTES,
    FrameError,
    FrameType,
    Ops,
    decode_fields,
    decode_frame,
    decode_ops,
    decode_table,
    encode_fields,
    encode_frame,
    encode_ops,
    encode_table,
    frame_crc,
    has_valid_frame_after,
    is_torn,
)
from asynctune.state.stored import SECTOR
from tests.state.payloads import payloads

uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
keys = st.text(st.characters(codec="utf-8"), max_size=20)


def frame_of(payload: bytes = b"payload", **fields) -> bytes:
    return encode_frame(FrameType.COMMIT, payload, **{"epoch": 3, "seq": 7, "prev": 9} | fields)


def raw_frame(
    payload: bytes,
    *,
    kind: int = FrameType.COMMIT,
    flags: int = 0,
    version: int = FORMAT_VERSION,
    length: int | None = None,
    end: bytes = b"\xa5",
) -> bytes:
    """A frame whose checksums are right, whatever it says."""
    size = len(payload) if length is None else length
    head = struct.pack(
        "<4sBBHIQQII", MAGIC, kind, flags, version, size, 3, 7, 9, google_crc32c.value(payload)
    )
    return head + google_crc32c.value(head).to_bytes(4, "little") + payload + end


# -- frames ------------------------------------------------------------------------------------------------


@given(st.sampled_from(FrameType), payloads, uint64, uint64, uint32, st.booleans(), st.booleans())
def test_a_frame_comes_back(kind, payload, epoch, seq, prev, more, compress):
    data = encode_frame(kind, payload, epoch=epoch, seq=seq, prev=prev, more=more, compress=compress)
    frame = decode_frame(b"junk" + data + b"more", 4)
    assert (frame.type, frame.payload, frame.more) == (kind, payload, more)
    assert (frame.epoch, frame.seq, frame.prev) == (epoch, seq, prev)
    assert frame.crc == frame_crc(data)
    assert frame.end == 4 + len(data)


@given(payloads, st.data())
def test_no_single_flipped_bit_is_accepted(payload, data):
    frame = bytearray(frame_of(payload))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError) as caught:
        decode_frame(bytes(frame))
    assert not caught.value.incomplete
    assert not caught.value.newer


@pytest.mark.parametrize("payload", [b"", b"x", b"\0", bytes(200), bytes(range(256)), b"ab" * 300])
def test_no_flipped_bit_of_a_small_frame_is_accepted(payload):
    whole = frame_of(payload)
    for bit in range(8 * len(whole)):
        frame = bytearray(whole)
        frame[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            decode_frame(bytes(frame))


@given(payloads, st.data())
def test_a_frame_cut_short_is_incomplete(payload, data):
    whole = frame_of(payload)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(FrameError) as caught:
        decode_frame(whole[:cut])
    assert caught.value.incomplete
    assert caught.value.extent == (None if cut < HEADER_BYTES else len(whole))
    assert is_torn(whole[:cut], 0, caught.value)


def test_a_payload_over_the_cap_is_refused_when_written_and_when_read():
    with pytest.raises(ValueError, match="cap"):
        frame_of(bytes(MAX_PAYLOAD_BYTES + 1))
    for length in (MAX_PAYLOAD_BYTES + MAX_PAYLOAD_BYTES // 127 + 1, 2**32 - 1):
        with pytest.raises(FrameError, match="length") as caught:
            decode_frame(raw_frame(b"abc", length=length))
        assert not caught.value.incomplete


def test_a_length_beyond_the_bytes_allocates_nothing():
    data = raw_frame(b"abc", length=MAX_PAYLOAD_BYTES)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            decode_frame(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_newer_format_version_is_told_from_damage():
    with pytest.raises(FrameError) as caught:
        decode_frame(raw_frame(b"abc", version=FORMAT_VERSION + 1))
    assert caught.value.newer
    assert not is_torn(raw_frame(bytes(600), version=FORMAT_VERSION + 1), 0, caught.value)


@pytest.mark.parametrize(
    "data",
    [
        raw_frame(b"abc", flags=128),
        raw_frame(b"abc", kind=99),
        raw_frame(b"abc", end=b"\0"),
        raw_frame(b"abc", flags=2),
        raw_frame(zlib.compress(b"abc") + b"x", flags=2),
        raw_frame(zlib.compress(bytes(MAX_PAYLOAD_BYTES + 1)), flags=2),
        raw_frame(bytes(128), flags=4),
    ],
    ids=["flags", "type", "end", "not zlib", "zlib and more", "bomb", "no marks"],
)
def test_a_frame_that_no_writer_makes_is_refused_in_spite_of_its_checksums(data):
    with pytest.raises(FrameError) as caught:
        decode_frame(data)
    assert not caught.value.incomplete


@given(st.binary(max_size=300))
def test_any_bytes_are_a_frame_or_an_error(data):
    with pytest.raises(FrameError):
        decode_frame(data)


@given(st.binary(max_size=300), st.integers(0, 6), st.integers(0, 7))
def test_any_payload_under_a_right_checksum_is_a_value_or_an_error(payload, kind, flags):
    for decode in (decode_ops, decode_table, decode_fields):
        try:
            frame = decode_frame(raw_frame(payload, kind=kind, flags=flags))
            decode(frame.payload)
        except FrameError:
            pass


# -- tears -------------------------------------------------------------------------------------------------


def zero_parts(frame: bytes, offset: int) -> list[int]:
    """Sectors in which a frame at `offset` of a file has nothing but zeros."""
    found, start = [], offset
    while start < offset + len(frame):
        stop = min(offset + len(frame), (start // SECTOR + 1) * SECTOR)
        if not any(frame[start - offset : stop - offset]):
            found.append(start // SECTOR)
        start = stop
    return found


@given(payloads, st.integers(0, 2 * SECTOR), st.booleans())
def test_no_valid_frame_has_an_all_zero_part_in_a_sector(payload, offset, compress):
    assert zero_parts(frame_of(payload, compress=compress), offset) == []


@given(payloads, st.integers(0, SECTOR), st.data())
def test_no_single_flipped_bit_makes_a_frame_look_torn(payload, offset, data):
    frame = bytearray(frame_of(payload))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    file = b"\xff" * offset + bytes(frame)
    with pytest.raises(FrameError) as caught:
        decode_frame(file, offset)
    assert not is_torn(file, offset, caught.value)


def test_no_flipped_bit_of_sparse_frames_makes_them_look_torn_wherever_they_lie():
    payload = (bytes(127) + b"\1") * 9
    for offset in range(0, SECTOR, 37):
        whole = b"\xff" * offset + frame_of(payload)
        assert zero_parts(whole[offset:], offset) == []
        for bit in range(8 * offset, 8 * len(whole)):
            file = bytearray(whole)
            file[bit // 8] ^= 1 << bit % 8
            assert not is_torn(bytes(file), offset, FrameError("x", extent=len(whole) - offset))


@given(payloads, st.integers(0, SECTOR), st.data())
def test_a_frame_without_one_of_its_sectors_is_torn(payload, offset, data):
    frame = frame_of(payload)
    file = bytearray(b"\xff" * offset + frame)
    sector = data.draw(st.integers(offset // SECTOR, (len(file) - 1) // SECTOR))
    low, high = max(offset, sector * SECTOR), min(len(file), (sector + 1) * SECTOR)
    file[low:high] = bytes(high - low)
    with pytest.raises(FrameError) as caught:
        decode_frame(bytes(file), offset)
    assert is_torn(bytes(file), offset, caught.value)


def test_a_later_frame_proves_that_an_earlier_one_was_whole():
    data = b"garbage" + frame_of(seq=8) + b"ATJ1" + frame_of(b"x", seq=9)[:-1]
    assert has_valid_frame_after(data, 0, 7)
    assert not has_valid_frame_after(data, 0, 8)
    assert not has_valid_frame_after(data, 8, 7)
    assert not has_valid_frame_after(b"", 0, 0)


# -- payloads ----------------------------------------------------------------------------------------------

pairs = st.lists(st.tuples(keys, st.binary(max_size=30)), max_size=20).map(
    lambda items: [x for pair in items for x in pair]
)


@given(pairs, st.lists(keys, max_size=5), st.lists(st.binary(max_size=30), max_size=5))
def test_a_commit_comes_back(puts, deletes, rows):
    assert decode_ops(encode_ops(Ops(puts, deletes, rows))) == Ops(puts, deletes, rows)


@given(pairs)
def test_a_table_comes_back(table):
    assert decode_table(encode_table(table)) == table


@given(
    st.dictionaries(
        keys, st.one_of(st.integers(-(2**63), 2**64 - 1), keys, st.binary(max_size=20)), max_size=8
    )
)
def test_fields_come_back(fields):
    assert decode_fields(encode_fields(fields)) == fields


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        {},
        [],
        [[], []],
        [[], [], [], []],
        [["k"], [], []],
        [["k", "v"], [], []],
        [[b"k", b"v"], [], []],
        [[], [b"k"], []],
        [[], [], ["row"]],
        [[], [], [[]]],
        [{}, [], []],
        [["k", b"v"], [], [None]],
    ],
)
def test_a_commit_of_another_form_is_refused(value):
    with pytest.raises(FrameError):
        decode_ops(msgpack.packb(value))


@pytest.mark.parametrize("value", [None, {}, ["k"], ["k", None], [b"k", b"v"], ["k", []], [["k", b"v"]]])
def test_a_table_of_another_form_is_refused(value):
    with pytest.raises(FrameError):
        decode_table(msgpack.packb(value))


@pytest.mark.parametrize("value", [None, [], {1: 2}, {b"k": 1}, "text"])
def test_fields_of_another_form_are_refused(value):
    with pytest.raises(FrameError):
        decode_fields(msgpack.packb(value))


@pytest.mark.parametrize(
    "payload",
    [
        b"\xdd\x00\x10\x00\x00" + b"\x90" * (1 << 20),
        b"\x93" + b"\xdd\x00\x10\x00\x00" + b"\x90" * (1 << 20) + b"\x90\x90",
        b"\x91" * (1 << 20),
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x80" * 100,
        b"\x93\x90\x90\x90\x90",
    ],
    ids=["empties", "inner empties", "deep", "long array", "long bytes", "maps", "trailing"],
)
@pytest.mark.parametrize("decode", [decode_ops, decode_table, decode_fields])
def test_hostile_payloads_are_refused_within_little_memory(payload, decode):
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            decode(payload)
        # what `unpack` of the packing room allows: a container entry for each byte, at most
        assert tracemalloc.get_traced_memory()[1] < 100 * (1 << 20)
    finally:
        tracemalloc.stop()


def test_the_header_is_as_long_as_it_says():
    assert len(frame_of(b"")) == OVERHEAD_BYTES == HEADER_BYTES + 1 == 41
    assert codec.MAX_RECORD_BYTES < MAX_PAYLOAD_BYTES
