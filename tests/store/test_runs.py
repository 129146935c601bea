from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.errors import ConfigError, CorruptStateError
from asynctune.packing import unpack
from asynctune.store.runs import (
    STATUSES,
    Run,
    error_text,
    full_result,
    known_rows,
    next_iteration,
    pack_map,
    pack_run,
    parse_status,
    peek_status,
    unpack_run,
)
from asynctune.trial import TrialStatus

RUNS = st.builds(
    Run,
    status=st.integers(0, 4),
    num_results=st.integers(0, 2**40),
    iteration=st.integers(0, 2**70),
    time_total_s=st.floats(0, 1e9),
    reported_at=st.none() | st.floats(0, 1e10),
    error=st.none() | st.text(st.characters(codec="utf-8"), max_size=20),
    metrics=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.floats(allow_nan=False)),
)


@given(RUNS)
def test_a_run_survives_packing_and_its_status_can_be_peeked(run):
    packed = pack_run(run)
    assert unpack_run("t", unpack(packed)) == run
    assert peek_status(packed) is STATUSES[run.status]


@pytest.mark.parametrize("values", [None, {}, [], [0] * 3, [9] + [0] * 10, ["PENDING"] + [0] * 10])
def test_a_record_that_is_none_is_corrupt(values):
    with pytest.raises(CorruptStateError, match="'t7'"):
        unpack_run("t7", values)


def test_fields_of_a_later_release_are_passed_over():
    values = unpack(pack_run(Run(iteration=3)))
    assert unpack_run("t", [*values, "new"]) == Run(iteration=3)


@pytest.mark.parametrize("value", [None, [("a", 1)], "text", 3])
def test_pack_map_takes_mappings_only(value):
    with pytest.raises(ConfigError, match="config must be a mapping"):
        pack_map(value, "config")


@pytest.mark.parametrize("key", [1, None, b"k", ("a",), 1.5])
def test_pack_map_takes_text_keys_only_and_says_how_to_write_them(key):
    with pytest.raises(ConfigError, match="keys must be strings"):
        pack_map({key: 1}, "config")


@pytest.mark.parametrize("status", list(TrialStatus))
def test_a_status_may_be_given_by_name(status):
    assert parse_status(status) is status
    assert parse_status(status.value) is status


@pytest.mark.parametrize("status", ["running", "DONE", "", None, 1, ["RUNNING"]])
def test_an_unknown_status_is_refused_with_the_list_of_those_there_are(status):
    with pytest.raises(ConfigError, match="PENDING, RUNNING, PAUSED, TERMINATED, ERROR"):
        parse_status(status)


def test_an_exception_is_stored_with_its_traceback():
    try:
        raise ValueError("lr too high") from KeyError("cause")
    except ValueError as error:
        text = error_text(error)
    assert "Traceback" in text
    assert "lr too high" in text
    assert "KeyError" in text
    assert __file__ in text


def test_error_texts_are_bounded_from_the_end_and_always_storable():
    text = error_text("first" + "x" * 200_000 + "last")
    assert len(text) < 70_000
    assert text.endswith("last")
    error_text("lone \ud800 surrogate").encode()
    assert error_text(None) == "no reason given"
    with pytest.raises(ConfigError, match="error must be"):
        error_text(404)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metrics", "given", "last", "expected"),
    [
        ({}, None, 0, 1),
        ({}, None, 7, 8),
        ({"training_iteration": 12}, None, 7, 12),
        ({"training_iteration": 12}, 9, 7, 9),
        ({}, 2**70, 0, 2**70),
    ],
)
def test_the_iteration_of_a_row(metrics, given, last, expected):
    assert next_iteration(metrics, given, Run(num_results=1, iteration=last), "t") == expected


@pytest.mark.parametrize("given", [7, 6, -1, 1.5, "8", True, [8]])
def test_an_iteration_that_is_no_whole_number_above_the_last_is_refused(given):
    with pytest.raises(ConfigError):
        next_iteration({}, given, Run(num_results=1, iteration=7), "t")
    with pytest.raises(ConfigError):
        next_iteration({"training_iteration": given}, None, Run(num_results=1, iteration=7), "t")


def test_the_first_iteration_may_be_0_and_is_1_by_default():
    assert next_iteration({}, 0, Run(), "t") == 0
    assert next_iteration({}, None, Run(), "t") == 1
    with pytest.raises(ConfigError, match="whole number from 0"):
        next_iteration({}, -1, Run(), "t")


def test_numpy_integers_are_iterations():
    numpy = pytest.importorskip("numpy")
    number = next_iteration({}, numpy.int64(8), Run(num_results=1, iteration=7), "t")
    assert type(number) is int
    assert number == 8


def test_the_last_result_is_empty_before_the_first():
    assert full_result(Run(metrics={"loss": 1})) == {}
    run = Run(num_results=1, iteration=4, reported_at=17.9, metrics={"loss": 1, "training_iteration": 99})
    assert full_result(run) == {"training_iteration": 4, "time_total_s": 0.0, "timestamp": 17, "loss": 1}
    assert full_result(replace(run, metrics={"timestamp": 5}))["timestamp"] == 5


@pytest.mark.parametrize(
    ("run", "kept"),
    [
        (Run(), []),
        (Run(num_results=1, iteration=0), [0]),
        (Run(num_results=2, iteration=7), [0, 7]),
        (Run(num_results=4, iteration=2**70), [0, 7, 2**70]),
    ],
    ids=["none", "zero", "some", "huge"],
)
def test_rows_after_the_last_one_that_is_known_are_left_out(run, kept):
    rows = [{"training_iteration": number} for number in (0, 7, 2**70, 2**70 + 1)]
    assert [row["training_iteration"] for row in known_rows(rows, run)] == kept


def test_a_row_without_an_iteration_is_left_to_who_looks_at_it():
    assert known_rows([{"loss": 1}], Run(num_results=1, iteration=1)) == [{"loss": 1}]
