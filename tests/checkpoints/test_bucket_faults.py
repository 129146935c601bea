"""Whatever fails at whatever operation of the bucket, and wherever the driver dies: records and bucket fit together.

Each run tries a sample of the operations; `python -m tests.lab --full --only bucket` tries all.
"""

from __future__ import annotations

import pytest

from tests.checkpoints.bucket_scenes import (
    FAULTS,
    IN_ORDER,
    after,
    before,
    fails_once,
    is_away,
    killed_and_opened_again,
    killed_and_taken_over,
    operations,
)
from tests.checkpoints.buckets import RULES

KEEP = pytest.mark.parametrize("keep", [None, 1, 3], ids=["keep-all", "keep-1", "keep-3"])


@KEEP
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("rules", [RULES, IN_ORDER], ids=["any-order", "in-order"])
async def test_every_operation_fails(tmp_path, keep, fault, rules, sampled):
    count = await operations(tmp_path, keep, rules)
    assert count > 30
    for number in sampled(range(1, count + 1), 3):
        await fails_once(tmp_path, keep, rules, fault, number)


@KEEP
async def test_the_bucket_is_away_for_a_while(tmp_path, keep, sampled):
    count = await operations(tmp_path, keep)
    for number in sampled(range(1, count + 1), 4):
        await is_away(tmp_path, keep, number)


@KEEP
@pytest.mark.parametrize("kill", [before, after], ids=["before", "after"])
@pytest.mark.parametrize("notes", [True, False], ids=["notes", "no-notes"])
async def test_killed_at_every_operation_and_opened_again(tmp_path, keep, kill, notes, sampled):
    count = await operations(tmp_path, keep)
    for number in sampled(range(1, count + 1), 4):
        await killed_and_opened_again(tmp_path, keep, kill, number, notes=notes)


@KEEP
async def test_killed_at_every_operation_and_taken_over_elsewhere(tmp_path, keep, sampled):
    count = await operations(tmp_path, keep)
    for number in sampled(range(1, count + 1), 5):
        await killed_and_taken_over(tmp_path, keep, number)
