"""The rules for lines, without files."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from asynctune.results.rows import Cut
from asynctune.results.timeline import KnownLine, identity, plan


def line(moment: int, **more: Any) -> bytes:
    return json.dumps({"time_total_s": moment} | more).encode()


def known(ordinal: int, moment: int, **more: Any) -> KnownLine:
    text = line(moment, **more)
    return KnownLine(ordinal, text, json.loads(text))


def cut(keep: int) -> Cut:
    return Cut(trial_id="t", keep=keep)


def apply(present: list[bytes], operations: list[KnownLine | Cut], offset: int = 0) -> list[bytes]:
    made = plan(present, operations, offset)
    return present[: made.keep] + made.append


def test_new_rows_are_appended():
    made = plan([line(1), line(2)], [known(3, 3), known(4, 4)])
    assert (made.keep, made.append, made.aside, made.offset) == (2, [line(3), line(4)], [], 0)


def test_rows_that_are_there_are_left_alone():
    present = [line(1), line(2), line(3)]
    made = plan(present, [known(2, 2), known(3, 3)])
    assert (made.keep, made.append, made.aside) == (3, [], [])


def test_a_file_that_lags_is_completed():
    assert apply([line(1)], [known(1, 1), known(2, 2), known(3, 3)]) == [line(1), line(2), line(3)]


def test_a_row_told_twice_is_there_once():
    assert apply([line(1)], [known(2, 2), known(2, 2)]) == [line(1), line(2)]


def test_a_line_written_twice_is_there_once():
    made = plan([line(1), line(2), line(2), line(3)], [known(2, 2), known(3, 3)])
    assert (made.keep, made.append) == (2, [line(3)])
    assert (made.aside, made.extra) == ([], 2)


def test_a_rewind_cuts_and_keeps_the_cut_rows():
    made = plan([line(1), line(2), line(3)], [cut(1), known(2, 20)])
    assert (made.keep, made.append) == (1, [line(20)])
    assert made.aside == [line(2), line(3)]
    assert made.extra == 0


def test_rows_cut_before_they_were_written_are_kept_aside():
    made = plan([line(1)], [known(2, 2), known(3, 3), cut(2), known(3, 30)])
    assert made.append == [line(2), line(30)]
    assert made.aside == [line(3)]


def test_a_rewind_that_the_file_went_through_already_changes_nothing():
    made = plan([line(1), line(20)], [cut(1), known(2, 20)])
    assert (made.keep, made.append, made.aside) == (2, [], [])


def test_a_rewind_interrupted_between_two_lines_goes_on():
    operations: list[KnownLine | Cut] = [known(2, 2), known(3, 3), cut(1), known(2, 20), known(3, 30)]
    for present in ([line(1), line(2), line(3)], [line(1), line(2)], [line(1)], [line(1), line(20)]):
        assert apply(present, operations) == [line(1), line(20), line(30)]


def test_a_cut_beyond_the_end_cuts_nothing():
    made = plan([line(1), line(2)], [cut(9)])
    assert (made.keep, made.append, made.aside, made.offset) == (2, [], [], 0)


def test_rows_that_nobody_has_are_counted_and_not_invented():
    made = plan([line(1)], [known(4, 4)])
    assert (made.keep, made.append, made.offset) == (1, [line(4)], 2)


def test_a_file_without_its_head_is_recognised_by_its_rows():
    # Rows 1 to 10 were deleted; the journal starts at 14.
    present = [line(n) for n in range(11, 16)]
    made = plan(present, [known(n, n) for n in (14, 15, 16)])
    assert (made.keep, made.append, made.offset, made.aside) == (5, [line(16)], 10, [])


def test_a_known_offset_is_used_for_a_cut():
    made = plan([line(n) for n in range(11, 16)], [cut(12), known(13, 130)], offset=10)
    assert (made.keep, made.append, made.offset) == (2, [line(130)], 10)
    assert made.aside == [line(13), line(14), line(15)]


def test_a_row_with_another_config_and_date_is_the_same_row_and_stays_as_written():
    written = line(2, config={"lr": 1}, date="then")
    made = plan([line(1), written], [known(2, 2, config={"lr": 2}, date="now"), known(3, 3)])
    assert (made.keep, made.append, made.aside) == (2, [line(3)], [])


def test_a_damaged_line_is_replaced_by_its_row():
    made = plan([line(1), b'{"time_tot\0\0'], [known(2, 2)])
    assert (made.keep, made.append, made.aside) == (1, [line(2)], [])
    assert (made.extra, made.damaged) == (1, 1)


def test_a_row_that_the_journal_does_not_have_is_kept_aside():
    made = plan([line(1), line(77)], [known(2, 2)])
    assert (made.keep, made.append, made.aside, made.extra) == (1, [line(2)], [line(77)], 1)


def test_nothing_told_changes_nothing():
    made = plan([line(1)], [])
    assert (made.keep, made.append, made.aside, made.offset) == (1, [], [], 0)


def test_what_is_no_row_has_no_identity():
    assert identity(b"") is identity(b"[1]") is identity(b"{") is identity(b"[" * 100_000) is None
    assert identity(b'{"a": 1, "b": 2}') == identity(b'{"b": 2, "a": 1, "config": 3}')


STORIES = st.lists(st.one_of(st.just("row"), st.just("row"), st.integers(0, 20)), min_size=1, max_size=25)


def tell(story: list[Any]) -> tuple[list[KnownLine | Cut], list[list[int]]]:
    """The operations of a story, and the timeline after each of them."""
    operations: list[KnownLine | Cut] = []
    timeline: list[int] = []
    after: list[list[int]] = [[]]
    for moment, step in enumerate(story, 1):
        if step == "row":
            timeline = [*timeline, moment]
            operations.append(known(len(timeline), moment))
        else:
            keep = min(step, len(timeline))
            timeline = timeline[:keep]
            operations.append(cut(keep))
        after.append(timeline)
    return operations, after


@given(STORIES, st.data())
def test_any_file_from_after_the_sync_leads_to_the_timeline(story, data):
    operations, after = tell(story)
    synced = data.draw(st.integers(0, len(operations)), label="journal retained from")
    written = data.draw(st.integers(synced, len(operations)), label="file written up to")
    # Of what was written after the sync only the start may be there.
    sure = min(map(len, after[synced : written + 1]))
    there = data.draw(st.integers(sure, len(after[written])), label="lines there")
    present = [line(moment) for moment in after[written][:there]]

    made = plan(present, operations[synced:])
    final = present[: made.keep] + made.append
    assert final == [line(moment) for moment in after[-1]]
    assert made.offset == 0
    assert made.extra == 0
    # Nothing that was there, or is told, gets lost.
    assert {*present, *(each.text for each in operations[synced:] if isinstance(each, KnownLine))} <= {
        *final,
        *made.aside,
    }
    again = plan(final, operations[synced:])
    assert (again.keep, again.append) == (len(final), [])
