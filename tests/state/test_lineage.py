"""Which segments count."""

from __future__ import annotations

from asynctune.state.lineage import MAX_HISTORY, extend_history, in_history, lineage
from asynctune.state.segments import SegmentHeader, SegmentName
from tests.state.examples import header_of

A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))


def parts(*headers: SegmentHeader) -> list[tuple[str, int | None]]:
    return [(str(link.name), link.end_seq) for link in lineage({header.name: header for header in headers})]


def test_nothing_has_no_lineage():
    assert lineage({}) == []


def test_each_segment_ends_where_the_next_begins():
    assert parts(header_of(1, 1), header_of(1, 10), header_of(1, 30)) == [
        ("wal-1-1", 10),
        ("wal-1-10", 30),
        ("wal-1-30", None),
    ]


def test_the_crc_at_the_end_is_what_the_next_header_says():
    links = lineage({h.name: h for h in (header_of(1, 1), header_of(1, 10, prev_crc=77))})
    assert [link.end_crc for link in links] == [77, None]


def test_a_retry_supersedes_what_was_tried_before():
    assert parts(
        header_of(1, 1), header_of(1, 10), header_of(1, 10, attempt=1), header_of(1, 10, attempt=2)
    ) == [
        ("wal-1-1", 10),
        ("wal-1-10.2", None),
    ]


def test_a_retry_in_the_first_commit_supersedes_the_whole_segment():
    assert parts(header_of(1, 1), header_of(1, 1, attempt=1)) == [("wal-1-1.1", None)]


def test_a_takeover_cuts_off_what_the_older_one_writes_beyond():
    history = [(1, A, 0), (2, B, 20)]
    assert parts(
        header_of(1, 1),
        header_of(1, 15),
        header_of(1, 25),
        header_of(1, 40),
        header_of(2, 21, history=history),
    ) == [("wal-1-1", 15), ("wal-1-15", 21), ("wal-2-21", None)]


def test_an_opening_that_lost_the_race_does_not_count():
    history = [(1, A, 0), (3, C, 20)]
    assert parts(
        header_of(1, 1),
        header_of(2, 21, history=[(1, A, 0), (2, B, 20)]),
        header_of(3, 21, history=history),
    ) == [("wal-1-1", 21), ("wal-3-21", None)]


def test_the_same_number_with_another_nonce_does_not_count():
    assert parts(
        header_of(1, 1, nonce=C), header_of(1, 5), header_of(2, 9, history=[(1, A, 0), (2, B, 8)])
    ) == [("wal-1-5", 9), ("wal-2-9", None)]


def test_openings_that_committed_nothing():
    history = [(1, A, 0), (2, B, 4), (3, C, 4)]
    assert parts(
        header_of(1, 1),
        header_of(2, 5, history=history[:2]),
        header_of(3, 5, history=history),
    ) == [("wal-1-1", 5), ("wal-3-5", None)]


def test_a_commit_is_in_the_history_unless_a_later_epoch_cut_it_off():
    history = [(1, A, 0), (3, C, 20)]
    assert in_history(history, 1, A, 20)
    assert not in_history(history, 1, A, 21)
    assert in_history(history, 3, C, 1000)
    assert not in_history(history, 1, B, 5)
    assert not in_history(history, 2, B, 5)
    assert not in_history([], 1, A, 0)


def test_history_grows_by_one_and_is_bounded():
    history = extend_history([], 1, A, 0)
    assert history == [(1, A, 0)]
    for epoch in range(2, MAX_HISTORY + 10):
        history = extend_history(history, epoch, B, epoch)
    assert len(history) == MAX_HISTORY
    assert history[-1] == (MAX_HISTORY + 9, B, MAX_HISTORY + 9)


def test_names_decide_the_order_and_not_how_they_are_given():
    headers = [header_of(1, n) for n in (1, 5, 10, 100)]
    assert parts(*reversed(headers)) == parts(*headers)
    assert lineage({SegmentName(1, 1): headers[0]})[0].header is headers[0]
