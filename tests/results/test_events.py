"""Event records, read back by tensorboardX's own messages."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.results.events import EventCodec
from tests.results.world import events_of

CODEC = EventCodec()


def test_numbers_become_scalars_and_nothing_else_does():
    cells = {
        "loss": 0.5,
        "count": 3,
        "nan": math.nan,
        "huge": 10**400,
        "text": "x",
        "none": None,
        "done": True,
        "pid": 1,
        "config/lr": 0.1,
        "timestamp": 1_700_000_000,
        "training_iteration": 4,
        "time_this_iter_s": 2.0,
    }
    ((step, scalars),) = events_of(CODEC.version(1.0) + CODEC.row(cells, CODEC.step_of(cells, 1)))
    assert step == 4
    assert sorted(scalars) == ["count", "huge", "loss", "nan", "time_this_iter_s"]
    assert (scalars["loss"], scalars["count"], scalars["huge"]) == (0.5, 3, math.inf)
    assert math.isnan(scalars["nan"])


def test_the_moment_of_a_point_is_when_it_was_reported():
    from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415

    record = CODEC.row({"timestamp": 1_700_000_000}, 1)
    assert Event.FromString(record[12:-4]).wall_time == 1_700_000_000


@pytest.mark.parametrize("value", [None, "7", 2.5, -1, 2**70, True])
def test_a_step_is_the_line_number_where_the_iteration_is_none(value):
    assert CODEC.step_of({"training_iteration": value}, 9) == 9


@given(st.lists(st.integers(0, 9), max_size=8), st.data())
def test_a_file_cut_short_is_read_as_far_as_it_is_whole(steps, data):
    records = [CODEC.version(1.0), *(CODEC.row({"loss": 1.0 + step}, step) for step in steps)]
    whole = b"".join(records)
    length = data.draw(st.integers(0, len(whole)))
    found = CODEC.scan(whole[:length])
    sizes = [sum(map(len, records[:count])) for count in range(len(records) + 1)]
    assert found.size == max(size for size in sizes if size <= length)
    assert [step for step, _ in found.rows] == steps[: max(0, sizes.index(found.size) - 1)]


def test_a_flipped_bit_ends_the_reading():
    records = [CODEC.version(1.0), CODEC.row({"loss": 1.0}, 1), CODEC.row({"loss": 2.0}, 2)]
    data = bytearray(b"".join(records))
    start, end = len(records[0]), len(records[0] + records[1])
    for position in range(start, end):
        data[position] ^= 1 << random.randrange(8)
        damaged = CODEC.scan(bytes(data))
        assert (damaged.size, damaged.rows) == (start, [])
        data[:] = b"".join(records)


def test_start_voids_what_is_at_its_step_or_later():
    data = CODEC.version(1.0) + b"".join(CODEC.row({"a": 1.0}, step) for step in (1, 2, 3))
    data += CODEC.start(2, 1.0) + CODEC.row({"a": 9.0}, 2)
    assert [step for step, _ in CODEC.scan(data).rows] == [1, 2]
    assert [scalars["a"] for _, scalars in events_of(data)] == [1.0, 9.0]


def test_which_timelines_a_start_can_cut():
    assert CODEC.can_void([1, 2, 3], 1, 2)
    assert CODEC.can_void([], 0, 0)
    assert not CODEC.can_void([1, 5, 3], 2, 3), "5 would go too"
    assert not CODEC.can_void([1, 2, 1], 2, 3), "1 would stay"
