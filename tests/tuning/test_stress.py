"""Tuners that are ended at random moments, again and again, lose next to nothing."""

from __future__ import annotations

import pytest

from tests.crash.tuner_killing import MOST, kill_tuners
from tests.crash.tuning import KINDS


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", KINDS)
async def test_ended_at_random_moments_it_goes_on(tmp_path, rng, kind):
    tally = await kill_tuners(tmp_path, rng, 10, kind)
    assert tally.killed >= 10
    assert tally.ratio <= MOST
