"""Many failed uploads are told in few words."""

from __future__ import annotations

import pytest

from asynctune.checkpoints.upload_reasons import reasons_told

DENIED = "put of 'run/{}/checkpoint_{:06}/model.pt' in s3://b/e: AccessDenied; allow it"

CASES = {
    "one": ([("a", 7, "no")], "checkpoint 7 of trial a: no"),
    "alike": (
        [("a", 1, "no room"), ("a", 2, "no room"), ("b", 1, "no room")],
        "3 checkpoints (1 of trial a, 2 of trial a, 1 of trial b): no room",
    ),
    "many": (
        [("a", step, "no room") for step in range(1, 13)],
        "12 checkpoints (1 of trial a, 2 of trial a, 3 of trial a, 9 more): no room",
    ),
    "of other files": (
        [("a", step, DENIED.format("a", step)) for step in range(1, 5)],
        f"4 checkpoints (1 of trial a, 2 of trial a, 3 of trial a, 1 more): the first: {DENIED.format('a', 1)}",
    ),
    "two reasons": (
        [("a", 1, "no room"), ("b", 3, "its upload had not begun"), ("a", 2, "no room")],
        "2 checkpoints (1 of trial a, 2 of trial a): no room; checkpoint 3 of trial b: its upload had not begun",
    ),
    "none": ([], ""),
}


@pytest.mark.parametrize("case", CASES)
def test_a_reason_is_told_once(case):
    failed, told = CASES[case]
    assert reasons_told(iter(failed)) == told


def test_however_many_reasons_there_are_it_is_short():
    failed = [(f"t{n}", n, "no" + "o" * n) for n in range(1000)]
    told = reasons_told(failed)
    assert told.endswith("; checkpoint 4 of trial t4: nooooo; and 995 more for other reasons")
