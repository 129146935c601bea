from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.errors import ConfigError
from asynctune.store.names import check_name, suggest_trial_id


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a/b", "path separator"),
        ("a\\b", "path separator"),
        ("/etc/passwd", "path separator"),
        ("..", "begins with a dot"),
        (".", "begins with a dot"),
        (".hidden", "begins with a dot"),
        ("../up", "path separator"),
        ("nul\0byte", "cannot be printed"),
        ("line\nbreak", "cannot be printed"),
        ("bell\a", "cannot be printed"),
        ("", "empty"),
        (" ", "white space"),
        (" a", "white space"),
        ("a\t", "white space"),
        ("\u00a0a", "white space"),
        ("\udc80", "not valid Unicode"),
        ("ok\ud800", "not valid Unicode"),
        ("x" * 300, "300 bytes"),
        ("é" * 101, "202 bytes"),
        (b"bytes", "must be a string"),
        (7, "must be a string"),
        (None, "must be a string"),
    ],
)
def test_a_name_that_cannot_be_a_directory_is_refused_with_its_reason(name, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        check_name(name, "trial_name")
    assert "trial_name" in str(caught.value)
    assert len(str(caught.value)) < 300
    str(caught.value).encode()  # a message with a lone surrogate could not be printed


@pytest.mark.parametrize(
    "name", ["a", "3f9ac_00007", "x" * 200, "Trial (1)", "日本", "a.b", "a..b", "-x", "~"]
)
def test_a_usual_name_is_taken(name):
    check_name(name, "trial_id")


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=50))
def test_a_name_that_is_taken_is_one_plain_path_component(name):
    try:
        check_name(name, "trial_id")
    except ConfigError:
        return
    assert name not in {".", ".."}
    assert not set(name) & set("/\\\0\n")
    assert len(name.encode()) <= 200


def test_suggested_ids_count_on_and_skip_what_is_taken():
    taken = {"abcde_00003", "abcde_00004"}
    assert suggest_trial_id("abcde", 0, taken.__contains__) == "abcde_00000"
    assert suggest_trial_id("abcde", 3, taken.__contains__) == "abcde_00005"
    assert suggest_trial_id("abcde", 123456, taken.__contains__) == "abcde_123456"
