"""What of a listing is needed, and what is not: told from names, ages and records."""

from __future__ import annotations

from typing import Any

import pytest

from asynctune.checkpoints.records import CheckpointRecord
from asynctune.inspect.leaks import Known, Piles, is_needed, leaks_among
from asynctune.inspect.report import Problem
from asynctune.packing import pack
from asynctune.storage.values import ObjectInfo

NOW = 1_700_000_000.0


def record(trial_id: str, step: int, directory: str, **given: Any) -> tuple[str, bytes]:
    made = CheckpointRecord(
        trial_id=trial_id,
        step=step,
        directory=directory,
        manifest_sha256="0" * 64,
        files={"a": 1},
        size_bytes=1,
        committed_at=NOW,
        metrics={},
        epoch=1,
        attempt=0,
        **given,
    )
    return f"checkpoint/{trial_id}/{step}", pack(made.to_value())


RECORDS = dict(
    [
        ("experiment", pack({})),
        ("trial/a", pack({})),
        ("trial/b", pack({})),
        ("name/bee", pack("b")),
        record("a", 1, "a/checkpoint_000001", mirrored=True),
        record("a", 2, "a/checkpoint_000002"),
        record("b", 3, "bee/checkpoint_000003-2.0", mirrored=True, deleting=True),
    ]
)


def left(*keys: str, known: Known | None = None, ages: dict[str, float] | None = None) -> dict[str, int]:
    piles = Piles()
    for key in keys:
        piles.add(ObjectInfo(key, 10, "1", None, NOW - (ages or {}).get(key, 7200.0)))
    found = leaks_among(piles, known or Known.of(RECORDS), NOW - 3600)
    return {leak.name: leak.size_bytes or 0 for leak in found}


def test_what_the_records_name_is_needed():
    needed = [
        "a/checkpoint_000001/weights.bin",
        "a/checkpoint_000001/.manifest.json",
        "a/checkpoint_000002/sub/x",
        "bee/checkpoint_000003-2.0/weights.bin",
        "a/result.json",
        "bee/progress.csv",
        "b/params.json",
    ]
    assert left(*needed) == {}


def test_what_no_record_names_is_left_behind():
    assert left(
        "a/checkpoint_000001-3.1/weights.bin",
        "a/checkpoint_000001-3.1/.manifest.json",
        "c/checkpoint_000001/weights.bin",
        "c/result.json",
        "c/progress.csv",
    ) == {"a/checkpoint_000001-3.1/": 20, "c/checkpoint_000001/": 10, "c/": 20}


def test_what_is_young_may_be_recorded_soon():
    keys = ["c/checkpoint_000001/x", "c/checkpoint_000001/y"]
    assert left(*keys, ages={keys[1]: 3599.0}) == {}
    assert left(*keys, ages={keys[1]: 3601.0}) == {"c/checkpoint_000001/": 20}


def test_what_asynctune_does_not_make_is_counted_and_not_listed():
    piles = Piles()
    others = [
        "notes.txt",
        "c/photo.jpg",
        "c/deep/result.json",
        ".cache/checkpoint_000001/x",
        ".asynctune/mine",
    ]
    for key in [*others, ".asynctune/CURRENT", ".asynctune/seg-1-0123456789ab-1"]:
        piles.add(ObjectInfo(key, 10, "1", None, 0.0))
    assert (piles.other.objects, piles.other.size_bytes) == (len(others), 10 * len(others))
    assert list(leaks_among(piles, Known.of(RECORDS), NOW)) == []


def test_a_record_that_makes_no_sense_may_name_any_checkpoint():
    known = Known.of(RECORDS | {"checkpoint/a/4": pack({"v": 99})})
    (problem,) = known.problems
    assert isinstance(problem, Problem)
    assert "checkpoint/a/4" in problem.message
    assert left("c/checkpoint_000001/x", "c/result.json", known=known) == {"c/": 10}
    assert is_needed("c/checkpoint_000001/x", known, driven=False)


@pytest.mark.parametrize(
    ("key", "driven", "needed"),
    [
        ("a/checkpoint_000002/x", False, True),
        ("a/checkpoint_000001/x", True, False),
        ("c/checkpoint_000001/x", True, False),
        ("a/result.json", True, True),
        ("a/result.json", False, False),
        ("c/result.json", True, False),
        (".asynctune/snap-1-0123456789ab-9", True, False),
    ],
    ids=["pending", "mirrored", "unknown", "results, driven", "results", "results of nobody", "state"],
)
def test_an_unfinished_upload_is_needed_while_its_checkpoint_is_not_in_the_bucket(key, driven, needed):
    assert is_needed(key, Known.of(RECORDS), driven=driven) is needed
