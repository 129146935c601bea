"""What the next CURRENT names."""

from __future__ import annotations

import random
from dataclasses import replace

from asynctune.state.mirror.current import TAIL_BYTES, Current, Ref
from asynctune.state.mirror.planning import (
    MAX_MERGED_BYTES,
    MAX_SEGMENTS,
    merged_count,
    plan_swap,
    snapshot_is_due,
)
from tests.state.mirror.test_current import CLAIM, PLAIN, SNAPSHOT, segment

KIB = 1024
MIB = 1024 * KIB


def test_what_fits_stays_inline():
    plan = plan_swap(PLAIN, TAIL_BYTES - len(PLAIN.tail), None, 0)
    assert plan.inline
    assert plan.keeps_tail
    assert plan.kept == PLAIN.segments
    assert plan.snapshot == SNAPSHOT


def test_what_does_not_fit_becomes_a_segment():
    plan = plan_swap(PLAIN, TAIL_BYTES - len(PLAIN.tail) + 1, None, 0)
    assert not plan.inline
    assert plan.keeps_tail
    assert (plan.kept, plan.merged) == (PLAIN.segments, ())


def test_frames_stay_until_snapshot_and_result_files_have_them():
    newer = replace(SNAPSHOT, name="snap-7-070707070707-50", last_seq=50)
    assert plan_swap(PLAIN, 0, None, 0).kept == PLAIN.segments
    assert plan_swap(PLAIN, 0, None, 60).kept == PLAIN.segments[:0] + PLAIN.segments  # 30 is in the first one
    assert plan_swap(PLAIN, 0, newer, 20).kept == PLAIN.segments
    assert plan_swap(PLAIN, 0, newer, 35).kept == PLAIN.segments[1:]
    assert plan_swap(PLAIN, 0, newer, 49).kept == PLAIN.segments[1:]
    assert plan_swap(PLAIN, 0, newer, 50).kept == ()
    plan = plan_swap(PLAIN, 10, newer, 59)
    assert (plan.kept, plan.keeps_tail, plan.snapshot) == ((), True, newer)


def test_a_tail_goes_when_all_of_it_is_elsewhere():
    newest = replace(SNAPSHOT, name="snap-7-070707070707-60", last_seq=60)
    plan = plan_swap(PLAIN, 10, newest, 60)
    assert (plan.kept, plan.keeps_tail, plan.inline) == ((), False, True)
    assert plan_swap(PLAIN, 10, newest, 59).keeps_tail


def test_an_older_snapshot_does_not_replace_a_newer_one():
    assert plan_swap(PLAIN, 0, replace(SNAPSHOT, last_seq=29), 0).snapshot == SNAPSHOT


def test_merging_keeps_the_number_down_and_puts_each_byte_a_few_times(rng: random.Random):
    sizes: list[int] = []
    put = written = 0
    for _ in range(400):
        new = rng.randint(64 * KIB, 80 * KIB)
        count = merged_count(sizes, new)
        merged = new + sum(sizes[len(sizes) - count :])
        assert merged <= MAX_MERGED_BYTES
        sizes[len(sizes) - count :] = [merged]
        assert len(sizes) <= MAX_SEGMENTS
        put, written = put + merged, written + new
    assert put < 5 * written


def test_large_segments_are_left_alone():
    assert merged_count([MAX_MERGED_BYTES] * MAX_SEGMENTS, 100) == 0
    assert merged_count([MAX_MERGED_BYTES] * MAX_SEGMENTS + [5 * KIB] * 2, 100) == 2
    assert merged_count([KIB] * (MAX_SEGMENTS - 1), 100) == 0


def test_a_current_that_is_full_merges_what_it_must():
    assert merged_count([MAX_MERGED_BYTES] * 1024, 100) >= 1


def test_a_snapshot_is_worth_it_when_it_is_less_to_read():
    big = replace(PLAIN, snapshot=None, segments=(Ref("seg-7-070707070707-1", 3 * MIB, 1, 1, 50),))
    assert snapshot_is_due(big, 0, 55, 2 * MIB)
    assert not snapshot_is_due(big, 0, 55, 4 * MIB)
    assert not snapshot_is_due(PLAIN, 0, 55, 10)
    assert snapshot_is_due(PLAIN, 2 * MIB, 55, 10)
    assert not snapshot_is_due(PLAIN, 2 * MIB, 30, 10)


def test_frames_that_only_wait_for_result_files_do_not_make_a_snapshot_due():
    current = Current(
        experiment_id="e",
        claim=CLAIM,
        node_ip="",
        seq=60,
        history=PLAIN.history,
        snapshot=replace(SNAPSHOT, last_seq=50),
        segments=(replace(segment(1, 1, 50), size_bytes=9 * MIB), segment(2, 51, 60)),
    )
    assert not snapshot_is_due(current, 0, 60, 10)
