from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.inspect.columns import GAP, Column, chosen_columns, fit_columns, trial_columns
from asynctune.trial import TrialStatus
from tests.inspect_cli.examples import a_checkpoint, a_head, a_row


def names(columns) -> list[str]:
    return [column.name for column in columns]


def test_the_columns_are_what_differs_and_what_was_measured():
    rows = [a_row(n, checkpoints=(a_checkpoint(),)) for n in range(3)]
    assert names(trial_columns(rows, a_head())) == [
        "trial",
        "status",
        "loss",
        "acc",
        "config/lr",
        "iteration",
        "checkpoint",
        "duration",
    ]


def test_an_error_column_is_there_when_there_is_an_error():
    rows = [a_row(0), a_row(1, status=TrialStatus.ERROR, error="out of memory", num_failures=1)]
    assert names(trial_columns(rows, a_head()))[-1] == "error"


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_failures_are_a_column_when_some_trial_has_any(failures):
    rows = [a_row(0), a_row(1, error="out of memory" if failures else None, num_failures=failures)]
    columns = {column.name: column.cells for column in trial_columns(rows, a_head())}
    assert columns.get("failures") == (("0", str(failures)) if failures else None)


def test_metrics_that_most_trials_have_come_first():
    rows = [a_row(0, last_result={"rare": 1.0, "loss": 2.0}), a_row(1, last_result={"loss": 3.0})]
    assert names(trial_columns(rows, a_head()))[2:4] == ["loss", "rare"]


def test_what_is_sorted_by_comes_before_the_other_metrics():
    rows = [a_row(n) for n in range(2)]
    assert names(trial_columns(rows, a_head(), first="acc"))[2:4] == ["acc", "loss"]
    assert "config/units" in names(trial_columns(rows, a_head(), first="config/units"))
    assert "created" in names(trial_columns(rows, a_head(), first="created"))


def test_flags_and_text_are_no_metric_columns_unless_asked_for():
    rows = [a_row(0, last_result={"loss": 1.0, "good": True, "note": "x", "count": 3})]
    assert names(trial_columns(rows, a_head()))[2:4] == ["loss", "count"]
    asked = trial_columns(rows, a_head(), metrics=["note", "good"])
    assert names(asked)[2:4] == ["note", "good"]
    assert [column.right for column in asked[2:4]] == [False, True]


def test_chosen_columns_stand_as_they_were_named():
    columns = chosen_columns(["duration", "loss", "trial", "config/units"], [a_row(1)], a_head())
    assert [(column.header, column.cells) for column in columns] == [
        ("time", ("1m40s",)),
        ("loss", ("0.6000",)),
        ("trial", ("3f9ac_00001",)),
        ("units", ("64",)),
    ]


def test_a_checkpoint_whose_files_are_gone_is_marked():
    (column,) = chosen_columns(
        ["checkpoint"], [a_row(presence="missing", checkpoints=(a_checkpoint(6),))], a_head()
    )
    assert column.cells == ("6 MISSING",)


def test_a_narrow_table_keeps_what_tells_most():
    rows = [
        a_row(n, status=TrialStatus.ERROR, error="ValueError: " + "x" * 90, num_failures=1) for n in range(3)
    ]
    columns = trial_columns(rows, a_head())
    shown, left_out = fit_columns(columns, 60)
    assert names(column for column, _ in shown) == ["trial", "status", "loss", "iteration", "error"]
    assert set(names(left_out)) == {"acc", "config/lr", "checkpoint", "duration", "failures"}
    wide, nothing = fit_columns(columns, 1000)
    assert not nothing
    assert {column.name: width for column, width in wide}["error"] == 102


def test_the_first_column_is_shown_however_narrow_the_terminal_is():
    shown, _ = fit_columns(trial_columns([a_row()], a_head()), 4)
    assert [(column.name, width) for column, width in shown] == [("trial", 4)]


columns_of_any_kind = st.lists(
    st.builds(
        Column,
        name=st.uuids().map(str),
        header=st.text("abc", max_size=12),
        cells=st.tuples(st.text("xyz日", max_size=40), st.text("xyz", max_size=8)),
        priority=st.integers(0, 20),
        min_width=st.none() | st.integers(1, 20),
    ),
    min_size=1,
    max_size=12,
)


@given(columns_of_any_kind, st.integers(1, 200))
def test_the_table_never_exceeds_the_width_and_loses_no_column_silently(columns, width):
    shown, left_out = fit_columns(columns, width)
    assert sum(taken for _, taken in shown) + GAP * (len(shown) - 1) <= width
    assert sorted(names([column for column, _ in shown]) + names(left_out)) == sorted(names(columns))
    order = names(columns)
    positions = [order.index(column.name) for column, _ in shown]
    assert all(a < b for a, b in pairwise(positions))
    for column, taken in shown[:1] if len(shown) == 1 else shown:
        least = column.width if column.min_width is None else min(column.width, column.min_width)
        assert taken >= min(least, width)
        assert taken <= column.width


@pytest.mark.parametrize("width", [80, 200])
def test_metrics_are_right_aligned_and_names_left(width):
    shown, _ = fit_columns(trial_columns([a_row(n) for n in range(3)], a_head()), width)
    aligned = {column.name: column.right for column, _ in shown}
    assert aligned["trial"] is False
    assert aligned["loss"] is aligned["iteration"] is aligned["duration"] is True
