"""Interleavings of two and three drivers on one bucket that fails at random."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.state.mirror.simulation import simulate


@pytest.mark.parametrize("drivers", [2, 3])
@pytest.mark.parametrize("part", range(3))
async def test_exactly_one_goes_on_and_nothing_acknowledged_is_lost(tmp_path, rng, drivers, part):
    outcomes: Counter[str] = Counter()
    acknowledged = 0
    for number in range(10):
        seed = rng.getrandbits(32)
        played = await simulate(f"{tmp_path}/{number}", seed, drivers=drivers)
        outcomes += played.outcomes
        acknowledged += played.acknowledged
        print(f"seed {seed}: {dict(played.outcomes)}")
    assert outcomes["went on"] >= 5, outcomes
    assert acknowledged > 10


async def test_without_conditions_no_two_go_on_in_the_end(tmp_path, rng):
    outcomes: Counter[str] = Counter()
    for number in range(20):
        seed = rng.getrandbits(32)
        played = await simulate(f"{tmp_path}/{number}", seed, drivers=2 + number % 2, conditions=False)
        outcomes += played.outcomes
        print(f"seed {seed}: {dict(played.outcomes)}")
    assert outcomes["went on"] >= 10, outcomes
