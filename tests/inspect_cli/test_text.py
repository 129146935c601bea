from __future__ import annotations

import math
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.inspect import text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.123456, "0.1235"),
        (0.5, "0.5000"),
        (12.3456, "12.35"),
        (12345.6, "12346"),
        (0.000123456, "0.0001235"),
        (0.0000123456, "1.235e-05"),
        (1.5e9, "1.500e+09"),
        (-0.25, "-0.2500"),
        (0.0, "0"),
        (7, "7"),
        (10**20, "1.000e+20"),
        (10**400, "huge"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (True, "true"),
        ("relu", "relu"),
    ],
)
def test_a_metric_has_four_significant_digits(value, shown):
    assert text.metric_number(value) == shown


@given(st.floats(-1e300, 1e300))
def test_a_metric_reads_back_to_what_it_was(value):
    assert float(text.metric_number(value)) == pytest.approx(value, rel=6e-4)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (math.nan, "-"),
        (-3.0, "0ms"),
        (0.0342, "34ms"),
        (0.9996, "1.0s"),
        (4.24, "4.2s"),
        (9.96, "10s"),
        (59.6, "1m00s"),
        (200, "3m20s"),
        (3600, "1h00m"),
        (7500, "2h05m"),
        (86400 * 4 + 3 * 3600, "4d03h"),
    ],
)
def test_a_duration_is_short(seconds, shown):
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1024**2 - 1, "1.0 MiB"), (3 * 1024**4, "3.0 TiB")],
)
def test_a_size_has_a_unit(size_bytes, shown):
    assert text.size(size_bytes) == shown


def test_a_time_that_no_calendar_has_is_a_number():
    assert text.clock_time(1e300) == "1e+300"
    assert len(text.clock_time(1_700_000_000.0)) == len("2023-11-14 22:13:20")


def test_text_from_an_experiment_cannot_act_on_the_terminal():
    assert text.printable("a\x1b[2Jb\r\n\x07") == "a\\x1b[2Jb\\r\\n\\x07"
    assert text.printable("left\u202eright") == "left\\u202eright"
    assert text.printable("größe\u00a0日本") == "größe 日本"
    assert text.printable("a\nb", keep="\n") == "a\nb"


def test_bytes_of_a_name_that_are_not_utf8_are_shown_as_such():
    assert text.path_text("/data/caf\udce9") == "/data/caf\\xe9"


@given(st.text())
def test_everything_printable_can_be_printed(value):
    assert text.printable(value).isprintable()


def test_a_traceback_is_told_by_its_exception():
    def raised(error: BaseException) -> str:
        try:
            raise error
        except BaseException as caught:  # noqa: BLE001 - any
            return "".join(traceback.format_exception(caught))

    assert text.error_line(raised(ValueError("no such layer\nsecond line"))) == "ValueError: no such layer"
    group = ExceptionGroup("two went wrong", [KeyError("a"), OSError(28, "No space left on device")])
    assert text.error_line(raised(group)) == "OSError: [Errno 28] No space left on device"
    assert text.error_line("out of memory\non device 3") == "out of memory"
    assert text.error_line(None) == ""
    assert text.error_line("!!!") == "!!!"


def test_nested_values_are_named_by_their_path():
    assert dict(text.flatten({"a": {"b": 1, "c": {"d": 2}}, "e": {}, 3: 4})) == {
        "a/b": 1,
        "a/c/d": 2,
        "e": {},
        "3": 4,
    }
