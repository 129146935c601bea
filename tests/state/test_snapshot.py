"""The snapshot file."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.files import LocalFiles
from asynctune.state import snapshot as room
from asynctune.state.codec import FrameError, FrameType, decode_frame, encode_fields, encode_frame, frame_crc
from asynctune.state.snapshot import Image, parse_snapshot_name, read_snapshot, write_snapshot
from asynctune.testing import CHANGES, FaultyFiles
from tests.state.examples import claim_of

HISTORY = [(3, bytes([3]) * 16, 0)]


def write(directory, records, seq=7, files=None) -> int:
    image = Image(seq, 99, list(records), list(records.values()))
    return write_snapshot(
        str(directory),
        image,
        experiment_id="e4be",
        claim=claim_of(3),
        history=HISTORY,
        files=files or LocalFiles(),
    )


@pytest.mark.parametrize("count", [0, 1, 1999, 2000, 2001, 6500])
def test_a_snapshot_comes_back(tmp_path, rng, count):
    records = {f"trial/{i}": rng.randbytes(rng.choice((0, 10, 90))) for i in range(count)}
    size = write(tmp_path, records)
    data = (tmp_path / "snap-7").read_bytes()
    found = read_snapshot(data)
    assert found.records == records
    assert list(found.records) == list(records)
    assert (found.seq, found.crc, found.experiment_id) == (7, 99, "e4be")
    assert (found.claim, found.history) == (claim_of(3), HISTORY)
    assert found.size_bytes == size == len(data)
    assert os.listdir(tmp_path) == ["snap-7"]
    assert (tmp_path / "snap-7").stat().st_mode & 0o777 == 0o600


@given(st.lists(st.integers(0, 700), max_size=60))
def test_chunks_cover_everything_and_keep_to_their_size(sizes):
    values = [bytes(size) for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_CHUNK_BYTES", 1000)
        patch.setattr(room, "_CHUNK_KEYS", 10)
        ranges = room._chunks(values)
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(len(sizes)))
    for start, stop in ranges:
        assert stop - start <= 10
        assert stop - start == 1 or sum(sizes[start:stop]) <= 1000


def test_a_large_record_has_a_chunk_of_its_own(tmp_path, rng):
    records = {"small": b"x", "large": rng.randbytes(3_000_000), "other": b"y"}
    write(tmp_path, records)
    assert read_snapshot((tmp_path / "snap-7").read_bytes()).records == records


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failure_at_any_operation_leaves_the_old_one_or_the_new_one_whole(tmp_path, number):
    old, new = {"a": b"old"}, {"a": b"new", "b": b"more"}
    files = FaultyFiles()
    write(tmp_path, new, files=files)
    for nth in range(1, files.count(CHANGES) + 1):
        write(tmp_path, old)
        files = FaultyFiles()
        files.fail(number, on=CHANGES, nth=nth, after_bytes=20)
        with pytest.raises(OSError) as caught:
            write(tmp_path, new, files=files)
        assert caught.value.errno == number
        found = read_snapshot((tmp_path / "snap-7").read_bytes()).records
        renamed = any(each.kind == "rename" for each in files.log[: files.log.index(failed(files, nth))])
        assert found == (new if renamed else old)
        assert os.listdir(tmp_path) == ["snap-7"]


def failed(files: FaultyFiles, nth: int):
    return [each for each in files.log if each.kind in CHANGES][nth - 1]


def test_a_process_that_ends_at_any_operation_leaves_a_whole_one(tmp_path):
    class Killed(BaseException):
        pass

    def kill(_operation):
        raise Killed

    files = FaultyFiles()
    write(tmp_path, {"a": b"new"}, files=files)
    for nth in range(1, files.count() + 1):
        write(tmp_path, {"a": b"old"})
        files = FaultyFiles()
        files.call(kill, nth=nth, lasting=True)
        with pytest.raises(Killed):
            write(tmp_path, {"a": b"new"}, files=files)
        assert read_snapshot((tmp_path / "snap-7").read_bytes()).records["a"] in {b"old", b"new"}
        for name in set(os.listdir(tmp_path)) - {"snap-7"}:
            assert parse_snapshot_name(name) is None
            os.unlink(tmp_path / name)


def test_what_reads_back_otherwise_than_it_was_written_is_not_adopted(tmp_path):
    class Lying(LocalFiles):
        def read(self, path):
            data = bytearray(super().read(path))
            data[len(data) // 2] ^= 1
            return bytes(data)

    class Short(LocalFiles):
        def read(self, path):
            return super().read(path)[:-1]

    for files in (Lying(), Short()):
        with pytest.raises(FrameError):
            write(tmp_path, {"a": b"x"}, files=files)
        assert os.listdir(tmp_path) == []


def test_every_cut_and_every_flipped_bit_is_refused(tmp_path, rng, sampled):
    write(tmp_path, {f"k{i}": rng.randbytes(20) for i in range(10)})
    data = (tmp_path / "snap-7").read_bytes()
    for length in range(len(data)):
        with pytest.raises(FrameError):
            read_snapshot(data[:length])
    for bit in sampled(range(8 * len(data)), 3000):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            read_snapshot(bytes(changed))
    with pytest.raises(FrameError):
        read_snapshot(data + b"\0")
    with pytest.raises(FrameError):
        read_snapshot(data + data)


def test_chunks_swapped_left_out_or_repeated_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_CHUNK_KEYS", 2)
    write(tmp_path, {f"k{i}": b"x" * i for i in range(8)})
    data = (tmp_path / "snap-7").read_bytes()
    frames, offset = [], 0
    while offset < len(data):
        end = decode_frame(data, offset).end
        frames.append(data[offset:end])
        offset = end
    assert len(frames) == 6
    for order in (
        [0, 2, 1, 3, 4, 5],
        [0, 1, 2, 3, 5],
        [0, 1, 1, 2, 3, 4, 5],
        [0, 5],
        [1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4],
    ):
        with pytest.raises(FrameError):
            read_snapshot(b"".join(frames[i] for i in order))
    assert read_snapshot(b"".join(frames)).seq == 7


@pytest.mark.parametrize(
    "head",
    [
        {},
        {"experiment_id": "e"},
        {"experiment_id": 5, "claim": claim_of(3).fields(), "history": [], "crc": 1},
        {"experiment_id": "e", "claim": claim_of(4).fields(), "history": [], "crc": 1},
        {"experiment_id": "e", "claim": None, "history": [], "crc": 1},
        {"experiment_id": "e", "claim": claim_of(3).fields(), "history": [[1]], "crc": 1},
        {"experiment_id": "e", "claim": claim_of(3).fields(), "history": [], "crc": "1"},
    ],
    ids=["empty", "parts missing", "id", "epoch", "claim", "history", "crc"],
)
def test_a_head_that_is_not_one_is_refused(head):
    first = encode_frame(FrameType.SNAPSHOT, encode_fields(head), epoch=3, seq=7, prev=0)
    end = encode_frame(
        FrameType.SNAPSHOT_END, encode_fields({"records": 0}), epoch=3, seq=7, prev=frame_crc(first)
    )
    with pytest.raises(FrameError):
        read_snapshot(first + end)


@pytest.mark.parametrize(
    ("name", "seq"),
    [
        ("snap-0", 0),
        ("snap-17", 17),
        ("snap-01", None),
        ("snap-", None),
        ("snap-1.tmp", None),
        ("snap-\u0661", None),
        (".snap-1-ab.tmp", None),
        ("snap-1\n", None),
    ],
)
def test_names(name, seq):
    assert parse_snapshot_name(name) == seq
