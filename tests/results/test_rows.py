"""The packed form of row operations, and what a full row holds."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.errors import ConfigError
from asynctune.packing import UnpackError, pack
from asynctune.results.rows import Announce, Cut, ResultRow, decode, encode, expand, trial_of
from tests.results.world import OPENING, row, trial

METRICS = st.dictionaries(
    st.text(max_size=8),
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.tuples(st.integers(), st.floats(allow_nan=False))
    | st.lists(st.integers(), max_size=3),
    max_size=5,
)


@given(
    st.one_of(
        st.builds(
            ResultRow,
            trial_id=st.text(),
            ordinal=st.integers(1, 2**40),
            iteration=st.integers(0, 2**40),
            timestamp=st.floats(0, 4e9),
            time_this_iter_s=st.floats(0, 1e6),
            time_total_s=st.floats(0, 1e9),
            metrics=METRICS,
        ),
        st.builds(Cut, trial_id=st.text(), keep=st.integers(0, 2**40)),
        st.builds(Announce, trial_id=st.text()),
    )
)
def test_an_operation_survives_packing(operation):
    packed = encode(operation)
    assert decode(packed) == operation
    assert trial_of(packed) == operation.trial_id


def test_a_row_is_small():
    packed = encode(row(17, {"loss": 0.25, "accuracy": 0.875, "epoch": 17}, trial_id="3f9ac_00007"))
    assert len(packed) < 100


def test_later_changes_of_the_metrics_do_not_reach_the_packed_row():
    metrics = {"loss": [1.0]}
    packed = encode(row(1, metrics))
    metrics["loss"].append(2.0)
    assert decode(packed).metrics == {"loss": [1.0]}  # type: ignore[union-attr]


def test_an_unpackable_metric_is_named():
    with pytest.raises(ConfigError, match=r"metrics\['model'\]"):
        encode(row(1, {"model": object()}))


def test_a_metric_name_is_a_string():
    with pytest.raises(ConfigError, match="use '1'"):
        encode(row(1, {1: 2}))  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        pack(None),
        pack([]),
        pack([1, "t"]),
        pack([2, "t", -1]),
        pack([9, "t"]),
        pack([3, 4]),
        pack([1, "t", 0, 1, 1.0, 1.0, 1.0, {}]),
        encode(row(1))[:-1],
    ],
)
def test_foreign_bytes_are_refused(data):
    with pytest.raises(UnpackError):
        decode(data)


@pytest.mark.parametrize("data", [b"", b"\xc1", pack([9, "t"]), pack([3, 4]), b"\x92\x03\xa1\xff"])
def test_the_trial_of_foreign_bytes_is_not_guessed(data):
    with pytest.raises(UnpackError):
        trial_of(data)


@pytest.mark.parametrize("size", [0, 31, 32, 255, 256], ids=str)
def test_the_trial_of_an_operation_is_found_without_the_rest_of_it(size):
    packed = encode(row(1, trial_id="ä" * (size // 2) + "b" * (size % 2)))
    assert trial_of(packed) == decode(packed).trial_id


def test_a_full_row_has_everything_and_config_last():
    full = expand(row(3, {"loss": 0.5}), trial(), OPENING, tz=UTC)
    assert full == {
        "loss": 0.5,
        "done": False,
        "training_iteration": 3,
        "time_this_iter_s": 1.0,
        "time_total_s": 3.0,
        "timestamp": 1_767_225_603,
        "date": "2026-01-01_00-00-03",
        "hostname": "oak",
        "node_ip": "192.0.2.7",
        "pid": 4711,
        "trial_id": "t1",
        "config": {"lr": 0.1},
    }
    assert isinstance(full["timestamp"], int)
    assert list(full)[-1] == "config"


def test_the_user_wins_except_for_trial_id_and_config():
    mine = {"done": True, "hostname": "mine", "timestamp": 5, "trial_id": "other", "config": {"lr": 9}}
    full = expand(row(1, mine), trial(), OPENING)
    assert (full["done"], full["hostname"], full["timestamp"]) == (True, "mine", 5)
    assert (full["trial_id"], full["config"]) == ("t1", {"lr": 0.1})
    assert list(full)[-2:] == ["trial_id", "config"]


def test_the_date_is_local_time_by_default():
    full = expand(row(1), trial(), OPENING)
    assert full["date"] == datetime.fromtimestamp(1_767_225_601).strftime("%Y-%m-%d_%H-%M-%S")  # noqa: DTZ006


@pytest.mark.parametrize("seconds", [1e12, -1e12, 1e300])
def test_a_clock_gone_mad_costs_a_row_its_date_only(seconds):
    full = expand(dataclasses.replace(row(3, {"loss": 0.5}), timestamp=seconds), trial(), OPENING, tz=UTC)
    assert (full["date"], full["timestamp"], full["loss"]) == ("", int(seconds), 0.5)
