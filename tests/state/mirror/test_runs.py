"""Runs on their own: split, joined, refused."""

from __future__ import annotations

import pytest

from asynctune.state.codec import FrameError, FrameType, Ops, encode_frame, encode_ops, frame_crc
from asynctune.state.mirror.runs import check_follows, header_of, join_runs, run_header, split_runs
from tests.state.examples import header_of as example


def run_of(epoch: int, first_seq: int, count: int, *, nonce: bytes | None = None, parts: int = 1) -> bytes:
    """A run of small commits, each of `parts` frames."""
    header = example(epoch, first_seq, nonce=nonce)
    frames = [run_header(header, first_seq, 5)]
    crc = 5
    for seq in range(first_seq, first_seq + count):
        for part in range(parts):
            payload = encode_ops(Ops([f"k{seq}", b"%d" % part], [], []))
            frame = encode_frame(
                FrameType.COMMIT, payload, epoch=epoch, seq=seq, prev=crc, more=part < parts - 1
            )
            frames.append(frame)
            crc = frame_crc(frame)
    return b"".join(frames)


def told(data: bytes) -> list[tuple[int, int, int]]:
    return [(run.name.epoch, run.name.first_seq, run.last_seq) for run in split_runs(data)]


def test_runs_are_told_apart():
    data = run_of(1, 1, 3) + run_of(2, 4, 2, parts=3) + run_of(5, 6, 1)
    assert told(data) == [(1, 1, 3), (2, 4, 5), (5, 6, 6)]
    for run in split_runs(data):
        assert header_of(data, run).name == run.name
    assert split_runs(b"") == []


def test_a_run_that_goes_on_loses_its_header():
    one, two = run_of(1, 1, 3), run_of(1, 4, 2)
    header = split_runs(two)[0].commits
    assert join_runs([one, two]) == one + two[header:]
    assert told(join_runs([one, two, run_of(1, 6, 1), run_of(2, 7, 1)])) == [(1, 1, 6), (2, 7, 7)]
    mixed = run_of(1, 4, 1) + run_of(2, 5, 1)
    assert told(join_runs([one, mixed, run_of(2, 6, 3)])) == [(1, 1, 4), (2, 5, 8)]


def test_the_same_number_with_another_nonce_is_another_run():
    assert told(join_runs([run_of(1, 1, 3), run_of(1, 4, 1, nonce=b"z" * 16)])) == [(1, 1, 3), (1, 4, 4)]


def test_a_gap_is_not_joined():
    with pytest.raises(FrameError, match="where commit 4 belongs"):
        join_runs([run_of(1, 1, 3), run_of(1, 5, 1)])


REFUSED = {
    "no header": run_of(1, 1, 2)[split_runs(run_of(1, 1, 2))[0].commits :],
    "header alone": run_header(example(1, 1), 1, 5),
    "cut": run_of(1, 1, 2)[:-1],
    "half a commit": run_of(1, 1, 1, parts=2)[: len(run_of(1, 1, 1, parts=1))],
    "another epoch": run_of(1, 1, 1) + run_of(2, 2, 1)[split_runs(run_of(2, 2, 1))[0].commits :],
    "a commit missing": run_of(1, 1, 1) + run_of(1, 3, 1)[split_runs(run_of(1, 3, 1))[0].commits :],
    "another frame": run_of(1, 1, 1) + encode_frame(FrameType.CLAIM, b"\x80", epoch=1, seq=2, prev=0),
    "a header that holds no claim": encode_frame(FrameType.SEGMENT, b"\x80", epoch=1, seq=1, prev=0),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_no_run_is_refused(case):
    with pytest.raises(FrameError):
        split_runs(REFUSED[case])


def test_which_commits_they_are():
    data = run_of(1, 4, 3) + run_of(2, 7, 2)
    check_follows(split_runs(data), 4, 8)
    for first, last in ((3, 8), (5, 8), (4, 9), (4, 7)):
        with pytest.raises(FrameError):
            check_follows(split_runs(data), first, last)
    with pytest.raises(FrameError):
        check_follows(split_runs(run_of(1, 4, 3) + run_of(2, 8, 2)), 4, 9)
    with pytest.raises(FrameError):
        check_follows([], 1, 1)
