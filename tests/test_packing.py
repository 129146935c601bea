"""The dialect: what packs comes back as it was, and what a reader would refuse is refused by the packer."""

from __future__ import annotations

import enum
import pathlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asynctune import packing
from asynctune.errors import ConfigError
from asynctune.packing import UnpackError, pack, unpack


class Color(enum.Enum):
    RED = "red"


class Kind(enum.StrEnum):
    A = "a"


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.datetimes(timezones=st.just(UTC))
)
keys = st.text() | st.integers() | st.binary() | st.tuples(st.text(), st.integers())
values = st.recursive(
    scalars | st.frozensets(st.integers() | st.text()) | st.sets(st.text()),
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.tuples(inner, inner),
    max_leaves=20,
)


def nested(depth: int) -> tuple:
    value: tuple = ()
    for _ in range(depth):
        value = (value,)
    return value


@given(values)
@settings(max_examples=200)
def test_what_packs_comes_back_as_it_was(value):
    back = unpack(pack(value))
    assert back == value
    assert type(back) is type(value)


mixed_keys = st.sampled_from([Color.RED, "red", Kind.A, "a", pathlib.Path("a"), 1, 1.5, b"a", (1,), None])


@given(st.dictionaries(mixed_keys, st.integers()))
def test_a_map_is_refused_or_keeps_all_its_keys(value):
    try:
        packed = pack(value)
    except ConfigError:
        stored = {getattr(key, "value", str(key) if isinstance(key, pathlib.Path) else key) for key in value}
        assert len(stored) < len(value)
    else:
        assert len(unpack(packed)) == len(value)


def test_a_map_with_keys_that_become_one_is_refused_where_it_is():
    with pytest.raises(ConfigError, match=r"^config\['a'\]\[0\] has two keys that are the same when stored"):
        pack({"a": [{Color.RED: 1, "red": 2}]}, "config")


def test_what_is_nested_too_deeply_to_be_read_is_refused():
    assert unpack(pack(nested(127))) == nested(127)
    for depth in (128, 200):
        with pytest.raises(ConfigError, match="nested too deeply"):
            pack(nested(depth))


def test_a_container_with_more_items_than_are_read_is_refused(monkeypatch):
    monkeypatch.setattr(packing, "_MAX_CONTAINER_LEN", 1000)
    assert unpack(pack([0] * 1000)) == [0] * 1000
    assert unpack(pack(dict.fromkeys(range(500), 0))) == dict.fromkeys(range(500), 0)
    with pytest.raises(ConfigError, match=r"state\['rng'\] holds 1,001 items, and the limit is 1,000"):
        pack({"rng": [0] * 1001}, "state")
    with pytest.raises(ConfigError, match="holds 501 items, and the limit is 500"):
        pack(dict.fromkeys(range(501), 0))
    assert len(pack("x" * 5000)) > 5000


def test_the_last_hour_of_the_calendar_far_in_the_west_is_refused():
    with pytest.raises(ConfigError, match="outside of the years 1 to 9999 in UTC"):
        pack(datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-5))))
    with pytest.raises(ConfigError, match="a datetime without a timezone"):
        pack(datetime(2026, 1, 1))  # noqa: DTZ001


def test_a_time_comes_back_as_the_same_moment():
    when = datetime(2026, 5, 4, 3, 2, 1, 999999, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert unpack(pack(when)) == when


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a valid packed value"),
        (b"\x01\x02", "extra data"),
        (b"\x82\xa1a\x01\xa1a\x02", "duplicate keys"),
        (b"\xc7\x00\x63", "unknown extension type 99"),
        (b"\xdd\xff\xff\xff\xff", "not a valid packed value"),
        (b"\xc7\x02\x05\x01\x02", "not a valid packed value"),
    ],
    ids=["empty", "two values", "one key twice", "unknown extension", "endless array", "half a complex"],
)
def test_bytes_that_no_packer_made_are_refused(data, reason):
    with pytest.raises(UnpackError, match=f"(?i){reason}"):
        unpack(data)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": object()}, r"value\['a'\] is of type object"),
        ({"f": len}, r"value\['f'\] is code"),
        ("\ud800", "not valid Unicode"),
        (10**5000, "more than 3,600 digits"),
        ({10**5000: 1}, r"value \(a key\) is an integer of more than 3,600 digits"),
    ],
    ids=["object", "code", "text", "integer", "key"],
)
def test_what_cannot_be_stored_is_named(value, said):
    with pytest.raises(ConfigError, match=said):
        pack(value)


def test_a_value_over_the_limit_says_how_large_it_is():
    with pytest.raises(ConfigError, match=r"takes 105 bytes when packed, and the limit is 100"):
        pack("x" * 103, max_bytes=100)
