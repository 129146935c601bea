"""The running summary of a tracked metric."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from asynctune.store.summary import as_named, updated


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=40))
def test_it_is_what_all_values_were(values):
    summary: list[object] = []
    for value in values:
        summary = updated(summary, 3, value)
    found = as_named(summary, 3)
    assert (found["min"], found["max"]) == (min(values), max(values))
    assert math.isclose(found["avg"], sum(values) / len(values), abs_tol=1e-6)
    assert math.isclose(found["last-10-avg"], sum(values[-10:]) / len(values[-10:]), abs_tol=1e-6)


def test_what_is_no_number_changes_nothing():
    summary = updated(updated(updated([], 1, 2.0), 1, math.nan), 1, None)
    assert as_named(summary, 1) == {"min": 2.0, "max": 2.0, "avg": 2.0, "last-10-avg": 2.0}
    assert as_named(updated([], 1, None), 1) == {}
    assert as_named([], 1) == {}


def test_an_integer_beyond_every_float_is_infinite():
    assert as_named(updated([], 1, -(10**400)), 1)["min"] == -math.inf


def test_another_generation_begins_anew():
    summary = updated([], 1, 2.0)
    assert as_named(summary, 2) == {}
    assert as_named(updated(summary, 2, 5.0), 2)["min"] == 5.0
