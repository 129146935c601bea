from __future__ import annotations

import numpy as np
import pytest

from asynctune.metrics import find_number, find_value, number_names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("loss", 0.5),
        ("flag", 1.0),
        ("whole", 3.0),
        ("eval/acc", 0.9),
        ("eval/deep/er", 7.0),
        ("a/b", 1.0),
        ("missing", None),
        ("eval", None),
        ("eval/none", None),
        ("text", None),
        ("text/x", None),
        ("", None),
        ("huge", 10**400),
        ("-huge", -(10**400)),
    ],
)
def test_metrics_are_looked_up_by_name_and_by_path(name, expected):
    metrics = {
        "loss": 0.5,
        "flag": True,
        "whole": 3,
        "eval": {"acc": 0.9, "deep": {"er": 7}},
        "a/b": 1.0,
        "a": {"b": 2.0},
        "text": "0.5",
        "huge": 10**400,
        "-huge": -(10**400),
    }
    assert find_number(metrics, name) == expected


def test_a_name_with_slashes_may_be_split_anywhere():
    assert find_value({"a/b": {"c": 1}}, "a/b/c") == 1
    assert find_value({"a": {"b/c": 1}}, "a/b/c") == 1
    assert find_value({"a": {"b": 0}, "a/b": {"c": 1}}, "a/b/c") == 1


def test_a_bottomless_mapping_ends():
    bottomless: dict[str, object] = {}
    bottomless["a"] = bottomless
    assert find_value(bottomless, "/".join("a" * 100)) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.array(0.25), 0.25),
        (np.zeros(1), None),
        (np.str_("a"), None),
    ],
    ids=["float32", "int64", "array-of-none", "array-of-one", "text"],
)
def test_numbers_of_numpy_count_as_those_that_are_stored_for_them(value, expected):
    found = find_number({"eval": {"acc": value}}, "eval/acc")
    assert found == expected
    assert type(found) is type(expected)


def test_the_names_of_all_numbers():
    metrics = {"loss": 0.5, "ok": True, "text": "x", "eval": {"acc": 1, "deep": {"f1": 2}, "none": None}}
    assert number_names(metrics) == ["loss", "ok", "eval/acc", "eval/deep/f1"]
    assert all(find_number(metrics, name) is not None for name in number_names(metrics))
