"""Names and headers of segments, and the walk over their commits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.state.codec import (
    FrameError,
    FrameType,
    Ops,
    decode_fields,
    decode_frame,
    encode_fields,
    encode_frame,
    encode_ops,
    frame_crc,
)
from asynctune.state.segments import (
    Commit,
    Damage,
    SegmentName,
    decode_history,
    decode_segment_header,
    encode_segment_header,
    parse_segment_name,
    walk_commits,
)
from tests.state.examples import header_of


@given(st.integers(1, 10**15 - 1), st.integers(1, 10**18 - 1), st.integers(0, 10**9 - 1))
def test_a_name_comes_back(epoch, first_seq, attempt):
    name = SegmentName(epoch, first_seq, attempt)
    assert parse_segment_name(str(name)) == name


@pytest.mark.parametrize(
    "text",
    [
        "wal-1",
        "wal-0-1",
        "wal-1-0",
        "wal-01-1",
        "wal-1-1.0",
        "wal-1-1.01",
        "wal-1-1.",
        "wal-1-1\n",
        "wal-\u0661-1",
        "Wal-1-1",
        "wal--1-1",
        "wal-1-1.tmp",
        ".wal-1-1",
        "wal-1-1000000000000000000",
        "",
    ],
)
def test_other_spellings_are_no_names(text):
    assert parse_segment_name(text) is None


def test_names_order_as_the_segments_follow():
    names = [
        SegmentName(1, 9),
        SegmentName(1, 10),
        SegmentName(1, 10, 2),
        SegmentName(1, 10, 11),
        SegmentName(2, 1),
    ]
    assert sorted({*names}) == names


def test_a_header_comes_back():
    header = header_of(3, 17, attempt=2, history=[(1, b"a" * 16, 0), (3, b"\3" * 16, 16)])
    data = encode_segment_header(header)
    assert decode_segment_header(data + b"commits", header.name) == replace(header, end=len(data))


@pytest.mark.parametrize("name", [SegmentName(4, 17, 2), SegmentName(3, 18, 2), SegmentName(3, 17)], ids=str)
def test_a_header_under_another_name_is_refused(name):
    header = header_of(3, 17, attempt=2)
    with pytest.raises(FrameError, match=r"wal-3-17\.2"):
        decode_segment_header(encode_segment_header(header), name)


def changed(**changes) -> bytes:
    frame = decode_frame(encode_segment_header(header_of(3, 17)))
    fields = decode_fields(frame.payload)
    for key, value in changes.items():
        if value is ...:
            del fields[key]
        else:
            fields[key] = value
    return encode_frame(FrameType.SEGMENT, encode_fields(fields), epoch=3, seq=17, prev=5)


@pytest.mark.parametrize(
    "changes",
    [
        {"experiment_id": ...},
        {"experiment_id": 5},
        {"claim": ...},
        {"claim": None},
        {"claim": "text"},
        {"claim": {"epoch": 3}},
        {"first_seq": 18},
        {"first_seq": None},
        {"prev_crc": 6},
        {"history": ...},
        {"history": None},
        {"history": [[1, 2]]},
        {"history": [[1, 10**12, 0]]},
        {"history": [["1", b"x", 0]]},
        {"history": [[float("inf"), b"x", 0]]},
        {"node_ip": None},
        {"attempt": ...},
        {"attempt": 1},
    ],
    ids=str,
)
def test_a_header_that_contradicts_itself_is_refused(changes):
    with pytest.raises(FrameError):
        decode_segment_header(changed(**changes), SegmentName(3, 17))


def test_the_unchanged_header_is_accepted():
    assert decode_segment_header(changed(), SegmentName(3, 17)).first_seq == 17


def test_a_frame_of_another_type_is_no_header():
    payload = decode_frame(changed()).payload
    data = encode_frame(FrameType.COMMIT, payload, epoch=3, seq=17, prev=5)
    with pytest.raises(FrameError):
        decode_segment_header(data, SegmentName(3, 17))


def test_history_is_a_list_of_triples():
    assert decode_history([[1, b"n", 0]]) == [(1, b"n", 0)]
    with pytest.raises(FrameError):
        decode_history([[True, b"n", 0]])


def commits(*specs: tuple[int, bool], epoch: int = 1, prev: int = 5) -> list[bytes]:
    """Frames of (seq, more), chained."""
    frames = []
    for seq, more in specs:
        payload = encode_ops(Ops([f"k{seq}", b"v"], [], []))
        frames.append(encode_frame(FrameType.COMMIT, payload, epoch=epoch, seq=seq, prev=prev, more=more))
        prev = frame_crc(frames[-1])
    return frames


def walk(data: bytes, offset: int = 0, crc: int | None = 5) -> list[Commit | Damage]:
    return list(walk_commits(data, offset, epoch=1, seq=1, crc=crc))


def test_commits_are_walked_in_order_and_their_frames_joined():
    frames = commits((1, False), (2, True), (2, True), (2, False), (3, False))
    one, two, three = walk(b"head" + b"".join(frames), 4)
    assert isinstance(one, Commit)
    assert isinstance(two, Commit)
    assert isinstance(three, Commit)
    assert [c.seq for c in (one, two, three)] == [1, 2, 3]
    assert [len(c.ops) for c in (one, two, three)] == [1, 3, 1]
    assert (one.start, one.end, two.start) == (4, 4 + len(frames[0]), 4 + len(frames[0]))
    assert three.end == 4 + sum(map(len, frames))
    assert three.crc == frame_crc(frames[-1])


def test_a_commit_without_its_last_frame_is_no_commit():
    frames = commits((1, False), (2, True), (2, True))
    one, damage = walk(b"".join(frames))
    assert isinstance(one, Commit)
    assert isinstance(damage, Damage)
    assert damage.error.incomplete
    assert damage.offset == sum(map(len, frames))


@pytest.mark.parametrize(
    "frames",
    [
        commits((2, False)),
        commits((1, False), epoch=2),
        commits((1, False), prev=6),
        commits((1, True), (2, False)),
        [encode_frame(FrameType.CHUNK, encode_ops(Ops([], [], [])), epoch=1, seq=1, prev=5)],
        [encode_frame(FrameType.COMMIT, b"nonsense", epoch=1, seq=1, prev=5)],
    ],
    ids=["seq", "epoch", "chain", "seq of a later frame", "type", "payload"],
)
def test_a_frame_out_of_place_ends_the_walk(frames):
    (damage,) = walk(b"".join(frames))
    assert isinstance(damage, Damage)


def test_a_crc_that_is_not_known_is_not_compared():
    assert isinstance(walk(commits((1, False), prev=6)[0], crc=None)[0], Commit)


def test_no_bytes_are_no_commits():
    assert walk(b"") == []
