"""Text forms: strict about what can be read back, forgiving about what is put in."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.packing import pack, unpack
from asynctune.results.render import (
    Columns,
    csv_lines,
    csv_records,
    flatten,
    json_text,
    params_json,
    plain,
)

KEYS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
PACKABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**200), 10**200)
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=10)
    | st.binary(max_size=10)
    | st.datetimes(
        timezones=st.just(UTC),
        min_value=datetime(1970, 1, 2),  # noqa: DTZ001 - Hypothesis adds the timezone
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.sets(st.integers() | st.text(max_size=3) | st.binary(max_size=3), max_size=3)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=10,
)
ROWS = st.dictionaries(st.text(max_size=5), PACKABLE, max_size=5)


@given(ROWS)
def test_whatever_can_be_packed_becomes_one_line_that_json_reads(row):
    row = unpack(pack(row))
    form = plain(row)
    line = json_text(form)
    assert line.isascii()
    assert b"\n" not in line
    # repr: NaN is not equal to itself, and 1 is equal to True and 1.0
    assert repr(json.loads(line)) == repr(form)
    assert json_text(plain(unpack(pack(row)))) == line
    assert json.loads(params_json(row).decode()) is not None


@given(st.lists(ROWS, max_size=6))
def test_csv_is_read_back_by_the_standard_reader(rows):
    cells = [flatten(plain(unpack(pack(row)))) for row in rows]
    columns = Columns.of(cells)
    data = csv_lines(columns, cells, header=True)
    records = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    if columns.names:
        assert tuple(records[0]) == columns.names
        for record, cell in zip(records[1:], cells, strict=True):
            wanted = [cell.get(name) for name in columns.names]
            assert record == ["" if each is None else str(each) for each in wanted]
        if b"\0" not in data:
            assert csv_records(data) == (list(columns.names), len(rows))


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (b"\x00\xff", "base64:AP8="),
        ((1, (2, 3)), [1, [2, 3]]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        (1 + 2j, "(1+2j)"),
        (datetime(2026, 1, 31, 12, tzinfo=UTC), "2026-01-31T12:00:00+00:00"),
        (10**30, 10**30),
        ({None: 1, True: 2, 7: 3, 0.5: 4, (1, 2): 5, b"k": 6}, None),
        ({1: "number", "1": "text"}, {"1": "text", "1 (int)": "number"}),
        ({1: "a", "1": "b", "1 (int)": "c"}, {"1": "b", "1 (int)": "c", "1 (int) (int)": "a"}),
    ],
)
def test_the_documented_forms(value, form):
    if form is None:
        form = {"null": 1, "true": 2, "7": 3, "0.5": 4, "[1, 2]": 5, "base64:aw==": 6}
    assert plain(unpack(pack(value))) == form


def test_nan_and_infinities_are_bare_words():
    line = json_text(plain({"a": math.nan, "b": math.inf, "c": -math.inf}))
    assert line == b'{"a": NaN, "b": Infinity, "c": -Infinity}'
    back = json.loads(line)
    assert math.isnan(back["a"])
    assert (back["b"], back["c"]) == (math.inf, -math.inf)


def test_deep_nesting_ends_in_a_word():
    value: object = 1
    for _ in range(300):
        value = [value]
    line = json_text(plain({"deep": unpack(pack(value))}))
    assert b"(nested too deeply)" in line
    json.loads(line)


def test_numbers_of_other_libraries_are_numbers():
    numpy = pytest.importorskip("numpy")
    assert plain({"x": numpy.float64(0.5), "y": numpy.int32(3)}) == {"x": 0.5, "y": 3}


def test_nested_values_become_columns():
    row = plain({"a": {"b": 1, "c": {"d": 2}}, "e": [1, {"f": 2}], "g": {}, "config": {"lr": 0.1}})
    assert flatten(row) == {
        "a/b": 1,
        "a/c/d": 2,
        "e": '[1, {"f": 2}]',
        "g": "{}",
        "config/lr": 0.1,
    }


def test_two_ways_to_the_same_column_give_one():
    assert flatten({"a/b": 1, "a": {"b": 2}}) == {"a/b": 2}
    assert flatten({"a": {"b": 2}, "a/b": 1}) == {"a/b": 1}


def test_a_csv_keeps_line_ends_and_quotes_in_their_cell():
    cells: list[dict[str, Any]] = [
        {"text": 'one\ntwo\r\nthree\r"four", five', "n": 1},
        {"text": None, "n": math.nan},
    ]
    columns = Columns.of(cells)
    data = csv_lines(columns, cells, header=True)
    assert csv_records(data) == (["text", "n"], 2)
    assert [*csv.reader(io.StringIO(data.decode(), newline=""))][1][0] == cells[0]["text"]
    assert data.endswith(b",nan\r\n")


@pytest.mark.parametrize(
    "data",
    [b"", b"a,b", b"a,b\r\n1,", b'a,b\r\n"1,2\r\n', b"a,a\r\n", b"a\r\n\0\0\r\n", b"a\r\n\xff\r\n"],
)
def test_a_damaged_csv_has_no_records(data):
    assert csv_records(data) is None
