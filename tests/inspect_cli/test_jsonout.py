"""The golden files are the contract: whoever changes one raises `FORMAT`, or only adds a field."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.errors import ExperimentNotFoundError
from asynctune.inspect.exits import Exit
from asynctune.inspect.jsonout import error_text, json_text, json_value
from asynctune.packing import pack
from tests.inspect_cli.reports import REPORTS

GOLDEN: Final = Path(__file__).parent / "golden"
WRITE_VARIABLE: Final = "ASYNCTUNE_WRITE_GOLDEN"


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is no JSON")


def check(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.json"
    if os.environ.get(WRITE_VARIABLE):
        path.write_text(text, encoding="ascii")
    json.loads(text, parse_constant=refuse)
    assert text == path.read_text(encoding="ascii"), (
        f"if this is meant: {WRITE_VARIABLE}=1 pytest -n 0 {__file__}"
    )


@pytest.mark.parametrize("kind", REPORTS)
def test_a_document_is_as_it_was(kind):
    check(kind, "".join(json_text(kind.partition("_")[0], REPORTS[kind][0])))


def test_the_document_of_an_error_is_as_it_was():
    check(
        "error", "".join(error_text(ExperimentNotFoundError("no experiment at /data/x"), Exit.NOTHING_THERE))
    )


def test_there_is_no_golden_file_without_a_document():
    assert {path.stem for path in GOLDEN.iterdir()} == {*REPORTS, "error"}


storable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8"))
    | st.binary()
    | st.complex_numbers()
    | st.frozensets(st.integers() | st.text(st.characters(codec="utf-8"), max_size=3), max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(
            st.none() | st.booleans() | st.integers() | st.text("ab1", max_size=2) | st.binary(max_size=2),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(storable)
def test_whatever_can_be_stored_is_valid_json(value):
    pack(value)
    text = json.dumps(json_value(value), allow_nan=False)
    json.loads(text, parse_constant=refuse)


def test_values_without_a_json_form_have_a_stated_one():
    assert json_value([math.nan, math.inf, -math.inf]) == ["NaN", "Infinity", "-Infinity"]
    assert json_value(b"\x00\xff") == "AP8="
    assert json_value({2: "x", None: "y", True: "z", (1, 2): "t"}) == {
        "2": "x",
        "null": "y",
        "true": "z",
        "[1, 2]": "t",
    }
    assert json_value({1: "x", "1": "y"}) == [[1, "x"], ["1", "y"]]
    assert json_value({"b", "a"}) == ["a", "b"]
    assert json_value("caf\udce9") == "caf\\udce9"
    assert json_value(complex(1, -2)) == "(1-2j)"
